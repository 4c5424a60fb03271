"""The smoke run's judgement and table, without a machine."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from smoke import checks, table, verdict
from smoke.node import Answer

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
    assert checks.cores([8, 0, 2, 1]) == "0-2,8"
    assert checks.cores([]) == ""


def test_the_table_shows_units_text_and_failures() -> None:
    row = {"host": "node", "num_ranks": 2, "cores": ["0", "1"], "isa": ["avx2"], "comm": ["shm"], "verdict": "fail"}
    numbers = {"first_token_ms": 9.04, "next_token_ms": 3.0, "tokens_per_s": None, "memory_gb_per_s": 31.25}
    numbers["shared_memory_all_reduce"] = {"bytes": 65536, "p50_us": 17.3}
    failed = checks.judged("node", "generate", "speed was measured", False, "[nothing]")
    sums = {"provider": "ccl", "bytes": 65536, "num_ranks": 4, "num_hosts": 2, "p50_us": 120.4, "p90_us": 130.0}
    report = {
        "verdict": "fail",
        "hosts": [{**row, **numbers}],
        "outputs": [{"prompt": "The [old] ship", "text": " sailed"}],
        "checks": [{**failed.to_json(), "evidence": ["evidence/node/speed.txt"]}],
        "across_nodes": {"all_reduce": [sums]},
    }
    stream = io.StringIO()
    table.show(report, Console(file=stream, width=140), Path("reports/prod"))
    text = stream.getvalue()
    assert "first token ms" in text and "0 | 1" in text and "9.0" in text
    assert "The [old] ship sailed" in text
    assert "failed on node: speed was measured: [nothing]" in text
    assert "evidence: reports/prod/evidence/node/speed.txt" in text
    assert "31.2" in text and "17.3 (64 KiB)" in text and "memory GB/s" in text
    assert "ccl" in text and "120.4" in text and "p50 us" in text
    assert text.rstrip().endswith("smoke: fail")


def answer(report: Any, exit_code: int = 0, stderr: str = "") -> Answer:
    """Returns the answer of a command that printed a report."""
    return Answer(exit_code=exit_code, stdout=json.dumps(report), stderr=stderr)


def memory(speed: float) -> Answer:
    """Returns what `corebound bench memory --json` prints on two cores."""
    rows = [{"num_threads": 1, "cpus": [0], "read_gb_per_s": 9.0}]
    return answer({"rows": [*rows, {"num_threads": 2, "cpus": [0, 1], "read_gb_per_s": speed}]})


@pytest.mark.parametrize(
    ("given", "least", "status"),
    [
        (memory(18.0), 0.0, "pass"),
        (memory(18.0), 18.0, "pass"),
        (memory(18.0), 18.1, "fail"),
        (memory(0.0), 0.0, "fail"),
        (answer({"rows": []}), 0.0, "fail"),
        (Answer(exit_code=6, stdout="", stderr="error: no memory"), 0.0, "fail"),
    ],
)
def test_memory_is_judged_by_all_cores_and_the_least_speed(given: Answer, least: float, status: str) -> None:
    (check,), speed = verdict.judge_memory("node", given, least)
    assert check.status == status
    assert speed == 18.0 or status == "fail"


def test_a_node_with_half_the_memory_speed_of_the_others_is_a_warning() -> None:
    found = verdict.judge_memory_spread({"a": 100.0, "b": 110.0, "c": 49.0})
    assert [(check.host, check.status) for check in found] == [("c", "warn")]
    assert "49.0 GB/s, the median of 3 nodes is 100.0" in found[0].detail
    assert verdict.judge_memory_spread({"a": 100.0, "b": 110.0, "c": 60.0}) == []
    assert verdict.judge_memory_spread({"a": 1.0}) == []


def test_the_sum_in_shared_memory_must_be_by_shared_memory() -> None:
    rows = [{"provider": "gloo", "bytes": 65536, "p50_us": 200.0}, {"provider": "shm", "bytes": 65536, "p50_us": 17.0}]
    (check,), row = verdict.judge_shared_memory("node", answer({"rows": rows}))
    assert check.passed and row == rows[1]
    (check,), row = verdict.judge_shared_memory("node", answer({"rows": rows[:1]}))
    assert not check.passed and check.detail == "found gloo, expected shm" and row is None
    (check,), row = verdict.judge_shared_memory("node", answer({"rows": rows}, exit_code=5, stderr="no /dev/shm"))
    assert not check.passed and "no /dev/shm" in check.detail


def test_a_node_with_another_hostfile_is_named() -> None:
    def plan(**slots: int) -> dict[str, Any]:
        return {"hosts": [{"host": name, "num_slots": number} for name, number in slots.items()]}

    plans = {"a": plan(x=2, y=2), "b": plan(x=2, y=1), "c": plan(x=2, y=2), "d": plan(y=2, x=2)}
    found = verdict.judge_hostfiles_agree(plans)
    assert [(check.host, check.status) for check in found] == [("b", "fail"), ("d", "fail")]
    assert found[0].detail == "x slots=2, y slots=1; expected as on a: x slots=2, y slots=2"


def test_a_hostfile_that_lacks_a_node_fails() -> None:
    launch = answer({"ranks": [{"host": "x"}, {"host": "x"}]})
    assert [check.passed for check in verdict.judge_hostfile("node", launch, 1)] == [True]
    assert [check.passed for check in verdict.judge_hostfile("node", launch, 2)] == [False]
    assert [check.passed for check in verdict.judge_hostfile("node", answer({}, 2, "no such file"), 1)] == [False]
