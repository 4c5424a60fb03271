"""Starts one rank through the shim and holds what belongs to it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from corebound.errors import ConfigError, LaunchError
from corebound.launcher.binding import Binding
from corebound.launcher.part import RankPart
from corebound.launcher.streams import Pump

_SHIM = Path(__file__).with_name("shim.py")


@dataclass
class RankProcess:
    """A rank that was started. `exit_code` is None while it runs, 128+n when signal n killed it."""

    part: RankPart
    binding: Binding | None
    process: subprocess.Popen[bytes]
    status_fd: int
    stderr: Pump
    stdout: Pump | None
    log: BinaryIO | None
    exit_code: int | None = None
    report: dict[str, Any] | None = None
    _status: bytes = field(default=b"", repr=False)

    @property
    def pid(self) -> int:
        """The process id, which is the id of its session and group as well."""
        return self.process.pid

    def read_status(self) -> bool:
        """Read what the shim has to say; return True when it has said everything (the command runs, or never will)."""
        while True:
            try:
                data = os.read(self.status_fd, 4096)
            except BlockingIOError:
                return False
            if not data:
                break
            self._status += data
        lines = self._status.splitlines()
        # The last line counts: a command that cannot be executed is found out after the binding was reported.
        self.report = json.loads(lines[-1]) if lines else None
        os.close(self.status_fd)
        self.status_fd = -1
        return True

    def drain(self, timeout_s: float) -> None:
        """Wait for the rest of its output and close its log."""
        for pump in (self.stdout, self.stderr):
            if pump is not None:
                pump.join(timeout_s)
        if self.log is not None:
            self.log.close()
            self.log = None


def start_rank(
    part: RankPart,
    *,
    binding: Binding | None,
    environ: Mapping[str, str],
    stdin: bytes | None,
    log_prefix: str | None,
) -> RankProcess:
    """Start a rank in a session of its own; a binding of None leaves it where the agent may run.

    Raises: LaunchError when the machine refuses another process, or the log cannot be written.
    """
    log = None if log_prefix is None else open_log(f"{log_prefix}{part.rank}.log")
    status_read, status_write = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(status_read, False)
    err_read, err_write = os.pipe2(os.O_CLOEXEC)
    out_read, out_write = os.pipe2(os.O_CLOEXEC) if log is not None else (None, None)
    stdin_fd = os.open(os.devnull, os.O_RDONLY) if stdin is None else _filled(stdin)
    task = {
        "parent": os.getpid(),
        "status": status_write,
        "cpus": [] if binding is None else binding.cpus,
        "policy": "default" if binding is None else binding.memory_policy,
        "nodes": [] if binding is None else binding.memory_nodes,
    }
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_SHIM), json.dumps(task), *part.command],
            stdin=stdin_fd,
            stdout=out_write,
            stderr=err_write,
            env=dict(environ),
            start_new_session=True,
            pass_fds=(status_write,),
        )
    except OSError as error:
        raise LaunchError(f"rank {part.rank} could not be started: {error.strerror}") from error
    finally:
        for fd in (stdin_fd, status_write, err_write, out_write):
            if fd is not None:
                os.close(fd)
    return RankProcess(
        part=part,
        binding=binding,
        process=process,
        status_fd=status_read,
        stderr=Pump(err_read, 2, log),
        stdout=None if out_read is None else Pump(out_read, 1, log),
        log=log,
    )


def make_log_dir(path: Path) -> None:
    """Make the directory for logs. Raises: ConfigError when that is not possible."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "expected a directory, found a file" if path.is_file() else error.strerror
        raise ConfigError(f"--enable_each_rank_log {path}: {reason}") from error


def open_log(path: str) -> BinaryIO:
    """Return a new, unbuffered log file. Raises: LaunchError when it cannot be made."""
    try:
        return Path(path).open("xb", buffering=0)
    except OSError as error:
        raise LaunchError(f"log {path}: {error.strerror}", hint="give --enable_each_rank_log a directory") from error


def _filled(data: bytes) -> int:
    """Return a descriptor that reads `data`: a file in memory, which cannot block the writer as a pipe can."""
    fd = os.memfd_create("rank0-stdin", os.MFD_CLOEXEC)
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    os.lseek(fd, 0, os.SEEK_SET)
    return fd
