"""PyTorch's own files: read on request, as tensors alone; a pickle that does more is refused and not run."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from corebound.errors import ModelLoadError
from corebound.sharding.checkpoint import read_checkpoint
from corebound.sharding.pickled import PICKLED_INDEX_FILE, SINGLE_PICKLED_FILE

TENSORS = {
    "a.weight": torch.arange(35, dtype=torch.float32).view(5, 7),
    "b.weight": torch.randn(300, 40).to(torch.bfloat16),
    "c.bias": torch.randn(11).half(),
    "ids": torch.arange(4),
    "nothing": torch.empty(0, 3),
}


class Attack:
    """Leaves a file behind if its pickle is run."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


def content(path: Path, name: str) -> bytes:
    entry = read_checkpoint(path, allow_pickled=True).tensors[name]
    return entry.path.read_bytes()[entry.start : entry.start + entry.num_bytes]


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def test_each_tensor_is_found_where_it_lies(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / SINGLE_PICKLED_FILE)
    checkpoint = read_checkpoint(tmp_path, allow_pickled=True)
    assert checkpoint.num_bytes == (tmp_path / SINGLE_PICKLED_FILE).stat().st_size
    assert {name: entry.shape for name, entry in checkpoint.tensors.items()} == {
        name: tuple(tensor.shape) for name, tensor in TENSORS.items()
    }
    assert [entry.dtype for entry in checkpoint.tensors.values()] == ["F32", "BF16", "F16", "I64", "F32"]
    for name, tensor in TENSORS.items():
        assert content(tmp_path, name) == raw(tensor), name


def test_tensors_that_share_a_storage_are_found(tmp_path: Path) -> None:
    whole = torch.randn(20, 8)
    torch.save({"whole": whole, "tied": whole, "rows": whole[5:9]}, tmp_path / SINGLE_PICKLED_FILE)
    assert content(tmp_path, "tied") == raw(whole)
    assert content(tmp_path, "rows") == raw(whole[5:9])


def test_each_tensor_is_found_where_stat_and_the_kernels_list_of_mappings_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On btrfs and some overlayfs they have another device, or another inode too."""
    torch.save(TENSORS, tmp_path / SINGLE_PICKLED_FILE)
    stat = Path.stat

    def another_device(path: Path, **options: bool) -> os.stat_result:
        found = list(stat(path, **options))[:10]
        found[1:3] = found[1] + 1, found[2] + 1  # inode, device
        return os.stat_result(found)

    monkeypatch.setattr(Path, "stat", another_device)
    for name, tensor in TENSORS.items():
        assert content(tmp_path, name) == raw(tensor), name


def test_several_files_with_an_index(tmp_path: Path) -> None:
    names = [f"pytorch_model-0000{part}-of-00002.bin" for part in (1, 2)]
    torch.save({"a": torch.ones(3)}, tmp_path / names[0])
    torch.save({"b": torch.zeros(2)}, tmp_path / names[1])
    (tmp_path / PICKLED_INDEX_FILE).write_text(json.dumps({"weight_map": dict(zip("ab", names, strict=True))}))
    assert content(tmp_path, "a") == raw(torch.ones(3))
    (tmp_path / names[1]).unlink()
    with pytest.raises(ModelLoadError, match=f"names files that are missing: {names[1]}"):
        read_checkpoint(tmp_path, allow_pickled=True)


def test_without_the_request_they_are_refused_with_the_flag_that_makes_it(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / SINGLE_PICKLED_FILE)
    with pytest.raises(
        ModelLoadError, match=r"found pytorch_model\.bin, which hold Python objects that run code"
    ) as caught:
        read_checkpoint(tmp_path)
    assert "--allow-pickled-weights" in str(caught.value.hint)


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path: Path, wrapped: bool) -> None:
    mark = tmp_path / "was-run"
    attack = Attack(mark)
    path = tmp_path / SINGLE_PICKLED_FILE
    torch.save({"a.weight": torch.ones(3), "b": attack} if wrapped else attack, path)
    with zipfile.ZipFile(path) as archive:  # it would run, if it were unpickled as Python does
        inside = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        assert b"touch" in archive.read(inside)
    with pytest.raises(ModelLoadError, match=r"pytorch_model\.bin: refused, nothing in it was run") as caught:
        read_checkpoint(tmp_path, allow_pickled=True)
    assert caught.value.exit_code == 6
    assert not mark.exists()
    pickle.loads(pickle.dumps(attack))
    assert mark.exists()  # so the test would have noticed


def test_a_bare_pickle_that_is_no_file_of_torch_is_refused_and_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "was-run"
    (tmp_path / SINGLE_PICKLED_FILE).write_bytes(pickle.dumps({"a": Attack(mark)}))
    with pytest.raises(ModelLoadError, match="refused, nothing in it was run"):
        read_checkpoint(tmp_path, allow_pickled=True)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({"a": torch.ones(4, 6).t()}, "tensor 'a': is stored with its dimensions in another order"),
        ({"a": 3}, "tensor 'a': expected a tensor, found int"),
        ({"a": torch.ones(3).to_sparse()}, "tensor 'a': cannot be read as"),
        ({"a": torch.ones(3, dtype=torch.complex64)}, "tensor 'a': cannot be read as"),
        ([torch.ones(3)], "expected tensors by name, found list"),
    ],
)
def test_what_is_no_plain_tensor_is_named(tmp_path: Path, value: object, problem: str) -> None:
    torch.save(value, tmp_path / SINGLE_PICKLED_FILE)
    with pytest.raises(ModelLoadError, match=problem):
        read_checkpoint(tmp_path, allow_pickled=True)


@pytest.mark.parametrize("keep", [0, 10, 1000])
def test_a_file_cut_short_is_an_error(tmp_path: Path, keep: int) -> None:
    torch.save(TENSORS, tmp_path / SINGLE_PICKLED_FILE)
    os.truncate(tmp_path / SINGLE_PICKLED_FILE, keep)
    with pytest.raises(ModelLoadError, match=r"pytorch_model\.bin"):
        read_checkpoint(tmp_path, allow_pickled=True)
