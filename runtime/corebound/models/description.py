"""Describes a model directory before anything is loaded: fast, without torch, and strict."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from corebound.config.suggest import nearest
from corebound.errors import ModelLoadError
from corebound.models.architecture import Architecture
from corebound.models.config_reader import ConfigReader, read_config, read_json_object
from corebound.models.families import ARCHITECTURES, NOT_COMPUTED
from corebound.models.quantization_config import packed_format
from corebound.models.shards import Shards, read_shards
from corebound.quantization.packed import PackedFormat
from corebound.sharding.checkpoint import Checkpoint, TensorEntry, read_checkpoint
from corebound.sharding.match import match_parameters
from corebound.sharding.plan import model_parameters

# Any one of these is a tokenizer that transformers can load.
_TOKENIZERS = (("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt"))
# As configurations name them. Beyond so many layers and experts, describing a model would already take its memory.
_NUM_LAYERS, _NUM_EXPERTS = ("num_hidden_layers", "n_layer"), ("num_local_experts", "num_experts")
_MAX_LAYERS_AND_EXPERTS = 1 << 20
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True, kw_only=True)
class ModelDescription(Architecture):
    """A model directory that has been checked: architecture, where each parameter lies, and special tokens.

    `dtype` is the type of most weights, as a torch name. `entries` holds the tensor of every parameter by its name
    without prefix, or, where `packed` says how, the packed ones that stand for it: `X.qweight`, `X.qzeros` and so on in
    place of `X.weight`. A model that `corebound shard` wrote has `shards` and no entries. `eos_token_ids` end a
    generation.
    """

    path: Path
    architecture: str
    dtype: str
    checkpoint: Checkpoint = field(repr=False)
    entries: Mapping[str, TensorEntry] = field(repr=False)
    packed: PackedFormat | None = None
    shards: Shards | None = None
    bos_token_id: int | None = None
    pad_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    @property
    def num_parameters(self) -> int:
        """Return the number of weights; a tied head counts once."""
        return sum(math.prod(parameter.shape) for parameter in model_parameters(self))


def describe(model_dir: Path | str, *, tokenizer: bool = True, allow_pickled_weights: bool = False) -> ModelDescription:
    """Return the description of a local model directory, after checking all that can be checked without torch.

    That is config.json, the architecture, the header and length of every weight file, the name, shape and type of
    every parameter, and, unless `tokenizer` is False, the presence of a tokenizer.
    `allow_pickled_weights` takes PyTorch's own files where there are no safetensors; they need torch to be described.

    Raises: ModelLoadError naming the file.
    """
    path = Path(model_dir)
    if not path.is_dir():
        raise ModelLoadError(f"{path}: {'not a directory' if path.exists() else 'no such directory'}")
    config = read_config(path)
    architecture = _architecture_name(config)
    _check_counts(config)
    described = ARCHITECTURES[architecture](config, path.resolve().name)
    stored = packed_format(config)
    if stored is not None and stored.scheme.group_size is not None:
        described = dataclasses.replace(described, input_grain=stored.scheme.group_size)
    if tokenizer:
        _check_tokenizer(path)
    shards = read_shards(path)
    if shards is None:
        checkpoint = read_checkpoint(path, allow_pickled=allow_pickled_weights)
        entries = match_parameters(described, checkpoint, stored)
    else:
        checkpoint = Checkpoint({}, {path / rank.name: shards.files[rank.name][1] for rank in shards.ranks})
        entries = {}
    generation = _generation_config(path)
    return ModelDescription(
        **{item.name: getattr(described, item.name) for item in dataclasses.fields(described)},
        path=path,
        architecture=architecture,
        dtype="bfloat16" if shards else _main_dtype(entries),
        checkpoint=checkpoint,
        entries=entries,
        packed=stored,
        shards=shards,
        bos_token_id=next(iter(_token_ids(config, generation, "bos_token_id", described.vocab_size)), None),
        pad_token_id=next(iter(_token_ids(config, generation, "pad_token_id", described.vocab_size)), None),
        eos_token_ids=_token_ids(config, generation, "eos_token_id", described.vocab_size),
    )


def _architecture_name(config: ConfigReader) -> str:
    names = config.values.get("architectures")
    if not isinstance(names, list) or not names:
        raise ModelLoadError(f"{config.path}: architectures: missing; known: {', '.join(sorted(ARCHITECTURES))}")
    known = [name for name in names if name in ARCHITECTURES]
    if not known:
        reasons = [f"{name}: {NOT_COMPUTED[name]}" for name in names if name in NOT_COMPUTED]
        if reasons:
            raise ModelLoadError(
                f"{config.path}: architectures: {reasons[0]}", hint=f"known: {', '.join(sorted(ARCHITECTURES))}"
            )
        close = nearest(str(names[0]), ARCHITECTURES)
        raise ModelLoadError(
            f"{config.path}: architectures: unknown {', '.join(map(str, names))}",
            hint=(f"did you mean `{close}`? " if close else "") + f"known: {', '.join(sorted(ARCHITECTURES))}",
        )
    return str(known[0])


def _check_counts(config: ConfigReader) -> None:
    """Check that a model has not more layers, or experts in all of them, than can be listed."""

    def largest(names: tuple[str, ...]) -> tuple[str, int]:
        # What else may be wrong is the family's to say, which may not even read it.
        positive = [name for name in names if type(value := config.values.get(name)) is int and value > 0]
        found = [(name, config.integer(name)) for name in positive]
        return max(found, key=lambda item: item[1], default=("", 1))

    layers, experts = largest(_NUM_LAYERS), largest(_NUM_EXPERTS)
    if layers[1] * experts[1] > _MAX_LAYERS_AND_EXPERTS:
        names = " times ".join(name for name, _ in (layers, experts) if name)
        raise config.wrong(names, f"at most {_MAX_LAYERS_AND_EXPERTS}", layers[1] * experts[1])


def _check_tokenizer(path: Path) -> None:
    if not any(all((path / name).is_file() for name in names) for names in _TOKENIZERS):
        choices = ", ".join(" with ".join(names) for names in _TOKENIZERS)
        raise ModelLoadError(f"{path}: tokenizer missing: expected one of {choices}", hint="copy it beside the weights")
    file = path / "tokenizer.json"
    if not file.is_file():
        return
    # Large tokenizers take half a second to parse, and the ranks do that anyway; a cut shows at the end.
    with file.open("rb") as opened:
        start = opened.read(64).lstrip()
        opened.seek(max(0, file.stat().st_size - 64))
        end = opened.read().rstrip()
    if not (start.startswith(b"{") and end.endswith(b"}")):
        raise ModelLoadError(f"{file}: damaged or cut short: expected one JSON object", hint="fetch the file again")


def _main_dtype(entries: Mapping[str, TensorEntry]) -> str:
    sizes: dict[str, int] = {}
    for entry in entries.values():
        if entry.dtype in _DTYPES:
            sizes[entry.dtype] = sizes.get(entry.dtype, 0) + math.prod(entry.shape)
    return _DTYPES[max(sizes, key=lambda dtype: sizes[dtype])]


def _generation_config(path: Path) -> ConfigReader | None:
    file = path / "generation_config.json"
    return ConfigReader(file, read_json_object(file)) if file.is_file() else None


def _token_ids(config: ConfigReader, generation: ConfigReader | None, field: str, vocab_size: int) -> tuple[int, ...]:
    """Return the ids in a field of generation_config.json, or else of config.json; one, several or none."""
    for reader in (generation, config):
        value = None if reader is None else reader.values.get(field)
        if reader is None or value is None:
            continue
        ids = value if isinstance(value, list) else [value]
        if not all(type(item) is int for item in ids):
            raise reader.wrong(field, "a token id or a list of them", value)
        # Some checkpoints say -1 for none.
        return tuple(item for item in ids if 0 <= item < vocab_size)
    return ()
