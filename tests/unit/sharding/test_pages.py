"""Pages that are taken before they are filled: in time, in order, and without a trace in what is stored."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator

import pytest
import torch

from corebound.sharding import pages
from corebound.sharding.arena import allocate
from corebound.sharding.pages import with_pages_ahead
from corebound.sharding.reading import Scratch
from corebound.sharding.workers import Part, run_parts


def resident_pages(memory: torch.Tensor) -> int:
    first = memory.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
    count = -(-(memory.data_ptr() + memory.numel() - first) // mmap.PAGESIZE)
    found = (ctypes.c_ubyte * count)()
    assert ctypes.CDLL(None).mincore(ctypes.c_void_p(first), ctypes.c_size_t(memory.numel()), found) == 0
    return sum(page & 1 for page in found)


def names(parts: Iterator[Part], own: list[Part]) -> str:
    return "".join("r" if part in own else "p" for part in parts)


def reading(_: Scratch) -> None:
    """Stand for a part that reads."""


def test_pages_are_taken_at_first_and_faster_than_parts_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "_PIECE_BYTES", 1 << 16)
    monkeypatch.setattr(pages, "_NUM_FIRST", 3)
    memory = allocate({"all": (8 << 16,)}, torch.uint8)["all"]
    memory = memory[-memory.data_ptr() % (1 << 16) :][: 7 << 16]
    pieces = -(-memory.numel() // (1 << 16))
    order = names(with_pages_ahead([reading] * 5, [memory]), [reading])
    assert order.startswith("ppprpprpp")
    assert order.count("p") == pieces
    assert order.count("r") == 5


def test_all_pages_are_there_before_anything_is_stored_and_hold_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "_PIECE_BYTES", 1 << 16)
    memories = list(allocate({"one": ((1 << 20) + 777,), "two": (300_000,)}, torch.uint8).values())
    seen: list[int] = []

    def part(_: Scratch) -> None:
        seen.append(sum(resident_pages(memory) for memory in memories))

    run_parts(with_pages_ahead([part] * 40, memories), num_threads=1)
    assert seen[-1] == sum(resident_pages(memory) for memory in memories) >= sum(m.numel() for m in memories) >> 12
    assert not any(bool(memory.any()) for memory in memories)


def test_what_is_stored_already_stays() -> None:
    memory = torch.arange(100_000, dtype=torch.uint8)
    kept = memory.clone()
    run_parts(with_pages_ahead([reading], [memory, memory[:0]]), num_threads=2)
    assert torch.equal(memory, kept)
