"""Where the parts of the weights come from: the model itself, or the files of a checkpoint."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from corebound.errors import ModelLoadError, ShardingError
from corebound.sharding.checkpoint import Checkpoint, TensorEntry
from corebound.sharding.modules.layouts import shifted
from corebound.sharding.reading import Meter, Scratch, opened, read_span
from corebound.sharding.stream import TORCH_DTYPES, PartReader

# Experts are one tensor in a model of transformers and many in most checkpoints: gate, up and down of each.
_EXPERT_NAMES = (
    ("mlp.experts.{}.gate_proj.weight", "mlp.experts.{}.up_proj.weight", "mlp.experts.{}.down_proj.weight"),
    tuple(f"block_sparse_moe.experts.{{}}.{name}.weight" for name in ("w1", "w3", "w2")),
)
_EXPERTS = re.compile(r"(?P<layer>.*)mlp\.experts\.(?P<kind>gate_up|down)_proj")
# What is stored under these names is read as it is, for buffers of positions, counts and masks.
_WHOLE_DTYPES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
}
_RENAMED = ((".mlp.gate.", ".block_sparse_moe.gate."), ("lm_head.", "embed_out."))


class WeightSource(Protocol):
    """What yields parts of named tensors, by the names of the model's parameters."""

    def part(self, name: str, dim: int, ranges: Sequence[range]) -> Tensor:
        """Return the ranges of one dimension of a tensor, one after the other, as a tensor of its own.

        Shapes: as the tensor, but `dim` has the length of the ranges.
        Raises: ModelLoadError naming the tensor.
        """

    def whole(self, name: str) -> Tensor:
        """Return a whole tensor, in the shape that the model has it in.

        Raises: ModelLoadError naming the tensor.
        """


class ModelSource:
    """The weights that a model holds."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def part(self, name: str, dim: int, ranges: Sequence[range]) -> Tensor:
        """Return a copy of the ranges, so that the whole tensor can be freed.

        Shapes: as the tensor, but `dim` has the length of the ranges.
        Raises: ShardingError for a tensor on the meta device.
        """
        whole = self.whole(name)
        pieces = [whole.narrow(dim, part.start, len(part)) for part in ranges]
        return torch.cat(pieces, dim).contiguous() if len(pieces) > 1 else pieces[0].clone().contiguous()

    def whole(self, name: str) -> Tensor:
        """Return the parameter or buffer itself, in its own shape.

        Raises: ShardingError for a tensor on the meta device.
        """
        owner, _, leaf = name.rpartition(".")
        tensor: Tensor = getattr(self._model.get_submodule(owner), leaf)
        if tensor.is_meta:
            raise ShardingError(f"{name} is on the meta device", hint="give shard_module a source of the weights")
        return tensor.detach()


class CheckpointSource:
    """The safetensors files of a checkpoint: only the bytes that are asked for are read, with pread.

    Tensors come in the dtype of the model's parameters, floats in `dtype` where it is given. Those that are no weights,
    of whole numbers or without dimensions, are read whole. Names are the model's, with or without the prefix of its
    body, and experts may be one tensor each.
    """

    def __init__(
        self, model: nn.Module, checkpoint: Checkpoint, meter: Meter | None = None, dtype: torch.dtype | None = None
    ) -> None:
        self._tensors = checkpoint.tensors
        named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]

        def of(tensor: Tensor) -> torch.dtype:
            return dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype

        # Shapes and types only: whole weights of the model, if it has any, are not to be kept.
        self._templates = {name: torch.empty_like(tensor, device="meta", dtype=of(tensor)) for name, tensor in named}
        self._prefix = f"{getattr(model, 'base_model_prefix', '')}."
        self._meter, self._scratch = meter or Meter(0, None), Scratch()

    def part(self, name: str, dim: int, ranges: Sequence[range]) -> Tensor:
        """Return the ranges of one dimension of a tensor, one after the other.

        Shapes: as the tensor, but `dim` has the length of the ranges.
        Raises: ModelLoadError naming the tensor that is missing or has another shape or type.
        """
        template = self._templates[name]
        if not template.is_floating_point():
            whole = self._read_whole(name, template)
            return torch.cat([whole.narrow(dim, part.start, len(part)) for part in ranges], dim)
        shape = list(template.shape)
        shape[dim] = sum(len(part) for part in ranges)
        result = torch.empty(shape, dtype=template.dtype)
        if self._find(name) is None and (experts := _EXPERTS.fullmatch(name)):
            for index in range(shape[0]):
                self._read_expert(experts, index, template, result[index], dim - 1, ranges)
            return result
        self._read(self._entry(name, tuple(template.shape), template.dtype), result, dim, ranges)
        return result

    def whole(self, name: str) -> Tensor:
        """Return a whole tensor, in the shape that the model has it in.

        Raises: ModelLoadError naming the tensor that is missing or has another shape or type.
        """
        template = self._templates[name]
        shape = template.shape
        if not shape or not template.is_floating_point():
            return self._read_whole(name, template)
        return self.part(name, len(shape) - 1, [range(shape[-1])])

    def stored_names(self, name: str) -> tuple[str, ...]:
        """Return the names of the files' tensors that have the values of one of the model; none if any is missing."""
        if (entry := self._find(name)) is not None:
            return (entry.name,)
        experts = _EXPERTS.fullmatch(name)
        if experts is None:
            return ()
        of_kind = slice(2, 3) if experts["kind"] == "down" else slice(0, 2)
        found: list[str] = []
        for index in range(self._templates[name].shape[0]):
            entries = [self._find(other) for other in self._expert_names(experts["layer"], index)[of_kind]]
            found += [entry.name for entry in entries if entry is not None]
        return tuple(found)

    def _read_whole(self, name: str, template: Tensor) -> Tensor:
        entry = self._entry(name, tuple(template.shape), template.dtype)
        stored = template.dtype if entry.dtype in _WHOLE_DTYPES.values() else TORCH_DTYPES[entry.dtype]
        result = torch.empty(entry.shape, dtype=stored)
        with opened(entry.path) as descriptor:
            read_span(descriptor, entry, result.view(-1).view(torch.uint8).numpy().data, entry.start)
        self._meter.add(entry.num_bytes)
        return result.to(template.dtype)

    def _read(self, entry: TensorEntry, target: Tensor, dim: int, ranges: Sequence[range]) -> None:
        """Fill the target; leading dimensions before the cut one, such as experts, are rows of one matrix."""
        *lead, width = entry.shape if len(entry.shape) > 1 else (*entry.shape, 1)
        flat = dataclasses.replace(entry, shape=(math.prod(lead), width))
        last = len(entry.shape) - 1
        by_rows = dim < last or last == 0
        if by_rows:
            inner = math.prod(lead[dim + 1 :])
            blocks = range(0, math.prod(lead), math.prod(lead[dim:]))
            scaled = [range(part.start * inner, part.stop * inner) for part in ranges]
            ranges = [shifted(part, block) for block in blocks for part in scaled]
        with opened(entry.path) as descriptor:
            reader = PartReader(descriptor, flat, self._meter, self._scratch)
            matrix = target.view(-1, width) if by_rows else target.view(-1, target.shape[-1])
            if by_rows or len(ranges) == 1:
                reader.fill(matrix, ranges, 0 if by_rows else 1)
                return
            start = 0
            for part in ranges:
                piece = torch.empty(matrix.shape[0], len(part), dtype=target.dtype)
                reader.fill(piece, [part], 1)
                matrix[:, start : start + len(part)] = piece
                start += len(part)

    def _read_expert(
        self, experts: re.Match[str], index: int, template: Tensor, target: Tensor, dim: int, ranges: Sequence[range]
    ) -> None:
        """Fill one expert's part; gate and up are two tensors, of which the first has the first half of the rows.

        `dim` 0 are the expert's outputs, 1 its inputs.
        """
        names = self._expert_names(experts["layer"], index)
        if not names:
            raise ModelLoadError(f"{experts['layer']}mlp.experts: the checkpoint has no weights of expert {index}")
        gate, up, down = names
        if experts["kind"] == "down":
            self._read(self._entry(down, tuple(template.shape[1:]), template.dtype), target, dim, ranges)
            return
        half = template.shape[1] // 2
        start = 0
        for name, low in ((gate, 0), (up, half)):
            entry = self._entry(name, (half, template.shape[2]), template.dtype)
            if dim == 1:
                self._read(entry, target[low : low + half], dim, ranges)
                continue
            mine = [
                range(max(part.start, low) - low, min(part.stop, low + half) - low)
                for part in ranges
                if part.start < low + half and part.stop > low
            ]
            rows = sum(len(part) for part in mine)
            self._read(entry, target[start : start + rows], dim, mine)
            start += rows

    def _expert_names(self, layer: str, index: int) -> tuple[str, ...]:
        """Return how the checkpoint calls gate, up and down of an expert; nothing where it has none."""
        for names in _EXPERT_NAMES:
            full = tuple(layer + name.format(index) for name in names)
            if self._find(full[0]) is not None:
                return full
        return ()

    def _entry(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> TensorEntry:
        entry = self._find(name)
        if entry is None:
            raise ModelLoadError(f"{name}: the checkpoint has no such tensor")
        if entry.shape != shape:
            raise ModelLoadError(
                f"{entry.path}: tensor {entry.name!r}: expected shape {list(shape)}, found {list(entry.shape)}"
            )
        known = tuple(TORCH_DTYPES) if dtype.is_floating_point else (_WHOLE_DTYPES.get(dtype, "none"),)
        if entry.dtype not in known:
            raise ModelLoadError(
                f"{entry.path}: tensor {entry.name!r}: expected type {' or '.join(known)} for the model's "
                f"{str(dtype).removeprefix('torch.')}, found {entry.dtype}",
                hint="store it in the type of the model: `model.to(dtype).save_pretrained(DIR)`",
            )
        return entry

    def _find(self, name: str) -> TensorEntry | None:
        return next((self._tensors[other] for other in self._spellings(name) if other in self._tensors), None)

    def _spellings(self, name: str) -> Iterator[str]:
        for spelling in (name, *(name.replace(new, old) for new, old in _RENAMED)):
            yield spelling
            yield spelling.removeprefix(self._prefix)
            yield self._prefix + spelling
