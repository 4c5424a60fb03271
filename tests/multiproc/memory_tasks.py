"""What the ranks of the memory tests do: load a model, and tell by how much the peak of resident memory grew."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

import corebound
from corebound import comm
from corebound.models import describe, load_model
from corebound.sharding import shard_plan


@dataclass(frozen=True)
class Grown:
    """The bytes by which the peak of a rank grew while it loaded, of its part of the weights, and of a layer."""

    peak_bytes: int
    shard_bytes: int
    block_bytes: int = 0


def status_bytes(field: str) -> int:
    """Return a size from /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def grown_by(load: Callable[[], Any], weight_bytes: Callable[[Any], tuple[int, ...]]) -> Grown:
    """Return what `load` added to the peak; `weight_bytes` gets what it returned."""
    torch.ones(8) @ torch.ones(8)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts again from what is resident now
    before = status_bytes("VmRSS")
    loaded = load()
    peak_bytes = status_bytes("VmHWM") - before
    return Grown(peak_bytes, *weight_bytes(loaded))


def load_decoder(path: Path) -> Grown:
    """Load a checkpoint as `generate` and `serve` do."""
    group = comm.join_launch()
    plan = shard_plan(describe(path, tokenizer=False), group.size)
    shard = sum(math.prod(shape) for shape in plan.field_shapes(group.rank).values()) * torch.bfloat16.itemsize
    group.barrier()
    grown = grown_by(lambda: load_model(path, "bfloat16", group), lambda _: (shard,))
    group.barrier()
    return grown


def load_module(path: Path, checkpoint: Any = None, **settings: Any) -> Grown:
    """Fill a model on the meta device with init_inference, from the checkpoint or else the directory itself."""
    group = comm.join_launch()
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(path))
    keys = {"dtype": "bfloat16", "mp_size": group.size, "checkpoint": checkpoint or str(path), **settings}
    group.barrier()
    grown = grown_by(lambda: corebound.init_inference(model, **keys), _module_bytes)
    group.barrier()
    return grown


def _module_bytes(engine: Any) -> tuple[int, int]:
    """Return the bytes of a rank's parameters, and those of its largest decoder block."""
    lists = [part for part in engine.module.modules() if isinstance(part, nn.ModuleList)]
    blocks = max(lists, key=lambda part: sum(1 for _ in part.modules()))
    return _parameter_bytes(engine.module), max(_parameter_bytes(block) for block in blocks)


def _parameter_bytes(module: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())
