"""The findings that commands of their own measured: from what they print to promises."""

from __future__ import annotations

import pytest

from corebound.engine.bench.load_times import LoadTimes
from corebound.engine.bench.targets.commands import load_finding, quality_findings, sum_finding


def test_a_sum_is_held_against_the_floor_of_its_own_round() -> None:
    found = sum_finding("near", [(1.4, 1.0), (2.8, 2.0), (9.0, 3.0)])
    assert found.ratios == pytest.approx([1.4, 1.4, 3.0]) and found.is_met
    assert "near cores" in found.what
    assert not sum_finding("near", [(1.6, 1.0)]).is_met


def test_a_load_is_held_against_cat_and_says_what_fresh_memory_takes() -> None:
    times = LoadTimes(
        num_bytes=2_200_000_000, num_threads=2, cat_s=[1.0, 2.0], memory_s=[0.25, 0.75], load_s=[1.4, 2.8]
    )
    found = load_finding("int4", times)
    assert found.ratios == pytest.approx([1.4, 1.4]) and found.is_met
    assert "2.20 GB" in found.note and "0.50 s" in found.note


def test_quality_is_told_against_the_first_scheme_and_promises_nothing() -> None:
    rows = [{"scheme": name, "perplexity": value} for name, value in (("float32", 4.0), ("int8", 4.1), ("int4", 5.0))]
    found = [one.row() for one in quality_findings(rows)]
    assert [one["found"]["median"] for one in found] == [1.025, 1.25]
    assert {one["is_met"] for one in found} == {None} and {one["promised"] for one in found} == {""}
    assert "int4" in found[1]["what"] and "float32" in found[1]["what"]
