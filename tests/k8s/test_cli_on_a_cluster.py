"""`corebound k8s apply|status|logs|delete` on a real API server, with only the rights that k8s/submitter.yaml gives."""

from __future__ import annotations

import dataclasses
import json

import pytest

from k8s.jobs import NAME, Manifest, Run, local_tokens
from k8s.layout import ROOT

pytestmark = [pytest.mark.k8s, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def submitter(run: Run) -> Run:
    """Returns the namespace as somebody sees it who may run jobs in it, and nothing else."""
    role = ("--role=corebound-submitter", "--user=submitter")
    run.access.kubectl("apply", "--namespace", run.namespace, "-f", str(ROOT / "k8s/submitter.yaml"))
    run.access.kubectl("create", "rolebinding", "corebound-submitter", *role, "--namespace", run.namespace)
    return dataclasses.replace(run, user="submitter")


def test_a_submitter_runs_a_job_reads_its_logs_and_deletes_it(submitter: Run, manifest: Manifest) -> None:
    path = str(manifest.write(submitter.folder))

    done = submitter.corebound("apply", path, "--wait")
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if '{"outputs"' in line]
    assert line.startswith("[launcher")
    assert json.loads(line.partition("] ")[2])["outputs"][0]["token_ids"] == local_tokens(32)

    status = submitter.corebound("status", NAME, "--json")
    assert status.returncode == 0, status.stderr
    found = json.loads(status.stdout)
    assert found["state"] == "Succeeded"
    assert [pod["role"] for pod in found["pods"]].count("launcher") == 1

    logs = submitter.corebound("logs", path, "--role", "launcher", "--no-prefix")
    assert logs.returncode == 0, logs.stderr
    assert [json.loads(line) for line in logs.stdout.splitlines() if line.startswith('{"outputs"')]

    deleted = submitter.corebound("delete", path)
    assert deleted.returncode == 0, deleted.stderr
    assert "deleted" in deleted.stderr
    gone = submitter.corebound("status", NAME)
    assert gone.returncode == 4
    assert "is not there" in gone.stderr
    again = submitter.corebound("delete", path)
    assert again.returncode == 0, again.stderr


def test_a_job_that_fails_is_the_exit_code_with_what_the_launcher_said(submitter: Run, manifest: Manifest) -> None:
    manifest.policy["backoffLimit"] = 0
    manifest.argue(model="/models/nowhere")

    done = submitter.corebound("apply", str(manifest.write(submitter.folder)), "--wait")

    assert done.returncode == 4, done.stdout + done.stderr
    assert "/models/nowhere" in done.stdout
    assert f"MPIJob {submitter.namespace}/{NAME} failed" in done.stderr


def test_a_job_is_applied_twice_without_a_change_and_replaced_when_asked(submitter: Run, manifest: Manifest) -> None:
    path = str(manifest.write(submitter.folder))
    first = submitter.corebound("apply", path)
    assert first.returncode == 0, first.stderr
    uid = submitter.get("mpijob", NAME)["metadata"]["uid"]

    second = submitter.corebound("apply", path)
    assert second.returncode == 0, second.stderr
    assert submitter.get("mpijob", NAME)["metadata"]["uid"] == uid

    third = submitter.corebound("apply", path, "--replace", "--wait")
    assert third.returncode == 0, third.stderr
    assert submitter.get("mpijob", NAME)["metadata"]["uid"] != uid


def test_somebody_without_rights_is_told_which_one_is_missing(run: Run, manifest: Manifest) -> None:
    nobody = dataclasses.replace(run, user="submitter")

    done = nobody.corebound("apply", str(manifest.write(run.folder)))

    assert done.returncode == 3
    assert "forbidden" in done.stderr
    assert "submitter" in done.stderr
