"""Two hosts over real ssh: places, environment, output, logs, and an end to whatever dies."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from multiproc.launches import Launch, eventually, segments
from multiproc.sshd import SSHD, SshServer, ssh_server
from multiproc.test_launch_failures import STUBBORN, up

pytestmark = [
    pytest.mark.multiproc,
    pytest.mark.skipif(SSHD is None, reason="this machine lacks sshd, to be had with apt-get install openssh-server"),
]

Start = Callable[..., Launch]
DOWN_S = 8.0
LOST_S = 15.0
FACTS = """
import json, os, sys
facts = {"env": dict(os.environ), "argv": sys.argv[1:], "cwd": os.getcwd(), "stdin": sys.stdin.read(),
         "cpus": sorted(os.sched_getaffinity(0))}
sys.stdout.write(json.dumps(facts) + "\\n")
sys.stderr.write(f"words of rank {os.environ['RANK']}\\n")
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    with ssh_server(tmp_path_factory.mktemp("sshd")) as running:
        yield running


@pytest.fixture
def start(tmp_path: Path, server: SshServer) -> Iterator[Start]:
    """Starts launches over ssh in a directory of their own; afterwards no process is left on the hosts."""
    (tmp_path / "stubborn.py").write_text(STUBBORN)
    (tmp_path / "facts.py").write_text(FACTS)
    launches: list[Launch] = []

    def begin(hosts: str, *args: str | Path, env: dict[str, str] | None = None) -> Launch:
        (tmp_path / "hosts").write_text(hosts)
        ssh = ("--launcher", "ssh", "--launcher_args", f"-F {server.config}", "--hostfile", "hosts")
        exported = {"COREBOUND_EXPORT": "LAUNCH_TEST", **(env or {})}
        launches.append(Launch(*ssh, *args, cwd=tmp_path, env=exported))
        return launches[-1]

    yield begin
    for launch in launches:
        launch.kill_all()
    assert eventually(lambda: not server.children(), LOST_S), server.children()


def facts(launch: Launch) -> list[dict[str, Any]]:
    assert launch.end() == 0, launch.stderr
    return sorted((json.loads(line) for line in launch.stdout.splitlines()), key=lambda one: int(one["env"]["RANK"]))


TWO = "node-a slots=1\nnode-b slots=1\n"


def test_ranks_of_unequal_hosts_get_their_places_and_their_output_comes_back(start: Start, tmp_path: Path) -> None:
    launch = start("node-a slots=1\nnode-b slots=2\n", "facts.py", "two words", "--json", "it's")
    ranks = facts(launch)
    places = [
        {name: rank["env"][name] for name in ("RANK", "LOCAL_RANK", "LOCAL_SIZE", "CROSS_RANK", "CROSS_SIZE")}
        for rank in ranks
    ]
    assert [list(place.values()) for place in places] == [
        ["0", "0", "1", "0", "2"], ["1", "0", "2", "1", "2"], ["2", "1", "2", "1", "2"],
    ]  # fmt: skip
    assert {rank["env"]["WORLD_SIZE"] for rank in ranks} == {"3"}
    assert len({rank["env"]["COREBOUND_JOB_ID"] for rank in ranks}) == 1
    assert {rank["env"]["MASTER_ADDR"] for rank in ranks} == {"127.0.0.1"}
    assert all(rank["argv"] == ["two words", "--json", "it's"] for rank in ranks)
    assert {(rank["cwd"], rank["stdin"]) for rank in ranks} == {(str(tmp_path), "")}
    assert ranks[1]["env"]["SSH_CONNECTION"].split()[2] == "127.0.0.2"
    assert sorted(line for line in launch.stderr.splitlines() if line.startswith("words")) == [
        f"words of rank {rank}" for rank in range(3)
    ]


def test_the_environment_reaches_other_hosts_by_a_list_and_a_token_never(start: Start) -> None:
    env = {
        "OMP_SCHEDULE": "static", "KMP_BLOCKTIME": "7", "MALLOC_CONF": "a:b", "HF_HOME": "/models",
        "HF_TOKEN": "hf_secret_value", "MY_OWN": "1", "OTHER_THING": "2",
        "COREBOUND_EXPORT": "LAUNCH_TEST,MY_OWN", "CCL_LOG_LEVEL": "it's $HOME \"quoted\"\nand broken",
    }  # fmt: skip
    launch = start(TWO, "facts.py", env=env)
    for rank in facts(launch):
        there = rank["env"]
        for name in ("OMP_SCHEDULE", "KMP_BLOCKTIME", "MALLOC_CONF", "HF_HOME", "MY_OWN", "CCL_LOG_LEVEL"):
            assert there[name] == env[name]
        assert "HF_TOKEN" not in there and "OTHER_THING" not in there
    assert "HF_TOKEN does not go to other hosts" in launch.stderr
    assert "hf_secret_value" not in launch.stdout + launch.stderr


def test_files_and_a_script_reach_the_ranks_of_every_host(start: Start, server: SshServer, tmp_path: Path) -> None:
    """#5878, #1907, #1747: values with quotes, blanks and `$` arrived changed, and were on ssh's command line."""
    values = {"MY_JSON": '{"a": "it\'s $HOME `x`"}', "NCCL_X": "a=b=c", "OMP_SCHEDULE": "static"}
    lines = [f"{name}={value}" for name, value in values.items()]
    (tmp_path / ".deepspeed_env").write_text("\n".join(["# for all", "", *lines, "HF_TOKEN=hf_secret_value"]))
    (tmp_path / "activate").write_text("echo words of the script\nexport FROM_SCRIPT='1 2'\n")
    launch = start(TWO, "--venv_script", "activate", "facts.py", env={"OMP_SCHEDULE": "dynamic"})
    for rank in facts(launch):
        assert rank["env"].items() >= {**values, "FROM_SCRIPT": "1 2"}.items()
        assert "HF_TOKEN" not in rank["env"]
    assert "HF_TOKEN does not go to other hosts" in launch.stderr
    assert "hf_secret_value" not in launch.stdout + launch.stderr
    # What the script says is no output of a rank.
    assert "words of the script" not in launch.stdout


def test_nothing_of_the_plan_is_on_a_command_line(start: Start, server: SshServer, tmp_path: Path) -> None:
    launch = start(TWO, "stubborn.py", "the-argument", env={"CCL_PRIVATE": "only-for-ranks"})
    up(tmp_path)
    agents = [line for line in server.children().values() if "corebound.launcher.agent" in line]
    carriers = [line for line in launch.processes().values() if line.startswith("ssh") or "/ssh " in line]
    assert len(agents) >= 2 and len(carriers) == 2
    assert not any(word in line for line in (*agents, *carriers) for word in ("the-argument", "only-for-ranks"))
    os.kill(launch.pid, signal.SIGTERM)
    assert launch.end() == 143


def test_every_host_that_cannot_take_part_is_named_with_the_words_of_ssh(start: Start, tmp_path: Path) -> None:
    launch = start(f"{TWO}node-refuses slots=1\nnode-unknown-key slots=1\n", "facts.py")
    start_s = time.monotonic()
    assert launch.end() == 4
    assert time.monotonic() - start_s < LOST_S
    assert "2 of 4 hosts cannot take part" in launch.stderr
    assert "node-refuses: could not be started" in launch.stderr and "Connection refused" in launch.stderr
    assert "node-unknown-key: could not be started" in launch.stderr
    assert "Host key verification failed" in launch.stderr
    assert "hint: " in launch.stderr and "is sshd running there" in launch.stderr
    assert launch.stdout == ""


def test_a_python_that_is_not_there_is_an_error_that_names_the_flag(start: Start) -> None:
    launch = start(TWO, "--remote_python", "/no/such/python", "facts.py")
    assert launch.end() == 4
    assert launch.stderr.count("/no/such/python") == 2 and "--remote_python" in launch.stderr


def test_logs_are_written_on_every_host(start: Start, tmp_path: Path) -> None:
    """#6859: --enable_each_rank_log was lost on the way to other hosts."""
    facts(start(TWO, "--enable_each_rank_log", "logs", "facts.py"))
    names = sorted(path.name.partition("_")[2] for path in (tmp_path / "logs").iterdir())
    assert names == ["rank0.log", "rank1.log"]
    assert all("words of rank" in path.read_text() for path in (tmp_path / "logs").iterdir())


def test_a_failing_rank_on_one_host_ends_the_job_on_all_and_gives_the_exit_code(start: Start, tmp_path: Path) -> None:
    (tmp_path / "fails.py").write_text(
        "import os, sys, time\nif os.environ['RANK'] == '1':\n    sys.exit('cannot go on')\ntime.sleep(60)\n"
    )
    launch = start(TWO, "fails.py")
    assert launch.end() == 1
    assert "rank 1 on node-b" in launch.stderr and "    cannot go on" in launch.stderr
    launch.assert_nothing_left()


def test_the_cause_is_named_though_its_effect_on_another_host_came_first(start: Start, tmp_path: Path) -> None:
    (tmp_path / "effect.py").write_text(
        "import os, sys, time\nif os.environ['RANK'] == '0':\n    sys.exit(5)\n"
        "time.sleep(0.5)\nos.kill(os.getpid(), 9)\n"
    )
    launch = start(TWO, "effect.py")
    assert launch.end() == 137
    assert "rank 1 on node-b" in launch.stderr and "was killed by SIGKILL" in launch.stderr


def test_a_killed_rank_ends_stubborn_ranks_on_other_hosts(start: Start, tmp_path: Path) -> None:
    launch = start(TWO, "stubborn.py")
    pids = up(tmp_path)
    os.kill(pids[1], signal.SIGKILL)
    start_s = time.monotonic()
    assert launch.end() == 137
    assert time.monotonic() - start_s < DOWN_S
    assert f"rank 1 on node-b (pid {pids[1]}) was killed by SIGKILL" in launch.stderr
    launch.assert_nothing_left(0.5)
    assert segments(launch) == []


def test_a_killed_agent_is_cleaned_up_behind_on_its_own_host(start: Start, server: SshServer, tmp_path: Path) -> None:
    launch = start(TWO, "stubborn.py")
    up(tmp_path)
    agent = server.agents()["127.0.0.2"]
    os.kill(agent, signal.SIGKILL)
    assert launch.end() == 137, launch.stderr
    assert f"the agent on node-b (pid {agent}) was killed by SIGKILL" in launch.stderr
    launch.assert_nothing_left(1.0)
    assert segments(launch) == []


def test_a_signal_to_one_agent_ends_the_job_everywhere(start: Start, server: SshServer, tmp_path: Path) -> None:
    launch = start(TWO, "stubborn.py")
    up(tmp_path)
    os.kill(server.agents()["127.0.0.2"], signal.SIGTERM)
    assert launch.end() == 143
    assert "the agent on node-b" in launch.stderr and "SIGTERM" in launch.stderr
    launch.assert_nothing_left(1.0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_launcher_ends_the_ranks_on_all_hosts(
    start: Start, number: signal.Signals, tmp_path: Path
) -> None:
    launch = start(TWO, "stubborn.py")
    up(tmp_path)
    os.kill(launch.pid, number)
    assert launch.end() == 128 + number
    assert f"stopped by {number.name}" in launch.stderr
    launch.assert_nothing_left(0.5)
    assert segments(launch) == []


def test_a_killed_launcher_leaves_nothing_on_any_host(start: Start, tmp_path: Path) -> None:
    """#1995, #714, #3645, #1016, #4160: stray ranks live on after the launcher died."""
    launch = start(TWO, "stubborn.py")
    up(tmp_path)
    os.kill(launch.pid, signal.SIGKILL)
    assert launch.end() == 137
    launch.assert_nothing_left(DOWN_S)
    assert eventually(lambda: segments(launch) == [], 1.0)


def test_a_connection_that_is_cut_ends_the_job_on_both_sides(start: Start, server: SshServer, tmp_path: Path) -> None:
    launch = start(TWO, "stubborn.py")
    up(tmp_path)
    agent = server.agents()["127.0.0.2"]
    carrier = min(pid for pid, line in server.children().items() if pid in server.session_of(agent) and "sshd" in line)
    os.kill(carrier, signal.SIGKILL)
    start_s = time.monotonic()
    assert launch.end() == 4
    assert time.monotonic() - start_s < DOWN_S
    assert f"the agent on node-b (pid {agent}) is lost" in launch.stderr
    launch.assert_nothing_left(DOWN_S)
    assert eventually(lambda: segments(launch) == [], 1.0)


@pytest.mark.slow
def test_a_host_that_hangs_is_named_and_cleans_up_when_it_wakes(
    start: Start, server: SshServer, tmp_path: Path
) -> None:
    launch = start(TWO, "stubborn.py")
    up(tmp_path)
    frozen = server.session_of(server.agents()["127.0.0.2"])
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    try:
        start_s = time.monotonic()
        assert launch.end() == 4
        assert time.monotonic() - start_s < LOST_S
        assert "the agent on node-b" in launch.stderr and "is lost" in launch.stderr
    finally:
        for pid in frozen:
            os.kill(pid, signal.SIGCONT)
    launch.assert_nothing_left(LOST_S)
    assert eventually(lambda: segments(launch) == [], 1.0)


@pytest.mark.slow
def test_a_launcher_that_hangs_is_missed_by_its_agents(start: Start, tmp_path: Path) -> None:
    launch = start(TWO, "stubborn.py")
    pids = up(tmp_path)
    os.kill(launch.pid, signal.SIGSTOP)
    try:
        assert eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), LOST_S)
    finally:
        os.kill(launch.pid, signal.SIGCONT)
    assert launch.end() != 0


def test_much_output_from_all_hosts_arrives_whole(start: Start, tmp_path: Path) -> None:
    (tmp_path / "talk.py").write_text(
        "import os, sys\nrank = os.environ['RANK']\n"
        "for line in range(20000):\n    sys.stdout.write(f'{rank} {line} {\"x\" * 80}\\n')\n"
    )
    launch = start(TWO, "talk.py")
    assert launch.end(60) == 0
    lines = launch.stdout.splitlines()
    assert len(lines) == 40000
    for rank in "01":
        assert [int(line.split()[1]) for line in lines if line.startswith(rank)] == list(range(20000))


@pytest.mark.native
@pytest.mark.parametrize("provider", ["auto", "gloo"])
def test_a_model_on_two_hosts_says_what_it_says_on_one_rank(server: SshServer, tmp_path: Path, provider: str) -> None:
    (tmp_path / "hosts").write_text(TWO)
    ssh = ("--launcher", "ssh", "--launcher_args", f"-F {server.config}", "--hostfile", "hosts")
    texts = []
    for flags in (("--num_accelerators", "1"), ssh):
        command = (sys.executable, "-m", "corebound", "generate", *flags, "--model", "demo", "--max-new-tokens", "8")
        launch = Launch(*command, "--prompt", "The old ship", cwd=tmp_path, env={"COREBOUND_COMM": provider})
        try:
            assert launch.end(90) == 0, launch.stderr
        finally:
            launch.kill_all()
        texts.append(launch.stdout)
    assert texts[0] == texts[1] != ""
