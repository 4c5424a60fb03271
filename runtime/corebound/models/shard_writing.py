"""Writes a model in the form that its ranks read without converting: `corebound shard`."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from corebound.errors import ConfigError, HostError, ModelLoadError
from corebound.kernels.panels import PanelMatrix
from corebound.models.config_reader import CONFIG_FILE
from corebound.models.description import ModelDescription
from corebound.models.manifest import SHARDS_FILE, file_digest, model_listing, verify_manifest
from corebound.models.native_source import NativeSource
from corebound.models.resharding import WrittenModel, WrittenSource
from corebound.models.shard_file import write_tensors
from corebound.models.shards import RankFile, Shards, StoredMatrix, read_shards
from corebound.models.stored import scheme_to_apply
from corebound.quantization.scheme import is_scheme
from corebound.sharding import shard_plan
from corebound.sharding.reading import Meter, Progress

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


def write_shards(
    description: ModelDescription,
    output: Path,
    num_ranks: int,
    dtype: str,
    *,
    force: bool = False,
    progress: Progress | None = None,
    num_threads: int = 1,
) -> tuple[Shards, bool]:
    """Write a model for `num_ranks` ranks into the directory `output`; return its manifest and whether it was written.

    A model that was written for another number of ranks serves as well as a checkpoint; its weights stay as they are.
    What is there already and whole stays as it is. The directory appears at once when everything is in it; one rank's
    part at a time is in memory.

    Raises: ConfigError for a dtype that has no panels, or another output that is there without `force`; HostError for
    a disk that is too small; ModelLoadError, ShardingError.
    """
    if not is_scheme(dtype) and dtype != "bfloat16":
        raise ConfigError(
            f"dtype {dtype}: only bfloat16, int8 and int4 are arranged for ranks",
            hint=f"leave out --dtype, or load the checkpoint itself with --dtype {dtype}",
        )
    scheme = scheme_to_apply(description, dtype)
    before = description.shards
    weights = description.packed.name if description.packed else scheme.name if scheme else "bfloat16"
    plan = shard_plan(description, num_ranks)
    wanted = Shards(
        path=output,
        model=before.model if before else description.path.resolve().name,
        weights=before.weights if before else weights,
        num_ranks=num_ranks,
        source=before.source if before else _source(description),
        files={},
        ranks=(),
    )
    existing = None if force else _existing(wanted)
    if existing is not None:
        return existing, False
    _check_replaceable(output, force)
    with contextlib.ExitStack() as entered:
        written = entered.enter_context(WrittenModel(description)) if before else None
        sources: list[NativeSource | WrittenSource] = [
            WrittenSource(written, plan, rank) if written else NativeSource(description, plan, rank, scheme)
            for rank in range(num_ranks)
        ]
        directory = entered.enter_context(_unfinished(output))
        _check_room(directory, sum(source.num_bytes for source in sources))
        shards = _write(wanted, description.path, directory, sources, progress, num_threads)
        _put_in_place(directory, output)
    return shards, True


def _write(
    wanted: Shards,
    model_dir: Path,
    directory: Path,
    sources: list[NativeSource | WrittenSource],
    progress: Progress | None,
    num_threads: int,
) -> Shards:
    files: dict[str, tuple[str, int]] = {}
    for name in _COPIED:
        if (model_dir / name).is_file():
            shutil.copyfile(model_dir / name, directory / name)
            files[name] = (file_digest(directory / name), (directory / name).stat().st_size)
    meter = Meter(sum(source.read_bytes + source.num_bytes for source in sources), progress)
    ranks = []
    for rank in range(wanted.num_ranks):
        source = sources.pop(0)  # so that its memory is free before the next one takes its own
        name = f"rank-{rank:05d}-of-{wanted.num_ranks:05d}.safetensors"
        fields = source.read(_counted(meter), num_threads)
        panels = {field: matrix.memory for field, matrix in source.matrices.items()}
        file = RankFile(name=name, matrices={field: _stored(matrix) for field, matrix in source.matrices.items()})
        metadata = file.metadata(rank, wanted.num_ranks, wanted.weights)
        files[name] = write_tensors(directory / name, {**panels, **fields}, metadata, meter.add)
        ranks.append(file)
        del source, fields, panels
    shards = replace(wanted, files=files, ranks=tuple(ranks))
    _write_synced(directory / SHARDS_FILE, json.dumps(shards.to_json(), indent=1).encode() + b"\n")
    return shards


def _counted(meter: Meter) -> Progress:
    """Return a progress of one part that counts it as part of `meter`."""
    before = 0

    def tell(done: int, _: int) -> None:
        nonlocal before
        meter.add(done - before)
        before = done

    return tell


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
        raise HostError(
            f"--output {output}: cannot be written: {error.strerror or error}",
            hint="name a directory on a disk that this user may write to",
        ) from error
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
        needed, found = (f"{size / 2**20:.1f} MiB" for size in (num_bytes, free))
        raise HostError(
            f"{directory.parent}: the disk is too small: {needed} needed, {found} free",
            hint="name an --output on another disk, or free the difference",
        )


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
