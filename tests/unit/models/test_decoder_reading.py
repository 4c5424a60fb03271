"""Which way to read weights is taken, and that all ranks take the same."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import pytest

from corebound.errors import KernelError
from corebound.models.decoder_reading import fastest_reading, tune


class FakeLibrary:
    """Times of a decoder as they are given, and how it was told to read."""

    def __init__(self, *seconds: float, code: int = 0) -> None:
        self._seconds, self._code = seconds, code
        self.read_as: int | None = None

    def corebound_decoder_time_readings(self, handle: ctypes.c_void_p, seconds: ctypes.Array[ctypes.c_double]) -> int:
        seconds[:] = self._seconds
        return self._code

    def corebound_decoder_read_as(self, handle: ctypes.c_void_p, reading: int) -> None:
        self.read_as = reading

    def corebound_decoder_error(self) -> bytes:
        return b"no memory"


@pytest.mark.parametrize(
    ("seconds", "reading"),
    [
        ((1.0, 0.98, 0.99), "at_once"),  # not clearly slower than the others
        ((1.0, 0.96, 0.99), "paced"),
        ((1.0, 0.96, 0.95), "one_stream"),
        ((1.0, 0.9, 0.9), "paced"),
    ],
)
def test_the_first_way_is_kept_unless_another_is_clearly_faster(seconds: Sequence[float], reading: str) -> None:
    assert fastest_reading(seconds) == reading


def test_what_the_ranks_take_together_decides() -> None:
    ranks = [FakeLibrary(1.0, 0.90, 0.93), FakeLibrary(1.0, 0.95, 0.91)]
    alone = [tune(rank, 1) for rank in ranks]
    together = [tune(rank, 1, lambda _: [2.0, 1.85, 1.84]) for rank in ranks]
    assert (alone, together) == (["paced", "one_stream"], ["one_stream"] * 2)
    assert [rank.read_as for rank in ranks] == [2, 2]


def test_an_error_of_the_library_is_named_and_nothing_is_changed() -> None:
    library = FakeLibrary(1.0, 1.0, 1.0, code=-1)
    with pytest.raises(KernelError, match="native decoder: no memory"):
        tune(library, 1)
    assert library.read_as is None
