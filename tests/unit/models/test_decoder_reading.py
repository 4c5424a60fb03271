"""Which way to read weights is taken, and that all ranks take the same."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence

import pytest
import torch

from corebound.errors import KernelError
from corebound.models import loading
from corebound.models.decoder import Decoder
from corebound.models.decoder_reading import fastest_reading, tune
from corebound.models.native_decoder import NativeDecoder


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


class FakeCollectives:
    """Two ranks, of which the other one's times are given; keeps how long each call would have waited."""

    size = 2

    def __init__(self, *other: float) -> None:
        self._other, self.waited_s = torch.tensor(other), list[float | None]()

    def barrier(self, timeout_s: float | None = None) -> None:
        self.waited_s.append(timeout_s)

    def all_gather(self, tensor: torch.Tensor, timeout_s: float | None = None) -> torch.Tensor:
        self.waited_s.append(timeout_s)
        return torch.stack([tensor, self._other])


def native(*seconds: float) -> tuple[NativeDecoder, FakeLibrary]:
    """A native decoder that only tunes, and its library."""
    decoder, library = object.__new__(NativeDecoder), FakeLibrary(*seconds)
    decoder.tune = lambda sum_over_ranks=list: tune(library, 1, sum_over_ranks)  # type: ignore[method-assign]  # a fake's
    return decoder, library


def test_ranks_add_up_their_times_and_wait_for_the_slowest_disk() -> None:
    decoder, library = native(1.0, 0.90, 0.93)
    collectives = FakeCollectives(1.0, 0.95, 0.91)
    loading._choose_reading(decoder, collectives)  # type: ignore[arg-type]  # as much of them as is used
    assert library.read_as == 2
    assert collectives.waited_s == [math.inf, math.inf]


def test_a_rank_without_panels_meets_the_others_and_changes_nothing() -> None:
    plain, collectives = object.__new__(Decoder), FakeCollectives(1.0, 0.95, 0.91)
    loading._choose_reading(plain, collectives)  # type: ignore[arg-type]  # as much of them as is used
    assert collectives.waited_s == [math.inf, math.inf]
    decoder, library = native(1.0, 0.90, 0.93)
    collectives = FakeCollectives(0.0, 0.0, 0.0)
    loading._choose_reading(decoder, collectives)  # type: ignore[arg-type]  # as much of them as is used
    assert library.read_as == 1
