"""What is predicted, against what the same rounds measured."""

from __future__ import annotations

import pytest

from corebound.engine.bench.peers.adapters.protocol import BenchReport, CaseReport
from corebound.engine.bench.ruler import Reading
from corebound.engine.bench.series import Sample
from corebound.engine.bench.targets.planned import Who
from corebound.engine.bench.targets.predictions import RoundPredictions, compare, without_two_ranks
from corebound.engine.bench.targets.samples import Samples
from corebound.engine.bench.targets.turn_files import TurnReport
from corebound.engine.predict.model import Prediction, Times

ONE = Who(dtype="int8", num_ranks=1)


def prediction(first_s: float, next_s: float, memory_mib: int) -> Prediction:
    return Prediction(
        dtype="int8",
        num_ranks=1,
        num_hosts=1,
        first_token=Times(arithmetic_s=first_s),
        next_token=Times(memory_s=next_s / 2, overhead_s=next_s / 2),
        weight_bytes=0,
        cache_bytes=0,
        rank_bytes=memory_mib << 20,
        host_bytes=memory_mib << 20,
        available_bytes=1 << 40,
    )


def sample(first_ms: float, step_ms: float, line_ns: float = 50.0, number: int = 0) -> Sample:
    case = CaseReport(first_token_ms=first_ms, step_ms=[step_ms], elapsed_s=1.0)
    report = BenchReport(num_threads=1, peak_rss_bytes=100 << 20, cases=[case])
    reading = Reading(read_gb_per_s=1.0, best_read_gb_per_s=1.0, gemm_gflop_per_s=1.0, line_ns=line_ns)
    return Sample(engine=report, case=case, before=reading, after=reading, number=number)


def made(
    first_s: float, next_s: float, memory_mib: int, line_ns: float = 50.0, *, is_steady: bool = True
) -> RoundPredictions:
    return RoundPredictions(line_ns=line_ns, is_steady=is_steady, of={ONE: prediction(first_s, next_s, memory_mib)})


def test_times_are_compared_with_the_nearest_prediction_and_memory_once() -> None:
    rounds = [sample(100, 10, 48), sample(200, 20, 190), sample(100, 10, 52)]
    first = TurnReport(report=rounds[0].engine, resident_bytes=0, before_load_bytes=0)
    samples = Samples(of_case={(ONE, "prompt"): rounds}, first={ONE: first})
    # In another order than the rounds: what counts is how the processors lay.
    predictions = [made(0.22, 0.016, 90, 200), made(0.11, 0.008, 120, 50), made(0.5, 0.5, 110, 27)]
    found = compare(predictions, samples, "s", "prompt")
    assert [one.ratios for one in found] == [
        pytest.approx([1.1] * 3),
        pytest.approx([0.8] * 3),
        [1.1],
    ]  # the median of 90, 110 and 120
    assert [one.is_met for one in found] == [True, False, True]
    assert [one.what for one in found] == [
        f"{what}, predicted over measured: s, int8, 1 rank" for what in ("first token", "next token", "memory")
    ]


def test_a_round_is_held_against_its_own_prediction_or_the_nearest_in_time() -> None:
    def ratios(rounds: list[Sample], predictions: list[RoundPredictions]) -> list[float]:
        first = TurnReport(report=rounds[0].engine, resident_bytes=0, before_load_bytes=0)
        samples = Samples(of_case={(ONE, "prompt"): rounds}, first={ONE: first})
        return list(compare(predictions, samples, "s", "prompt")[0].ratios)

    # A drift of the machine pairs out where latencies are equal, or differ as noise does.
    drift = [sample(100 * (1 + number), 1, 50 + number % 2, number) for number in range(3)]
    assert ratios(drift, [made(0.1 * (1 + number), 1, 1, 51) for number in range(3)]) == pytest.approx([1, 1, 1])
    one_core = [sample(100 * (1 + number), 1, 0.0, number) for number in range(3)]
    assert ratios(one_core, [made(0.1 * (1 + number), 1, 1, 0.0) for number in range(3)]) == pytest.approx([1, 1, 1])
    # One that was moved meanwhile, and one that lay elsewhere: the next before them. Nowhere alike: its own.
    last = [sample(100, 1, 50, 2)]
    others = [made(0.1, 1, 1), made(0.9, 1, 1, is_steady=False), made(0.9, 1, 1, 200)]
    assert ratios(last, others) == pytest.approx([1])
    assert ratios(last, [made(0.9, 1, 1, 200), made(0.9, 1, 1, 27), made(0.1, 1, 1, 200)]) == pytest.approx([1])


def test_who_did_not_do_the_case_is_not_compared() -> None:
    assert compare([made(1, 1, 1)], Samples(), "s", "prompt") == compare([], Samples(), "s", "prompt") == []


def test_one_core_has_the_rows_of_two_ranks_with_the_reason() -> None:
    rows = [one.row() for one in without_two_ranks(["bfloat16", "int8"], "s")]
    assert len(rows) == 6 and len({row["what"] for row in rows}) == 6
    assert {(row["promised"], row["note"]) for row in rows} == {("within 15%", "this machine has one core")}
