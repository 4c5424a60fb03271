"""Each rank's weights written as safetensors, with a manifest by which any number of ranks reads them back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from corebound.comm.base import Collectives
from corebound.errors import HostError, ModelLoadError
from corebound.inference.sources import Taken
from corebound.inference.stored import Piece, StoredTensor
from corebound.sharding.checkpoint import TensorEntry, read_header

MANIFEST = "ds_inference_config.json"
SAVED_TYPE = "corebound"
_VERSION = 1


def save_ranks(
    directory: Path,
    module: nn.Module,
    taken: Mapping[str, Taken],
    vectors: Mapping[str, Tensor],
    collectives: Collectives,
) -> None:
    """Write this rank's weights, and on the first rank the manifest once all have written. All ranks call it.

    `taken` has what this rank took of each split tensor, `vectors` those of one dimension as they were whole: some
    families give ranks their part of a norm in ways of their own.

    Raises: HostError when it cannot be written.
    """
    # An old manifest would vouch for files that are about to be replaced.
    _require_written(collectives.broadcast_object(_remove(directory / MANIFEST) if collectives.rank == 0 else ""))
    taken = _completed(taken, collectives)
    tensors: dict[str, Tensor] = {}
    written: set[int] = set()
    for name, tensor in module.state_dict().items():
        # A tied parameter is written once; whole tensors are the same on every rank.
        if tensor.data_ptr() in written or (name not in taken and (collectives.rank or name in vectors)):
            continue
        if tensor.numel():
            written.add(tensor.data_ptr())
        tensors[name] = tensor.contiguous()
    if collectives.rank == 0:
        tensors |= {name: vector for name, vector in vectors.items() if name not in taken}
    file = f"model-rank-{collectives.rank:02d}-of-{collectives.size:02d}.safetensors"
    problem = _write(directory, file, tensors)
    mine = {"problem": problem, "file": file, "split": _as_json(taken, tensors)}
    everyone = [collectives.broadcast_object(mine, root=rank) for rank in range(collectives.size)]
    _require_written(
        "; ".join(f"rank {rank}: {other['problem']}" for rank, other in enumerate(everyone) if other["problem"])
    )
    problem = ""
    if collectives.rank == 0:
        manifest = {
            "type": SAVED_TYPE,
            "version": _VERSION,
            "tp_size": collectives.size,
            "architecture": type(module).__name__,
            "checkpoints": [other["file"] for other in everyone],
            "split": [other["split"] for other in everyone],
        }
        problem = _write_text(directory / MANIFEST, json.dumps(manifest) + "\n")
    _require_written(collectives.broadcast_object(problem))


def saved_tensors(manifest: Path) -> dict[str, StoredTensor]:
    """Return the tensors that ranks wrote, by name.

    Raises: ModelLoadError naming the file that is missing, damaged or of another version.
    """
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        if content["type"] != SAVED_TYPE or content["version"] != _VERSION:
            raise ModelLoadError(
                f"{manifest}: expected type {SAVED_TYPE!r} and version {_VERSION}, found {content['type']!r} and "
                f"{content['version']!r}"
            )
        files, split = [str(name) for name in content["checkpoints"]], content["split"]
        if len(files) != len(split) or any(Path(name).name != name for name in files):
            raise ModelLoadError(f"{manifest}: damaged: checkpoints: expected a file beside it for each rank")
        ranks = [read_header(manifest.parent / name)[0] for name in files]
        return _assembled(ranks, split)
    except OSError as error:
        raise ModelLoadError(f"{manifest}: cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelLoadError(f"{manifest}: damaged: {type(error).__name__}: {error}") from error


def _assembled(ranks: list[dict[str, TensorEntry]], split: list[Mapping[str, Any]]) -> dict[str, StoredTensor]:
    found: dict[str, StoredTensor] = {}
    for name, entry in ranks[0].items():
        if name not in split[0]:
            found[name] = StoredTensor.whole(name, entry)
    for name, first in split[0].items():
        pieces = tuple(
            Piece(entries[name], tuple(range(int(start), int(stop)) for start, stop in parts[name]["ranges"]))
            for entries, parts in zip(ranks, split, strict=True)
        )
        shape = tuple(int(size) for size in first["shape"])
        found[name] = StoredTensor(name=name, shape=shape, dim=int(first["dim"]), pieces=pieces)
    return found


def _completed(taken: Mapping[str, Taken], collectives: Collectives) -> dict[str, Taken]:
    """Return what was taken of every tensor that is split on any rank: a rank may need all of one that others cut."""
    found = dict(taken)
    mine = {name: [part.dim, list(part.shape)] for name, part in taken.items()}
    for rank in range(collectives.size):
        for name, (dim, shape) in collectives.broadcast_object(mine, root=rank).items():
            found.setdefault(name, Taken(dim, (range(shape[dim]),), tuple(shape)))
    return found


def _as_json(taken: Mapping[str, Taken], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    return {
        name: {"dim": dim, "shape": list(shape), "ranges": [[part.start, part.stop] for part in ranges]}
        for name, (dim, ranges, shape) in taken.items()
        if name in tensors
    }


def _require_written(problem: str) -> None:
    """Raise HostError for a problem, on every rank: the caller has made it known to all."""
    if problem:
        raise HostError(f"save_mp_checkpoint_path: {problem}")


def _remove(path: Path) -> str:
    """Remove a file if it is there, and return what went wrong, or nothing."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        return f"{path}: cannot be removed: {error.strerror or error}"
    return ""


def _write(directory: Path, name: str, tensors: dict[str, Tensor]) -> str:
    """Write a file in one go, and return what went wrong, or nothing."""
    partial = directory / f".{name}.partial"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        save_file(tensors, partial, metadata={"format": "pt"})
        partial.replace(directory / name)
    except (OSError, SafetensorError) as error:
        return f"{directory / name}: cannot be written: {getattr(error, 'strerror', None) or error}"
    return ""


def _write_text(path: Path, text: str) -> str:
    """Write a file in one go, and return what went wrong, or nothing."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        return f"{path}: cannot be written: {error.strerror or error}"
    return ""
