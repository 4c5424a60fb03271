"""Rounds become a row: each is judged by the readings around it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from corebound.engine.bench import shapes
from corebound.engine.bench.cases import make_cases
from corebound.engine.bench.peers.adapters.protocol import BenchReport, CaseReport
from corebound.engine.bench.ruler import Reading
from corebound.engine.bench.series import Sample, Series, compare, num_equal, percentile, rounds_that_count
from corebound.engine.bench.work import work_of
from corebound.models import describe


def reading(gb: float, gflop: float, line_ns: float = 0.0) -> Reading:
    return Reading(read_gb_per_s=gb, best_read_gb_per_s=gb, gemm_gflop_per_s=gflop, line_ns=line_ns)


@pytest.fixture
def series(tmp_path: Path) -> Series:
    work = work_of(describe(shapes.write_shape("llama-tiny", tmp_path, lambda text: None), tokenizer=False))
    (case,) = make_cases([8], [2], 4, 100)
    return Series(
        engine="x", model="m", dtype="bfloat16", num_ranks=1, case=case, work=work, default_weight_bytes=10**9
    )


def add(series: Series, step_ms: float, before: Reading, after: Reading, **fields: int) -> None:
    case = CaseReport(first_token_ms=100.0, step_ms=[step_ms] * 3, elapsed_s=0.5, token_ids=[1, 2, 3, 4])
    engine = BenchReport(num_threads=2, peak_rss_bytes=5, cases=[case], **fields)
    series.samples.append(Sample(engine=engine, case=case, before=before, after=after))


def test_a_fraction_is_the_median_of_each_round_by_its_own_readings(series: Series) -> None:
    # The machine becomes slower, and so does the engine: half of what there was, each time.
    for step_ms, before, after in ((100, 25, 15), (200, 15, 5), (400, 7, 3)):
        add(series, step_ms, reading(before, 1000), reading(after, 2000))
    row = series.row()
    assert row["fraction_of_ceiling"] == pytest.approx(0.5, abs=0.001)
    assert (row["next_token_ms"], row["ceiling_gb_per_s"]) == (200, 10)
    assert row["gemm_ceiling_gflop_per_s"] == 1500
    flop = series.work.prefill_flop(8, 2)
    assert row["prefill_gflop_per_s"] == pytest.approx(flop / 0.1 / 1e9, abs=0.1)
    assert (row["tokens_per_s"], row["decode_tokens_per_s"]) == (16.0, 10.0)
    assert (row["next_token_p10_ms"], row["next_token_p90_ms"]) == (100, 400)


def test_what_an_engine_says_that_it_reads_counts(series: Series) -> None:
    add(series, 100, reading(20, 1), reading(20, 1), weight_bytes_per_token=2 * 10**9)
    assert series.row()["fraction_of_ceiling"] == pytest.approx(1.0, abs=0.001)
    assert series.row()["weight_bytes_per_token"] == 2 * 10**9


def test_engines_are_compared_round_by_round(series: Series) -> None:
    add(series, 100, reading(20, 1), reading(20, 1))
    found = compare(series, series)
    assert (found["decode_speed_ratio"], found["num_equal_tokens"], found["num_new_tokens"]) == (1.0, 4, 4)


def of_rounds(series: Series, *rounds: tuple[float, float, float]) -> Series:
    """The series with a round of each step, between readings of two distances."""
    found = dataclasses.replace(series, samples=[])
    for step_ms, before_ns, after_ns in rounds:
        add(found, step_ms, reading(20, 1, before_ns), reading(20, 1, after_ns))
    return found


def test_rounds_in_which_the_processors_were_moved_do_not_count(series: Series) -> None:
    ours = of_rounds(series, (50, 210, 212), (60, 50, 50), (60, 50, 210), (70, 50, 50), (50, 210, 200))
    theirs = of_rounds(series, (100, 48, 50), (90, 50, 52), (300, 210, 210), (91, 50, 50), (60, 205, 210))
    found = compare(ours, theirs)
    assert found["round_counts"] == [False, True, False, True, True]
    assert found["ratio_per_round"] == [2.0, 1.5, 5.0, 1.3, 1.2]
    assert found["decode_speed_ratio"] == 1.3


def test_two_rounds_in_which_the_processors_lay_alike_are_not_enough(series: Series) -> None:
    ours = of_rounds(series, (50, 50, 50), (50, 50, 50), (50, 50, 50))
    theirs = of_rounds(series, (100, 210, 210), (60, 50, 50), (150, 50, 50))
    found = compare(ours, theirs)
    assert (found["round_counts"], found["decode_speed_ratio"]) == ([True] * 3, 2.0)
    assert rounds_that_count([]) == [] and rounds_that_count([False]) == [True]


def test_lines_around_a_case_say_more_than_those_around_its_turn(series: Series) -> None:
    def lines(found: Series, *around: list[float]) -> Series:
        for sample, lines_ns in zip(found.samples, around, strict=True):
            object.__setattr__(sample, "case", dataclasses.replace(sample.case, lines_ns=lines_ns))
        return found

    moved = ((50, 50, 210),) * 4
    ours = lines(of_rounds(series, *moved), [50, 50], [210, 200], [50, 50], [50, 51])
    theirs = lines(of_rounds(series, *((100, 27, 50),) * 4), [52, 50], [210, 205], [50, 210], [48, 50])
    found = compare(ours, theirs)
    assert found["round_counts"] == [True, True, False, True]
    assert found["lines_ns_per_round"][1] == [210, 200, 210, 205]
    assert not ours.samples[0].is_alike(of_rounds(series, (50, 50, 50)).samples[0])


def test_a_fraction_is_of_rounds_whose_ceilings_were_read_where_the_processors_lay_for_the_case(series: Series) -> None:
    for step_ms, lines_ns, around_ns in ((50, 50, 50), (99, 210, 50), (50, 210, 210), (50, 50, 50), (99, 210, 50)):
        case = CaseReport(first_token_ms=step_ms, step_ms=[step_ms] * 3, elapsed_s=0.5, lines_ns=[lines_ns] * 2)
        engine = BenchReport(num_threads=2, peak_rss_bytes=5, cases=[case])
        around = reading(20, 1000, around_ns)
        series.samples.append(Sample(engine=engine, case=case, before=around, after=around))
    row = series.row()
    assert row["fraction_of_ceiling"] == pytest.approx(1.0, abs=0.001)
    assert row["prefill_fraction_of_gemm"] == pytest.approx(series.work.prefill_flop(8, 2) / 5e10, abs=0.001)
    assert (row["num_rounds"], row["next_token_ms"]) == (5, 50)


def test_tokens_agree_until_the_first_that_differs() -> None:
    assert num_equal([1, 2, 3], [1, 2, 4]) == 2
    assert num_equal([1, 2], [1, 2, 4]) == 2
    assert num_equal([], [1]) == 0


def test_a_percentile_of_one_value_is_that_value() -> None:
    assert percentile([3.0], 99) == 3.0
