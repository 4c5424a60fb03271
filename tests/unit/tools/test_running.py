"""The script that tells which launches run on a machine reads them from the environment of processes."""

from __future__ import annotations

from pathlib import Path

from unit.tools.loading import load_script

running = load_script("playbooks/roles/host_checks/files/running.py")


def process(proc: Path, pid: int, environ: bytes, command: bytes) -> None:
    """Make a process in a copy of /proc."""
    (proc / str(pid)).mkdir()
    (proc / str(pid) / "environ").write_bytes(environ)
    (proc / str(pid) / "cmdline").write_bytes(command)


def test_the_processes_of_a_launch_are_one_line(tmp_path: Path) -> None:
    process(tmp_path, 20, b"A=1\0COREBOUND_JOB_ID=aa\0", b"python\0train.py\0")
    process(tmp_path, 3, b"COREBOUND_JOB_ID=aa\0", b"python\0-u\0serve.py\0")
    process(tmp_path, 7, b"NOT_COREBOUND_JOB_ID=bb\0", b"bash\0")
    (tmp_path / "9").mkdir()
    (tmp_path / "self").mkdir()
    (line,) = running.jobs(tmp_path)
    assert line.startswith("job aa (user ")
    assert line.endswith("pids 3, 20): python -u serve.py")


def test_a_machine_without_such_a_service_runs_none() -> None:
    assert running.services(["corebound-no-such-unit.service"]) == []
