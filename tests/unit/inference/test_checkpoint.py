"""The forms in which `checkpoint` names weights, and what is refused."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from corebound.errors import ConfigError, CoreboundError, ModelLoadError
from corebound.inference.checkpoint import find_tensors
from corebound.inference.configuration import InferenceConfig
from corebound.inference.stored import Piece, StoredTensor
from corebound.sharding.checkpoint import read_header
from corebound.sharding.reading import Meter

WEIGHTS = {"first.weight": torch.arange(24.0).view(4, 6), "second.weight": torch.arange(10.0)}


def find(checkpoint: Any, **keywords: Any) -> dict[str, StoredTensor]:
    return find_tensors(InferenceConfig.read({"checkpoint": checkpoint, "dtype": "fp32"}, keywords))


def written(directory: Path) -> Path:
    """A checkpoint of two files with an index."""
    directory.mkdir(exist_ok=True)
    names = {"first.weight": "model-1.safetensors", "second.weight": "model-2.safetensors"}
    for name, file in names.items():
        save_file({name: WEIGHTS[name]}, directory / file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    return directory


def assert_same(found: dict[str, StoredTensor]) -> None:
    assert found.keys() == WEIGHTS.keys()
    assert all(torch.equal(found[name].read(), weight) for name, weight in WEIGHTS.items())


def test_a_directory_an_index_a_list_and_an_object_name_the_same_weights(tmp_path: Path) -> None:
    directory = written(tmp_path / "model")
    assert_same(find(str(directory)))
    assert_same(find(directory / "model.safetensors.index.json"))
    files = ["model-1.safetensors", "model-2.safetensors"]
    bloom = {"type": "BLOOM", "checkpoints": files, "version": 1.0}
    assert_same(find(bloom, base_dir=str(directory)))
    (tmp_path / "checkpoints.json").write_text(json.dumps(bloom))
    assert_same(find(str(tmp_path / "checkpoints.json"), base_dir=directory))
    (directory / "checkpoints.json").write_text(json.dumps(bloom))
    assert_same(find(directory / "checkpoints.json"))
    absolute = {"type": "ds_model", "checkpoints": [str(directory / name) for name in files]}
    assert_same(find(absolute, base_dir="/elsewhere"))
    assert_same(find({"checkpoints": files, "base_dir": str(directory), "parallelization": "pp"}))


def test_one_file_alone_is_a_checkpoint(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "weights.safetensors")
    assert_same(find(tmp_path / "weights.safetensors"))


def test_bin_files_are_read_only_when_asked_for(tmp_path: Path) -> None:
    torch.save(WEIGHTS, tmp_path / "pytorch_model.bin")
    for checkpoint in (str(tmp_path), {"type": "BLOOM", "checkpoints": [str(tmp_path / "pytorch_model.bin")]}):
        with pytest.raises(ModelLoadError, match="Python objects, which can run code") as caught:
            find(checkpoint)
        assert "allow_pickled_weights=True" in str(caught.value.hint)
        assert_same(find(checkpoint, allow_pickled_weights=True))


def test_tensors_of_a_bin_file_are_read_where_they_lie_and_transposed_ones_as_views(tmp_path: Path) -> None:
    """Pages of a mapped file count as memory of the rank; what is read with pread does not."""
    weights = WEIGHTS | {"third.weight": torch.arange(12.0).view(3, 4).t()}
    torch.save(weights, tmp_path / "pytorch_model.bin")
    found = find(tmp_path, allow_pickled_weights=True)
    assert {name for name, stored in found.items() if stored.entry is None} == {"third.weight"}
    assert all(torch.equal(found[name].read(), weight) for name, weight in weights.items())
    assert torch.equal(found["third.weight"].read(1, [range(1, 3)]), weights["third.weight"][:, 1:3])


@pytest.mark.parametrize("dim", [0, 1])
def test_floats_are_converted_piece_by_piece_and_whole_numbers_are_not(tmp_path: Path, dim: int) -> None:
    whole = {"w": torch.randn(700, 900), "count": torch.arange(7), "scale": torch.tensor(0.3)}
    save_file(whole, tmp_path / "model.safetensors")
    found = find(str(tmp_path))
    meter = Meter(0, None)
    parts = [range(2, 340), range(500, 501)]
    expected = torch.cat([whole["w"].narrow(dim, part.start, len(part)) for part in parts], dim).bfloat16()
    assert torch.equal(found["w"].read(dim, parts, dtype=torch.bfloat16, meter=meter), expected)
    assert meter.num_done == expected.numel() * 4
    assert torch.equal(found["count"].read(dtype=torch.bfloat16), whole["count"])
    assert torch.equal(found["scale"].read(dtype=torch.bfloat16), whole["scale"].bfloat16())


def test_a_bin_file_with_code_in_it_is_refused_and_the_code_does_not_run(tmp_path: Path) -> None:
    """DeepSpeed: "torch.load(weights_only=False) is used -> untrusted pickle risk"."""
    ran = tmp_path / "ran"

    class Attack:
        def __reduce__(self) -> Any:
            return (Path.touch, (ran,))

    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({"first.weight": Attack()}))
    with pytest.raises(ModelLoadError, match="cannot be loaded as tensors alone"):
        find(tmp_path, allow_pickled_weights=True)
    assert not ran.exists()


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"type": "Megatron", "checkpoints": ["a"]}, "Megatron's own files"),
        ({"type": "BLOM", "checkpoints": ["a"]}, "unknown type"),
        ({"type": "ds_model", "checkpoints": {"tp": ["a"], "non_tp": ["b"]}}, "split for ranks by DeepSpeed"),
        ({"checkpoints": ["a"], "parallelization": "tp"}, "split for ranks by DeepSpeed"),
        ({"checkpoints": ["a"], "tp_size": 2}, "split for ranks by DeepSpeed"),
        ({"checkpoints": []}, "expected a list of files"),
        ({"checkpoint": ["a"]}, "unknown key"),
        ({"checkpoints": ["missing.safetensors"]}, "missing.safetensors: cannot be read"),
    ],
)
def test_a_list_that_cannot_be_read_says_why(content: dict[str, Any], named: str) -> None:
    with pytest.raises(CoreboundError, match=named):
        find(content)


def test_an_unknown_list_type_names_the_nearest() -> None:
    with pytest.raises(ConfigError) as caught:
        find({"type": "blom", "checkpoints": ["a"]})
    assert "`bloom`" in str(caught.value.hint)


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_ranges_of_any_dimension_are_read_from_a_file(dim: int, tmp_path: Path) -> None:
    whole = torch.randn(5, 6, 7)
    save_file({"experts": whole}, tmp_path / "model.safetensors")
    stored = find(str(tmp_path))["experts"]
    parts = [range(1, 3), range(4, 5)]
    expected = torch.cat([whole.narrow(dim, part.start, len(part)) for part in parts], dim)
    assert torch.equal(stored.read(dim, parts), expected)
    assert torch.equal(stored.read(), whole)


@pytest.mark.parametrize("dim", [0, 1])
def test_what_ranks_wrote_is_put_together_for_another_number_of_ranks(dim: int) -> None:
    whole = torch.randn(8, 8)
    # As with kv heads, the second rank repeats what the first has.
    held = [(range(3),), (range(2, 5), range(7, 8)), (range(5, 7),)]
    pieces = tuple(
        Piece(torch.cat([whole.narrow(dim, part.start, len(part)) for part in ranges], dim), ranges) for ranges in held
    )
    stored = StoredTensor(name="w", shape=(8, 8), dim=dim, pieces=pieces)
    assert torch.equal(stored.read(), whole)
    for other in (0, 1):
        expected = torch.cat([whole.narrow(other, 6, 2), whole.narrow(other, 1, 4)], other)
        assert torch.equal(stored.read(other, [range(6, 8), range(1, 5)]), expected)
    torn = StoredTensor(name="w", shape=(8, 8), dim=dim, pieces=pieces[:2])
    with pytest.raises(ModelLoadError, match="no file has all of"):
        torn.read(dim, [range(8)])


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize(("cut", "dim"), [(0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1), (1, 1)])
def test_of_files_that_were_cut_along_another_dimension_only_the_wanted_part_is_read(
    cut: int, dim: int, dtype: torch.dtype | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = torch.randn(8, 8, 8)
    # The second rank repeats what the first has.
    pieces = []
    for index, ranges in enumerate([(range(3),), (range(2, 5), range(7, 8)), (range(5, 7),)]):
        file = tmp_path / f"{index}.safetensors"
        save_file({"w": torch.cat([whole.narrow(cut, part.start, len(part)) for part in ranges], cut)}, file)
        pieces.append(Piece(read_header(file)[0]["w"], ranges))
    stored = StoredTensor(name="w", shape=(8, 8, 8), dim=cut, pieces=tuple(pieces))
    num_read = 0

    def counting(descriptor: int, views: list[memoryview], offset: int) -> int:
        nonlocal num_read
        count = preadv(descriptor, views, offset)
        num_read += count
        return count

    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", counting)
    meter = Meter(0, None)
    found = stored.read(dim, [range(6, 8), range(1, 3)], dtype=dtype, meter=meter)
    expected = torch.cat([whole.narrow(dim, 6, 2), whole.narrow(dim, 1, 2)], dim)
    assert torch.equal(found, expected.to(dtype or torch.float32))
    assert num_read == meter.num_done == expected.nbytes
    torn = StoredTensor(name="w", shape=(8, 8, 8), dim=cut, pieces=tuple(pieces[:2]))
    with pytest.raises(ModelLoadError, match="no file has all of"):
        torn.read(dim, [range(4, 8)])


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    save_file({"w": torch.tensor([1.0, float("nan")])}, tmp_path / "model.safetensors")
    with pytest.raises(ModelLoadError, match="expected finite weights"):
        find(str(tmp_path))["w"].read()
