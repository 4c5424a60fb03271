"""What becomes of a job when pods, nodes or its own manifest fail it: the right end, in time, with words that help.

Every wait has a bound, so a job that hangs fails its test.
"""

from __future__ import annotations

import functools
import hashlib
import http.server
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from k8s import machine
from k8s.access import Access
from k8s.jobs import NAME, START_TIMEOUT_S, Manifest, Run, local_tokens
from k8s.layout import GATEWAY, nodes
from k8s.processes import wait_until

pytestmark = [pytest.mark.k8s, pytest.mark.slow, pytest.mark.timeout(900)]
# Enough that a test can hurt the job while it generates.
NUM_TOKENS = 600
# From the loss of a worker to the end of the attempt, and the start of the next one.
NOTICE_TIMEOUT_S = 120.0


@functools.cache
def right_tokens() -> list[int]:
    """Returns what one rank on this machine generates, as many tokens as a job that is to be hurt."""
    return local_tokens(NUM_TOKENS, "--ignore-eos")


def start_long(run: Run, manifest: Manifest) -> None:
    """Starts a job that generates for some time, and returns when it does."""
    manifest.argue(max_new_tokens=NUM_TOKENS, ignore_eos=True)
    run.apply(manifest)
    run.wait_for_log("KV cache")


def launcher_failures(run: Run) -> int:
    """Returns how many attempts of the launcher have failed."""
    return int(run.get("job", f"{NAME}-launcher").get("status", {}).get("failed") or 0)


def exit_code(pod: dict[str, object]) -> int:
    """Returns the exit code of a pod's container that has ended."""
    (status,) = pod["status"]["containerStatuses"]  # type: ignore[index]  # a pod that runs has it
    return int(status["state"]["terminated"]["exitCode"])


def test_a_worker_deleted_in_mid_run_is_replaced_and_the_next_attempt_is_right(run: Run, manifest: Manifest) -> None:
    start_long(run, manifest)
    old = [run.get("pod", f"{NAME}-worker-{index}")["metadata"]["uid"] for index in range(2)]

    run.access.kubectl("delete", "pod", f"{NAME}-worker-1", "--namespace", run.namespace, "--wait=false")

    run.wait(lambda: launcher_failures(run) == 1, "the attempt ends", NOTICE_TIMEOUT_S)
    first = run.pods("launcher")[0]
    log = run.access.kubectl("logs", "--namespace", run.namespace, first["metadata"]["name"]).stdout
    assert f"the agent on {NAME}-worker-1.{NAME}.{run.namespace}.svc (pid " in log, log
    assert " is lost: " in log, log
    assert exit_code(first) == 4
    run.wait(lambda: len(run.pods("launcher")) == 2, "another attempt starts", NOTICE_TIMEOUT_S)

    def workers() -> dict[str, str]:
        return {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in run.pods("worker")}

    run.wait(lambda: workers().get(f"{NAME}-worker-1", old[-1]) != old[-1], "the worker is replaced", NOTICE_TIMEOUT_S)
    assert workers()[f"{NAME}-worker-0"] == old[0]
    assert run.outcome() == "Succeeded"
    assert run.tokens() == right_tokens()


def test_a_job_that_may_not_be_tried_again_fails_when_a_worker_is_deleted(run: Run, manifest: Manifest) -> None:
    manifest.policy["backoffLimit"] = 0
    start_long(run, manifest)

    run.access.kubectl("delete", "pod", f"{NAME}-worker-0", "--namespace", run.namespace, "--wait=false")

    assert run.outcome(NOTICE_TIMEOUT_S) == "Failed"
    assert "backoff limit" in run.state()[1]
    status = run.corebound("status", NAME)
    assert status.returncode == 0, status.stderr
    assert "Failed" in status.stdout


def test_a_worker_that_never_comes_is_named_when_the_launchers_time_is_over(run: Run, manifest: Manifest) -> None:
    wait_s = 15
    manifest.job["spec"]["launcherCreationPolicy"] = "AtStartup"
    manifest.policy["backoffLimit"] = 0
    manifest.argue(wait_for_hosts=wait_s)
    # The second worker finds no node: the first keeps the only one that is allowed.
    manifest.pod("Worker")["nodeSelector"] = {"kubernetes.io/hostname": "node1"}
    manifest.pod("Launcher")["nodeSelector"] = {"kubernetes.io/hostname": "node2"}
    run.apply(manifest)
    run.wait(lambda: bool(run.pods("launcher")), "a launcher is made", START_TIMEOUT_S)

    assert run.outcome() == "Failed"
    (launcher,) = run.pods("launcher")
    error = run.log().split("error:", 1)[1].split("\n\n")[0]
    assert f"{NAME}-worker-1" in error
    assert f"{NAME}-worker-0" not in error
    assert f"{wait_s} s" in error
    assert exit_code(launcher) == 4
    (status,) = launcher["status"]["containerStatuses"]
    ended = status["state"]["terminated"]
    assert seconds_between(ended["startedAt"], ended["finishedAt"]) < wait_s + 30
    assert "FailedScheduling" in run.wait_for_event(f"{NAME}-worker-1", "FailedScheduling")


def seconds_between(first: str, second: str) -> float:
    """Returns the seconds between two times as Kubernetes writes them."""
    form = "%Y-%m-%dT%H:%M:%SZ"
    return time.mktime(time.strptime(second, form)) - time.mktime(time.strptime(first, form))


@contextmanager
def drained(access: Access, node: str) -> Iterator[None]:
    """Empties a node and keeps pods away from it, as before maintenance."""
    words = ("--force", "--delete-emptydir-data", "--ignore-daemonsets", "--timeout=120s")
    try:
        access.kubectl("drain", node, *words, timeout_s=150)
        yield
    finally:
        access.kubectl("uncordon", node)


def test_a_job_waits_out_a_drained_node_and_is_right_afterwards(run: Run, access: Access, manifest: Manifest) -> None:
    start_long(run, manifest)
    node = next(pod["spec"]["nodeName"] for pod in run.pods("worker") if pod["metadata"]["name"] == f"{NAME}-worker-1")

    with drained(access, node):
        run.wait_for_event(f"{NAME}-worker-1", "FailedScheduling", "unschedulable")
        assert run.state()[0] not in ("Succeeded", "Failed")
        assert not [pod for pod in run.pods("worker") if pod["spec"].get("nodeName") == node]

    assert run.outcome() == "Succeeded"
    assert run.tokens() == right_tokens()


@contextmanager
def unplugged(access: Access, name: str) -> Iterator[None]:
    """Cuts a node's network, and yields until it is plugged in again; the node is then ready once more."""
    node = next(node for node in nodes(access.layout) if node.name == name)
    machine.run("ip", "link", "set", node.link, "down")
    try:
        yield
    finally:
        machine.run("ip", "link", "set", node.link, "up")
        wait_until(lambda: access.num_ready_nodes() == len(nodes(access.layout)), "all nodes are ready again", 180)


def test_a_node_that_is_cut_off_in_mid_run_is_named_and_the_job_ends(
    run: Run, access: Access, manifest: Manifest
) -> None:
    manifest.policy["backoffLimit"] = 0
    manifest.pod("Launcher")["nodeSelector"] = {"kubernetes.io/hostname": "node1"}
    start_long(run, manifest)
    (cut,) = (pod["metadata"]["name"] for pod in run.pods("worker") if pod["spec"]["nodeName"] == "node2")

    with unplugged(access, "node2"):
        assert run.outcome(NOTICE_TIMEOUT_S) == "Failed"
        (launcher,) = run.pods("launcher")
        assert exit_code(launcher) == 4
        assert f"{cut}.{NAME}.{run.namespace}.svc" in run.log().split("ERROR", 1)[1]


def test_an_image_that_does_not_exist_is_named_by_event_and_status(run: Run, manifest: Manifest) -> None:
    image = "localhost/corebound/no-such-image:0"
    manifest.container("Worker")["image"] = image
    run.apply(manifest)

    run.wait_for_event(f"{NAME}-worker-0", "Failed", image)

    run.wait(lambda: image in run.corebound("status", NAME).stdout, "the status names the image", 60)
    # Without --timeout_s, `apply --wait` would wait for the job's own deadline.
    followed = run.corebound("logs", NAME, "--follow", "--timeout_s=5")
    assert followed.returncode == 4
    assert image in followed.stderr
    assert not run.pods("launcher")


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serves a folder to the pods and yields its URL."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer((GATEWAY, 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://{GATEWAY}:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def render_archive(run: Run, image: str, url: str, sha256: str) -> Manifest:
    """Returns the manifest of a job whose model is an archive."""
    model = {"source": "archive", "path": "/models/tiny", "url": url, "sha256": sha256}
    values = {"name": NAME, "image": image, "model": model}
    (run.folder / "values.yml").write_text(yaml.safe_dump(values), encoding="utf-8")
    path = run.folder / "rendered.yaml"
    done = run.corebound_offline("render", str(run.folder / "values.yml"), "--output", str(path))
    assert done.returncode == 0, done.stderr
    return Manifest.read(image, path)


def test_a_model_with_a_wrong_checksum_is_never_unpacked(run: Run, image: str) -> None:
    folder = run.folder / "served"
    folder.mkdir()
    (folder / "model.tar").write_bytes(b"another model than the one that was meant")
    found, expected = hashlib.sha256((folder / "model.tar").read_bytes()).hexdigest(), "0" * 64
    with served(folder) as url:
        run.apply(render_archive(run, image, f"{url}/model.tar", expected))
        run.wait_for_event(f"{NAME}-worker-0", "BackOff", "restarting failed container")
        worker = run.pods("worker")[0]
        container = worker["spec"]["initContainers"][0]["name"]
        log = run.log("worker", container)

    assert f"expected SHA-256 {expected}, found {found}" in log
    assert not run.pods("launcher")
    assert "exit code 6" in run.corebound("status", NAME).stdout


def two_ranks_in_one_pod(manifest: Manifest) -> None:
    """Makes a job of one worker with two ranks; this machine has no two CPUs for one pod, so they are not bound."""
    manifest.job["spec"]["mpiReplicaSpecs"]["Worker"]["replicas"] = 1
    manifest.job["spec"]["slotsPerWorker"] = 2
    manifest.argue(bind_cores_to_rank=None, no_bind_cores_to_rank=True)


def test_too_little_shared_memory_is_named_and_does_not_cost_the_answer(run: Run, manifest: Manifest) -> None:
    two_ranks_in_one_pod(manifest)
    volumes = manifest.pod("Worker")["volumes"]
    next(volume for volume in volumes if volume["name"] == "shm")["emptyDir"]["sizeLimit"] = "1Mi"
    run.apply(manifest)

    assert run.outcome() == "Succeeded"
    assert f"{NAME}-worker-0" in run.log()
    assert "/dev/shm is too small" in run.log()
    assert {rank["comm"] for rank in run.result()["ranks"]} == {"gloo"}
    assert run.tokens() == local_tokens(32)


def test_enough_shared_memory_is_used(run: Run, manifest: Manifest) -> None:
    two_ranks_in_one_pod(manifest)
    run.apply(manifest)

    assert run.outcome() == "Succeeded"
    assert {rank["comm"] for rank in run.result()["ranks"]} == {"shm"}
    assert run.tokens() == local_tokens(32)


def test_too_little_shared_memory_fails_where_nothing_else_may_be_used(run: Run, manifest: Manifest) -> None:
    two_ranks_in_one_pod(manifest)
    manifest.policy["backoffLimit"] = 0
    manifest.container("Launcher")["env"].append({"name": "COREBOUND_COMM", "value": "shm"})
    volumes = manifest.pod("Worker")["volumes"]
    next(volume for volume in volumes if volume["name"] == "shm")["emptyDir"]["sizeLimit"] = "1Mi"
    run.apply(manifest)

    assert run.outcome() == "Failed"
    (launcher,) = run.pods("launcher")
    assert exit_code(launcher) == 5
    assert "/dev/shm is too small" in run.log()


def test_cpu_limits_that_are_not_whole_are_refused_by_us_and_named_in_the_pod(run: Run, manifest: Manifest) -> None:
    for kind in ("requests", "limits"):
        manifest.container("Worker")["resources"][kind]["cpu"] = "900m"
    refused = run.corebound("apply", str(manifest.write(run.folder)))
    assert refused.returncode == 2
    assert "expected whole CPUs, found 900m: only those are pinned" in refused.stderr
    assert run.access.get("mpijobs", "--namespace", run.namespace)["items"] == []

    # The API server has nothing against it; then the pods say what they got.
    run.apply(manifest)
    run.wait(lambda: run.state()[0] == "Running", "the job runs", START_TIMEOUT_S)
    doctor = run.access.kubectl(
        "exec", "--namespace", run.namespace, f"{NAME}-worker-0", "--", "corebound", "doctor", check=False
    )
    assert "shared with other pods (its limit of 0.9 CPUs is not whole)" in doctor.stdout
    assert run.outcome() == "Succeeded"
    warnings = [line for line in run.log().splitlines() if "its limit of 0.9 CPUs is not whole" in line]
    assert len(warnings) == 2
    assert all("WARNING" in line for line in warnings)
    assert run.tokens() == local_tokens(32)
