"""`python -m k8s.operator_stand_in`: stands in for Kubeflow's MPI operator where its binary is not given.

It does for an MPIJob what the operator v0.8.2 does, and nothing for what this project does not use: `suspend`,
`managedBy`, gang scheduling, metrics, and keeping discover_hosts.sh up to date.
"""

from __future__ import annotations

import copy
import sys
import time
from datetime import UTC, datetime
from typing import Any

from kubernetes import config
from kubernetes.dynamic import DynamicClient
from kubernetes.dynamic.exceptions import ConflictError, DynamicApiError, NotFoundError
from urllib3.exceptions import HTTPError

from k8s import mpijob_objects as objects
from k8s.layout import layout
from k8s.mpijob_objects import API_VERSION, Object

PAUSE_S = 0.5


def now() -> str:
    """Returns the time as Kubernetes writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def condition_of(found: Object | None, kind: str) -> Object | None:
    """Returns an object's condition of a kind where it is true."""
    for condition in (found or {}).get("status", {}).get("conditions") or []:
        if condition["type"] == kind and condition["status"] == "True":
            return dict(condition)
    return None


def set_condition(status: Object, kind: str, value: str, reason: str, message: str) -> None:
    """Puts a condition into a status; its times change when its value does."""
    conditions = status.setdefault("conditions", [])
    stated = {"type": kind, "status": value, "reason": reason, "message": message}
    times = {"lastUpdateTime": now(), "lastTransitionTime": now()}
    for condition in conditions:
        if condition["type"] == kind:
            if condition["status"] != value:
                condition.update(stated | times)
            return
    if value == "True":
        conditions.append(stated | times)


class StandIn:
    """Compares every MPIJob with what is there and makes what is missing."""

    def __init__(self, api: DynamicClient) -> None:
        self.api = api
        self.refused: set[tuple[str, int]] = set()

    def resource(self, api_version: str, kind: str) -> Any:
        """Returns the access to one kind of object."""
        return self.api.resources.get(api_version=api_version, kind=kind)

    def get(self, api_version: str, kind: str, name: str, namespace: str) -> Object | None:
        """Returns an object, None where there is none."""
        try:
            return dict(self.resource(api_version, kind).get(name=name, namespace=namespace).to_dict())
        except NotFoundError:
            return None

    def create(self, body: Object) -> Object:
        """Makes an object and returns it."""
        resource = self.resource(body["apiVersion"], body["kind"])
        return dict(resource.create(body=body, namespace=body["metadata"]["namespace"]).to_dict())

    def ensure(self, body: Object) -> Object:
        """Returns an object that is there, made if it was not."""
        meta = body["metadata"]
        return self.get(body["apiVersion"], body["kind"], meta["name"], meta["namespace"]) or self.create(body)

    def event(self, job: Object, kind: str, reason: str, message: str) -> None:
        """Reports an event of a job."""
        meta = job["metadata"]
        involved = {"apiVersion": API_VERSION, "kind": "MPIJob", "name": meta["name"]}
        involved |= {"namespace": meta["namespace"], "uid": meta["uid"]}
        self.create(
            {
                "apiVersion": "v1",
                "kind": "Event",
                "metadata": {"generateName": f"{meta['name']}.", "namespace": meta["namespace"]},
                "involvedObject": involved,
                "type": kind,
                "reason": reason,
                "message": message,
                "count": 1,
                "firstTimestamp": now(),
                "lastTimestamp": now(),
                "source": {"component": "mpi-job-controller"},
            }
        )

    def reconcile(self, found: Object) -> None:
        """Does what is next for one MPIJob."""
        job = objects.with_defaults(found)
        meta = job["metadata"]
        wrong = list(objects.problems(job))
        if wrong:
            if (meta["uid"], meta["generation"]) not in self.refused:
                self.refused.add((meta["uid"], meta["generation"]))
                self.event(job, "Warning", "ValidationError", "Found validation errors: " + "; ".join(wrong))
            return
        status = copy.deepcopy(found.get("status") or {})
        if not status.get("conditions"):
            message = f"MPIJob {meta['namespace']}/{meta['name']} is created."
            set_condition(status, "Created", "True", "MPIJobCreated", message)
            self.event(job, "Normal", "MPIJobCreated", message)
            status["startTime"] = now()
        if status.get("completionTime"):
            self.clean(job)
        else:
            self.advance(job, status)
        if status != (found.get("status") or {}):
            resource = self.resource(API_VERSION, "MPIJob")
            resource.status.replace(body={**found, "status": status}, namespace=meta["namespace"])

    def advance(self, job: Object, status: Object) -> None:
        """Makes what a job that is not finished lacks, and states how it stands."""
        name, namespace = job["metadata"]["name"], job["metadata"]["namespace"]
        self.ensure(objects.service(job))
        if self.get("v1", "Secret", f"{name}-ssh", namespace) is None:
            self.create(objects.secret(job))
        self.ensure(objects.config_map(job))
        workers = [self.ensure(objects.worker(job, index)) for index in range(objects.num_workers_of(job))]
        ready = [pod for pod in workers if condition_of(pod, "Ready")]
        launcher = self.get("batch/v1", "Job", f"{name}-launcher", namespace)
        waits = job["spec"]["launcherCreationPolicy"] == "WaitForWorkersReady"
        if launcher is None and (not waits or len(ready) == len(workers)):
            launcher = self.create(objects.launcher(job))
        self.state(job, status, workers, launcher)

    def state(self, job: Object, status: Object, workers: list[Object], launcher: Object | None) -> None:
        """States how a job stands."""
        name = job["metadata"]["name"]
        phases = [pod.get("status", {}).get("phase") for pod in workers]
        evicted = [pod for pod in workers if pod.get("status", {}).get("reason") == "Evicted"]
        active = int((launcher or {}).get("status", {}).get("active") or 0)
        status["replicaStatuses"] = {"Launcher": {"active": active}, "Worker": {"active": phases.count("Running")}}
        if phases.count("Failed"):
            status["replicaStatuses"]["Worker"]["failed"] = phases.count("Failed")
        done, failed = condition_of(launcher, "Complete"), condition_of(launcher, "Failed")
        if done:
            self.finish(job, status, "Succeeded", "MPIJobSucceeded", f"MPIJob {name} successfully completed.")
        elif failed:
            reason, message = failed.get("reason") or "MPIJobFailed", failed.get("message") or ""
            self.finish(job, status, "Failed", reason, f"MPIJob {name} has failed: {message}")
        elif evicted:
            self.finish(job, status, "Failed", "MPIJobEvicted", f"{len(evicted)}/{len(workers)} workers are evicted")
        elif active and phases.count("Running") == len(workers):
            set_condition(status, "Running", "True", "MPIJobRunning", f"MPIJob {name} is running.")

    def finish(self, job: Object, status: Object, kind: str, reason: str, message: str) -> None:
        """States that a job is over."""
        status["completionTime"] = now()
        set_condition(status, kind, "True", reason, message)
        set_condition(status, "Running", "False", reason, message)
        self.event(job, "Normal" if kind == "Succeeded" else "Warning", reason, message)

    def clean(self, job: Object) -> None:
        """Removes the workers of a job that is over, as its run policy says."""
        policy = job["spec"]["runPolicy"]["cleanPodPolicy"]
        if policy == "None":
            return
        name, namespace = job["metadata"]["name"], job["metadata"]["namespace"]
        for index in range(objects.num_workers_of(job)):
            pod = self.get("v1", "Pod", f"{name}-worker-{index}", namespace)
            over = pod is None or pod["status"].get("phase") in ("Succeeded", "Failed")
            if pod is not None and not pod["metadata"].get("deletionTimestamp") and (policy == "All" or not over):
                self.resource("v1", "Pod").delete(name=pod["metadata"]["name"], namespace=namespace)

    def run(self) -> None:
        """Looks after all MPIJobs; does not return."""
        while True:
            try:
                jobs = self.resource(API_VERSION, "MPIJob").get().to_dict()["items"]
            except (DynamicApiError, HTTPError) as error:
                print(f"operator stand-in: {error}", file=sys.stderr, flush=True)
                jobs = []
            for job in jobs:
                try:
                    if not job["metadata"].get("deletionTimestamp"):
                        self.reconcile(job)
                except ConflictError:
                    continue  # somebody else changed it: seen again in the next round
                except (DynamicApiError, HTTPError) as error:
                    print(f"operator stand-in: {job['metadata']['name']}: {error}", file=sys.stderr, flush=True)
            time.sleep(PAUSE_S)


def main() -> int:
    """Runs until it is ended."""
    StandIn(DynamicClient(config.new_client_from_config(str(layout().kubeconfig)))).run()
    return 1


if __name__ == "__main__":
    sys.exit(main())
