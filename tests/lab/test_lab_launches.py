"""Launches across deployed nodes, by every transport and every provider, as the user of the jobs starts them."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest

from lab import slurm
from lab.cluster import start_again
from lab.deployed import COMMAND, HOSTFILE, JOB_USER, PREFIX, Deployed
from lab.launched import FACTS, SECRETS_IN_SIGHT, STUBBORN
from lab.starters import WAYS, Way, clean, end, everywhere, install_oneccl, processes, put, ready, segments
from multiproc.rank_harness import needs_ccl

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.native, pytest.mark.timeout(1800)]

# Left to itself a launch takes the last; the tests of the ways do that.
PROVIDERS = ("gloo", "hierarchical")
# Those that need oneCCL, with what carries the data between the nodes.
CCL_PROVIDERS = {"ccl": {}, "hierarchical": {"COREBOUND_HOST_LINK": "ccl"}}
DTYPES = ("float32", "bfloat16")
# From the loss of a node to the launcher's end. Its signs of life are missed after 10 s; the rest is cleaning up, and
# patience for a machine that has other work.
LOST_S = 60.0
DOWN_S = 30.0
POLICIES = {"bind": "bind:", "preferred": "prefer:", "interleave": "interleave:"}
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="module", params=WAYS)
def way(request: pytest.FixtureRequest, deployed: Deployed) -> Way:
    """Returns a way to launch across the nodes, with what it needs installed there."""
    put(deployed, "facts.py", FACTS)
    put(deployed, "stubborn.py", STUBBORN)
    put(deployed, "two", "node1 slots=2\nnode2 slots=2\n")
    put(deployed, "unequal", "node1 slots=1\nnode2 slots=2\n")
    return ready(deployed, request.param)


@pytest.fixture(scope="module")
def alone(deployed: Deployed) -> Callable[[str], Any]:
    """Returns the function that says what one rank generates in a data type; it asks once."""

    @cache
    def outputs(dtype: str) -> Any:
        return generated(deployed, (COMMAND, "generate"), "--num_accelerators", "1", "--dtype", dtype)["outputs"]

    return outputs


def generated(deployed: Deployed, command: tuple[str, ...], *args: str, **environ: str) -> dict[str, Any]:
    """Returns the report of a generation on the demo model."""
    words = (*command, "--json", "--model", "demo", "--prompt", "The river", *args)
    done = deployed.run("node1", *words, "--max-new-tokens", "8", timeout_s=400, **environ)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def facts(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    """Returns what the ranks said of themselves, in order."""
    assert done.returncode == 0, done.stderr
    return sorted((json.loads(line) for line in done.stdout.splitlines()), key=lambda one: int(one["env"]["RANK"]))


def left(deployed: Deployed, *names: str) -> dict[str, list[str]]:
    """Returns the processes and segments of launches that are still on the nodes after a while, by node."""
    deadline_s = time.monotonic() + DOWN_S
    while True:
        found = {name: processes(deployed, name) + segments(deployed, name) for name in names}
        if time.monotonic() >= deadline_s or not any(found.values()):
            return {name: lines for name, lines in found.items() if lines}
        time.sleep(0.5)


@pytest.fixture
def stubborn(deployed: Deployed, way: Way) -> Iterator[Start]:
    """Starts ranks that do not want to end, one on each node, and returns when they run; none of them stays."""
    started: list[subprocess.Popen[str]] = []

    def start(*before: str) -> subprocess.Popen[str]:
        words = way.words("run", "--num_accelerators", "1", "stubborn.py", hostfile="two")
        launch = deployed.start("node1", *before, *words)
        started.append(launch)
        assert launch.stdout is not None and launch.stderr is not None
        lines = [launch.stdout.readline() for _ in deployed.nodes]
        assert lines == ["up\n"] * len(deployed.nodes), launch.stderr.read()
        return launch

    yield start
    for launch in started:
        launch.kill()
        launch.wait()
    for node in deployed.nodes:
        clean(deployed, node.name)
    if way.name == "slurm":
        slurm.release(deployed)


@pytest.mark.parametrize("dtype", DTYPES)
def test_two_ranks_on_each_of_two_nodes_say_what_one_rank_says(
    deployed: Deployed, way: Way, alone: Callable[[str], Any], dtype: str
) -> None:
    report = generated(deployed, way.words("generate"), "--num_accelerators", "2", "--dtype", dtype)
    assert report["outputs"] == alone(dtype)
    assert [rank["host"] for rank in report["ranks"]] == ["node1", "node1", "node2", "node2"]
    assert {rank["comm"] for rank in report["ranks"]} == {"hierarchical"}


def test_ranks_are_bound_as_the_plan_says_on_each_node(deployed: Deployed, way: Way) -> None:
    flags = ("--num_accelerators", "2", "--bind_cores_to_rank")
    ranks = facts(deployed.run("node1", *way.words("run", *flags, "facts.py", "two words", hostfile="two")))
    planned = [
        (name, row)
        for name in ("node1", "node2")
        for row in json.loads(deployed.run(name, COMMAND, "plan", *flags, "--json").stdout)["ranks"]
    ]
    assert len(ranks) == 4
    for number, (rank, (name, row)) in enumerate(zip(ranks, planned, strict=True)):
        env = rank["env"]
        assert rank["host"] == name
        assert (env["RANK"], env["LOCAL_RANK"]) == (str(number), str(row["local_rank"]))
        assert (env["WORLD_SIZE"], env["LOCAL_SIZE"], env["CROSS_RANK"]) == ("4", "2", str(number // 2))
        assert rank["argv"] == [f"--local_rank={row['local_rank']}", "two words"]
        assert rank["cpus"] == row["cpus"]
        assert rank["policy"].startswith(POLICIES[row["memory_policy"]])
        assert env["OMP_NUM_THREADS"] == str(row["num_threads"])


def test_unequal_nodes_get_their_own_numbers_of_ranks_and_their_own_logs(deployed: Deployed, way: Way) -> None:
    folder = f"logs-{way.name}-{time.time_ns()}"
    words = way.words("run", "--enable_each_rank_log", folder, "facts.py", hostfile="unequal")
    ranks = facts(deployed.run("node1", *words))
    names = ("LOCAL_RANK", "LOCAL_SIZE", "CROSS_RANK", "WORLD_SIZE")
    assert [[rank["host"], *(rank["env"][name] for name in names)] for rank in ranks] == [
        ["node1", "0", "1", "0", "3"], ["node2", "0", "2", "1", "3"], ["node2", "1", "2", "1", "3"],
    ]  # fmt: skip
    for name, expected in (("node1", ["0"]), ("node2", ["1", "2"])):
        text = deployed.run(name, "grep", "-r", "words of rank", folder).stdout
        found = re.findall(r"_rank(\d)\.log:words of rank (\d)\n", text)
        assert sorted(found) == [(rank, rank) for rank in expected]


def test_variables_reach_other_nodes_by_the_list_and_tokens_never(deployed: Deployed, way: Way) -> None:
    mine = "it's mine"
    assignments = (
        "HF_TOKEN=hf_for_node1_only",
        "OMP_SCHEDULE=static",
        "OTHER=1",
        f"MINE={mine}",
        "COREBOUND_EXPORT=MINE",
    )
    words = way.words("run", "--num_accelerators", "1", "facts.py", hostfile="two")
    done = deployed.run("node1", "env", *assignments, *words)
    there = facts(done)[1]
    assert there["host"] == "node2"
    assert (there["env"]["OMP_SCHEDULE"], there["env"]["MINE"]) == ("static", mine)
    assert "HF_TOKEN" not in there["env"]
    assert "OTHER" not in there["env"]
    foreign = ("PMI_", "OMPI_COMM", "COREBOUND_AGENT", "SLURM_PROCID")
    assert [name for name in there["env"] if name.startswith(foreign)] == []
    assert "HF_TOKEN does not go to other hosts" in done.stderr


def test_no_secret_is_on_a_command_line_of_any_node(deployed: Deployed, way: Way, stubborn: Start) -> None:
    deployed.write("node1", "/home/corebound/with-token", 'export HF_TOKEN=hf_not_to_be_seen; exec "$@"\n')
    launch = stubborn("sh", "with-token")
    for node in deployed.nodes:
        seen = json.loads(deployed.podman.execute(node.name, "python3", "-c", SECRETS_IN_SIGHT))
        assert seen["agents"] >= 1
        assert (seen["tokens"] > 0) == (node.name == "node1")
        # ssh needs no secret of ours; the others have one, and it was found where it belongs.
        assert seen["secrets"] >= (0 if way.name == "ssh" else 1)
        assert seen["lines"] == []
    deployed.podman("exec", "node1", "pkill", "-TERM", "-u", JOB_USER, "-f", "bin/corebound run")
    code, _, err = end(launch, LOST_S)
    assert code == 143, err
    assert left(deployed, "node1", "node2") == {}, err


def test_a_killed_node_ends_the_job_everywhere_and_the_next_launch_works(
    deployed: Deployed, way: Way, stubborn: Start
) -> None:
    launch = stubborn()
    deployed.podman("kill", "--signal", "KILL", "node2")
    started_s = time.monotonic()
    try:
        code, _, err = end(launch, LOST_S)
        seconds = time.monotonic() - started_s
        assert code == 4, err
        assert re.search(r"the agent on node2 \(pid \d+\) is lost", err), err
        assert left(deployed, "node1") == {}, err
    finally:
        start_again(deployed.podman, deployed.nodes[1:2])
        if way.name == "slurm":
            slurm.wait(deployed)
    assert seconds < LOST_S
    words = way.words("run", "--num_accelerators", "2", "facts.py", hostfile="two")
    assert [rank["host"] for rank in facts(deployed.run("node1", *words))] == ["node1", "node1", "node2", "node2"]


# Slurm gives no node that is down.
@pytest.mark.parametrize("way", [name for name in WAYS if name != "slurm"], indirect=True, scope="module")
def test_a_node_that_is_down_is_named_before_any_rank_starts(deployed: Deployed, way: Way) -> None:
    deployed.podman("kill", "--signal", "KILL", "node2")
    try:
        done = deployed.run("node1", *way.words("run", "--num_accelerators", "1", "facts.py", hostfile="two"))
    finally:
        start_again(deployed.podman, deployed.nodes[1:2])
    assert done.returncode == 4, done.stderr
    assert "node2" in done.stderr
    assert done.stdout == ""
    assert left(deployed, "node1") == {}


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_each_provider_between_nodes_gives_the_tokens_of_one_rank(
    deployed: Deployed, alone: Callable[[str], Any], provider: str, dtype: str
) -> None:
    command = (COMMAND, "generate", "--hostfile", HOSTFILE)
    report = generated(deployed, command, "--num_accelerators", "2", "--dtype", dtype, COREBOUND_COMM=provider)
    assert report["outputs"] == alone(dtype)
    assert {rank["comm"] for rank in report["ranks"]} == {provider}


@pytest.fixture(scope="module")
def oneccl(deployed: Deployed) -> None:
    """Gives every node oneCCL."""
    everywhere(deployed, lambda node: install_oneccl(deployed, node))


@needs_ccl
@pytest.mark.usefixtures("oneccl")
@pytest.mark.parametrize("provider", CCL_PROVIDERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_oneccl_between_nodes_gives_the_tokens_of_one_rank(
    deployed: Deployed, alone: Callable[[str], Any], provider: str, dtype: str
) -> None:
    command = (COMMAND, "generate", "--hostfile", HOSTFILE)
    environ = {"COREBOUND_COMM": provider, **CCL_PROVIDERS[provider]}
    report = generated(deployed, command, "--num_accelerators", "2", "--dtype", dtype, **environ)
    assert report["outputs"] == alone(dtype)
    assert [rank["host"] for rank in report["ranks"]] == ["node1", "node1", "node2", "node2"]
    assert {rank["comm"] for rank in report["ranks"]} == {provider}


def planned_commands(deployed: Deployed, way: Way) -> list[list[str]]:
    """Returns the commands that the plan of a launch prints, which are those that its JSON has."""
    flags = ("--num_accelerators", "1", "stubborn.py")
    # A plan is made where the launch is: for Slurm inside an allocation.
    printed = deployed.run("node1", *way.words("plan", *flags, hostfile="two"))
    assert printed.returncode == 0, printed.stderr
    lines = [line.partition(": ")[2] for line in printed.stdout.splitlines() if line.startswith("agents start by: ")]
    told = deployed.run("node1", *way.words("plan", "--json", *flags, hostfile="two"))
    commands: list[list[str]] = json.loads(told.stdout)["commands"]
    assert [shlex.split(line) for line in lines] == commands
    return commands


def test_a_launch_runs_the_commands_that_its_plan_prints(deployed: Deployed, way: Way, stubborn: Start) -> None:
    commands = planned_commands(deployed, way)
    stubborn()
    # Intel MPI cuts its own words at commas.
    lines = deployed.podman.execute("node1", "sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0,' '  '")
    for command in commands:
        words = command[command.index("env") + 1 :] if command[0] == "env" else command
        while command[0] == "env" and "=" in words[0]:
            words = words[1:]
        planned = re.escape(" ".join(words).replace(",", " "))
        pattern = planned.replace("HOSTFILE", r"\S+").replace("LAUNCHER:PORT", r"[0-9a-f.:\[\] ]+")
        assert re.search(pattern, lines), f"{' '.join(words)}\nis not among\n{lines}"


def test_the_planned_command_reaches_every_node_as_it_is_printed(deployed: Deployed, way: Way) -> None:
    commands = planned_commands(deployed, way)
    if way.name == "ssh":
        # The agents are greeted by nobody, so they go again; the connection ended with their own words.
        done = deployed.run("node1", *commands[1])
        assert b"done" in done.stdout.encode() and done.returncode == 4, done
        return
    [command] = commands
    agent = command.index(f"{PREFIX}/venv/bin/python")
    hosts = "/home/corebound/one-each"
    deployed.write("node1", hosts, "node1:1\nnode2:1\n" if way.name in ("impi", "mpich") else "node1\nnode2\n")
    words = [word.replace("HOSTFILE", hosts) for word in command[:agent]]
    done = deployed.run("node1", *way.before, *words, "hostname")
    assert (done.returncode, sorted(done.stdout.split())) == (0, ["node1", "node2"]), done.stderr
