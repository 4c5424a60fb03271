from __future__ import annotations

import pytest

from corebound.errors import LaunchError
from corebound.launcher.part import AgentPart, RankPart, part_from_json

PART = AgentPart(
    job_id="0a1b",
    host="h",
    num_slots=2,
    ranks=(RankPart(rank=3, local_rank=1, slot=1, command=("x", "a b", "ü"), env={"A": 'q"\n'}),),
    bind_cores=None,
    core_list=(0, 2),
    rank0_stdin=b"\x00\xff prompt",
    log_prefix="/logs/x_rank",
    parent_pid=7,
)


def test_a_part_is_one_line_that_is_read_back_whole() -> None:
    assert "\n" not in PART.to_json()
    assert part_from_json(PART.to_json()) == PART


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"job_id": "x"}'])
def test_a_part_that_was_cut_short_is_an_error(text: str) -> None:
    with pytest.raises(LaunchError, match="expected the plan of this node"):
        part_from_json(text)


def test_a_part_of_another_release_is_an_error() -> None:
    with pytest.raises(LaunchError, match="expected a plan of version 2, found 9") as caught:
        part_from_json(PART.to_json().replace('"version": 2', '"version": 9'))
    assert caught.value.hint is not None
