from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from corebound.launcher import shim

SHOW = [sys.executable, "-I", "-S", "-c", "import os; print(sorted(os.sched_getaffinity(0)))"]


def run_shim(command: list[str], **task: Any) -> tuple[subprocess.CompletedProcess[str], dict[str, Any] | None]:
    """Run a command through the shim; return how it ended and the last thing that the shim reported."""
    read_fd, write_fd = os.pipe()
    whole = {"parent": os.getpid(), "status": write_fd, "cpus": [], "policy": "default", "nodes": [], **task}
    shim_path = str(Path(shim.__file__))
    result = subprocess.run(
        [sys.executable, "-I", "-S", shim_path, json.dumps(whole), *command],
        pass_fds=(write_fd,),
        capture_output=True,
        text=True,
        timeout=30,
    )
    os.close(write_fd)
    with os.fdopen(read_fd) as status:
        lines = status.read().splitlines()
    return result, json.loads(lines[-1]) if lines else None


def test_the_command_runs_on_the_cpus_that_were_asked_for_and_they_are_reported() -> None:
    """#6565, #8548: "FileNotFoundError: numactl"; the kernel is asked directly, no program is needed."""
    cpu = max(os.sched_getaffinity(0))
    result, report = run_shim(SHOW, cpus=[cpu])
    assert result.stdout == f"[{cpu}]\n"
    assert report == {"cpus": [cpu], "policy_error": None}


def test_a_refused_memory_policy_is_reported_and_the_command_still_runs() -> None:
    """#4971, #4961: "set_mempolicy: Operation not permitted" in containers without SYS_NICE."""
    result, report = run_shim(SHOW, policy="bind", nodes=[900])  # no machine of a test has a node 900
    assert result.returncode == 0 and result.stdout
    assert report is not None and report["policy_error"]


def test_cpus_that_do_not_exist_are_an_error_before_the_command() -> None:
    result, report = run_shim(SHOW, cpus=[60000])
    assert (result.returncode, result.stdout) == (127, "")
    assert report == {"error": "sched_setaffinity to CPUs 60000: Invalid argument"}


def test_a_refused_death_signal_is_named() -> None:
    with pytest.raises(OSError, match=r"Invalid argument: 'prctl\(PR_SET_PDEATHSIG\)'"):
        shim.set_death_signal(os.getppid(), 4711)  # no such signal


def test_the_step_that_failed_is_reported_and_not_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(parent_pid: int, number: int) -> None:
        raise OSError(22, "Invalid argument")

    def end(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(shim, "set_death_signal", refuse)
    monkeypatch.setattr(shim.os, "_exit", end)
    read_fd, write_fd = os.pipe()
    with os.fdopen(write_fd, "w"), pytest.raises(SystemExit, match="127"):
        shim.main(["shim", json.dumps({"parent": 1, "status": write_fd, "cpus": []}), "./command"])
    with os.fdopen(read_fd) as status:
        assert json.loads(status.read()) == {"error": "prctl(PR_SET_PDEATHSIG): Invalid argument"}


def test_a_command_that_does_not_exist_is_reported() -> None:
    result, report = run_shim(["./nowhere"])
    assert result.returncode == 127
    assert report == {"error": "./nowhere: No such file or directory"}


def test_a_rank_whose_agent_is_gone_already_never_runs() -> None:
    result, report = run_shim(SHOW, parent=1)
    assert (result.returncode, result.stdout, report) == (-9, "", None)


@pytest.mark.parametrize("policy", ["default", "unknown"])
def test_a_default_policy_asks_the_kernel_for_nothing(policy: str) -> None:
    assert run_shim(SHOW, policy=policy, nodes=[900])[1] == {
        "cpus": sorted(os.sched_getaffinity(0)),
        "policy_error": None,
    }
