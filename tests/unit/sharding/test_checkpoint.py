"""Safetensors headers: every kind of damage is one error that names the file."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from corebound.errors import ModelLoadError
from corebound.sharding.checkpoint import INDEX_FILE, SINGLE_FILE, read_checkpoint, read_header


def write(path: Path, header: dict[str, Any] | bytes, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def tensor(dtype: str = "F32", shape: Any = (2,), start: int = 0, stop: int = 8) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def test_entries_agree_with_what_safetensors_wrote(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 5), "b": torch.randn(7).bfloat16(), "c": torch.zeros(0), "d": torch.tensor(2.0)}
    save_file(tensors, tmp_path / SINGLE_FILE, metadata={"format": "pt"})
    content = (tmp_path / SINGLE_FILE).read_bytes()
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint.num_bytes == len(content)
    assert set(checkpoint.tensors) == set(tensors)
    for name, expected in tensors.items():
        entry = checkpoint.tensors[name]
        assert entry.shape == tuple(expected.shape)
        raw = content[entry.start : entry.start + entry.num_bytes]
        assert raw == expected.reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "cut short"),
        (b"1234567", "cut short"),
        (struct.pack("<Q", 1 << 60) + b"{}", "header of 1152921504606846976 bytes"),
        (struct.pack("<Q", 4) + b"{}", "header of 4 bytes"),
        (struct.pack("<Q", 2) + b"{[", "damaged header"),
        (struct.pack("<Q", 2) + b"\xff\xfe", "damaged header"),
        (struct.pack("<Q", 2) + b"[]", "expected an object"),
        (
            struct.pack("<Q", 15) + b'{"a":{},"a":{}}',
            "damaged header: key 'a': expected once",
        ),
    ],
)
def test_a_damaged_beginning_is_named(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / SINGLE_FILE
    path.write_bytes(content)
    with pytest.raises(ModelLoadError) as caught:
        read_checkpoint(tmp_path)
    assert problem in caught.value.message
    assert str(path) in caught.value.message
    assert caught.value.exit_code == 6


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ([1, 2], "expected dtype, shape and data_offsets"),
        (tensor(dtype="F31"), "unknown dtype 'F31'"),
        (tensor(shape=[-2]), "expected whole numbers"),
        (tensor(shape=[2.0]), "expected whole numbers"),
        (tensor(shape="2"), "expected whole numbers"),
        (tensor(shape=[3]), "is 12 bytes"),
        (tensor(start=8, stop=0), "is 8 bytes"),
        (tensor(start=4, stop=12), "overlaps or leaves a gap"),
    ],
)
def test_a_damaged_entry_is_named(tmp_path: Path, entry: Any, problem: str) -> None:
    path = write(tmp_path / SINGLE_FILE, {"the.tensor": entry}, bytes(8))
    with pytest.raises(ModelLoadError) as caught:
        read_header(path)
    assert problem in caught.value.message
    assert "'the.tensor'" in caught.value.message


def test_a_file_cut_by_one_byte_says_what_was_expected(tmp_path: Path) -> None:
    save_file({"a": torch.randn(100)}, tmp_path / SINGLE_FILE)
    content = (tmp_path / SINGLE_FILE).read_bytes()
    (tmp_path / SINGLE_FILE).write_bytes(content[:-1])
    with pytest.raises(ModelLoadError, match=f"cut short: expected {len(content)} bytes, found {len(content) - 1}"):
        read_checkpoint(tmp_path)
    (tmp_path / SINGLE_FILE).write_bytes(content + b"x")
    with pytest.raises(ModelLoadError, match="too long"):
        read_checkpoint(tmp_path)


@given(st.integers(0, 10_000), st.integers(0, 7))
def test_a_flipped_bit_of_the_header_never_crashes(tmp_path_factory: Any, at: int, bit: int) -> None:
    path = tmp_path_factory.mktemp("flip") / SINGLE_FILE
    save_file({"a.weight": torch.ones(3, 4), "b.weight": torch.ones(2)}, path)
    content = bytearray(path.read_bytes())
    header_end = 8 + struct.unpack("<Q", content[:8])[0]
    content[at % header_end] ^= 1 << bit
    path.write_bytes(content)
    try:
        entries, _ = read_header(path)
    except ModelLoadError as error:
        assert str(path) in error.message
    else:
        # What cannot be told from a sound header: another name, or sizes exchanged; the match with config.json sees it.
        assert sum(entry.num_bytes for entry in entries.values()) == 56


def test_pickled_weights_are_refused_with_the_way_to_convert(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelLoadError, match=r"no safetensors file; found pytorch_model\.bin") as caught:
        read_checkpoint(tmp_path)
    assert "save_pretrained" in str(caught.value.hint)


def test_an_empty_directory_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"expected model\.safetensors or model\.safetensors\.index\.json"):
        read_checkpoint(tmp_path)


def sharded(tmp_path: Path) -> Path:
    save_file({"a": torch.ones(2)}, tmp_path / "model-1.safetensors")
    save_file({"b": torch.ones(3)}, tmp_path / "model-2.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / INDEX_FILE).write_text(json.dumps(index))
    return tmp_path


def test_an_index_joins_several_files(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(sharded(tmp_path))
    assert {name: entry.path.name for name, entry in checkpoint.tensors.items()} == {
        "a": "model-1.safetensors",
        "b": "model-2.safetensors",
    }


def test_a_file_the_index_names_must_be_there(tmp_path: Path) -> None:
    (sharded(tmp_path) / "model-2.safetensors").unlink()
    with pytest.raises(ModelLoadError, match=r"names files that are missing: model-2\.safetensors"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "damaged"),
        ("{}", "damaged"),
        ("[" * 200_000, "damaged"),
        ('{"weight_map": {"a": "model-1.safetensors", "a": "model-1.safetensors"}}', "key 'a': expected once"),
        ('{"weight_map": {"a": "../x.safetensors"}}', "expected names of safetensors files beside it"),
        ('{"weight_map": {"zz": "model-1.safetensors"}}', "tensor 'zz' is not in model-1.safetensors"),
    ],
)
def test_a_damaged_index_is_named(tmp_path: Path, text: str, problem: str) -> None:
    (sharded(tmp_path) / INDEX_FILE).write_text(text)
    with pytest.raises(ModelLoadError) as caught:
        read_checkpoint(tmp_path)
    assert problem in caught.value.message
    assert INDEX_FILE in caught.value.message


def test_a_tensor_in_two_files_is_an_error(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2), "b": torch.ones(2)}, sharded(tmp_path) / "model-2.safetensors")
    with pytest.raises(ModelLoadError, match="tensor 'a' is in two files"):
        read_checkpoint(tmp_path)
