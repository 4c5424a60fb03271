"""Measurements are taken again while the processors are moved, but not for ever."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from corebound.engine.predict import held as module
from corebound.engine.predict.held import Held


def held_where(monkeypatch: pytest.MonkeyPatch, distances: Iterable[float]) -> tuple[Held, list[int]]:
    """One that sees these distances, and the list of what its measurements returned."""
    following = iter(distances)
    monkeypatch.setattr(module, "usual_distance_ns", lambda cpus: next(following))
    monkeypatch.setattr(module, "distance_ns", lambda cpus: next(following))
    return Held((0, 1)), []


@pytest.mark.parametrize(
    ("distances", "num_tries"), [([50, 55], 1), ([50, 200, 48], 2), ([50, 27, 200, 200], 3), ([0, 0], 1)]
)
def test_a_measurement_counts_that_ends_where_it_began(
    monkeypatch: pytest.MonkeyPatch, distances: list[float], num_tries: int
) -> None:
    held, made = held_where(monkeypatch, distances)

    def measure() -> int:
        made.append(len(made))
        return made[-1]

    assert held(measure) == num_tries - 1
    assert held.num_repeated == num_tries - 1


def test_a_machine_that_was_moved_for_good_is_measured_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    held, made = held_where(monkeypatch, [50] + [200] * 100)
    for _ in range(20):
        held(lambda: made.append(1))
    assert held.num_repeated == 12 and len(made) == 20 + 12
