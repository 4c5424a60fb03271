"""A launch that systemd started as a service says when it is ready, and when and why it stops."""

from __future__ import annotations

import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from corebound.config import env
from corebound.launcher import notify

COMMAND = [sys.executable, "-m", "corebound", "run", "--num_accelerators", "2", "--no_local_rank"]


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """Returns the address of something that listens as systemd does, in both forms that it may have."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.settimeout(60)
        name = f"corebound-{secrets.token_hex(8)}"
        address = str(tmp_path / "notify") if request.param == "path" else f"@{name}"
        listener.bind(address if request.param == "path" else f"\0{name}")
        yield address, listener


def test_nothing_is_said_where_nobody_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert env.notify_socket() is None
    notify.ready(2, 1)


def test_a_manager_that_is_gone_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    notify.ready(2, 1)
    assert "systemd is not told READY=1" in caplog.text


def test_only_the_first_line_of_a_reason_is_told(
    monkeypatch: pytest.MonkeyPatch, manager: tuple[str, socket.socket]
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", manager[0])
    notify.stopping("rank 1 on b exited with 3\nits last lines:\n  x")
    assert manager[1].recv(4096) == b"STOPPING=1\nSTATUS=rank 1 on b exited with 3"


def test_a_launch_is_ready_when_its_ranks_run_and_stops_with_a_word(
    manager: tuple[str, socket.socket], tmp_path: Path
) -> None:
    script = tmp_path / "wait.py"
    script.write_text("import time\ntime.sleep(300)\n", encoding="utf-8")
    environ = {**env.snapshot(), "NOTIFY_SOCKET": manager[0]}
    with subprocess.Popen([*COMMAND, str(script)], env=environ, stderr=subprocess.PIPE) as launch:
        assert manager[1].recv(4096) == b"READY=1\nSTATUS=2 ranks run on 1 host"
        launch.send_signal(signal.SIGTERM)
        assert manager[1].recv(4096) == b"STOPPING=1\nSTATUS=stopped by SIGTERM"
        assert launch.wait(timeout=60) == 128 + signal.SIGTERM


def test_a_launch_whose_rank_fails_says_which(manager: tuple[str, socket.socket], tmp_path: Path) -> None:
    script = tmp_path / "fail.py"
    script.write_text("import os, sys, time\ntime.sleep(1)\nsys.exit(int(os.environ['RANK']) * 3)\n", encoding="utf-8")
    environ = {**env.snapshot(), "NOTIFY_SOCKET": manager[0]}
    done = subprocess.run([*COMMAND, str(script)], env=environ, capture_output=True, timeout=90, check=False)
    assert done.returncode == 3
    assert manager[1].recv(4096).startswith(b"READY=1\n")
    said = manager[1].recv(4096).decode()
    assert said.startswith("STOPPING=1\nSTATUS=rank 1 on ")


def test_a_program_that_cannot_be_started_is_never_ready(manager: tuple[str, socket.socket], tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text("#!/no/such/interpreter\n", encoding="utf-8")
    program.chmod(0o755)
    environ = {**env.snapshot(), "NOTIFY_SOCKET": manager[0]}
    done = subprocess.run(
        [*COMMAND[:-1], "--no_python", str(program)], env=environ, capture_output=True, timeout=90, check=False
    )
    assert done.returncode != 0
    assert manager[1].recv(4096).startswith(b"STOPPING=1\n")
