"""The commands that talk to a cluster, with a cluster of dictionaries in its place."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from corebound.cli.main import main
from corebound.errors import HostError
from corebound.k8s.job import job_reference
from unit.k8s.fake_cluster import RUNNING, FakeCluster, condition, ended, pod

ROOT = Path(__file__).resolve().parents[3]
MANIFEST = str(ROOT / "k8s/mpijob-bloom.yaml")
CREATED, SUCCEEDED, FAILED = condition("Created"), condition("Succeeded"), condition("Failed", "limit reached")
LAUNCHER = "bloom-launcher-abcde"


@pytest.fixture
def cluster(monkeypatch):
    fake = FakeCluster()
    fake.logs = {LAUNCHER: ['{"outputs": []}']}
    for module in ("k8s_apply", "k8s_delete", "k8s_options"):
        loaded = importlib.import_module(f"corebound.cli.{module}")
        monkeypatch.setattr(loaded, "connect", lambda context, namespace: fake)
    monkeypatch.setattr("corebound.k8s.follow.POLL_S", 0.01)
    monkeypatch.setattr("corebound.k8s.apply.POLL_S", 0.01)
    monkeypatch.delenv("MPI_OPERATOR_MANIFEST", raising=False)
    return fake


def becomes(cluster, verdict, exit_code):
    """Let a job run from its second look on, and end at the fourth; the first is that of apply."""
    ran = pod(LAUNCHER, "launcher", state=ended(exit_code, "Completed" if exit_code == 0 else "Error"))
    original = cluster.apply

    def apply(reference, data, *, force):
        if reference.kind == "MPIJob":
            cluster.moments = [([CREATED], []), ([CREATED], [pod(LAUNCHER, "launcher", state=RUNNING)])]
            cluster.moments.append(([CREATED, verdict], [ran]))
        return original(reference, data, force=force)

    cluster.apply = apply


def test_apply_and_wait_prints_the_log_and_exits_with_0_when_the_job_succeeds(cluster, capsys):
    becomes(cluster, SUCCEEDED, 0)
    assert main(["k8s", "apply", MANIFEST, "--wait"]) == 0
    said = capsys.readouterr()
    assert said.out == '[launcher-abcde] {"outputs": []}\n'
    assert "MPIJob default/bloom created" in said.err
    assert said.err.rstrip().endswith("MPIJob default/bloom: Succeeded")


def test_apply_and_wait_exits_with_4_when_the_job_fails_and_says_why(cluster, capsys):
    becomes(cluster, FAILED, 3)
    assert main(["k8s", "apply", MANIFEST, "--wait"]) == 4
    assert (
        "error: MPIJob default/bloom failed: limit reached\n  bloom-launcher-abcde: container"
        in capsys.readouterr().err
    )


def test_apply_as_json_has_objects_and_job_on_stdout_and_logs_beside(cluster, capsys):
    becomes(cluster, SUCCEEDED, 0)
    assert main(["k8s", "apply", MANIFEST, "--wait", "--json"]) == 0
    said = capsys.readouterr()
    report = json.loads(said.out)
    assert [(one["kind"], one["result"]) for one in report["objects"]] == [
        ("NetworkPolicy", "created"),
        ("MPIJob", "created"),
    ]
    assert report["job"]["state"] == "Succeeded"
    assert [pod["name"] for pod in report["job"]["pods"]] == [LAUNCHER]
    assert "[launcher-abcde] " in said.err


def test_ctrl_c_leaves_the_job_and_exits_with_130(cluster, capsys, monkeypatch):
    becomes(cluster, SUCCEEDED, 0)

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("corebound.k8s.follow.Follower._tell", interrupt)
    assert main(["k8s", "apply", MANIFEST, "--wait"]) == 130
    assert "interrupted: MPIJob default/bloom goes on" in capsys.readouterr().err
    assert job_reference("bloom", "default") in cluster.objects


def test_a_manifest_that_is_wrong_is_not_sent(cluster, capsys):
    bad = str(ROOT / "tests/k8s/manifests/bad/two-launchers.yaml")
    assert main(["k8s", "apply", bad]) == 2
    assert "expected exactly one launcher, found 2" in capsys.readouterr().err
    assert cluster.objects == {}


def test_replace_deletes_a_finished_job_first(cluster, capsys):
    assert main(["k8s", "apply", MANIFEST]) == 0
    cluster.moments = [([CREATED, FAILED], [])]
    assert main(["k8s", "apply", MANIFEST]) == 4
    assert "is there already, and Failed" in capsys.readouterr().err
    assert main(["k8s", "apply", MANIFEST, "--replace"]) == 0
    assert "MPIJob default/bloom deleted" in capsys.readouterr().err


def test_status_shows_state_pods_and_problems_and_the_same_as_json(cluster, capsys):
    failed = pod(LAUNCHER, "launcher", state=ended(5), phase="Failed")
    moment = ([CREATED, FAILED], [failed, pod("bloom-worker-1", "worker", "1", state=RUNNING)])
    cluster.moments = [moment]
    assert main(["k8s", "status", "bloom"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("MPIJob default/bloom: Failed (limit reached)\n")
    assert "bloom-launcher-abcde: container launcher ended with exit code 5: Error" in said
    cluster.moments = [moment]
    assert main(["k8s", "status", MANIFEST, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["state"], [pod["index"] for pod in report["pods"]]) == ("Failed", [None, 1])


@pytest.mark.parametrize("command", ["status", "logs"])
def test_a_job_that_is_not_there_is_an_error(cluster, capsys, command):
    assert main(["k8s", command, "bloom"]) == 4
    assert "error: MPIJob default/bloom is not there" in capsys.readouterr().err


def test_logs_print_lines_for_a_program_and_exit_with_3_when_one_cannot_be_read(cluster, capsys):
    pods = [pod(LAUNCHER, "launcher", state=ended(0)), pod("bloom-worker-0", "worker", state=RUNNING)]
    cluster.moments = [([CREATED, SUCCEEDED], pods)] * 2
    assert main(["k8s", "logs", "bloom", "--role", "launcher", "--no-prefix"]) == 0
    assert json.loads(capsys.readouterr().out) == {"outputs": []}
    assert main(["k8s", "logs", "bloom"]) == 3
    assert "[worker-0] log not readable" in capsys.readouterr().err


def test_delete_says_what_was_there(cluster, capsys):
    assert main(["k8s", "apply", MANIFEST]) == 0
    capsys.readouterr()
    assert main(["k8s", "delete", "bloom", MANIFEST]) == 0
    assert "NetworkPolicy default/bloom deleted" in capsys.readouterr().err
    assert main(["k8s", "delete", MANIFEST]) == 0
    assert capsys.readouterr().err.count("was not there") == 2


def test_a_cluster_that_does_not_answer_is_a_failure_of_the_host(cluster, capsys):
    cluster.moments = [HostError("no answer from https://h")]
    assert main(["k8s", "status", "bloom"]) == 3
    assert "no answer from https://h" in capsys.readouterr().err


def test_without_a_cluster_to_talk_to_the_error_names_what_to_set(capsys, monkeypatch, tmp_path):
    kube_config = importlib.import_module("kubernetes.config.kube_config")
    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
    assert main(["k8s", "status", "bloom"]) == 2
    assert "hint: set KUBECONFIG" in capsys.readouterr().err


def test_following_a_job_by_its_name_is_bounded_by_the_job_s_own_deadline(cluster, capsys):
    assert main(["k8s", "apply", MANIFEST]) == 0
    read = cluster.read
    looks = []

    def look(reference):
        found = read(reference)
        looks.append(found)
        if len(looks) > 1:
            found["status"] = {"conditions": [CREATED, SUCCEEDED]}
        return found

    cluster.read = look
    assert main(["k8s", "logs", "bloom", "--follow"]) == 0
    assert "waiting without end" not in capsys.readouterr().err
    for document in cluster.objects.values():
        document["spec"].get("runPolicy", {}).pop("activeDeadlineSeconds", None)
    looks.clear()
    assert main(["k8s", "logs", "bloom", "--follow"]) == 0
    assert "waiting without end" in capsys.readouterr().err
