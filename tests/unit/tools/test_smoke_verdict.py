"""The smoke run's judgement and table, without a machine."""

from __future__ import annotations

import copy
import io
import json
from typing import Any

import pytest
from rich.console import Console

from smoke import table, verdict
from smoke.targets import Answer

GENERATED: dict[str, Any] = {
    "outputs": [{"prompt": "The old ship", "text": " sailed home", "token_ids": [5, 6], "finish_reason": "length"}],
    "ready_s": 2.5,
    "first_token_ms": 9.0,
    "next_token_ms": 3.0,
    "tokens_per_s": 300.0,
    "ranks": [
        {"rank": 0, "local_rank": 0, "host": "node", "cpus": [0, 1, 2], "isa": "avx2", "comm": "shm"},
        {"rank": 1, "local_rank": 1, "host": "node", "cpus": [3, 8], "isa": "avx2", "comm": "shm"},
    ],
}


def judged(report: dict[str, Any], num_ranks: int = 2) -> dict[str, bool]:
    """Returns check name -> passed."""
    answer = Answer(exit_code=0, stdout=json.dumps(report), stderr="")
    return {check.name: check.passed for check in verdict.judge_generate("node", answer, num_ranks)}


def changed(**values: Any) -> dict[str, Any]:
    """Returns the good report with some values of its second rank or of itself replaced."""
    report = copy.deepcopy(GENERATED)
    for name, value in values.items():
        (report if name in report else report["ranks"][1])[name] = value
    return report


def test_a_good_run_passes_every_check() -> None:
    assert all(judged(GENERATED).values())


@pytest.mark.parametrize(
    ("report", "failed"),
    [
        (changed(cpus=[2, 3]), "ranks are on disjoint cores"),
        (changed(cpus=[]), "ranks are on disjoint cores"),
        (changed(comm="gloo"), "ranks talk by shm"),
        (changed(ranks=GENERATED["ranks"][:1]), "every rank reports"),
        (changed(outputs=[{"prompt": "a", "text": " \n"}]), "there is text"),
        (changed(outputs=[]), "there is text"),
        (changed(tokens_per_s=0.0), "speed was measured"),
    ],
)
def test_each_fault_fails_its_own_check(report: dict[str, Any], failed: str) -> None:
    assert [name for name, passed in judged(report).items() if not passed] == [failed]


def test_one_rank_alone_needs_no_shared_memory() -> None:
    alone = changed(ranks=[{**GENERATED["ranks"][0], "comm": "single"}])
    assert all(judged(alone, num_ranks=1).values())


def test_a_failed_command_is_shown_with_its_own_words() -> None:
    answer = Answer(exit_code=137, stdout="", stderr="rank 1 on node was killed by SIGKILL")
    (check,) = verdict.judge_generate("node", answer, 2)
    assert not check.passed
    assert "exit code 137" in check.detail and "killed by SIGKILL" in check.detail


@pytest.mark.parametrize(
    ("asked", "num_cores", "num_slots", "expected"),
    [(0, 2, 1, 2), (0, 64, 4, 4), (0, 1, 1, 1), (3, 1, 1, 3), (0, 2, 0, 2)],
)
def test_a_node_runs_two_ranks_or_one_for_each_slot(asked: int, num_cores: int, num_slots: int, expected: int) -> None:
    ranks = [{"host": "node"}] * num_slots + [{"host": "other"}] * 7
    plan = Answer(exit_code=0, stdout=json.dumps({"ranks": ranks}), stderr="")
    assert verdict.choose_num_ranks(asked, num_cores, "node", plan) == expected


def test_two_threads_of_one_core_are_one_core() -> None:
    """On a cloud machine with 2 CPUs on 1 core the smoke run asked for two bound ranks, which was refused."""
    cpus = [{"id": 0, "siblings": [0, 1]}, {"id": 1, "siblings": [0, 1]}, {"id": 2, "siblings": [2, 3]}]
    answer = Answer(exit_code=0, stdout=json.dumps({"allowed_cpus": [0, 1], "cpus": cpus}), stderr="")
    assert verdict.num_physical_cores(answer) == 1
    assert verdict.num_physical_cores(Answer(exit_code=2, stdout="", stderr="no")) == 0


def test_a_failing_doctor_names_the_check() -> None:
    report = {"checks": [{"name": "isa", "status": "fail", "detail": "no AVX2", "hint": ""}]}
    (check,) = verdict.judge_doctor("node", Answer(exit_code=1, stdout=json.dumps(report), stderr=""))
    assert not check.passed and check.detail == "isa: no AVX2"


def test_cores_are_shown_in_the_kernels_form() -> None:
    assert verdict.cores([8, 0, 2, 1]) == "0-2,8"
    assert verdict.cores([]) == ""


def test_the_table_shows_units_text_and_failures() -> None:
    row = {"host": "node", "num_ranks": 2, "cores": ["0", "1"], "isa": ["avx2"], "comm": ["shm"], "verdict": "fail"}
    numbers = {"first_token_ms": 9.04, "next_token_ms": 3.0, "tokens_per_s": None}
    report = {
        "verdict": "fail",
        "hosts": [{**row, **numbers}],
        "outputs": [{"prompt": "The [old] ship", "text": " sailed"}],
        "checks": [{"host": "node", "name": "speed was measured", "passed": False, "detail": "[nothing]"}],
    }
    stream = io.StringIO()
    table.show(report, Console(file=stream, width=140))
    text = stream.getvalue()
    assert "first token ms" in text and "0 | 1" in text and "9.0" in text
    assert "The [old] ship sailed" in text
    assert "failed on node: speed was measured: [nothing]" in text
    assert text.rstrip().endswith("smoke: fail")
