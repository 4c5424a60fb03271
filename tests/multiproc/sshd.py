"""A private SSH server on this machine, with an ssh configuration under which it is several hosts."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from corebound.launcher.processes import descendants
from multiproc.launches import eventually

SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:" + os.environ.get("PATH", ""))
_SERVER = """
ListenAddress 127.0.0.1:{port}
ListenAddress 127.0.0.2:{port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/user_key.pub
PidFile none
UsePAM no
StrictModes no
PermitRootLogin yes
PasswordAuthentication no
"""
_CLIENT = """
Host node-a
    HostName 127.0.0.1
Host node-b
    HostName 127.0.0.2
Host node-refuses
    HostName 127.0.0.3
Host node-unknown-key
    HostName 127.0.0.2
    UserKnownHostsFile /dev/null
Host *
    Port {port}
    IdentityFile {folder}/user_key
    IdentitiesOnly yes
    UserKnownHostsFile {folder}/known_hosts
    StrictHostKeyChecking yes
"""


@dataclass(frozen=True)
class SshServer:
    """A running server: `config` makes hosts of it."""

    pid: int
    port: int
    config: Path

    def children(self) -> dict[int, str]:
        """Every living process of a session: command line by pid."""
        found = {}
        for pid in descendants(self.pid):
            try:
                found[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
        return found

    def agents(self) -> dict[str, int]:
        """The agents (not their guardians) by the host's address, where they run."""
        running = {pid: line for pid, line in self.children().items() if "corebound.launcher.agent" in line}
        found = {}
        for pid in running:
            if _parent(pid) in running:
                environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                [connection] = [entry for entry in environ if entry.startswith(b"SSH_CONNECTION=")]
                found[connection.decode().split()[2]] = pid
        return found

    def session_of(self, agent_pid: int) -> set[int]:
        """The processes of the session that an agent lives in, its own and its ranks' included."""
        for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split():
            below = descendants(int(pid)) | {int(pid)}
            if agent_pid in below:
                return below
        raise AssertionError(f"agent {agent_pid} is in no session")


@contextmanager
def ssh_server(folder: Path) -> Iterator[SshServer]:
    """Run a server with keys of its own; afterwards nothing of it is left."""
    assert SSHD is not None
    for name in ("host_key", "user_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd wants it, its service makes it
    (folder / "sshd_config").write_text(_SERVER.format(port=port, folder=folder))
    (folder / "ssh_config").write_text(_CLIENT.format(port=port, folder=folder))
    key = (folder / "host_key.pub").read_text()
    (folder / "known_hosts").write_text("".join(f"[127.0.0.{n}]:{port} {key}" for n in (1, 2)))
    with (folder / "sshd.log").open("wb") as log:
        process = subprocess.Popen(
            [SSHD, "-D", "-e", "-f", folder / "sshd_config"], stderr=log, stdin=subprocess.DEVNULL
        )
        try:
            assert eventually(lambda: _listens(port)), (folder / "sshd.log").read_text()
            yield SshServer(process.pid, port, folder / "ssh_config")
        finally:
            process.terminate()
            process.wait()


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.2", port)) == 0
