"""Reads the headers of safetensors files: which tensor lies where. Checks everything that needs no weight to be read.

Source: the safetensors format: 8 bytes little-endian length, that many bytes of JSON, then the data.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from corebound.errors import ModelLoadError
from corebound.sharding.json_objects import RepeatedKeyError, without_repetition

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

# Bytes per element of every type the format knows; those in WEIGHT_DTYPES can be weights here.
ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32"), 4),
    **dict.fromkeys(("I64", "U64", "F64"), 8),
}
WEIGHT_DTYPES = ("F32", "F16", "BF16")

_MAX_HEADER_BYTES = 100_000_000
_METADATA = "__metadata__"
_DAMAGED = "the file is damaged or was not copied completely: fetch it again"


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a checkpoint: its name and file, type and shape, and where its bytes start in the file."""

    name: str
    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int

    @property
    def item_bytes(self) -> int:
        """Return the bytes of one element."""
        return ITEM_BYTES[self.dtype]

    @property
    def num_bytes(self) -> int:
        """Return the bytes of the whole tensor."""
        return math.prod(self.shape) * self.item_bytes


# Returns the tensors of a file, and its size in bytes.
FileReader = Callable[[Path], tuple[dict[str, TensorEntry], int]]


@dataclass(frozen=True)
class Checkpoint:
    """All tensors of a model directory by name, and its weight files with their sizes in bytes."""

    tensors: Mapping[str, TensorEntry]
    files: Mapping[Path, int]

    @property
    def num_bytes(self) -> int:
        """Return the bytes of all weight files."""
        return sum(self.files.values())


def read_checkpoint(model_dir: Path, *, allow_pickled: bool = False) -> Checkpoint:
    """Return what the safetensors files of a directory hold, one file or several with an index.

    Where there are none, `allow_pickled` lets PyTorch's own files count.

    Raises: ModelLoadError naming the file that is missing, cut short, or damaged.
    """
    index = model_dir / INDEX_FILE
    if (model_dir / SINGLE_FILE).is_file():
        return _merge([model_dir / SINGLE_FILE])
    if index.is_file():
        return _read_indexed(model_dir, index)
    if allow_pickled:
        found = _read_pickled(model_dir)
        if found is not None:
            return found
    others = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in model_dir.glob(pattern))
    if others:
        raise ModelLoadError(
            f"{model_dir}: no safetensors file; found {', '.join(others[:4])}, which hold Python objects that run code",
            hint="convert it: AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(DIR) writes safetensors; "
            "or let --allow-pickled-weights read pytorch_model*.bin, of which it takes tensors and refuses the rest",
        )
    raise ModelLoadError(f"{model_dir}: no weights: expected {SINGLE_FILE} or {INDEX_FILE}")


def read_header(path: Path) -> tuple[dict[str, TensorEntry], int]:
    """Return the tensors of one safetensors file, and the size of the file in bytes.

    Raises: ModelLoadError naming the file and what is wrong with it.
    """
    try:
        with path.open("rb") as file:
            header = _open_header(path, file.fileno())
    except OSError as error:
        raise ModelLoadError(f"{path}: cannot be read: {error.strerror or error}") from error
    return header.tensors, header.num_bytes


class Header(NamedTuple):
    """The tensors of a safetensors file, its size in bytes, and the texts of who wrote it, by name."""

    tensors: dict[str, TensorEntry]
    num_bytes: int
    metadata: dict[str, str]


def read_open_header(path: Path, descriptor: int) -> Header:
    """Return what the header of an open file says; `path` is what errors and tensors name.

    Raises: ModelLoadError naming the file and what is wrong with it.
    """
    header = _open_header(path, descriptor)
    found: object = header.metadata
    if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
        raise ModelLoadError(f"{path}: damaged header: {_METADATA}: expected texts by name", hint=_DAMAGED)
    return header


def _open_header(path: Path, descriptor: int) -> Header:
    """Return the same, with metadata as they are: files of others are read without them."""
    header, file_bytes = _read_header(path, descriptor)
    content = _parse(path, header)
    metadata = content.pop(_METADATA, {})
    entries = {name: _entry(path, name, fields, 8 + len(header)) for name, fields in content.items()}
    _check_layout(path, entries, data_start=8 + len(header), file_bytes=file_bytes)
    return Header(entries, file_bytes, metadata)


def _read_header(path: Path, descriptor: int) -> tuple[bytes, int]:
    """Return the header of an open file, and the size of the file."""
    try:
        with open(descriptor, "rb", closefd=False) as file:
            file_bytes = file.seek(0, 2)
            file.seek(0)
            prefix = file.read(8)
            if len(prefix) < 8:
                raise ModelLoadError(f"{path}: cut short: {file_bytes} bytes, not even a header", hint=_DAMAGED)
            (header_bytes,) = struct.unpack("<Q", prefix)
            if header_bytes > min(_MAX_HEADER_BYTES, file_bytes - 8):
                raise ModelLoadError(
                    f"{path}: damaged or not safetensors: header of {header_bytes} bytes in a file of {file_bytes}",
                    hint=_DAMAGED,
                )
            return file.read(header_bytes), file_bytes
    except OSError as error:
        raise ModelLoadError(f"{path}: cannot be read: {error.strerror or error}") from error


def is_all_zero(entry: TensorEntry) -> bool:
    """Return whether every byte of a tensor is 0; meant for small ones.

    Raises: ModelLoadError naming the file.
    """
    try:
        with entry.path.open("rb") as file:
            file.seek(entry.start)
            return not any(file.read(entry.num_bytes))
    except OSError as error:
        raise ModelLoadError(f"{entry.path}: cannot be read: {error.strerror or error}") from error


def _parse(path: Path, header: bytes) -> dict[str, Any]:
    try:
        content = json.loads(header.decode("utf-8"), object_pairs_hook=without_repetition)
    except (ValueError, RecursionError, RepeatedKeyError) as error:
        raise ModelLoadError(f"{path}: damaged header: {error}", hint=_DAMAGED) from error
    if not isinstance(content, dict):
        raise ModelLoadError(f"{path}: damaged header: expected an object, found {type(content).__name__}")
    return content


def _entry(path: Path, name: str, fields: Any, data_start: int) -> TensorEntry:
    def damaged(what: str) -> ModelLoadError:
        return ModelLoadError(f"{path}: damaged header: tensor {name!r}: {what}", hint=_DAMAGED)

    def naturals(value: Any) -> bool:
        return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)

    if not isinstance(fields, dict) or set(fields) != {"dtype", "shape", "data_offsets"}:
        raise damaged("expected dtype, shape and data_offsets")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise damaged(f"unknown dtype {dtype!r}; known: {', '.join(sorted(ITEM_BYTES))}")
    if not naturals(shape) or not naturals(offsets) or len(offsets) != 2:
        raise damaged(f"expected whole numbers, found shape {shape!r} and data_offsets {offsets!r}")
    entry = TensorEntry(name, path, dtype, tuple(shape), data_start + offsets[0])
    if offsets[1] - offsets[0] != entry.num_bytes:
        raise damaged(f"{dtype} {shape} is {entry.num_bytes} bytes, data_offsets {offsets} are not")
    return entry


def _check_layout(path: Path, entries: dict[str, TensorEntry], *, data_start: int, file_bytes: int) -> None:
    end = data_start
    for entry in sorted(entries.values(), key=lambda entry: (entry.start, entry.num_bytes)):
        if entry.start != end:
            raise ModelLoadError(
                f"{path}: damaged header: tensor {entry.name!r} overlaps or leaves a gap", hint=_DAMAGED
            )
        end += entry.num_bytes
    if file_bytes != end:
        what = "cut short" if file_bytes < end else "too long"
        raise ModelLoadError(f"{path}: {what}: expected {end} bytes, found {file_bytes}", hint=_DAMAGED)


def _read_pickled(model_dir: Path) -> Checkpoint | None:
    from corebound.sharding.pickled import PICKLED_INDEX_FILE, SINGLE_PICKLED_FILE, read_pickled_file

    if (model_dir / SINGLE_PICKLED_FILE).is_file():
        return _merge([model_dir / SINGLE_PICKLED_FILE], read_pickled_file)
    if (model_dir / PICKLED_INDEX_FILE).is_file():
        return _read_indexed(model_dir, model_dir / PICKLED_INDEX_FILE, ".bin", read_pickled_file)
    return None


def _read_indexed(
    model_dir: Path, index: Path, suffix: str = ".safetensors", read: FileReader | None = None
) -> Checkpoint:
    try:
        content = json.loads(index.read_text(encoding="utf-8"), object_pairs_hook=without_repetition)
        weight_map = content["weight_map"]
        names = {str(file) for file in weight_map.values()}
    except OSError as error:
        raise ModelLoadError(f"{index}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError, RepeatedKeyError, KeyError, TypeError, AttributeError) as error:
        raise ModelLoadError(f"{index}: damaged: expected a JSON object with weight_map: {error}") from error
    strange = sorted(name for name in names if Path(name).name != name or not name.endswith(suffix))
    if strange:
        raise ModelLoadError(f"{index}: expected names of {suffix[1:]} files beside it, found {', '.join(strange)}")
    missing = sorted(name for name in names if not (model_dir / name).is_file())
    if missing:
        raise ModelLoadError(f"{index}: names files that are missing: {', '.join(missing)}", hint="fetch them again")
    checkpoint = _merge([model_dir / name for name in sorted(names)], read)
    for tensor, name in weight_map.items():
        entry = checkpoint.tensors.get(tensor)
        if entry is None or entry.path.name != name:
            raise ModelLoadError(f"{index}: tensor {tensor!r} is not in {name}, where the index says it is")
    return checkpoint


def _merge(paths: list[Path], read: FileReader | None = None) -> Checkpoint:
    tensors: dict[str, TensorEntry] = {}
    files: dict[Path, int] = {}
    for path in paths:
        entries, files[path] = (read or read_header)(path)
        for name, entry in entries.items():
            if name in tensors:
                raise ModelLoadError(f"tensor {name!r} is in two files: {tensors[name].path} and {path}")
            tensors[name] = entry
    return Checkpoint(tensors, files)
