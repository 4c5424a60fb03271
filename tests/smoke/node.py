"""Runs commands on a node, by fabric over ssh or on this machine, each within a bounded time."""

from __future__ import annotations

import shlex
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fabric import Config, Connection
from invoke.exceptions import CommandTimedOut
from paramiko import RejectPolicy, SSHException

from smoke.targets import Target

CONNECT_TIMEOUT_S = 10
# The node ends a command itself; only one that cannot is given up from here.
GRACE_S = 10
TIMED_OUT = 124  # what `timeout` ends with
# As a shell, this machine and paramiko tell it.
KILLED = (128 + signal.SIGKILL, -signal.SIGKILL, -1)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a command on a node came to; `command` as it would be typed there."""

    exit_code: int
    stdout: str
    stderr: str
    command: str = ""
    seconds: float = 0.0


def connect(target: Target) -> Connection:
    """Return a connection, not opened yet, that accepts the node's host key only if it is known, as ssh would."""
    # Each phase of the login has its own limit, so that a node which accepts and then says nothing is given up too.
    arguments: dict[str, object] = {"banner_timeout": CONNECT_TIMEOUT_S, "auth_timeout": CONNECT_TIMEOUT_S}
    if target.key_file:
        arguments["key_filename"] = target.key_file
    connection = Connection(
        target.address,
        user=target.user or None,
        port=target.port,
        connect_timeout=CONNECT_TIMEOUT_S,
        connect_kwargs=arguments,
        config=Config(runtime_ssh_path=target.ssh_config or None),
    )
    # Fabric's own choice is to accept any key.
    connection.client.set_missing_host_key_policy(RejectPolicy())
    for name in connection.ssh_config.get("userknownhostsfile", "~/.ssh/known_hosts").split():
        known_hosts = Path(name).expanduser()
        if known_hosts.is_file():
            connection.client.load_system_host_keys(str(known_hosts))
    return connection


class Node:
    """One node during a visit: one connection for all commands.

    `lost` is empty while the node answers. Then it says why it does not, and further commands are not tried: a node
    that is dead or hangs costs its time-out once.
    """

    def __init__(self, target: Target) -> None:
        self.target = target
        self.lost = ""
        self.answers: list[Answer] = []
        self._connection = connect(target)
        self._sudo: list[str] = ["sudo", "--non-interactive"] if target.become else []

    def run(self, words: Sequence[str], timeout_s: float | None = None) -> Answer:
        """Return what a command came to; a node that cannot be reached or does not answer is an answer too."""
        limit = timeout_s or self.target.timeout_s
        text = shlex.join(words)
        if self.lost:
            return Answer(exit_code=-1, stdout="", stderr=self.lost, command=text)
        started = time.monotonic()
        exit_code, stdout, stderr = self._run(words, limit)
        seconds = time.monotonic() - started
        # A command that does not heed the first signal is killed, and so may be a rank of a launch at any time.
        if exit_code == TIMED_OUT or (exit_code in KILLED and seconds >= limit):
            self.lost = f"no answer within {limit} s: {text}"
            exit_code, stderr = -1, f"{stderr}\n{self.lost}"
        answer = Answer(exit_code=exit_code, stdout=stdout, stderr=stderr, command=text, seconds=seconds)
        self.answers.append(answer)
        return answer

    def _run(self, words: Sequence[str], limit_s: float) -> tuple[int, str, str]:
        run = self._connection.local if self.target.connection == "local" else self._connection.run
        try:
            done = run(_bounded(words, limit_s), hide=True, warn=True, in_stream=False, timeout=limit_s + GRACE_S)
        except CommandTimedOut:
            return TIMED_OUT, "", ""
        except (OSError, EOFError, SSHException) as error:
            self.lost = f"cannot reach {self.target.address} port {self.target.port}: {error}"
            return -1, "", self.lost
        return done.exited, done.stdout, done.stderr

    def run_as_root(self, words: Sequence[str], timeout_s: float | None = None) -> Answer:
        """Return what a command came to as root where the inventory grants that, else as the user of the visit."""
        return self.run([*self._sudo, *words], timeout_s)

    def run_as_job_user(self, words: Sequence[str], timeout_s: float | None = None) -> Answer:
        """Return what a command came to as the user of the jobs, in that user's home and environment."""
        if self.target.user == self.target.job_user:
            return self.run(words, timeout_s)
        limit = timeout_s or self.target.timeout_s
        # A time-out outside could not end it: it belongs to another user.
        script = f"cd && exec {_bounded(words, limit)}"
        whole = [*self._sudo, "runuser", "--login", self.target.job_user, "--command", script]
        answer = self.run(whole, limit + GRACE_S)
        if answer.exit_code != TIMED_OUT:
            return answer
        return replace(answer, stderr=f"{answer.stderr}\nno answer within {limit} s: {shlex.join(words)}")

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def _bounded(words: Sequence[str], limit_s: float) -> str:
    """Return the command line that the node itself ends after the time, so that nothing runs on after the visit."""
    return shlex.join(["timeout", f"--kill-after={GRACE_S // 2}", str(limit_s), *words])
