"""Times of a batch become a report: nothing counts in which only a part of the prompts was continued."""

from __future__ import annotations

from pathlib import Path

import pytest

from corebound.engine.bench.cases import make_cases
from corebound.engine.bench.peers.adapters.protocol import BenchReport, CaseReport, case_report, read_report


def test_one_prompt_has_all_its_steps() -> None:
    found = case_report([[0.5, 0.6, 0.8]], elapsed_s=0.8, token_ids=(4, 5, 6))
    assert found.first_token_ms == pytest.approx(500)
    assert found.step_ms == pytest.approx([100, 200])
    assert found.token_ids == [4, 5, 6]


def test_steps_count_while_all_prompts_are_continued() -> None:
    early, late = [0.1, 0.5, 0.6, 0.7], [0.5, 0.6, 0.7, 0.9]
    found = case_report([early, late], elapsed_s=0.9, token_ids=())
    assert found.first_token_ms == pytest.approx(500)
    assert found.step_ms == pytest.approx([100, 100])


def test_a_report_is_read_as_it_was_written(tmp_path: Path) -> None:
    report = BenchReport(
        num_threads=2,
        peak_rss_bytes=3,
        cases=[CaseReport(first_token_ms=1.5, step_ms=[1.0, 2.0], elapsed_s=0.1, token_ids=[7])],
        version="1.2",
    )
    path = tmp_path / "report.json"
    report.write(str(path))
    assert read_report(path) == report


def test_prompts_of_a_batch_differ_and_stay_within_the_vocabulary() -> None:
    cases = make_cases([5, 300], [1, 3], 8, 100)
    assert [(case.num_prompt_tokens, case.batch_size) for case in cases] == [(5, 1), (5, 3), (300, 1), (300, 3)]
    prompts = cases[3].prompt_token_ids
    assert len({tuple(prompt) for prompt in prompts}) == 3
    assert all(3 <= token < 100 for prompt in prompts for token in prompt)


def test_the_prompts_of_a_warm_up_begin_otherwise() -> None:
    (case,) = make_cases([5], [2], 8, 100)
    warm_up = case.for_warm_up()
    assert (warm_up.num_prompt_tokens, warm_up.batch_size) == (5, 2)
    assert all(a[0] != b[0] for a, b in zip(case.prompt_token_ids, warm_up.prompt_token_ids, strict=True))
