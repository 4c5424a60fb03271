"""Measures how fast this machine multiplies matrices, the ceiling of prefill. Uses torch, whose oneDNN has AMX."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from corebound.errors import KernelError

DTYPES = ("bfloat16", "float32", "int8")
SIZE = 4096
_WARM_UP = 1
# Products of this size tell apart what is worth a repetition at full size from a reference loop, which some processors
# get for a layout that others are fast with: it would take minutes instead of a tenth of a second.
_TRIAL_SIZE = 256
_TOO_SLOW, _TRIALS = 10, 4


@dataclass(frozen=True, kw_only=True)
class GemmPeak:
    """What products of square matrices reach, in 10^9 operations a second: median and best over repetitions.

    A multiply-add counts as two. Of the layouts that torch takes, `layout` is the one that was fastest here.
    """

    dtype: str
    num_threads: int
    size: int
    median_gflop_per_s: float
    best_gflop_per_s: float
    layout: str


def measure_gemm(dtype: str, num_threads: int, *, size: int = SIZE, num_repetitions: int = 7) -> GemmPeak:
    """Return how fast `num_threads` threads multiply matrices of `dtype`, `size` by `size`.

    Layouts of the second matrix are tried in turn, packed beforehand among them, as weights are.

    Raises: KernelError for a dtype that is not measured.
    """
    if dtype not in DTYPES:
        raise KernelError(f"GEMM peak: expected a dtype of {', '.join(DTYPES)}, found {dtype}")
    with _threads(num_threads), torch.inference_mode():
        products = _products(dtype, size)
        if size > _TRIAL_SIZE:
            worthwhile = _worthwhile(_products(dtype, _TRIAL_SIZE))
            products = {layout: products[layout] for layout in worthwhile}
        rates: dict[str, list[float]] = {layout: [] for layout in products}
        for number in range(_WARM_UP + num_repetitions):
            for layout, product in products.items():
                started_s = time.perf_counter()
                product()
                elapsed_s = time.perf_counter() - started_s
                if number >= _WARM_UP:
                    rates[layout].append(2e-9 * size**3 / elapsed_s)
    layout = max(rates, key=lambda name: statistics.median(rates[name]))
    return GemmPeak(
        dtype=dtype,
        num_threads=num_threads,
        size=size,
        median_gflop_per_s=statistics.median(rates[layout]),
        best_gflop_per_s=max(rates[layout]),
        layout=layout,
    )


def _worthwhile(trials: dict[str, Callable[[], torch.Tensor]]) -> list[str]:
    """Return the layouts that are not an order of magnitude slower than the fastest, by the best of some products."""
    seconds = dict.fromkeys(trials, float("inf"))
    for _ in range(_TRIALS):
        for layout, product in trials.items():
            started_s = time.perf_counter()
            product()
            seconds[layout] = min(seconds[layout], time.perf_counter() - started_s)
    return [layout for layout, elapsed_s in seconds.items() if elapsed_s < _TOO_SLOW * min(seconds.values())]


def _products(dtype: str, size: int) -> dict[str, Callable[[], torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    if dtype == "int8":
        a = torch.randint(-128, 128, (size, size), dtype=torch.int8, generator=generator)
        b = torch.randint(-128, 128, (size, size), dtype=torch.int8, generator=generator)
        return {
            "row-major": lambda: torch._int_mm(a, b),
            "transposed": lambda: torch._int_mm(a, b.t()),
            **_packed_int8(a, b),
        }
    x = torch.randn(size, size, generator=generator).to(getattr(torch, dtype))
    y = torch.randn(size, size, generator=generator).to(getattr(torch, dtype))
    plain = {"row-major": lambda: torch.mm(x, y), "transposed": lambda: torch.mm(x, y.t())}
    return plain | (_packed(x, y) if dtype == "bfloat16" else {})


# torch keeps the operators below to itself: where a release has others, the ceiling is that of the plain products.
def _packed(x: torch.Tensor, y: torch.Tensor) -> dict[str, Callable[[], torch.Tensor]]:
    ops = torch.ops.mkldnn
    if not hasattr(ops, "_reorder_linear_weight") or not hasattr(ops, "_linear_pointwise"):
        return {}
    weight = ops._reorder_linear_weight(y, x.shape[0])
    return {"packed once": lambda: ops._linear_pointwise(x, weight, None, "none", [], "")}


def _packed_int8(a: torch.Tensor, b: torch.Tensor) -> dict[str, Callable[[], torch.Tensor]]:
    ops = torch.ops.onednn
    if not hasattr(ops, "qlinear_prepack") or not hasattr(ops, "qlinear_pointwise"):
        return {}
    weight = ops.qlinear_prepack(b, None)
    scales, zeros = torch.ones(b.shape[1]), torch.zeros(b.shape[1], dtype=torch.int64)
    # Without AMX, the instruction multiplies unsigned with signed bytes; two signed ones get a reference loop there.
    a = (a.to(torch.int16) + 128).to(torch.uint8)
    return {
        "packed once": lambda: ops.qlinear_pointwise(
            a, 1.0, 0, weight, scales, zeros, None, 1.0, 0, torch.bfloat16, "none", [], ""
        )
    }


@contextmanager
def _threads(num_threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
