"""Whatever dies, however it dies: the job is down in seconds, the cause is named and nothing is left."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from multiproc.launches import Launch, eventually, segments

pytestmark = pytest.mark.multiproc

Start = Callable[..., Launch]
DOWN_S = 5.0  # what the design promises

# A rank that is as hard to stop as can be: it ignores all it can, left a segment, and has children that hide.
STUBBORN = """
import os, signal, subprocess, sys, time
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
job, rank, mark = (os.environ[name] for name in ("COREBOUND_JOB_ID", "RANK", "LAUNCH_TEST"))
open(f"/dev/shm/corebound.{job}.{mark}", "w").write("x")
subprocess.Popen(["sleep", "120"])
subprocess.Popen(["sleep", "121"], start_new_session=True)
subprocess.Popen(["sh", "-c", "setsid sleep 122 & exit 0"])
open(f"up{rank}", "w").write(str(os.getpid()))
time.sleep(120)
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts launches in a directory of their own and ends them whatever happens."""
    (tmp_path / "stubborn.py").write_text(STUBBORN)
    launches: list[Launch] = []

    def begin(*args: str | Path, **options: Any) -> Launch:
        launches.append(Launch(*args, cwd=tmp_path, **options))
        return launches[-1]

    yield begin
    for launch in launches:
        launch.kill_all()


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], str]:
    """Writes a script and returns its name."""

    def write(text: str) -> str:
        (tmp_path / "script.py").write_text(text)
        return "script.py"

    return write


def up(tmp_path: Path, num_ranks: int = 2) -> list[int]:
    """Wait until all stubborn ranks run and return their process ids."""
    files = [tmp_path / f"up{rank}" for rank in range(num_ranks)]
    assert eventually(lambda: all(file.exists() and file.read_text() for file in files))
    return [int(file.read_text()) for file in files]


def test_the_exit_code_is_that_of_the_first_failing_rank_which_is_named(start: Start, script: Any) -> None:
    name = script("import os, sys, time\nif os.environ['RANK'] == '1':\n    sys.exit('cannot go on')\ntime.sleep(60)\n")
    launch = start("--num_accelerators", "3", name)
    assert launch.end() == 1
    assert f"rank 1 on {os.uname().nodename} " in launch.stderr
    assert "exited with code 1" in launch.stderr and "    cannot go on" in launch.stderr
    launch.assert_nothing_left()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_a_rank_killed_by_a_signal_gives_128_plus_its_number(start: Start, script: Any, number: signal.Signals) -> None:
    """DeepSpeed: "a launcher killed by a signal gives exit code 0 (silent success)"."""
    name = script(
        f"import os, time, resource\nresource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n"
        f"if os.environ['RANK'] == '0':\n    os.kill(os.getpid(), {int(number)})\ntime.sleep(60)\n"
    )
    launch = start("--num_accelerators", "2", name)
    assert launch.end() == 128 + number
    assert f"was killed by {number.name}" in launch.stderr and "rank 0 on " in launch.stderr


def test_the_log_of_the_failing_rank_is_named(start: Start, script: Any) -> None:
    launch = start("--num_accelerators", "1", "--enable_each_rank_log", "logs", script("raise ValueError('so')\n"))
    assert launch.end() == 1
    assert "its output is in " in launch.stderr and "_rank0.log" in launch.stderr
    assert "    ValueError: so" in launch.stderr


def test_a_failure_counts_even_if_the_shell_ignores_the_end_of_children(start: Start, script: Any) -> None:
    name = script("import os, signal\nassert signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL\nraise SystemExit(7)\n")
    command = [sys.executable, "-m", "corebound", "run", "--num_accelerators", "2", "--no_local_rank", name]
    launch = start("env", "--ignore-signal=CHLD", *command)
    assert launch.end() == 7
    assert "exited with code 7" in launch.stderr


@pytest.mark.slow
def test_a_rank_that_lost_its_peer_is_not_blamed_for_the_peers_failure(start: Start, script: Any) -> None:
    name = script("import os, time\nif os.environ['RANK'] == '1':\n    os._exit(5)\ntime.sleep(0.3)\nos._exit(6)\n")
    for _ in range(10):
        launch = start("--num_accelerators", "2", name)
        assert launch.end() == 6, launch.stderr
        assert "rank 0 on " in launch.stderr and launch.stderr.count("exited with code") == 1


def test_the_peers_own_failure_is_awaited(start: Start, script: Any) -> None:
    name = script("import os, time\nif os.environ['RANK'] == '1':\n    os._exit(5)\ntime.sleep(0.3)\nos._exit(6)\n")
    launch = start("--num_accelerators", "3", name)
    assert launch.end() == 6
    assert "rank 1 on " not in launch.stderr and launch.stderr.count("exited with code 6") == 1


@pytest.mark.parametrize("others", ["time.sleep(60)", "time.sleep(0.2)", "pass"])
def test_a_lost_peer_is_the_failure_if_no_other_comes(start: Start, tmp_path: Path, script: Any, others: str) -> None:
    name = script(
        f"import os, sys, time\nopen('up' + os.environ['RANK'], 'w').write('1')\n"
        f"if os.environ['RANK'] == '1':\n    sys.stderr.write('peer lost\\n')\n    sys.exit(5)\n{others}\n"
    )
    launch = start("--num_accelerators", "2", name)
    up(tmp_path)
    start_s = time.monotonic()
    assert launch.end() == 5
    assert time.monotonic() - start_s < DOWN_S
    assert "rank 1 on " in launch.stderr and "exited with code 5" in launch.stderr and "    peer lost" in launch.stderr


def test_a_lost_peer_brings_even_stubborn_ranks_down_in_time(start: Start, script: Any, tmp_path: Path) -> None:
    name = script("import os, runpy\nif os.environ['RANK'] == '1':\n    os._exit(5)\nrunpy.run_path('stubborn.py')\n")
    launch = start("--num_accelerators", "2", name)
    up(tmp_path, num_ranks=1)
    start_s = time.monotonic()
    assert launch.end() == 5
    assert time.monotonic() - start_s < DOWN_S
    assert launch.processes() == {}


def test_many_ranks_that_fail_at_once_give_one_failure(start: Start, script: Any) -> None:
    launch = start("--num_accelerators", "16", script("raise SystemExit(9)\n"))
    assert launch.end() == 9
    assert launch.stderr.count("exited with code 9") == 1
    launch.assert_nothing_left()


def test_a_killed_rank_takes_stubborn_others_and_their_hidden_children_down(start: Start, tmp_path: Path) -> None:
    """#1995, #714, #3645, #1016, #4160: processes of a failed job stay behind."""
    launch = start("--num_accelerators", "2", "stubborn.py")
    pids = up(tmp_path)
    os.kill(pids[1], signal.SIGKILL)
    start_s = time.monotonic()
    assert launch.end() == 137
    assert time.monotonic() - start_s < DOWN_S
    assert f"rank 1 on {os.uname().nodename} (pid {pids[1]}) was killed by SIGKILL" in launch.stderr
    assert launch.processes() == {}
    assert segments(launch) == []


def test_a_killed_agent_takes_everything_down(start: Start, tmp_path: Path) -> None:
    launch = start("--num_accelerators", "2", "stubborn.py")
    up(tmp_path)
    os.kill(launch.agent_pid(), signal.SIGKILL)
    start_s = time.monotonic()
    assert launch.end() == 137
    assert time.monotonic() - start_s < DOWN_S
    assert "the agent on localhost" in launch.stderr and "was killed by SIGKILL" in launch.stderr
    launch.assert_nothing_left(1.0)
    assert segments(launch) == []


def test_a_killed_launcher_leaves_nothing_behind(start: Start, tmp_path: Path) -> None:
    """DeepSpeed: "SIGKILL of launch.py orphans ranks (no PR_SET_PDEATHSIG)"."""
    launch = start("--num_accelerators", "2", "stubborn.py")
    up(tmp_path)
    os.kill(launch.pid, signal.SIGKILL)
    assert launch.end() == 137
    launch.assert_nothing_left(DOWN_S)
    assert eventually(lambda: segments(launch) == [], 1.0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_reach_the_ranks_and_end_the_job(
    start: Start, script: Any, number: signal.Signals, tmp_path: Path
) -> None:
    name = script(
        "import os, signal, sys, time\n"
        "def stop(number, frame):\n    open('seen' + os.environ['RANK'], 'w').write(str(number)); sys.exit(0)\n"
        "for number in (1, 2, 15):\n    signal.signal(number, stop)\n"
        "open('up' + os.environ['RANK'], 'w').write(str(os.getpid()))\n"
        "time.sleep(60)\n"
    )
    launch = start("--num_accelerators", "2", name)
    up(tmp_path)
    os.kill(launch.pid, number)
    assert launch.end() == 128 + number
    assert [(tmp_path / f"seen{rank}").read_text() for rank in (0, 1)] == [str(int(number))] * 2
    assert f"stopped by {number.name}" in launch.stderr
    launch.assert_nothing_left()


def test_stubborn_ranks_are_killed_after_the_signal_and_at_once_after_a_second(start: Start, tmp_path: Path) -> None:
    launch = start("--num_accelerators", "2", "stubborn.py")
    up(tmp_path)
    start_s = time.monotonic()
    os.kill(launch.pid, signal.SIGINT)
    time.sleep(0.7)  # at once would be taken for the same signal
    os.kill(launch.pid, signal.SIGINT)
    assert launch.end() == 130
    assert time.monotonic() - start_s < 1.9  # less than the grace
    assert launch.processes() == {}


@pytest.mark.parametrize("case", ["the launcher dies", "a service manager signals all"])
def test_what_arrives_by_two_ways_does_not_take_the_time_to_finish(
    start: Start, script: Any, tmp_path: Path, case: str
) -> None:
    name = script(
        "import os, signal, sys, time\nrank = os.environ['RANK']\n"
        "def stop(number, frame):\n    signal.signal(15, signal.SIG_IGN)\n    time.sleep(0.7)\n"
        "    open('finished' + rank, 'w').write('1')\n    os._exit(0)\n"
        "signal.signal(15, stop)\nopen('up' + rank, 'w').write(str(os.getpid()))\ntime.sleep(60)\n"
    )
    launch = start("--num_accelerators", "2", name)
    pids = up(tmp_path)
    if case == "the launcher dies":
        os.kill(launch.pid, signal.SIGKILL)
    else:
        for pid in (launch.pid, launch.agent_pid(), *pids):
            os.kill(pid, signal.SIGTERM)
    launch.end()
    assert eventually(lambda: all((tmp_path / f"finished{rank}").exists() for rank in (0, 1)))
    launch.assert_nothing_left()


def test_a_signal_to_the_agent_itself_ends_the_job(start: Start, tmp_path: Path) -> None:
    launch = start("--num_accelerators", "2", "stubborn.py")
    up(tmp_path)
    os.kill(launch.agent_pid(), signal.SIGTERM)
    assert launch.end() == 143
    assert launch.processes() == {}


def test_what_finished_ranks_left_running_is_ended(start: Start, script: Any) -> None:
    name = script("import subprocess\nsubprocess.Popen(['sleep', '120'], start_new_session=True)\n")
    launch = start("--num_accelerators", "2", name)
    assert launch.end() == 0
    assert launch.processes() == {}


def test_a_program_that_cannot_be_executed_is_named(start: Start, tmp_path: Path) -> None:
    (tmp_path / "start.py").write_text(
        "from corebound.launcher import LaunchSpec, launch\n"
        "raise SystemExit(launch(LaunchSpec(command=('./no-such-program',), num_accelerators=2)))\n"
    )
    launch = start(sys.executable, "start.py")
    assert launch.end() == 4
    assert launch.stderr.startswith("rank ")
    assert "could not be started: ./no-such-program: No such file or directory" in launch.stderr


def test_a_reader_that_stops_reading_does_not_stop_the_supervision(start: Start, script: Any) -> None:
    name = script(
        "import os, sys, time\n"
        "if os.environ['RANK'] == '0':\n    sys.stderr.write('x' * 1_000_000)\n"
        "time.sleep(1)\nos.kill(os.getpid(), 9)\n"
    )
    launch = start("--num_accelerators", "2", name)
    assert eventually(lambda: any("script.py" in command for command in launch.processes().values()))
    assert eventually(
        lambda: not any("script.py" in text for pid, text in launch.processes().items() if pid != launch.pid), 10
    )
    assert launch.end() == 137


@pytest.mark.slow
def test_a_rank_killed_at_any_moment_brings_the_job_down(start: Start, tmp_path: Path) -> None:
    moments = random.Random(20261121)
    for _ in range(12):
        for file in tmp_path.glob("up*"):
            file.unlink()
        launch = start("--num_accelerators", "2", "stubborn.py")
        delay_s = moments.uniform(0.0, 0.4)
        agent = []
        found = eventually(lambda: bool(agent or agent.extend(ranks_of(launch))), timeout_s=60)  # noqa: B023 - called at once
        assert found, (launch.processes(), launch.stderr)
        time.sleep(delay_s)
        os.kill(moments.choice(agent), signal.SIGKILL)
        start_s = time.monotonic()
        assert launch.end() == 137, launch.stderr
        assert time.monotonic() - start_s < DOWN_S
        assert "was killed by SIGKILL" in launch.stderr
        assert launch.processes() == {}
        assert segments(launch) == []


def ranks_of(launch: Launch) -> list[int]:
    """The ranks' process ids from the first moment of their lives: children of the agent, two of them."""
    agents = [pid for pid, command in launch.processes().items() if "corebound.launcher.agent" in command]
    if not agents:
        return []
    children = Path(f"/proc/{agents[0]}/task/{agents[0]}/children").read_text().split()
    return [int(pid) for pid in children] if len(children) == 2 else []
