"""Packed checkpoints, and models written for ranks, on real ranks: the tokens and bits of what they were made of."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from corebound.engine.bench.dequantized import write_dequantized
from corebound.launcher import LaunchSpec, launch
from corebound.models import describe
from corebound.models.shard_writing import write_shards
from fixtures.packed_weights import gptq_tensors, pack_model, random_weights
from fixtures.tiny_models import build_bloom, build_llama

pytestmark = [pytest.mark.multiproc, pytest.mark.native, pytest.mark.slow, pytest.mark.timeout(300)]

WORKER = Path(__file__).with_name("model_worker.py")
TESTS = Path(__file__).parents[1]
PROMPTS = [[5, 17, 80, 3, 44, 9, 61, 23, 11, 90, 35], [7], [12, 99, 31, 4]]
MIB = 2**20
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}
GPTQ = {"quant_method": "gptq", "bits": 8, "group_size": 32, "desc_act": False, "sym": False}


def run(tmp_path: Path, num_ranks: int, task: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what every rank reported for the task."""
    task = {**task, "output": str(tmp_path / "report")}
    (tmp_path / "task.json").write_text(json.dumps(task))
    spec = LaunchSpec(
        command=(sys.executable, str(WORKER)),
        arguments=(str(tmp_path / "task.json"),),
        num_accelerators=num_ranks,
        env={"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{TESTS.parent / 'runtime'}:{TESTS}"},
    )
    assert launch(spec) == 0
    return [json.loads((tmp_path / f"report.{rank}").read_text()) for rank in range(num_ranks)]


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_stored_weights_give_the_tokens_of_their_source(tmp_path: Path, num_ranks: int) -> None:
    sources = {
        "llama": build_llama(tmp_path / "llama", num_heads=8, hidden_size=128, intermediate_size=256),
        "bloom": build_bloom(tmp_path / "bloom", num_heads=4, hidden_size=64),
    }
    pairs = []
    for name, config in (("llama", AWQ), ("llama", GPTQ), ("bloom", AWQ), ("bloom", GPTQ)):
        packed = tmp_path / f"{name}-{config['quant_method']}"
        pack_model(sources[name], packed, **config)
        floats = packed.with_name(f"{packed.name}-floats")
        floats.mkdir()
        write_dequantized(describe(packed, tokenizer=False), floats, None)
        written = packed.with_name(f"{packed.name}-written")
        write_shards(describe(packed, tokenizer=False), written, num_ranks, "bfloat16")
        pairs += [((packed, "float32"), (floats, "float32")), ((written, "bfloat16"), (packed, "bfloat16"))]
    for name, dtype in (("llama", "int8"), ("bloom", "int4:g32"), ("bloom", "bfloat16")):
        written = tmp_path / f"{name}-{dtype.replace(':', '-')}"
        write_shards(describe(sources[name], tokenizer=False), written, num_ranks, dtype)
        pairs.append(((written, "bfloat16"), (sources[name], dtype)))
    models = [(str(path), dtype) for pair in pairs for path, dtype in pair]
    reports = run(tmp_path, num_ranks, {"do": "tokens", "models": models, "prompts": PROMPTS, "num_new_tokens": 6})
    for index, (stored, source) in enumerate(pairs):
        ours, theirs = (reports[0]["models"][2 * index + part] for part in range(2))
        assert ours == theirs, (stored, source)
    assert all(report["models"] == reports[0]["models"] for report in reports)


def test_peak_memory_of_a_packed_model_is_the_shard_and_one_matrix(tmp_path: Path) -> None:
    num_bytes, largest = write_packed_llama(tmp_path / "model")
    ((report,),) = run(tmp_path, 1, {"do": "memory", "models": [(str(tmp_path / "model"), "bfloat16")]})
    print({name: f"{value / MIB:.1f} MiB" for name, value in report.items()})
    # Codes a few rows at a time, as bytes and as words while they are taken apart.
    assert report["peak_bytes"] < report["weight_bytes"] + largest + 24 * MIB
    assert report["weight_bytes"] < 1.05 * num_bytes


def write_packed_llama(path: Path) -> tuple[int, int]:
    """Write a packed LLaMA of one large layer; return its bytes and those of its largest packed matrix."""
    hidden, inner, vocab = 2048, 16384, 512
    path.mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": 2,
        "num_attention_heads": 16,
        "quantization_config": GPTQ | {"bits": 4},
    }
    (path / "config.json").write_text(json.dumps(config))
    tile = gptq_tensors(random_weights(64, 64, bits=4, group_size=32), bits=4)
    tensors = {
        "model.embed_tokens.weight": torch.randn(vocab, hidden).half(),
        "lm_head.weight": torch.randn(vocab, hidden).half(),
        "model.norm.weight": torch.ones(hidden).half(),
    }
    shapes = {f"self_attn.{part}_proj": (hidden, hidden) for part in "qkvo"}
    shapes |= {"mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden), "mlp.down_proj": (hidden, inner)}
    for layer in range(2):
        prefix = f"model.layers.{layer}."
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{name}.weight"] = torch.ones(hidden).half()
        for name, (outputs, inputs) in shapes.items():
            for suffix in ("qweight", "qzeros", "scales"):
                tensors[f"{prefix}{name}.{suffix}"] = tile[suffix].repeat(inputs // 64, outputs // 64)
            tensors[f"{prefix}{name}.g_idx"] = (torch.arange(inputs) // 32).to(torch.int32)
    save_file(tensors, path / "model.safetensors")
    return sum(tensor.nbytes for tensor in tensors.values()), hidden * inner // 2
