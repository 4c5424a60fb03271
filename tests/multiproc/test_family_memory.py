"""Loading, family by family: the peak memory of a rank is its part of the weights and a small constant.

`make models-memory` measures every family; these few have, between them, fused and split projections, experts, a tied
head, and blocks of ours.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from fixtures.large_models import MIB, save_large_bins, save_large_model
from fixtures.module_parity import quiet_transformers
from models_memory import CONSTANT_BYTES, TIMEOUT_S, Cell, grown
from multiproc.memory_tasks import Grown, load_module
from multiproc.rank_harness import start_ranks

pytestmark = [pytest.mark.multiproc, pytest.mark.slow, pytest.mark.timeout(300)]

FEW = [
    ("gptj", "decoder"),
    ("falcon-40b", "init_inference"),
    ("mixtral", "init_inference"),
    ("qwen3", "init_inference, inject"),
]


def test_peak_memory_of_a_few_families_is_the_shard_and_a_small_constant(tmp_path: Path) -> None:
    """#3644, #3192, #6617: each rank read the whole model, 4 x 130 GB on one host."""
    with quiet_transformers(), start_ranks(2, COREBOUND_LOG_LEVEL="warning") as job:
        for family in dict.fromkeys(family for family, _ in FEW):
            path = save_large_model(family, tmp_path / family)
            for loader in [loader for name, loader in FEW if name == family]:
                cell = Cell(family, loader, 2, grown(job, loader, path))
                print(f"{family}, {loader}: {cell} MiB")
                assert cell.holds, cell
                # A whole model more would not be within what is allowed.
                assert all(rank.shard_bytes > 28 * MIB for rank in cell.ranks)
            for file in path.iterdir():
                file.unlink()  # pytest would keep it


def test_peak_memory_of_float32_in_pickled_files_is_the_shard_too(tmp_path: Path) -> None:
    """Mapped, their pages counted; converted tensor by tensor, the largest was there twice more."""
    with quiet_transformers(), start_ranks(2, COREBOUND_LOG_LEVEL="warning") as job:
        listed = save_large_bins("bloom", tmp_path)
        found: list[Grown] = job.run(load_module, tmp_path, listed, timeout_s=TIMEOUT_S, allow_pickled_weights=True)
    for file in listed["checkpoints"]:
        Path(file).unlink()
    for rank in found:
        assert rank.shard_bytes > 28 * MIB
        assert rank.peak_bytes < rank.shard_bytes + CONSTANT_BYTES, found
