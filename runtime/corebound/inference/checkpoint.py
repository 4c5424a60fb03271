"""Finds the tensors that `checkpoint` names: a directory, an index, files, or the JSON list of DeepSpeed's scripts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from corebound.config.suggest import require_choice
from corebound.errors import ConfigError, ModelLoadError
from corebound.inference.configuration import InferenceConfig
from corebound.inference.saved import MANIFEST, SAVED_TYPE, saved_tensors
from corebound.inference.stored import StoredTensor
from corebound.models import resolve_model
from corebound.sharding.checkpoint import INDEX_FILE, SINGLE_FILE, TensorEntry, read_checkpoint, read_header
from corebound.sharding.pickled import places_in_file

# What scripts write as the type of a list; it names how the files were made, and these hold whole parameters.
_TYPES = ("bloom", "ds_model", SAVED_TYPE)
_BIN_SUFFIXES = (".bin", ".pt", ".pth")
_LIST_KEYS = ("type", "checkpoints", "version", "parallelization", "tp_size", "mp_size", "base_dir", "dtype")
_CONVERT = "convert it: AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(DIR) writes safetensors"

Found = dict[str, StoredTensor]


def find_tensors(config: InferenceConfig) -> Found:
    """Return every tensor of the checkpoint by its name there; nothing but headers is read of safetensors.

    Raises: ModelLoadError naming the file; ConfigError for a list that is wrong.
    """
    given = config.checkpoint
    assert given is not None
    if isinstance(given, Mapping):
        return _listed(given, "checkpoint", config.base_dir or Path(), config)
    path = Path(given).expanduser()
    if not path.is_absolute() and not path.exists() and config.base_dir is not None:
        path = config.base_dir / path
    if path.suffix == ".json":
        return _from_json(path, config)
    if path.is_file():
        return _files([path], config)
    return _directory(path if path.is_dir() else resolve_model(given), config)


def _directory(path: Path, config: InferenceConfig) -> Found:
    if (path / MANIFEST).is_file():
        return saved_tensors(path / MANIFEST)
    has_safetensors = (path / SINGLE_FILE).is_file() or (path / INDEX_FILE).is_file()
    bins = sorted(file for suffix in _BIN_SUFFIXES for file in path.glob(f"*{suffix}"))
    # What a Trainer leaves beside the weights.
    bins = [file for file in bins if file.name != "training_args.bin"]
    if bins and not has_safetensors:
        return _files(bins, config)
    return {name: StoredTensor.whole(name, entry) for name, entry in read_checkpoint(path).tensors.items()}


def _from_json(path: Path, config: InferenceConfig) -> Found:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelLoadError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ModelLoadError(f"{path}: not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelLoadError(f"{path}: expected an object, found {type(content).__name__}")
    if content.get("type") == SAVED_TYPE:
        return saved_tensors(path)
    if "weight_map" in content:
        names = sorted({str(name) for name in content["weight_map"].values()})
        return _files([path.parent / name for name in names], config)
    return _listed(content, str(path), config.base_dir or path.parent, config)


def _listed(content: Mapping[str, Any], where: str, base_dir: Path, config: InferenceConfig) -> Found:
    for key in content:
        require_choice("key", str(key), _LIST_KEYS, where=where)
    kind = content.get("type", "ds_model")
    if str(kind).lower() == "megatron":
        raise ConfigError(f"{where}: type {kind!r}: Megatron's own files cannot be read", hint=_CONVERT)
    require_choice("type", str(kind).lower(), _TYPES, where=where)
    files = content.get("checkpoints")
    split = content.get("parallelization") == "tp" or max(_ranks(content, where)) > 1
    if isinstance(files, Mapping) or split:
        raise ConfigError(
            f"{where}: its files were split for ranks by DeepSpeed, and are not whole parameters",
            hint="use the checkpoint that they were made of, and save_mp_checkpoint_path to split it again",
        )
    if not isinstance(files, Sequence) or isinstance(files, str) or not files:
        raise ConfigError(f"{where}: checkpoints: expected a list of files, found {files!r:.80}")
    if config.base_dir is None and content.get("base_dir"):
        base_dir = base_dir / str(content["base_dir"])
    return _files([base_dir / str(name) for name in files], config)


def _ranks(content: Mapping[str, Any], where: str) -> list[int]:
    values = [content.get(key) or 1 for key in ("tp_size", "mp_size")]
    if not all(isinstance(value, int) for value in values):
        raise ConfigError(f"{where}: tp_size: expected a whole number, found {values!r}")
    return values


def _files(paths: Sequence[Path], config: InferenceConfig) -> Found:
    found: Found = {}
    origin: dict[str, Path] = {}
    for path in paths:
        is_bin = path.suffix in _BIN_SUFFIXES
        tensors: Mapping[str, TensorEntry | Tensor]
        tensors = _load_bin(path, config) if is_bin else read_header(path)[0]
        for name, content in tensors.items():
            if name in found:
                raise ModelLoadError(f"tensor {name!r} is in two files: {origin[name]} and {path}")
            found[name], origin[name] = StoredTensor.whole(name, content), path
    return found


def _load_bin(path: Path, config: InferenceConfig) -> dict[str, TensorEntry | Tensor]:
    """Return where the tensors of a file lie in it, or views of it for those that are not stored as they are."""
    if not path.is_file():
        raise ModelLoadError(f"{path}: missing")
    if not config.allow_pickled_weights:
        raise ModelLoadError(
            f"{path}: holds Python objects, which can run code; such files are read only when asked for",
            hint=f"{_CONVERT}; or pass allow_pickled_weights=True, which loads it with weights_only=True",
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    # It raises whatever the file leads to; all of it means that the file cannot be used.
    except Exception as error:
        raise ModelLoadError(f"{path}: cannot be loaded as tensors alone: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ModelLoadError(f"{path}: expected tensors by name, found {type(content).__name__}")
    return {str(name): value for name, value in content.items()} | places_in_file(path, content)
