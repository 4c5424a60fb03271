"""The manifest of a model that `corebound shard` wrote: which file each rank reads, and what is in it. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from corebound.errors import ModelLoadError, ShardingError
from corebound.kernels.panel_format import valid_group
from corebound.kernels.panel_layout import LAYOUT_VERSION
from corebound.models.config_reader import ConfigReader, read_json_object
from corebound.models.manifest import SHARDS_FILE, Listing, listed_files

FORMAT_VERSION = 2  # since 2 the file of a rank says itself what it is
_KINDS = ("bfloat16", "int8", "int4")
_SCALE_KINDS = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True)
class StoredMatrix:
    """A matrix in panels, as it lies in the file of a rank; the fields are those of PanelMatrix and PanelFormat."""

    outputs: int
    inputs: int
    gated: bool
    kind: str
    group_size: int | None
    asymmetric: bool
    scale_kind: str


@dataclass(frozen=True, kw_only=True)
class RankFile:
    """The file of one rank, and its matrices by field; all other tensors in it are bfloat16."""

    name: str
    matrices: Mapping[str, StoredMatrix]

    def metadata(self, rank: int, num_ranks: int, weights: str) -> dict[str, str]:
        """Return what the header of the file says of it: sizes and tensors do not tell all that decides how it is read.

        Two scale types have the same size, and so do the files of two ranks.
        """
        matrices = {f"matrices.{field}": json.dumps(asdict(form)) for field, form in self.matrices.items()}
        return {"rank": str(rank), "num_ranks": str(num_ranks), "weights": weights, **matrices}


@dataclass(frozen=True, kw_only=True)
class Shards:
    """A model in the form that its ranks read without converting.

    `model` is the name of the checkpoint that it was made of, `weights` what its matrices are: `bfloat16`, a scheme, or
    a packed format. `source` tells one checkpoint from another. `files` has digest and size of every file but the
    manifest.
    """

    path: Path
    model: str
    weights: str
    num_ranks: int
    source: Mapping[str, Any]
    files: Listing
    ranks: tuple[RankFile, ...]

    @property
    def num_bytes(self) -> int:
        """Return the bytes of the files of all ranks."""
        return sum(self.files[rank.name][1] for rank in self.ranks)

    def require_ranks(self, num_ranks: int) -> None:
        """Check that a launch has the ranks that the model was written for.

        Raises: ShardingError with the command that writes it for others.
        """
        if num_ranks != self.num_ranks:
            written, found = counted_ranks(self.num_ranks), counted_ranks(num_ranks)
            raise ShardingError(
                f"{self.path}: written for {written}, found a launch of {found}",
                hint=f"--num_accelerators {self.num_ranks} starts {written}; or write it for others: `corebound shard "
                f"--model {self.path} --output {self.path}-{num_ranks} --num-ranks {num_ranks}`",
            )

    def to_json(self) -> dict[str, Any]:
        """Return what the manifest holds."""
        return {
            "format_version": FORMAT_VERSION,
            "panel_layout": LAYOUT_VERSION,
            "model": self.model,
            "weights": self.weights,
            "num_ranks": self.num_ranks,
            "source": dict(self.source),
            "files": {name: {"sha256": digest, "bytes": size} for name, (digest, size) in self.files.items()},
            "ranks": [
                {"file": rank.name, "matrices": {field: asdict(matrix) for field, matrix in rank.matrices.items()}}
                for rank in self.ranks
            ],
        }


def read_shards(model_dir: Path) -> Shards | None:
    """Return the manifest of a directory that `corebound shard` wrote, or None for any other.

    The sizes of its files are compared; their digests are what verify_manifest reads.

    Raises: ModelLoadError for a manifest that is damaged or of another version, and for missing or short files.
    """
    path = model_dir / SHARDS_FILE
    if not path.is_file():
        return None
    reader = ConfigReader(path, read_json_object(path))
    found_format = reader.integer("format_version")
    if found_format != FORMAT_VERSION:
        raise _another_version(path, "format_version", FORMAT_VERSION, found_format)
    found_layout = reader.integer("panel_layout")
    if found_layout != LAYOUT_VERSION:
        raise _another_version(path, "panel_layout", LAYOUT_VERSION, found_layout)
    shards = Shards(
        path=model_dir,
        model=_text(reader, "model"),
        weights=_text(reader, "weights"),
        num_ranks=reader.integer("num_ranks"),
        source=_object(reader, "source"),
        files=listed_files(path),
        ranks=_rank_files(reader),
    )
    if len(shards.ranks) != shards.num_ranks:
        raise reader.wrong("ranks", f"{shards.num_ranks} entries, as num_ranks says", len(shards.ranks))
    for rank in shards.ranks:
        _check_file(reader, shards, rank.name)
    return shards


def _check_file(reader: ConfigReader, shards: Shards, name: str) -> None:
    if name not in shards.files:
        raise reader.wrong("files", f"an entry for {name}", sorted(shards.files))
    path, expected = shards.path / name, shards.files[name][1]
    if not path.is_file():
        raise ModelLoadError(f"{path}: missing, but listed in {SHARDS_FILE}", hint="copy it again, or write it anew")
    found = path.stat().st_size
    if found != expected:
        raise ModelLoadError(
            f"{path}: damaged or not copied completely: expected {expected} bytes, found {found}",
            hint="copy it again, or write it anew",
        )


def _rank_files(reader: ConfigReader) -> tuple[RankFile, ...]:
    ranks = reader.values.get("ranks")
    if not isinstance(ranks, list) or not all(isinstance(rank, dict) for rank in ranks):
        raise reader.wrong("ranks", "a list of objects", type(ranks).__name__)
    found = []
    for index, values in enumerate(ranks):
        rank = ConfigReader(reader.path, values, where=f"ranks[{index}].")
        matrices = {}
        for field, form in _object(rank, "matrices").items():
            if not isinstance(form, dict):
                raise rank.wrong(f"matrices.{field}", "an object", form)
            matrices[field] = _matrix(ConfigReader(reader.path, form, where=f"ranks[{index}].matrices.{field}."))
        name = _text(rank, "file")
        if Path(name).name != name:
            raise rank.wrong("file", "a file name", name)
        found.append(RankFile(name=name, matrices=matrices))
    return tuple(found)


def _matrix(form: ConfigReader) -> StoredMatrix:
    group_size = form.values.get("group_size")
    if group_size is not None and (type(group_size) is not int or not valid_group(group_size)):
        raise form.wrong("group_size", "null, 32, 64, 96 or a multiple of 128", group_size)
    return StoredMatrix(
        outputs=form.integer("outputs"),
        inputs=form.integer("inputs"),
        gated=form.flag("gated", default=False),
        kind=form.choice("kind", valid=_KINDS),
        group_size=group_size,
        asymmetric=form.flag("asymmetric", default=False),
        scale_kind=form.choice("scale_kind", valid=_SCALE_KINDS),
    )


def _another_version(path: Path, field: str, expected: int, found: int) -> ModelLoadError:
    return ModelLoadError(
        f"{path}: {field}: expected {expected}, which this version of Corebound reads, found {found}",
        hint=f"write it anew from its checkpoint: `corebound shard --model MODEL --output {path.parent} --force`",
    )


def _object(reader: ConfigReader, field: str) -> dict[str, Any]:
    section = reader.section(field)
    if section is None:
        raise reader.wrong(field, "an object", None)
    return section.values


def _text(reader: ConfigReader, field: str) -> str:
    value = reader.values.get(field)
    if not isinstance(value, str) or not value:
        raise reader.wrong(field, "a text", value)
    return value


def counted_ranks(number: int) -> str:
    """Return a number of ranks in words."""
    return "1 rank" if number == 1 else f"{number} ranks"
