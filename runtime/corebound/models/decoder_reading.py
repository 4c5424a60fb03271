"""How a decoder reads its weights: each way is timed where it runs, and all ranks take the same. Needs no torch."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

from corebound.errors import KernelError
from corebound.kernels.panel_format import READINGS, Reading

# The first way is kept unless another is clearly faster.
_CLEARLY = 0.97
SumOverRanks = Callable[[Sequence[float]], Sequence[float]]


def tune(library: Any, handle: int, sum_over_ranks: SumOverRanks = list) -> Reading:
    """Time the ways to read some of the weights, let the decoder read in the fastest, and return it.

    Ranks wait for each other in every layer, so what counts is their times together: each by itself may take another
    way by a chance of its few samples, and then all are as slow as the slowest.

    Raises: KernelError when the library ends with an error.
    """
    seconds = (ctypes.c_double * len(READINGS))()
    if library.corebound_decoder_time_readings(ctypes.c_void_p(handle), seconds) < 0:
        raise KernelError(f"native decoder: {library.corebound_decoder_error().decode()}")
    fastest = fastest_reading(sum_over_ranks(list(seconds)))
    library.corebound_decoder_read_as(ctypes.c_void_p(handle), READINGS.index(fastest))
    return fastest


def fastest_reading(seconds: Sequence[float]) -> Reading:
    """Return the way that took the fewest seconds, in the order of READINGS."""
    first, *others = seconds
    weighed = [first * _CLEARLY, *others]
    return READINGS[weighed.index(min(weighed))]
