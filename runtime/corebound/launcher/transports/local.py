"""The local transport: one agent, a child of the launcher."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import IO

from corebound.errors import LaunchError
from corebound.launcher.part import AgentPart


def agent_command() -> tuple[str, ...]:
    """Return the command that starts an agent on this machine."""
    # -P: a module in the user's working directory must not replace one of the standard library's.
    return (sys.executable, "-P", "-m", "corebound.launcher.agent")


class LocalAgent:
    """A running agent: read `events_fd` until its end, then `wait`."""

    def __init__(self, part: AgentPart) -> None:
        self.events_fd, write_fd = os.pipe2(os.O_CLOEXEC)
        try:
            self._process = subprocess.Popen(
                [*agent_command(), "--events-fd", str(write_fd)],
                stdin=subprocess.PIPE,
                pass_fds=(write_fd,),
                # A session of its own: Ctrl-C on the terminal reaches the agent through the launcher, once.
                start_new_session=True,
            )
        except OSError as error:
            os.close(self.events_fd)
            raise LaunchError(f"the agent on this machine could not be started: {error.strerror}") from error
        finally:
            os.close(write_fd)
        self._say(part.to_json())

    @property
    def pid(self) -> int:
        """The agent's process id."""
        return self._process.pid

    def signal(self, number: signal.Signals) -> None:
        """Have the agent forward a signal to its ranks and stop them."""
        self._say(json.dumps({"signal": int(number)}))

    def wait(self) -> int:
        """Return the agent's exit code, 128+n when signal n killed it."""
        code = self._process.wait()
        self._stdin().close()
        os.close(self.events_fd)
        return code if code >= 0 else 128 - code

    def _say(self, line: str) -> None:
        try:
            self._stdin().write(line.encode() + b"\n")
            self._stdin().flush()
        except BrokenPipeError:
            pass  # the agent has ended; the end of its events says so too

    def _stdin(self) -> IO[bytes]:
        assert self._process.stdin is not None
        return self._process.stdin
