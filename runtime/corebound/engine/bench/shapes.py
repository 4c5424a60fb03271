"""Models with random weights of a given shape, written once: speed depends on the shape alone."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

SHAPES: dict[str, dict[str, Any]] = {
    "llama-1.1b": {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "vocab_size": 32000,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    },
    "bloom-560m": {
        "model_type": "bloom",
        "architectures": ["BloomForCausalLM"],
        "hidden_size": 1024,
        "n_layer": 24,
        "n_head": 16,
        "vocab_size": 250880,
        "tie_word_embeddings": True,
    },
    # 0.2 GB in bfloat16, which a server's last-level cache holds.
    "llama-110m": {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_key_value_heads": 12,
        "vocab_size": 32000,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    },
    # Half of a last-level cache of 32 MiB holds the 15.7 MB that a step reads in bfloat16.
    "llama-9m": {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 384,
        "intermediate_size": 1024,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "vocab_size": 4000,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    },
    # Small enough to try an engine in seconds; all widths divide by 128, which some quantised formats need.
    "llama-tiny": {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "vocab_size": 4000,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    },
    "llama-8b": {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    },
}
# Part of the directory's name: another number makes every machine write the models again.
_VERSION = 1
_SCALE = 0.02
_CHUNK_ELEMENTS = 16 << 20


def shape_dir(shape: str, cache_dir: Path) -> Path:
    """Return the directory of a shape's model, whether it has been written or not."""
    return cache_dir / f"{shape}-bfloat16-v{_VERSION}"


def write_shape(shape: str, cache_dir: Path, announce: Callable[[str], None]) -> Path:
    """Write the model of a shape if it is not there, bf16 and seeded, and return its directory.

    `announce` gets a line with the size before anything is written. The memory needed is a small constant.
    """
    target = shape_dir(shape, cache_dir)
    if target.is_dir():
        return target
    tensors = _parameter_shapes(SHAPES[shape])
    num_bytes = 2 * sum(math.prod(size) for size in tensors.values())
    announce(f"writing a random {shape} model of {num_bytes / 1e9:.1f} GB to {target} (once)")
    cache_dir.mkdir(parents=True, exist_ok=True)
    # Whoever finds the directory finds it whole: it gets its name last.
    unfinished = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=cache_dir))
    try:
        (unfinished / "config.json").write_text(json.dumps(SHAPES[shape] | {"dtype": "bfloat16"}, indent=2))
        _write_safetensors(unfinished / "model.safetensors", tensors)
        unfinished.rename(target)
    except BaseException:
        shutil.rmtree(unfinished)
        raise
    return target


def _parameter_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every parameter, as transformers has them."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = {name: value for name, value in config.items() if name not in ("model_type", "architectures")}
    with torch.device("meta"):
        auto: Any = AutoModelForCausalLM
        model = auto.from_config(AutoConfig.for_model(config["model_type"], **fields))
    # named_parameters() names a tied head once, as the checkpoint does.
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def _write_safetensors(path: Path, tensors: dict[str, tuple[int, ...]]) -> None:
    """Write random bf16 tensors one after the other. Norms are about 1, so that activations stay in range."""
    import torch

    header: dict[str, Any] = {}
    offset = 0
    for name, size in tensors.items():
        end = offset + 2 * math.prod(size)
        header[name] = {"dtype": "BF16", "shape": list(size), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    generator = torch.Generator().manual_seed(0)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, size in tensors.items():
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            left = math.prod(size)
            while left:
                count = min(left, _CHUNK_ELEMENTS)
                values = torch.empty(count).normal_(centre, _SCALE, generator=generator).bfloat16()
                file.write(values.view(torch.uint8).numpy().data)
                left -= count
