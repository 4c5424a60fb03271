"""The ssh transport: one agent on each host, over the system's OpenSSH client and its configuration."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence

from corebound.errors import LaunchError
from corebound.launcher.link import Link
from corebound.launcher.spec import LaunchSpec

CONNECT_TIMEOUT_S = 10
# The agent's own signs of life notice a host that hangs; this notices it in ssh's words.
_OPTIONS = ("BatchMode=yes", f"ConnectTimeout={CONNECT_TIMEOUT_S}", "ServerAliveInterval=2", "ServerAliveCountMax=4")
_HINTS = (
    (("Permission denied",), "put your public key into authorized_keys on that host; ssh may not ask for a password"),
    (("Host key verification failed", "HOST IDENTIFICATION HAS CHANGED"), "check the host's key, connect once by hand"),
    (("Connection refused",), "is sshd running there, and on this port? --ssh_port names another"),
    (("Could not resolve hostname",), "correct the name in the hostfile, or give it an address in /etc/hosts"),
    (("timed out", "No route to host", "not responding"), "is the host up, and does a firewall let ssh through?"),
    (("No module named",), "install Corebound on that host, or name its Python with --remote_python"),
    (("No such file or directory", "not found"), "name the Python of that host with --remote_python"),
)  # fmt: skip


def agent_words(spec: LaunchSpec, python_path: str | None, link: str) -> tuple[str, ...]:
    """Return the command of an agent on another host."""
    # -P: a module in the working directory must not replace one of the standard library's.
    command = (spec.remote_python or sys.executable, "-P", "-m", "corebound.launcher.agent", "--link", link)
    return after_script(spec, ("env", f"PYTHONPATH={python_path}", *command) if python_path else command)


def after_script(spec: LaunchSpec, command: tuple[str, ...]) -> tuple[str, ...]:
    """Return a command that runs in what --venv_script leaves behind; without one, as it is."""
    if spec.venv_script is None:
        return command
    # What the script prints must not be taken for words of the agent.
    return ("bash", "-c", '. "$0" >&2 && exec "$@"', str(spec.venv_script.absolute()), *command)


def ssh_options(spec: LaunchSpec) -> tuple[str, ...]:
    """Return our options of ssh for this launch. The user's go before them, because ssh obeys the first."""
    options: tuple[str, ...] = () if spec.ssh_port is None else ("-p", str(spec.ssh_port))
    for option in _OPTIONS:
        options = (*options, "-o", option)
    return options


def ssh_command(spec: LaunchSpec, host: str, environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return the command that starts the agent of one host."""
    agent = shlex.join(agent_words(spec, environ.get("PYTHONPATH"), "stdio"))
    # exec: the shell must not stand between sshd and the agent.
    return ("ssh", "-T", "-a", "-x", *spec.launcher_words, *ssh_options(spec), "--", host, f"exec {agent}")


def here_command(spec: LaunchSpec) -> tuple[str, ...]:
    """Return the command that starts the agent on this machine, where it is one of several hosts."""
    return after_script(spec, (sys.executable, "-P", "-m", "corebound.launcher.agent", "--link", "stdio"))


def start(host: str, command: Sequence[str], environ: Mapping[str, str]) -> Link:
    """Start an agent, or the ssh that does, with this environment and return the link to it.

    Raises: LaunchError when ssh is not installed.
    """
    try:
        process = subprocess.Popen(
            command,
            env=dict(environ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # A session of its own: Ctrl-C reaches the agents through the launcher, once, and ssh finds no terminal.
            start_new_session=True,
        )
    except OSError as error:
        raise LaunchError(
            f"{command[0]} could not be started: {error.strerror}", hint="install the OpenSSH client on this machine"
        ) from error
    assert process.stdin is not None and process.stdout is not None
    return Link(host, process.stdout.fileno(), process.stdin.fileno(), process)


def hint_for(words: Sequence[str]) -> str | None:
    """Return what to do about ssh's last words, None where they are not known."""
    text = "\n".join(words)
    return next((hint for marks, hint in _HINTS if any(mark in text for mark in marks)), None)
