"""Who takes part in the jobs of a team: csrc/decoder/roster, by a small program of its own."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "runtime/csrc"

pytestmark = pytest.mark.native

Jobs = Callable[..., list[list[int]]]


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    """Return a function of jobs, `(now, seconds, waited by member 0, *lost by each)`, that returns who comes next."""
    compiler = shutil.which("g++")
    assert compiler, "make native needs it too"
    program = tmp_path_factory.mktemp("roster") / "roster_jobs"
    sources = [HERE / "roster_jobs.cpp", CSRC / "decoder/roster.cpp"]
    subprocess.run([compiler, "-std=c++20", "-Wall", "-Werror", f"-I{CSRC}", "-o", program, *sources], check=True)

    def run(size: int, *rows: tuple[float, ...]) -> list[list[int]]:
        text = "".join(" ".join(map(str, row)) + "\n" for row in rows)
        done = subprocess.run([program, str(size)], input=text, capture_output=True, text=True, check=True, timeout=30)
        return [[int(word) for word in line.split()] for line in done.stdout.splitlines()]

    return run


def test_who_holds_up_the_others_is_left_out_and_tried_again(jobs: Jobs) -> None:
    held_up, alone, well = (0.1, 0.07, 0.0, 0.06), (0.06, 0.0, 0.0, 0.06), (0.04, 0.0, 0.0, 0.0)
    found = jobs(2, (10.0, *held_up), (10.3, *alone), (10.51, *alone), (10.6, *well))
    assert found == [[0], [0], [0, 1], [0, 1]]


def test_each_absence_is_longer_up_to_eight_seconds_and_forgotten_after_a_good_job(jobs: Jobs) -> None:
    now, held_up, alone = 0.0, (0.1, 0.07, 0.0, 0.06), (0.06, 0.0, 0.0, 0.0)
    rows: list[tuple[float, ...]] = []
    for rest in (0.5, 1, 2, 4, 8, 8):
        rows += [(now, *held_up), (now + rest - 0.01, *alone), (now + rest, *alone)]
        now += rest
    assert jobs(2, *rows) == [[0], [0], [0, 1]] * 6
    now += 1
    rows += [(now, *alone), (now + 1, *held_up), (now + 1.5, *alone)]
    assert jobs(2, *rows)[-3:] == [[0, 1], [0], [0, 1]]


def test_a_member_of_many_is_left_out_for_less_than_one_of_two(jobs: Jobs) -> None:
    # They wait for less than half of the time, but more than a tenth: one of two is worth that, one of eight is not.
    waited = (1.0, 0.1, 0.03)
    assert jobs(2, (*waited, 0.0, 0.09)) == [[0, 1]]
    assert jobs(8, (*waited, *[0.0] * 6, 0.09, 0.0)) == [[0, 1, 2, 3, 4, 5, 7]]
    assert jobs(8, (1.0, 0.1, 0.005, *[0.0] * 6, 0.09, 0.0)) == [list(range(8))]


def test_nobody_is_left_out_where_most_are_late_or_nobody_waits(jobs: Jobs) -> None:
    everyone = list(range(4))
    assert jobs(4, (1.0, 0.1, 0.08, 0.0, 0.05, 0.05, 0.05)) == [everyone]
    assert jobs(4, (1.0, 0.1, 0.04, 0.0, 0.05, 0.05, 0.0)) == [everyone]  # a half is more than they waited for
    assert jobs(4, (1.0, 0.1, 0.0, 0.0, 0.0, 0.05, 0.0)) == [everyone]  # a prompt: the others take over panels
    assert jobs(4, (1.0, 0.1, 0.08, 0.0, 0.0, 0.0, 0.0)) == [everyone]  # for another rank, or the hypervisor
    assert jobs(4, (1.0, 0.1, 0.08, 0.09, 0.0, 0.0, 0.0)) == [everyone]  # the caller itself


def test_several_can_be_away_and_come_back_each_in_its_time(jobs: Jobs) -> None:
    found = jobs(
        5,
        (1.0, 0.1, 0.08, 0.0, 0.0, 0.05, 0.0, 0.0),
        (1.2, 0.1, 0.08, 0.0, 0.0, 0.05, 0.0, 0.05),
        (1.51, 0.1, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
        (1.71, 0.1, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
    )
    assert found == [[0, 1, 3, 4], [0, 1, 3], [0, 1, 2, 3], [0, 1, 2, 3, 4]]
