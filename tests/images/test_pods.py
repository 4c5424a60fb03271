"""Workers and launchers of the runtime image on a network: health, host keys, one text from two of them, oneCCL."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

import corebound
from images.pods import WORKERS, Job, make_job, make_secret
from images.support import Images

pytestmark = [pytest.mark.images, pytest.mark.slow, pytest.mark.timeout(3600)]
PROMPT = "The river"
GENERATE = ("generate", "--json", "--model", "demo", "--prompt", PROMPT, "--max-new-tokens", "8")
OVER_ALL = ("--hostfile", "/etc/mpi/hostfile")


@pytest.fixture(scope="module")
def job(images: Images, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    made = make_job(images, tmp_path_factory.mktemp("job"))
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def expected() -> list[int]:
    return list(corebound.LLM("demo").generate([PROMPT], corebound.SamplingParams(max_new_tokens=8))[0].token_ids)


def report_of(job: Job, *flags: str, **environ: str) -> dict[str, Any]:
    """Returns the report of a launch over both workers."""
    done = job.launch(*GENERATE, *OVER_ALL, *flags, environ=environ)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_two_workers_say_what_this_checkout_says_and_oneccl_carries_it(job: Job, expected: list[int]) -> None:
    report = report_of(job, COREBOUND_COMM="ccl")
    assert report["outputs"][0]["token_ids"] == expected
    assert [(rank["host"], rank["comm"]) for rank in report["ranks"]] == [(name, "ccl") for name in WORKERS]


def test_intel_mpi_starts_the_ranks_too(job: Job, expected: list[int]) -> None:
    report = report_of(job, "--launcher", "impi")
    assert report["outputs"][0]["token_ids"] == expected
    assert [rank["host"] for rank in report["ranks"]] == list(WORKERS)


def test_a_launcher_that_holds_another_jobs_key_does_not_trust_the_workers(
    job: Job, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("other")
    folder.chmod(0o755)
    done = job.launch(*GENERATE, *OVER_ALL, secret=make_secret(folder / "secret"))
    assert done.returncode == 4
    assert "host key" in done.stderr.lower()
    assert WORKERS[0] in done.stderr


def test_a_worker_is_healthy_while_its_server_answers(job: Job) -> None:
    name, podman = WORKERS[1], job.images.podman
    assert job.is_healthy(name)
    podman("exec", name, "pkill", "-STOP", "-o", "sshd")
    try:
        assert not job.is_healthy(name)
    finally:
        podman("exec", name, "pkill", "-CONT", "-o", "sshd")
    assert job.is_healthy(name)


def test_a_container_without_a_server_is_healthy(images: Images) -> None:
    assert images.run("corebound-worker", "--check").returncode == 0


def test_mpi_carries_oneccl_between_ranks_of_one_container(images: Images) -> None:
    """Intel MPI's library itself, of which the image holds a part: oneCCL uses it where hydra started the ranks."""
    script = """
import torch
from corebound import comm
group = comm.init_distributed(60)
total = group.all_reduce(torch.full((5000,), 1.0 + group.rank))
print([group.name, group.rank, group.size, total.unique().item()], flush=True)
group.close()
"""
    names = {"COREBOUND_COMM": "ccl", "CCL_LOG_LEVEL": "info", "OMP_NUM_THREADS": "1", "MASTER_PORT": "29500"}
    options = tuple(f"--env={name}={value}" for name, value in names.items())
    done = images.run("mpiexec.hydra", "-n", "2", "python", "-c", script, options=options)
    assert done.returncode == 0, done.stderr[-4000:]
    # Asked for its log, oneCCL writes to standard output too.
    lines = sorted(line for line in done.stdout.splitlines() if line.startswith("['"))
    assert lines == ["['ccl', 0, 2, 3.0]", "['ccl', 1, 2, 3.0]"]
    assert "atl-mpi:" in done.stderr
