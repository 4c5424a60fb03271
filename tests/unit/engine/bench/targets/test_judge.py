"""Samples become promises kept or not: every ratio is of one round, and the median decides."""

from __future__ import annotations

import pytest

from corebound.engine.bench.peers.adapters.protocol import BenchReport, CaseReport
from corebound.engine.bench.ruler import Reading
from corebound.engine.bench.series import Sample
from corebound.engine.bench.targets import judge
from corebound.engine.bench.targets.finding import Finding
from corebound.engine.bench.targets.pairs import Pair
from corebound.engine.bench.targets.planned import Who
from corebound.engine.bench.targets.samples import Samples
from corebound.engine.bench.targets.settings import Settings
from corebound.engine.bench.targets.turn_files import TurnReport
from corebound.engine.bench.work import Work

SETTINGS = Settings(short_prompt_tokens=32, new_tokens=48, prompt_tokens=512, context=8000, few_tokens=16)
WORK = Work(layer_elements=10**9, head_elements=0, num_layers=10, num_heads=8, num_kv_heads=4, head_dim=64)
ONE = Who(dtype="bfloat16", num_ranks=1)
INT4 = Who(dtype="int4", num_ranks=1)


def sample(
    step_ms: float,
    first_ms: float = 100.0,
    *,
    gb: float = 20.0,
    gflop: float = 1000.0,
    weights: int = 2 * 10**9,
    lines_ns: tuple[float, float] = (50.0, 50.0),
) -> Sample:
    case = CaseReport(first_token_ms=first_ms, step_ms=[step_ms] * 3, elapsed_s=1.0)
    engine = BenchReport(num_threads=2, peak_rss_bytes=1, cases=[case], weight_bytes_per_token=weights, cpus=[0, 1])
    before, after = (
        Reading(read_gb_per_s=gb, best_read_gb_per_s=gb, gemm_gflop_per_s=gflop, line_ns=line_ns)
        for line_ns in lines_ns
    )
    return Sample(engine=engine, case=case, before=before, after=after)


def samples(**cases: list[Sample]) -> Samples:
    return Samples(of_case={(ONE, name): found for name, found in cases.items()})


def test_decode_counts_weights_and_cache_over_the_bandwidth_of_its_own_round() -> None:
    # The machine halves between the rounds, and so does the speed.
    (found,) = judge.decode(
        samples(decode=[sample(125), sample(250, gb=10), sample(125)]), "llama-1.1b", WORK, SETTINGS
    )
    # 2 GB of weights, and 10 layers of 4 heads of 64 keys and values of 2 bytes for 56 tokens.
    num_bytes = 2 * 10**9 + 2 * 10 * 4 * 64 * 2 * 56
    assert found.ratios == pytest.approx([num_bytes / 125e6 / 20] * 3)
    assert (found.promised, found.is_met) == ("at least 0.9", False)
    (kept,) = judge.decode(samples(decode=[sample(105)]), "llama-1.1b", WORK, SETTINGS)
    assert kept.is_met


def test_each_width_has_its_own_bound_and_of_bloom_only_bfloat16_is_promised() -> None:
    found = Samples(of_case={(who, "decode"): [sample(100)] for who in (ONE, INT4)})
    assert [one.bound for one in judge.decode(found, "llama-1.1b", WORK, SETTINGS)] == [0.90, 0.75]
    assert [one.bound for one in judge.decode(found, "bloom-560m", WORK, SETTINGS)] == [0.85, None]
    assert judge.decode(found, "bloom-560m", WORK, SETTINGS)[1].is_met is None


def test_a_long_context_counts_its_cache() -> None:
    (found,) = judge.long_context(samples(context=[sample(200)]), "llama-1.1b", WORK, SETTINGS)
    cache = 2 * 10 * 4 * 64 * 2 * (8000 + 16)
    assert found.ratios == pytest.approx([(2 * 10**9 + cache) / 200e6 / 20])


def test_prefill_is_held_against_the_products_around_it() -> None:
    flop = WORK.prefill_flop(512, 1)
    (found,) = judge.prefill(samples(prompt=[sample(1, first_ms=flop / 1e9)]), "x", WORK, SETTINGS)
    assert found.ratios == pytest.approx([1.0]) and found.is_met


def pair(one_ms: float, other_ms: float, first_ms: float = 1.0, *lines_ns: float) -> Pair:
    one, other = (
        CaseReport(first_token_ms=first, step_ms=[step, step], elapsed_s=1.0)
        for step, first in ((one_ms, first_ms), (other_ms, 1.0))
    )
    before, between, after = lines_ns or (50.0, 50.0, 50.0)
    return Pair(one=one, other=other, lines_ns=(before, between, after))


def test_two_ranks_are_held_against_one_in_every_figure() -> None:
    found = Samples(
        of_pair={
            "ranks: decode": [[pair(104, 100, 9)], [pair(52, 50, 9)]],
            "ranks: short": [[pair(9, 1, 1.1)]],
            "ranks: prompt": [[pair(9, 1, 1.0)]],
        }
    )
    judged = judge.two_ranks(found, "x", SETTINGS)
    assert [one.ratios for one in judged] == [pytest.approx([1.04] * 2), pytest.approx([1.1]), [1.0]]
    assert [one.is_met for one in judged] == [True, False, True]
    found = Samples(of_pair={"cached": [[pair(208, 104)], [pair(104, 52)]]})
    (cached,) = judge.cached_two_ranks(found, "x", "small")
    assert cached.ratios == pytest.approx([2.0, 2.0]) and cached.is_met and cached.note == "small"


def test_a_round_is_the_median_of_its_pairs_that_lay_still() -> None:
    moved = pair(90, 1, 1, 50, 50, 27)
    rounds = [
        [pair(10, 10), pair(12, 10), moved, pair(26, 20)],
        [moved] * 4 + [pair(11, 10)],
        [moved] * 3 + [pair(8, 10)],
    ]
    (found,) = judge.beams(Samples(of_pair={"beams": rounds}), "x")
    # Neither the medians of either side over each other, nor a round of which less than a quarter lay still.
    assert found.ratios == pytest.approx([1.2, 0.8])
    assert found.measured is not None and found.measured.rounds == [12, 8]
    assert (found.row()["pairs_per_round"], found.note) == ([3, 1], "")
    few = [[moved] * 4 + [pair(11, 10)], [moved]]
    (found,) = judge.beams(Samples(of_pair={"beams": few}), "x")
    assert (found.ratios, found.pairs_per_round) == (pytest.approx([1.1]), [1])
    assert found.note == "in no round did the processors lie still for a quarter of the pairs"
    (found,) = judge.beams(Samples(of_pair={"beams": [[moved, moved], [moved]]}), "x")
    assert (found.ratios, found.pairs_per_round) == ([90, 90], [2, 1])
    assert found.note == "in no pair did the processors lie still"
    judged = judge.cached_two_ranks(Samples(of_pair={"cached": [[moved]]}), "x", "small")
    assert judged[0].note == "small; in no pair did the processors lie still"


def test_rounds_in_which_the_processors_were_moved_do_not_count_where_there_are_others() -> None:
    moved, steady = sample(50, lines_ns=(27, 195)), sample(125)
    (found,) = judge.decode(samples(decode=[moved, steady, moved]), "x", WORK, SETTINGS)
    (alone,) = judge.decode(samples(decode=[steady]), "x", WORK, SETTINGS)
    assert found.ratios == alone.ratios
    (all_moved,) = judge.decode(samples(decode=[moved, moved]), "x", WORK, SETTINGS)
    assert len(all_moved.ratios) == 2


def test_what_is_compared_lies_alike() -> None:
    near, far = sample(10, lines_ns=(50, 55)), sample(10, lines_ns=(190, 200))
    slow_near, slow_far = sample(11, lines_ns=(45, 45)), sample(40, lines_ns=(195, 195))
    found = samples(**{"busy: free": [near, near, far], "busy: taken": [slow_near, slow_far, slow_far]})
    (judged,) = judge.busy_core(found, "x")
    assert (judged.ratios, judged.note) == ([1.1, 4.0], "")
    found = samples(**{"busy: free": [near], "busy: taken": [slow_far]})
    (judged,) = judge.busy_core(found, "x")
    assert (judged.ratios, judged.note) == ([4.0], "in no round did the processors lay the same for both")


def test_batches_and_a_taken_core_are_ratios_of_neighbours() -> None:
    found = samples(**{"busy: free": [sample(10)], "busy: taken": [sample(24)]})
    found.of_case |= {(ONE, f"batch {batch}"): [sample(10 + batch)] for batch in judge.BATCHES}
    assert [(one.is_met, one.ratios) for one in judge.busy_core(found, "x")] == [(True, [2.4])]
    speeds = judge.batches(found, "x")
    assert [one.ratios[0] for one in speeds] == pytest.approx([batch * 11 / (10 + batch) for batch in judge.BATCHES])
    assert {one.is_met for one in speeds} == {None}


def test_memory_is_promised_less_what_python_and_torch_held_and_the_whole_process_is_told() -> None:
    report = BenchReport(num_threads=1, peak_rss_bytes=0, cases=[])
    turn = TurnReport(report=report, resident_bytes=1300, before_load_bytes=250)
    judged = judge.memory(Samples(first={ONE: turn}), "x", {"bfloat16": 900}, 100)
    assert [(one.what.partition(":")[0], one.ratios) for one in judged] == [
        ("less Python and torch", [1.05]),
        ("whole process", [1.3]),
    ]
    assert [(one.promised, one.is_met) for one in judged] == [("at most 1.1", True), ("", None)]


def test_two_ranks_of_one_core_are_rows_with_the_reason() -> None:
    rows = [one.row() for one in judge.without_two_ranks("x", SETTINGS)]
    assert len(rows) == 3
    assert {(row["found"], row["promised"], row["note"]) for row in rows} == {
        (None, "at most 1.05", "this machine has one core")
    }


def test_a_prediction_has_to_lie_on_either_side_of_what_is_measured() -> None:
    def finding(*ratios: float) -> Finding:
        return Finding(line="plan", what="x", sense="within", bound=0.15, ratios=ratios)

    assert [finding(0.9, 1.1, 3).is_met, finding(0.8).is_met, finding(1.2).is_met] == [True, False, False]
    row = finding(0.9, 1.1, 3).row()
    assert (row["found"]["median"], row["promised"], row["num_rounds"]) == (1.1, "within 15%", 3)


def test_what_nobody_measured_is_no_finding() -> None:
    empty = Samples()
    assert judge.decode(empty, "x", WORK, SETTINGS) == judge.prefill(empty, "x", WORK, SETTINGS) == []
    assert judge.beams(empty, "x") == judge.batches(empty, "x") == judge.busy_core(empty, "x") == []
    assert judge.two_ranks(empty, "x", SETTINGS) == judge.cached_two_ranks(empty, "x", "") == []
