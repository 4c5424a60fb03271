"""A cluster of dictionaries: what tests give it, and what it was asked to do."""

from __future__ import annotations

import copy

from corebound.errors import HostError
from corebound.k8s.cluster import Reference

JOB_NAME = "training.kubeflow.org/job-name"
ROLE = "training.kubeflow.org/job-role"
INDEX = "training.kubeflow.org/replica-index"


def condition(kind, message="", reason=""):
    return {"type": kind, "status": "True", "message": message, "reason": reason}


def pod(name, role, index="0", *, state=None, phase="Running", restarts=0, **more):
    boxes = [] if state is None else [{"name": role, "restartCount": restarts, "state": state}]
    return {
        "metadata": {"name": name, "labels": {JOB_NAME: "bloom", ROLE: role, INDEX: index}},
        "spec": {"nodeName": "node1"},
        "status": {"phase": phase, "containerStatuses": boxes, **more},
    }


RUNNING = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}


def ended(exit_code, reason="Error", **more):
    return {"terminated": {"exitCode": exit_code, "reason": reason, **more}}


class FakeCluster:
    """Keeps objects as they are sent; `moments` are what a job and its pods become at each look at the job."""

    def __init__(self, *, kinds=("MPIJob", "NetworkPolicy", "Pod", "Event"), namespace="default"):
        self.kinds = set(kinds)
        self.namespace = namespace
        self.objects: dict[Reference, dict] = {}
        self.pods: list[dict] = []
        self.events: list[dict] = []
        self.logs: dict[str, list[str]] = {}
        self.moments: list = []
        self.lingering = False

    def knows(self, api_version, kind):
        return kind in self.kinds

    def read(self, reference):
        if reference.kind == "MPIJob" and self.moments:
            moment = self.moments.pop(0)
            if isinstance(moment, Exception):
                raise moment
            conditions, self.pods = moment
            self.objects[reference] = {
                "metadata": {"name": reference.name, "namespace": reference.namespace},
                "status": {"conditions": conditions},
            }
        return copy.deepcopy(self.objects.get(reference))

    def apply(self, reference, data, *, force):
        before = self.objects.get(reference)
        old = before["metadata"] if before else {"resourceVersion": 0, "generation": 0}
        same = before is not None and before["spec"] == data["spec"]
        step = 0 if same else 1
        metadata = {key: old[key] + step for key in ("resourceVersion", "generation")}
        self.objects[reference] = {**copy.deepcopy(data), "metadata": {**data["metadata"], **metadata}}
        return copy.deepcopy(self.objects[reference])

    def delete(self, reference):
        if self.lingering:
            return reference in self.objects
        self.pods = []
        return self.objects.pop(reference, None) is not None

    def find(self, kind, namespace, *, labels="", fields=""):
        return copy.deepcopy(self.pods if kind == "Pod" else self.events)

    def log(self, namespace, pod, container, *, follow, since_s):
        if pod not in self.logs:
            raise HostError(f"log of {namespace}/{pod}: gone")
        for number, text in enumerate(self.logs[pod]):
            yield f"2026-01-01T00:00:0{number}.000000000Z {text}" if follow else text


class Clock:
    """Time that passes only while someone sleeps."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds
