"""Parts of loading on several threads: all run, in order, and the first error ends them."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from corebound.sharding.reading import Scratch
from corebound.sharding.workers import Part, run_parts


@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_every_part_runs_once_and_is_started_in_order(num_threads: int) -> None:
    started: list[int] = []
    done: list[int] = []

    def parts() -> Iterator[Part]:
        for number in range(40):
            started.append(number)
            yield lambda _, number=number: done.append(number)

    run_parts(parts(), num_threads)
    assert started == list(range(40))
    assert sorted(done) == started


def test_all_threads_work_at_the_same_time_each_with_its_own_buffer() -> None:
    together = threading.Barrier(3)
    buffers: list[Scratch] = []

    def part(scratch: Scratch) -> None:
        together.wait(timeout=60)
        buffers.append(scratch)

    run_parts([part] * 3, 3)
    assert len({id(buffer) for buffer in buffers}) == 3


@pytest.mark.parametrize("num_threads", [1, 3])
def test_the_first_error_is_raised_and_nothing_is_started_after_it(num_threads: int) -> None:
    started: list[int] = []

    def parts() -> Iterator[Part]:
        for number in range(1000):
            started.append(number)
            yield fail if number == 5 else (lambda _: None)

    def fail(_: Scratch) -> None:
        raise ValueError("part 5")

    with pytest.raises(ValueError, match="part 5"):
        run_parts(parts(), num_threads)
    assert len(started) < 1000
    assert not [t for t in threading.enumerate() if t.name.startswith("loading-")]
