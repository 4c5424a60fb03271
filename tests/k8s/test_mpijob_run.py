"""k8s/mpijob-bloom.yaml on a real API server and real kubelets: what it comes to, and on which CPUs."""

from __future__ import annotations

import json
import re

import pytest

from corebound.topology import parse_cpu_list
from k8s.access import Access
from k8s.jobs import NAME, START_TIMEOUT_S, Manifest, Run, local_tokens
from k8s.layout import nodes

pytestmark = [pytest.mark.k8s, pytest.mark.slow, pytest.mark.timeout(900)]


def exclusive_cpus(access: Access, run: Run, pod_name: str) -> set[int]:
    """Returns the CPUs that the static CPU manager gave to a pod, from kubelet's own state."""
    pod = run.get("pod", pod_name)
    (node,) = (node for node in nodes(access.layout) if node.name == pod["spec"]["nodeName"])
    state = json.loads((node.folder / "kubelet/cpu_manager_state").read_text(encoding="utf-8"))
    assert state["policyName"] == "static"
    return set(parse_cpu_list(state["entries"][pod["metadata"]["uid"]]["worker"]))


def affinities(access: Access, run: Run, pod_name: str) -> list[set[int]]:
    """Returns the CPUs that the kernel lets each thread of the rank in a worker run on."""
    script = (
        "for rank in $(grep -l ^RANK= -z /proc/[0-9]*/environ 2>/dev/null); do "
        "cat ${rank%environ}task/*/status; done | grep Cpus_allowed_list"
    )
    done = access.kubectl("exec", "--namespace", run.namespace, pod_name, "--", "sh", "-c", script)
    return [set(parse_cpu_list(line.split()[1])) for line in done.stdout.splitlines()]


def test_the_manifest_runs_to_the_tokens_of_one_rank_on_this_machine(run: Run, manifest: Manifest) -> None:
    done = run.corebound("apply", str(manifest.write(run.folder)), "--wait", "--json")

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["job"]["state"] == "Succeeded"
    result = run.result()
    assert result["outputs"][0]["token_ids"] == local_tokens(32)
    assert [rank["host"] for rank in result["ranks"]] == [f"{NAME}-worker-0", f"{NAME}-worker-1"]
    # Workers are removed when the job is over; where they were was told meanwhile.
    assert set(re.findall(rf"{NAME}-worker-\d: Running on (\w+)", done.stderr)) == {"node1", "node2"}


def test_every_rank_runs_on_the_cpus_that_kubelet_gave_to_its_pod(run: Run, access: Access, manifest: Manifest) -> None:
    manifest.argue(max_new_tokens=1500, ignore_eos=True)
    run.apply(manifest)
    run.wait_for_log("KV cache")
    planned = {}
    for index in range(2):
        pod_name = f"{NAME}-worker-{index}"
        planned[pod_name] = exclusive_cpus(access, run, pod_name)
        assert len(planned[pod_name]) == 1
        found = affinities(access, run, pod_name)
        assert found
        assert all(cpus == planned[pod_name] for cpus in found), found
        (cpu,) = planned[pod_name]
        told = f"{pod_name}.{NAME}.{run.namespace}.svc: bound 1 rank to CPUs {cpu}; the pod has 1 of the node's"
        assert [line for line in run.log().splitlines() if told in line and line.endswith("of its own")]
    assert run.outcome() == "Succeeded"
    assert {rank["host"]: set(rank["cpus"]) for rank in run.result()["ranks"]} == planned


def test_the_objects_of_a_job_are_gone_when_it_is_deleted(run: Run, manifest: Manifest) -> None:
    run.apply(manifest)
    run.wait(lambda: run.state()[0] == "Running", "the job runs", START_TIMEOUT_S)

    done = run.corebound("delete", NAME)

    assert done.returncode == 0, done.stderr
    kinds = "pods,jobs.batch,configmaps,secrets,services"
    left = run.access.get(kinds, "--namespace", run.namespace)["items"]
    assert [item["metadata"]["name"] for item in left if item["metadata"]["name"].startswith(NAME)] == []
