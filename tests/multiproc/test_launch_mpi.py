"""Two hosts by each MPI's own starter: the same places, output and ends as by ssh."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from corebound.config import env
from corebound.launcher.transports.mpi import DIALECTS
from multiproc.launches import Launch, eventually, segments
from multiproc.sshd import SSHD, SshServer, ssh_server
from multiproc.test_launch_failures import STUBBORN, up
from multiproc.test_launch_ssh import FACTS

pytestmark = [
    pytest.mark.multiproc,
    pytest.mark.skipif(SSHD is None, reason="this machine lacks sshd, to be had with apt-get install openssh-server"),
]
Start = Callable[..., Launch]
DOWN_S = 12.0
# Where `pip install --no-deps --target build/impi impi-rt` puts Intel MPI for these tests.
IMPI_ROOT = Path(__file__).parents[2] / "build/impi"
TWO = "node-a slots=1\nnode-b slots=1\n"


def environ_of(launcher: str) -> dict[str, str]:
    return {"I_MPI_ROOT": str(IMPI_ROOT)} if launcher == "impi" and IMPI_ROOT.is_dir() else {}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    with ssh_server(tmp_path_factory.mktemp("sshd")) as running:
        yield running


@pytest.fixture(params=["impi", "mpich", "openmpi"])
def start(request: pytest.FixtureRequest, tmp_path: Path, server: SshServer) -> Iterator[Start]:
    """Starts launches by one of the starters; afterwards no process is left on the hosts."""
    starter = DIALECTS[request.param]
    extra = environ_of(request.param)
    if starter.find({**env.snapshot(), **extra}) is None:
        pytest.skip(f"this machine lacks {starter.title}, to be had with {starter.package}")
    assert starter.ssh_variable is not None
    extra |= {starter.ssh_variable: f"-F {server.config}", "COREBOUND_EXPORT": "LAUNCH_TEST"}
    (tmp_path / "stubborn.py").write_text(STUBBORN)
    (tmp_path / "facts.py").write_text(FACTS)
    launches: list[Launch] = []

    def begin(hosts: str, *args: str | Path, env: dict[str, str] | None = None) -> Launch:
        (tmp_path / "hosts").write_text(hosts)
        flags = ("--launcher", request.param, "--hostfile", "hosts")
        launches.append(Launch(*flags, *args, cwd=tmp_path, env={**extra, **(env or {})}))
        return launches[-1]

    yield begin
    for launch in launches:
        launch.kill_all()
    assert eventually(lambda: not server.children(), DOWN_S), server.children()


def test_ranks_of_unequal_hosts_get_their_places(start: Start) -> None:
    launch = start(
        "node-b slots=2\nnode-a slots=1\n", "facts.py", "two words", env={"HF_TOKEN": "s3cret", "OTHER": "x"}
    )
    assert launch.end() == 0, launch.stderr
    ranks: list[dict[str, Any]] = [json.loads(line) for line in launch.stdout.splitlines()]
    ranks.sort(key=lambda rank: int(rank["env"]["RANK"]))
    names = ("RANK", "LOCAL_RANK", "LOCAL_SIZE", "CROSS_RANK", "WORLD_SIZE")
    assert [[rank["env"][name] for name in names] for rank in ranks] == [
        ["0", "0", "2", "0", "3"], ["1", "1", "2", "0", "3"], ["2", "0", "1", "1", "3"],
    ]  # fmt: skip
    for rank in ranks:
        assert rank["argv"] == ["two words"]
        assert rank["cpus"] == sorted(os.sched_getaffinity(0))
        foreign = ("PMI_", "OMPI_COMM", "COREBOUND_AGENT", "HF_TOKEN", "OTHER")
        assert [name for name in rank["env"] if name.startswith(foreign)] == []
    assert sum(line.startswith("words of rank") for line in launch.stderr.splitlines()) == 3


def test_the_secret_is_on_no_command_line(start: Start, tmp_path: Path) -> None:
    launch = start(TWO, "stubborn.py")
    up(tmp_path)
    secrets, lines = set(), []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                variables = (entry / "environ").read_bytes().split(b"\0")
                lines.append((entry / "cmdline").read_bytes())
            except OSError:
                continue
            secrets |= {one.partition(b"=")[2] for one in variables if one.startswith(b"COREBOUND_AGENT_SECRET=")}
    assert secrets
    assert not [line for line in lines for secret in secrets if secret in line]
    os.kill(launch.pid, signal.SIGTERM)
    assert launch.end() == 143
    launch.assert_nothing_left(DOWN_S)


def test_a_killed_rank_ends_the_job_everywhere(start: Start, tmp_path: Path) -> None:
    launch = start(TWO, "stubborn.py")
    pids = up(tmp_path)
    os.kill(pids[1], signal.SIGKILL)
    start_s = time.monotonic()
    assert launch.end() == 137, launch.stderr
    assert time.monotonic() - start_s < DOWN_S
    assert f"rank 1 on node-b (pid {pids[1]}) was killed by SIGKILL" in launch.stderr
    launch.assert_nothing_left(1.0)
    assert segments(launch) == []


def test_a_killed_launcher_leaves_nothing(start: Start, tmp_path: Path) -> None:
    (temporary := tmp_path / "temporary").mkdir()
    launch = start(TWO, "stubborn.py", env={"TMPDIR": str(temporary)})
    up(tmp_path)
    os.kill(launch.pid, signal.SIGKILL)
    assert launch.end() == 137
    assert list(temporary.glob("corebound-*")) == []
    launch.assert_nothing_left(DOWN_S)
    assert eventually(lambda: segments(launch) == [], 1.0)


def test_a_killed_agent_ends_the_job_everywhere(start: Start, server: SshServer, tmp_path: Path) -> None:
    launch = start(TWO, "stubborn.py")
    up(tmp_path)
    os.kill(server.agents()["127.0.0.2"], signal.SIGKILL)
    assert launch.end() == 4, launch.stderr
    assert "the agent on node-" in launch.stderr and "is lost" in launch.stderr
    launch.assert_nothing_left(DOWN_S)
    assert eventually(lambda: segments(launch) == [], 1.0)


def test_a_host_that_refuses_is_named(start: Start) -> None:
    # Hydra of MPICH goes on without the host that refuses, so that the time decides.
    hosts = "node-a slots=1\nnode-refuses slots=1\n"
    launch = start(hosts, "facts.py", env={"COREBOUND_START_TIMEOUT_S": "10"})
    assert launch.end(90) == 4, launch.stderr
    assert "no agent arrived from" in launch.stderr and "node-refuses" in launch.stderr
    assert launch.stdout == ""
