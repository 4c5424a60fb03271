"""What ranks are given and what becomes of their output."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from multiproc.launches import Launch

pytestmark = pytest.mark.multiproc

Run = Callable[..., Launch]
FACTS = """
import json, os, sys
maps = "/proc/self/numa_maps"
policies = sorted({line.split()[1] for line in open(maps)}) if os.path.exists(maps) else None
facts = {"env": dict(os.environ), "argv": sys.argv[1:], "cpus": sorted(os.sched_getaffinity(0)),
         "stdin": sys.stdin.read(), "policies": policies}
sys.stdout.write(json.dumps(facts) + "\\n")
"""
NUM_CORES = len(os.sched_getaffinity(0))


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Runs a launch to its end in a directory with facts.py, which prints what it sees."""
    (tmp_path / "facts.py").write_text(FACTS)
    launches: list[Launch] = []

    def start(*args: str | Path, **options: Any) -> Launch:
        launch = Launch(*args, cwd=tmp_path, **options)
        launches.append(launch)
        launch.end()
        return launch

    yield start
    for launch in launches:
        launch.kill_all()


def facts(launch: Launch) -> list[dict[str, Any]]:
    """What each rank printed, in rank order."""
    assert launch.process.returncode == 0, launch.stderr
    return sorted((json.loads(line) for line in launch.stdout.splitlines()), key=lambda one: int(one["env"]["RANK"]))


def test_ranks_get_their_place_their_arguments_and_no_input(run: Run) -> None:
    launch = run("--num_accelerators", "2", "facts.py", "--flag", "two words", "--json")
    first, second = facts(launch)
    shared = {"WORLD_SIZE": "2", "LOCAL_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    for number, rank in enumerate((first, second)):
        assert rank["env"].items() >= {**shared, "RANK": str(number), "LOCAL_RANK": str(number)}.items()
        assert re.fullmatch(r"[a-z0-9]{16,}", rank["env"]["COREBOUND_JOB_ID"])
        assert rank["argv"] == ["--flag", "two words", "--json"]
        assert rank["stdin"] == ""
        assert rank["cpus"] == sorted(os.sched_getaffinity(0))
    assert first["env"]["COREBOUND_JOB_ID"] == second["env"]["COREBOUND_JOB_ID"]
    assert first["env"]["MASTER_PORT"] == second["env"]["MASTER_PORT"]


def test_two_launches_have_different_job_ids(run: Run) -> None:
    ids = {facts(run("--num_gpus", "1", "facts.py"))[0]["env"]["COREBOUND_JOB_ID"] for _ in range(2)}
    assert len(ids) == 2


@pytest.mark.skipif(NUM_CORES < 2, reason="this machine lacks a second core")
def test_bound_ranks_run_on_disjoint_cores_with_their_own_memory_and_threads(run: Run) -> None:
    launch = run("--num_accelerators", "2", "--bind_cores_to_rank", "facts.py")
    first, second = facts(launch)
    assert first["cpus"] and second["cpus"] and not set(first["cpus"]) & set(second["cpus"])
    for rank in (first, second):
        assert rank["env"]["OMP_NUM_THREADS"] == str(len(rank["cpus"]))
        if rank["policies"] is not None and "memory policy refused" not in launch.stderr:
            assert any(policy.startswith(("bind", "prefer", "interleave")) for policy in rank["policies"])


@pytest.mark.skipif(NUM_CORES < 2, reason="this machine lacks a second core")
def test_a_core_list_is_honoured_literally(run: Run) -> None:
    last = max(os.sched_getaffinity(0))
    assert facts(run("--bind-core-list", str(last), "--num_accelerators", "1", "facts.py"))[0]["cpus"] == [last]


def test_other_bindings_in_the_environment_are_replaced_with_a_warning(run: Run) -> None:
    """DeepSpeed: "ValueError: KMP_AFFINITY is set, unset it", though accelerate sets it at every CPU launch."""
    env = {"KMP_AFFINITY": "compact", "GOMP_CPU_AFFINITY": "0", "OMP_NUM_THREADS": "77"}
    launch = run("--num_accelerators", "1", "--bind_cores_to_rank", "facts.py", env=env)
    found = facts(launch)[0]["env"]
    assert "KMP_AFFINITY" not in found and "GOMP_CPU_AFFINITY" not in found
    assert found["OMP_NUM_THREADS"] != "77"
    for name in env:
        assert name in launch.stderr


def test_without_binding_the_users_own_settings_stay(run: Run) -> None:
    env = {"KMP_AFFINITY": "compact", "OMP_NUM_THREADS": "3"}
    found = facts(run("--num_accelerators", "1", "facts.py", env=env))[0]["env"]
    assert found.items() >= env.items()


def test_more_ranks_than_cores_are_refused_when_bound_and_warned_about_when_not(run: Run) -> None:
    count = str(NUM_CORES + 1)
    refused = run("--num_accelerators", count, "--bind_cores_to_rank", "facts.py")
    assert refused.process.returncode == 2
    assert f"cannot bind {count} ranks to" in refused.stderr and "hint: use 1" in refused.stderr
    shared = run("--num_accelerators", count, "facts.py")
    assert len(facts(shared)) == NUM_CORES + 1
    assert "ranks share cores" in shared.stderr


def test_only_rank_0_reads_the_launchers_input(run: Run, tmp_path: Path) -> None:
    # Ranks share the launcher's own standard output, so a megabyte of each at once could mix: a digest cannot.
    facts_of_digest = FACTS.replace("sys.stdin.read()", "hashlib.sha256(sys.stdin.buffer.read()).hexdigest()")
    assert facts_of_digest != FACTS
    (tmp_path / "facts.py").write_text("import hashlib\n" + facts_of_digest)
    text = "prompt ü " * 100_000
    (tmp_path / "start.py").write_text(
        "import sys\n"
        "from corebound.launcher import LaunchSpec, launch\n"
        "text = ('prompt ü ' * 100_000).encode()\n"
        "command = (sys.executable, 'facts.py')\n"
        "spec = LaunchSpec(command=command, num_accelerators=2, rank0_stdin=text, env={'A': 'b c'})\n"
        "raise SystemExit(launch(spec))\n"
    )
    first, second = facts(run(sys.executable, "start.py"))
    assert first["stdin"] == hashlib.sha256(text.encode()).hexdigest()
    assert second["stdin"] == hashlib.sha256(b"").hexdigest()
    assert first["env"]["A"] == second["env"]["A"] == "b c"


def test_a_script_is_passed_local_rank_unless_told_otherwise(run: Run) -> None:
    deepspeed_style = run(sys.executable, "-m", "corebound", "run", "--num_accelerators", "2", "facts.py", "x")
    assert [rank["argv"] for rank in facts(deepspeed_style)] == [["--local_rank=0", "x"], ["--local_rank=1", "x"]]


def test_a_script_that_refuses_local_rank_gets_the_flag_that_helps(run: Run, tmp_path: Path) -> None:
    """ "error: unrecognized arguments: --local_rank", in many repositories."""
    (tmp_path / "strict.py").write_text("import argparse\nargparse.ArgumentParser().parse_args()\n")
    launch = run(sys.executable, "-m", "corebound", "run", "--num_accelerators", "1", "strict.py")
    assert launch.process.returncode == 2
    assert "hint: the script does not accept --local_rank: add --no_local_rank" in launch.stderr


def test_modules_and_programs_are_run_too(run: Run, tmp_path: Path) -> None:
    assert facts(run("--num_accelerators", "1", "--module", "facts", "x"))[0]["argv"] == ["x"]
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\necho $RANK $#\n")
    program.chmod(0o755)
    assert run("--num_accelerators", "1", "--no_python", "./program", "a b").stdout == "0 1\n"


def test_each_ranks_output_goes_to_its_log_and_still_to_the_terminal(run: Run, tmp_path: Path) -> None:
    (tmp_path / "talk.py").write_text(
        "import os, sys\nprint('out', os.environ['RANK'])\nprint('err', os.environ['RANK'], file=sys.stderr)\n"
    )
    launch = run("--num_accelerators", "2", "--enable_each_rank_log", "logs/deep", "talk.py")
    assert launch.process.returncode == 0
    assert sorted(launch.stdout.splitlines()) == ["out 0", "out 1"]
    assert {"err 0", "err 1"} <= set(launch.stderr.splitlines())
    names = sorted(path.name for path in (tmp_path / "logs/deep").iterdir())
    assert [re.sub(r"^\d{14}", "T", name) for name in names] == ["T_rank0.log", "T_rank1.log"]
    for number, name in enumerate(names):
        lines = (tmp_path / "logs/deep" / name).read_text().splitlines()
        assert sorted(lines) == [f"err {number}", f"out {number}"]


def test_a_log_directory_that_is_a_file_is_an_error(run: Run, tmp_path: Path) -> None:
    """DeepSpeed: "path being a file -> ValueError" in the child, without the flag's name."""
    (tmp_path / "taken").touch()
    launch = run("--enable_each_rank_log", "taken", "facts.py")
    assert launch.process.returncode == 2
    assert "--enable_each_rank_log taken: expected a directory, found a file" in launch.stderr


def test_a_busy_default_port_is_replaced_and_a_busy_asked_one_is_an_error(run: Run) -> None:
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind(("", 29500))
        except OSError:
            pytest.skip("this machine lacks a free default port: another program has it")
        server.listen()
        assert facts(run("--num_accelerators", "1", "facts.py"))[0]["env"]["MASTER_PORT"] != "29500"
        asked = run("--num_accelerators", "1", "--master_port", "29500", "facts.py")
    assert asked.process.returncode == 4
    assert "--master_port 29500: the port is in use" in asked.stderr and "hint: choose another port" in asked.stderr


def test_a_local_launcher_refuses_other_hosts(run: Run, tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("worker-a slots=1\nworker-b slots=1\n")
    launch = run("--launcher", "local", "-H", "hosts", "facts.py")
    assert launch.process.returncode == 2
    assert "--launcher local runs on this machine alone, the plan has worker-a, worker-b" in launch.stderr


def test_without_ssh_each_node_starts_its_own_part(run: Run, tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("head slots=1\nother slots=2\n")
    flags = ["-H", "hosts", "--no_ssh", "--master_addr", "head.example", "--master_port", "29577", "--node_rank", "1"]
    ranks = facts(run(*flags, "facts.py"))
    assert [rank["env"]["RANK"] for rank in ranks] == ["1", "2"]
    assert [rank["env"]["LOCAL_RANK"] for rank in ranks] == ["0", "1"]
    assert {(rank["env"]["WORLD_SIZE"], rank["env"]["MASTER_ADDR"], rank["env"]["MASTER_PORT"]) for rank in ranks} == {
        ("3", "head.example", "29577")
    }


def test_without_ssh_a_node_on_which_rank_0_does_not_listen_leaves_the_port_alone(run: Run, tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("head slots=1\nother slots=1\n")
    with socket.create_server(("", 0)) as server:
        port = str(server.getsockname()[1])
        flags = ["-H", "hosts", "--no_ssh", "--master_port", port, "--node_rank"]
        assert facts(run(*flags, "1", "facts.py"))[0]["env"]["MASTER_PORT"] == port
        first = run(*flags, "0", "facts.py")
    assert first.process.returncode == 4
    assert f"--master_port {port}: the port is in use" in first.stderr


def test_a_missing_hostfile_is_an_error_and_nothing_is_run(run: Run) -> None:
    """DSE #575: hostfile not found, and the job "silently" ran on this machine alone."""
    launch = run("--hostfile", "nowhere", "facts.py")
    assert (launch.process.returncode, launch.stdout) == (2, "")
    assert "hostfile nowhere: no such file" in launch.stderr


def test_the_agents_process_id_is_saved_while_it_runs(run: Run, tmp_path: Path) -> None:
    (tmp_path / "saved.py").write_text(
        "import os, pathlib\n"
        "agent = os.getppid()\n"
        "launcher = pathlib.Path(f'/proc/{agent}/stat').read_text().rpartition(')')[2].split()[1]\n"
        "print(agent, pathlib.Path(os.environ['TMPDIR'], f'{launcher}.corebound').read_text())\n"
    )
    launch = run("--num_accelerators", "1", "--save_pid", "saved.py", env={"TMPDIR": str(tmp_path)})
    agent, saved = launch.stdout.split()
    assert agent == saved
    assert not list(tmp_path.glob("*.corebound"))
