"""The ceiling of prefill: what is measured and what is refused."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch

from corebound.errors import KernelError
from corebound.kernels import gemm_probe
from corebound.kernels.gemm_probe import DTYPES, measure_gemm


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_gives_a_plausible_rate_and_leaves_the_number_of_threads(dtype: str) -> None:
    before = torch.get_num_threads()
    peak = measure_gemm(dtype, 1, size=256, num_repetitions=2)
    assert (peak.dtype, peak.num_threads, peak.size) == (dtype, 1, 256)
    assert 0.01 < peak.median_gflop_per_s <= peak.best_gflop_per_s < 1e6
    assert torch.get_num_threads() == before


def test_another_dtype_is_refused_by_name() -> None:
    with pytest.raises(KernelError, match="expected a dtype of bfloat16, float32, int8, found int4"):
        measure_gemm("int4", 1)


def test_a_layout_that_falls_to_a_reference_loop_is_tried_small_and_left(monkeypatch: pytest.MonkeyPatch) -> None:
    # As oneDNN does with two signed bytes on a processor that has AVX-512 but no AMX: 12 s for a product of 1024.
    sizes: list[int] = []

    def products(dtype: str, size: int) -> dict[str, Callable[[], torch.Tensor]]:
        matrix = torch.ones(size, size)

        def reference() -> torch.Tensor:
            sizes.append(size)
            time.sleep(0.2)
            return matrix

        return {"fast": lambda: matrix @ matrix, "reference": reference}

    monkeypatch.setattr(gemm_probe, "_products", products)
    assert measure_gemm("int8", 1, size=512, num_repetitions=3).layout == "fast"
    assert set(sizes) == {256}
