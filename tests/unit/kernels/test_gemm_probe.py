"""The ceiling of prefill: what is measured and what is refused."""

from __future__ import annotations

import pytest
import torch

from corebound.errors import KernelError
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
