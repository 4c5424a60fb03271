"""The findings that commands of their own measured: from what they print to promises."""

from __future__ import annotations

import pytest

from corebound.engine.bench.load_times import LoadTimes, Round
from corebound.engine.bench.targets.commands import load_finding, quality_findings, sum_finding


def test_a_sum_is_held_against_the_floor_of_its_own_round() -> None:
    found = sum_finding("near", [(1.4, 1.0), (2.8, 2.0), (9.0, 3.0)])
    assert found.ratios == pytest.approx([1.4, 1.4, 3.0]) and found.is_met
    assert "near cores" in found.what
    assert not sum_finding("near", [(1.6, 1.0)]).is_met


def load_times(*steady: bool) -> LoadTimes:
    rounds = [
        Round(cat_s=1.0, memory_s=0.25 + at, load_s=1.4 if one else 9.0, is_steady=one) for at, one in enumerate(steady)
    ]
    return LoadTimes(num_bytes=2_200_000_000, num_threads=2, rounds=rounds)


def test_a_load_is_held_against_cat_and_says_what_fresh_memory_takes() -> None:
    found = load_finding("int4", load_times(True, True))
    assert found.ratios == pytest.approx([1.4, 1.4]) and found.is_met
    assert "2.20 GB" in found.note and "0.75 s" in found.note and "all 2 rounds were steady" in found.note


def test_loads_of_rounds_that_were_not_steady_are_told_of_and_do_not_count() -> None:
    found = load_finding("int4", load_times(True, False, False))
    assert found.ratios == pytest.approx([1.4])
    assert "1 of 3 rounds were steady" in found.note and "the median of all is 9.00" in found.note


def test_where_no_round_was_steady_all_loads_count_and_that_is_told() -> None:
    found = load_finding("int4", load_times(False, False))
    assert found.ratios == pytest.approx([9.0, 9.0]) and not found.is_met
    assert "none of the 2 rounds" in found.note


def test_quality_is_told_against_the_first_scheme_and_promises_nothing() -> None:
    rows = [{"scheme": name, "perplexity": value} for name, value in (("float32", 4.0), ("int8", 4.1), ("int4", 5.0))]
    found = [one.row() for one in quality_findings(rows)]
    assert [one["found"]["median"] for one in found] == [1.025, 1.25]
    assert {one["is_met"] for one in found} == {None} and {one["promised"] for one in found} == {""}
    assert "int4" in found[1]["what"] and "float32" in found[1]["what"]
