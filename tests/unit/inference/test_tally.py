"""How much of a checkpoint is read: the total is reached, whatever the checkpoint has that the model does not take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from corebound.inference.checkpoint import find_tensors
from corebound.inference.configuration import InferenceConfig
from corebound.inference.fill import fill
from corebound.inference.sources import CheckpointSource, TakingSource
from corebound.inference.tally import Tally
from corebound.sharding.modules import shard_module
from fixtures.families import FAMILIES
from fixtures.thread_group import ThreadCollectives, run_ranks


@pytest.mark.parametrize("num_ranks", [1, 3])
@pytest.mark.parametrize("family", ["bloom", "llama", "gemma", "mixtral", "qwen2_moe", "opt"])
def test_all_of_the_total_is_read_and_what_the_model_does_not_take_is_never_in_it(
    family: str, num_ranks: int, tmp_path: Path
) -> None:
    FAMILIES[family].build().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    # What other versions stored: a head that is tied, tables that are computed.
    extra = {"lm_head.weight": torch.zeros(101, 48), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)}
    save_file(extra | tensors, file)
    found = find_tensors(InferenceConfig.read({"checkpoint": str(tmp_path), "dtype": "fp32"}, {}))

    def work(group: ThreadCollectives) -> None:
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(FAMILIES[family].config())
        tally = Tally(found, group.size, None)
        source = CheckpointSource(model, found, torch.float32, tally)
        total = tally.num_bytes
        if group.size > 1:
            shard_module(model, group, source=TakingSource(model, source, torch.float32))
        else:
            assert total == sum(tensor.numel() * 4 for tensor in tensors.values())
        fill(model, source, torch.float32)
        assert tally.num_done == tally.num_bytes
        # The estimate that is shown until a tensor is read is not far off.
        assert abs(total - tally.num_bytes) < 0.25 * tally.num_bytes

    run_ranks(num_ranks, work)
