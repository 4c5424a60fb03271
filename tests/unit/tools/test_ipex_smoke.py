"""ipex_smoke.py: where two texts part, and how near a tie that place is."""

from __future__ import annotations

import pytest

from unit.tools.loading import load_script

script = load_script("playbooks/roles/ipex/files/ipex_smoke.py")


@pytest.mark.parametrize(
    ("one", "other", "position"),
    [([1, 2], [1, 2], None), ([1, 2, 3], [1, 4, 3], 1), ([1, 2], [1, 2, 3], 2), ([], [5], 0), ([], [], None)],
)
def test_texts_part_at_the_first_token_that_differs(one: list[int], other: list[int], position: int | None) -> None:
    assert script.first_difference(one, other) == position


def test_the_gap_is_a_fraction_of_the_largest_logit() -> None:
    assert script.tie_gap([-8.0, 3.0, 2.0], 1, 2) == pytest.approx(1 / 8)
    assert script.tie_gap([4.0, 4.0], 0, 1) == 0


def test_a_runtime_that_fails_ends_the_comparison_with_its_exit_code_named() -> None:
    with pytest.raises(SystemExit, match="false generate ended with 1"):
        script.native_tokens("false", 4)
