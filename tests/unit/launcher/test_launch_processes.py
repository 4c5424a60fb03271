from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from corebound.launcher import processes

SLEEPER = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(60)"]


def await_environment(child: subprocess.Popen[bytes]) -> None:
    """Return when the child's environment can be read: Popen returns a moment before that, longer on a busy machine."""
    deadline_s = time.monotonic() + 20
    while not Path(f"/proc/{child.pid}/environ").read_bytes():
        assert time.monotonic() < deadline_s
        time.sleep(0.001)


def test_a_process_in_another_session_is_still_a_descendant() -> None:
    with subprocess.Popen(SLEEPER, start_new_session=True) as child:
        try:
            assert child.pid in processes.descendants(os.getpid())
        finally:
            child.kill()


def test_the_processes_of_a_job_are_known_by_its_id() -> None:
    """#6807: `pkill -f` of part of the command killed other jobs of the same user."""
    with subprocess.Popen(SLEEPER, env={"COREBOUND_JOB_ID": "test0a"}) as child:
        try:
            await_environment(child)
            assert processes.processes_of_job("test0a") == {child.pid}
            assert processes.processes_of_job("test0") == set()
        finally:
            child.kill()


def test_another_job_on_the_same_cpus_is_found_and_the_own_one_is_not() -> None:
    """vLLM #47328: two engines land on the same node."""
    cpu = min(os.sched_getaffinity(0))
    with subprocess.Popen(SLEEPER, env={"COREBOUND_JOB_ID": "test0b", "RANK": "1"}) as child:
        try:
            await_environment(child)
            os.sched_setaffinity(child.pid, {cpu})
            assert processes.jobs_on_cpus({cpu, 4000}, "mine")["test0b"] == {cpu}
            assert "test0b" not in processes.jobs_on_cpus({4000}, "mine")
            assert "test0b" not in processes.jobs_on_cpus({cpu}, "test0b")
        finally:
            child.kill()


def test_only_the_segments_of_the_job_are_removed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(processes, "SHM", tmp_path)
    for name in ("corebound.ab1.x", "corebound.ab1.y.0", "corebound.ab12.x", "corebound.ab1", "other.ab1.x"):
        (tmp_path / name).touch()
    assert sorted(processes.remove_segments("ab1")) == ["corebound.ab1.x", "corebound.ab1.y.0"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corebound.ab1", "corebound.ab12.x", "other.ab1.x"]


@pytest.mark.parametrize("job_id", ["", "*", "a.b", "../x", "A"])
def test_a_job_id_that_could_match_more_is_refused(job_id: str) -> None:
    with pytest.raises(ValueError, match="not a job id"):
        processes.remove_segments(job_id)
