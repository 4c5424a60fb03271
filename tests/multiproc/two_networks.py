"""Two hosts of network namespaces: each with its own network, process numbers and /dev/shm, joined by one cable.

Addresses are those of documentation (RFC 5737), and exist in the namespaces only: no route leads out of them. The names
of the hosts are the same, and so are the numbers of their processes, as among containers.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ADDRESSES = ("192.0.2.1", "192.0.2.2")
PORT = "29517"
RUNTIME = Path(__file__).parents[2] / "runtime"
# The first process of a host: starts its ranks, ends with the worst of their codes, and takes them along when it dies.
_HOST = """
import os, socket, subprocess, sys
socket.sethostname("node")
subprocess.run(["mount", "-t", "tmpfs", "none", "/dev/shm"], check=True)
first, count = int(os.environ["FIRST_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
ranks = []
for local in range(count):
    environ = {**os.environ, "RANK": str(first + local), "LOCAL_RANK": str(local)}
    ranks.append(subprocess.Popen([sys.executable, *sys.argv[1:]], env=environ))
sys.exit(max(rank.wait() & 255 for rank in ranks))
"""


class TwoHosts:
    """The namespaces. Use `two_hosts`."""

    def __init__(self) -> None:
        self.names = [f"corebound-{secrets.token_hex(3)}-{number}" for number in range(2)]
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, script: Path, ranks_per_host: int, **environment: str) -> None:
        """Starts the script as the ranks of both hosts, with an environment that names no interface."""
        named = ("CCL_", "FI_", "GLOO_", "COREBOUND_", "PMI_", "I_MPI_")
        base = {name: value for name, value in os.environ.items() if not name.startswith(named)}
        base |= {
            "WORLD_SIZE": str(2 * ranks_per_host),
            "LOCAL_WORLD_SIZE": str(ranks_per_host),
            "MASTER_ADDR": ADDRESSES[0],
            "MASTER_PORT": PORT,
            "GLOO_SOCKET_IFNAME": "cable",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(RUNTIME),
            **environment,
        }
        apart = ["unshare", "--uts", "--mount", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc"]
        for number, name in enumerate(self.names):
            self.processes.append(
                subprocess.Popen(
                    ["ip", "netns", "exec", name, *apart, sys.executable, "-c", _HOST, str(script)],
                    env={**base, "FIRST_RANK": str(number * ranks_per_host)},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )

    def finish(self, number: int, timeout_s: float) -> tuple[int, str, str]:
        """Returns exit code, standard output and standard error of a host's ranks."""
        out, err = self.processes[number].communicate(timeout=timeout_s)
        return self.processes[number].returncode, out, err


@contextlib.contextmanager
def two_hosts() -> Iterator[TwoHosts]:
    """Makes both hosts; at the end neither they, nor a process of theirs, nor the cable is there.

    Skips the test where a process may not make networks.
    """
    if os.geteuid() != 0:
        pytest.skip("this machine lacks the right to make network namespaces: that needs root")
    hosts = TwoHosts()
    try:
        try:
            for name in hosts.names:
                _run("ip", "netns", "add", name)
            first, second = hosts.names
            _run("ip", "link", "add", "cable", "netns", first, "type", "veth", "peer", "name", "cable", "netns", second)
            for name, address in zip(hosts.names, ADDRESSES, strict=True):
                _run("ip", "-netns", name, "address", "add", f"{address}/24", "dev", "cable")
                for link in ("lo", "cable"):
                    _run("ip", "-netns", name, "link", "set", link, "up")
        except (OSError, subprocess.CalledProcessError) as error:
            detail = getattr(error, "stderr", "") or error
            pytest.skip(f"this machine lacks the right to make network namespaces: {detail}")
        yield hosts
    finally:
        for process in hosts.processes:
            process.kill()  # unshare takes its namespace's processes along
            process.communicate()
        present = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False).stdout.split()
        for name in set(hosts.names) & set(present):
            _run("ip", "netns", "delete", name)


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, text=True, timeout=30)
