"""k8s/server.yaml on a real API server: two pods that serve as one, and come back as one."""

from __future__ import annotations

import json
import subprocess
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml

from k8s.access import Object, is_true
from k8s.jobs import START_TIMEOUT_S, Run, local_output
from k8s.layout import ROOT
from k8s.processes import wait_until

pytestmark = [pytest.mark.k8s, pytest.mark.slow, pytest.mark.timeout(900)]
MANIFEST = ROOT / "k8s/server.yaml"
NUM_TOKENS = 32
# Several seconds of work, less than a server has to finish in when it is stopped.
LONG = 400
# A pod that goes drains for up to 45 s; then all start again.
RESTART_TIMEOUT_S = 240.0


def make_keys(run: Run, folder: Path) -> None:
    """Makes the key pair of the pods, as the comment at the manifest's head says."""
    key = folder / "id_rsa"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    files = (f"--from-file={key}", f"--from-file={key}.pub", f"--from-file=authorized_keys={key}.pub")
    run.access.kubectl("create", "secret", "generic", "corebound-server-ssh", *files, "--namespace", run.namespace)


def documents(image: str) -> list[Object]:
    """Returns the manifest for an image. This release of Kubernetes knows the budget under its older version only."""
    found: list[Object] = list(yaml.safe_load_all(MANIFEST.read_text(encoding="utf-8")))
    for document in found:
        if document["kind"] == "PodDisruptionBudget":
            document["apiVersion"] = "policy/v1beta1"
        if document["kind"] == "StatefulSet":
            document["spec"]["template"]["spec"]["containers"][0]["image"] = image
    return found


def pods(run: Run) -> list[Object]:
    """Returns the server's pods."""
    found: list[Object] = run.access.get("pods", "--namespace", run.namespace)["items"]
    return sorted(found, key=lambda pod: str(pod["metadata"]["name"]))


def all_ready(run: Run) -> bool:
    """Returns whether both pods are there, ready, and none of them is going."""
    found = pods(run)
    going = [pod for pod in found if pod["metadata"].get("deletionTimestamp")]
    return len(found) == 2 and not going and all(is_true(pod, "Ready") for pod in found)


def restarts(run: Run) -> int:
    """Returns how often the container of the first pod was started again."""
    return int(pods(run)[0]["status"]["containerStatuses"][0]["restartCount"])


def answer(run: Run, num_tokens: int = NUM_TOKENS, **fields: object) -> str | None:
    """Returns what the server generates, None while it does not answer."""
    address = pods(run)[0]["status"].get("podIP")
    body = {"model": "demo", "prompt": "The old ship", "max_tokens": num_tokens, "temperature": 0, **fields}
    request = urllib.request.Request(
        f"http://{address}:8000/v1/completions",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return str(json.load(response)["choices"][0]["text"])
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return None


def state(run: Run) -> str | None:
    """Returns what the server says that it is doing, None while it does not answer."""
    address = pods(run)[0]["status"].get("podIP")
    try:
        with urllib.request.urlopen(f"http://{address}:8000/health", timeout=10) as response:
            return str(json.load(response)["state"])
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return None


@pytest.fixture
def server(run: Run, image: str) -> Run:
    """Returns the namespace with a server that is ready."""
    make_keys(run, run.folder)
    path = run.folder / "server.yaml"
    path.write_text(yaml.safe_dump_all(documents(image)), encoding="utf-8")
    run.access.kubectl("apply", "--server-side", "--namespace", run.namespace, "-f", str(path))
    wait(run, START_TIMEOUT_S)
    return run


def wait(run: Run, timeout_s: float) -> None:
    """Returns when the server is ready."""
    hint = f"kubectl describe pods --namespace {run.namespace}"
    wait_until(lambda: all_ready(run), "the server is ready", timeout_s, hint=hint, pause_s=0.5)


def test_a_server_of_two_pods_answers_as_one_rank_does(server: Run) -> None:
    text = answer(server)

    assert text == str(local_output(NUM_TOKENS)["text"])
    assert {pod["spec"]["nodeName"] for pod in pods(server)} == {"node1", "node2"}


def test_a_server_whose_pod_is_deleted_finishes_what_runs_and_comes_back_as_a_whole(server: Run) -> None:
    before = restarts(server)
    answers: list[str | None] = []
    asking = threading.Thread(target=lambda: answers.append(answer(server, LONG, ignore_eos=True)))

    asking.start()
    time.sleep(1.0)  # the request is under way
    assert not answers
    server.access.kubectl("delete", "pod", "corebound-1", "--namespace", server.namespace, "--wait=false")
    wait_until(lambda: state(server) == "draining", "the server drains", 20, pause_s=0.1)
    assert not answers
    asking.join(60)

    assert answers and answers[0] is not None

    wait_until(lambda: restarts(server) > before, "the first pod starts again", RESTART_TIMEOUT_S)
    wait(server, RESTART_TIMEOUT_S)
    assert answer(server) == str(local_output(NUM_TOKENS)["text"])


def test_a_server_of_which_a_rank_is_killed_comes_back_as_a_whole(server: Run) -> None:
    before = restarts(server)
    script = (
        "for rank in $(grep -lz ^RANK= /proc/[0-9]*/environ 2>/dev/null); do r=${rank#/proc/}; kill -9 ${r%/*}; done"
    )

    server.access.kubectl("exec", "corebound-1", "--namespace", server.namespace, "--", "sh", "-c", script, check=False)

    wait_until(lambda: restarts(server) > before, "the first pod starts again", RESTART_TIMEOUT_S)
    wait(server, RESTART_TIMEOUT_S)
    assert answer(server) == str(local_output(NUM_TOKENS)["text"])
