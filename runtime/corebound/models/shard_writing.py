"""Writes a model in the form that its ranks read without converting: `corebound shard`."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from corebound.errors import ConfigError, HostError, ModelLoadError
from corebound.kernels.panels import PanelMatrix
from corebound.models.config_reader import CONFIG_FILE
from corebound.models.description import ModelDescription
from corebound.models.manifest import SHARDS_FILE, file_digest, model_listing, verify_manifest
from corebound.models.native_source import NativeSource
from corebound.models.shards import RankFile, Shards, StoredMatrix, read_shards
from corebound.models.stored import scheme_to_apply
from corebound.quantization.scheme import is_scheme
from corebound.sharding import shard_plan
from corebound.sharding.reading import Progress

# What of a model directory is no weight and belongs to it.
_COPIED = (
    CONFIG_FILE,
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "chat_template.jinja",
)
_CHUNK_BYTES = 16 << 20
_ALIGN_BYTES = 4096  # the data of a file starts at a page
_STEPS = 1000  # of progress


def write_shards(
    description: ModelDescription,
    output: Path,
    num_ranks: int,
    dtype: str,
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> tuple[Shards, bool]:
    """Write a model for `num_ranks` ranks into the directory `output`; return its manifest and whether it was written.

    What is there already and whole stays as it is. The directory appears at once when everything is in it; one rank's
    part at a time is in memory.

    Raises: ConfigError for a dtype that has no panels, or another output that is there without `force`; HostError for
    a disk that is too small; ModelLoadError, ShardingError.
    """
    if description.shards is not None:
        raise ConfigError(
            f"{description.path}: is written for ranks already", hint="give the checkpoint it was made of"
        )
    if not is_scheme(dtype) and dtype != "bfloat16":
        raise ConfigError(
            f"dtype {dtype}: only bfloat16, int8 and int4 are arranged for ranks",
            hint=f"leave out --dtype, or load the checkpoint itself with --dtype {dtype}",
        )
    scheme = scheme_to_apply(description, dtype)
    weights = description.packed.name if description.packed else scheme.name if scheme else "bfloat16"
    plan = shard_plan(description, num_ranks)
    wanted = Shards(
        path=output,
        model=description.path.resolve().name,
        weights=weights,
        num_ranks=num_ranks,
        source=_source(description),
        files={},
        ranks=(),
    )
    existing = None if force else _existing(wanted)
    if existing is not None:
        return existing, False
    _check_replaceable(output, force)
    sources = [NativeSource(description, plan, rank, scheme) for rank in range(num_ranks)]
    with _unfinished(output) as directory:
        _check_room(directory, sum(source.num_bytes for source in sources))
        shards = _write(wanted, description.path, directory, sources, progress)
        _put_in_place(directory, output)
    return shards, True


def _write(
    wanted: Shards, model_dir: Path, directory: Path, sources: list[NativeSource], progress: Progress | None
) -> Shards:
    files: dict[str, tuple[str, int]] = {}
    for name in _COPIED:
        if (model_dir / name).is_file():
            shutil.copyfile(model_dir / name, directory / name)
            files[name] = (file_digest(directory / name), (directory / name).stat().st_size)
    ranks = []
    for rank in range(wanted.num_ranks):
        source = sources.pop(0)  # so that its memory is free before the next one takes its own
        name = f"rank-{rank:05d}-of-{wanted.num_ranks:05d}.safetensors"
        reading, writing = (_part_of(progress, 2 * rank + part, 2 * wanted.num_ranks) for part in range(2))
        fields = source.read(reading)
        panels = {field: matrix.memory for field, matrix in source.matrices.items()}
        files[name] = _write_tensors(directory / name, {**panels, **fields}, writing)
        matrices = {field: _stored(matrix) for field, matrix in source.matrices.items()}
        ranks.append(RankFile(name=name, matrices=matrices))
        del source, fields, panels
    shards = replace(wanted, files=files, ranks=tuple(ranks))
    _write_synced(directory / SHARDS_FILE, json.dumps(shards.to_json(), indent=1).encode() + b"\n")
    return shards


def _write_tensors(path: Path, tensors: Mapping[str, Tensor], progress: Progress | None) -> tuple[str, int]:
    """Write a safetensors file, bytes as uint8 and the rest as bfloat16; return its digest and size."""
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in tensors.items():
        dtype = "U8" if tensor.dtype == torch.uint8 else "BF16"
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [end, end + tensor.nbytes]}
        end += tensor.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % _ALIGN_BYTES)
    digest, done = hashlib.sha256(), 0
    with path.open("wb", buffering=0) as file:
        for part in _parts(struct.pack("<Q", len(text)) + text, tensors):
            digest.update(part)
            left = part
            while left:
                left = left[file.write(left) :]
            done += len(part)
            if progress is not None:
                progress(min(done, end), end)
        os.fsync(file.fileno())
    return digest.hexdigest(), done


def _parts(header: bytes, tensors: Mapping[str, Tensor]) -> Iterator[memoryview]:
    yield memoryview(header)
    for tensor in tensors.values():
        view = tensor.contiguous().view(-1).view(torch.uint8).numpy().data
        for start in range(0, len(view), _CHUNK_BYTES):
            yield view[start : start + _CHUNK_BYTES]


def _stored(matrix: PanelMatrix) -> StoredMatrix:
    return StoredMatrix(
        outputs=matrix.outputs,
        inputs=matrix.inputs,
        gated=matrix.gated,
        kind=matrix.form.kind,
        group_size=matrix.form.group_size,
        asymmetric=matrix.form.asymmetric,
        scale_kind=matrix.form.scale_kind,
    )


def _source(description: ModelDescription) -> dict[str, Any]:
    """Return what tells this checkpoint from another without reading it all: digests where known, else times."""
    listing = model_listing(description.path)
    found: dict[str, Any] = {CONFIG_FILE: file_digest(description.path / CONFIG_FILE)}
    for path, num_bytes in description.checkpoint.files.items():
        digest = listing[path.name][0] if path.name in listing else None
        found[path.name] = digest or [num_bytes, path.stat().st_mtime_ns]
    return found


def _existing(wanted: Shards) -> Shards | None:
    """Return what is at the output if it is the same model in the same form, and whole."""
    if not (wanted.path / SHARDS_FILE).is_file():
        return None
    found = read_shards(wanted.path)
    assert found is not None
    same = ("weights", "num_ranks", "source")
    if any(getattr(found, name) != getattr(wanted, name) for name in same):
        raise ConfigError(
            f"--output {wanted.path}: has {found.model} as {found.weights} for {found.num_ranks} ranks, which is not "
            "what would be written",
            hint="--force replaces it",
        )
    try:
        verify_manifest(wanted.path)
    except ModelLoadError as error:
        raise ModelLoadError(error.message, hint="--force writes it anew") from error
    return found


def _check_replaceable(output: Path, force: bool) -> None:
    """Check that nothing is lost that `corebound shard` did not write."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if force and (output / SHARDS_FILE).is_file():
        return
    kind = "a directory that `corebound shard` did not write" if output.is_dir() else "a file"
    raise ConfigError(f"--output {output}: expected a new directory, found {kind}", hint="name another one")


@contextlib.contextmanager
def _unfinished(output: Path) -> Iterator[Path]:
    """Enter with a directory beside the output, which is removed if it is still there afterwards.

    Raises: HostError for files that cannot be written.
    """
    directory: Path | None = None
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        directory = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
        yield directory
    except OSError as error:
        raise HostError(f"--output {output}: cannot be written: {error.strerror or error}") from error
    finally:
        if directory is not None and directory.exists():
            shutil.rmtree(directory)


def _put_in_place(directory: Path, output: Path) -> None:
    """Give the finished directory its name, and remove what had it before."""
    directory.chmod(0o755)  # mkdtemp lets nobody else in
    if not output.exists():
        directory.rename(output)
        return
    before = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    output.rename(before)
    try:
        directory.rename(output)
    except OSError:
        before.rename(output)
        raise
    shutil.rmtree(before)


def _check_room(directory: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(directory).free
    if num_bytes > free:
        needed, found = (f"{size / 2**30:.2f} GiB" for size in (num_bytes, free))
        raise HostError(
            f"{directory.parent}: the disk is too small: {needed} needed, {found} free",
            hint="name an --output on another disk, or free the difference",
        )


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _part_of(progress: Progress | None, index: int, num_parts: int) -> Progress | None:
    """Return what tells `progress` of one of several parts that take about as long."""
    if progress is None:
        return None

    def tell(done: int, total: int) -> None:
        progress(index * _STEPS + _STEPS * done // max(1, total), num_parts * _STEPS)

    return tell
