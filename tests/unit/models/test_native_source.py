"""A rank's part of a checkpoint in panels: the same bytes on any number of threads, and errors of any of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from corebound.errors import ModelLoadError
from corebound.models import describe
from corebound.models.native_source import NativeSource
from corebound.quantization.scheme import parse_scheme
from corebound.sharding import shard_plan, stream
from corebound.sharding.checkpoint import SINGLE_FILE
from corebound.sharding.pickled import SINGLE_PICKLED_FILE
from fixtures.tiny_models import build_bloom, build_llama

pytestmark = pytest.mark.native


def read(path: Path, num_ranks: int, rank: int, dtype: str, num_threads: int) -> dict[str, torch.Tensor]:
    description = describe(path, tokenizer=False)
    scheme = None if dtype == "bfloat16" else parse_scheme(dtype)
    source = NativeSource(description, shard_plan(description, num_ranks), rank, scheme)
    seen: list[tuple[int, int]] = []
    fields = source.read(lambda *at: seen.append(at), num_threads)
    assert seen == sorted(seen)
    assert seen[-1] == (source.read_bytes, source.read_bytes)
    return {**fields, **{field: matrix.memory for field, matrix in source.matrices.items()}}


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "int4:g32"])
@pytest.mark.parametrize("family", ["bloom", "llama"])
def test_threads_make_what_one_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, dtype: str, stored: torch.dtype
) -> None:
    path = (build_bloom if family == "bloom" else build_llama)(tmp_path / family)
    tensors = load_file(path / SINGLE_FILE)
    save_file({name: tensor.to(stored) for name, tensor in tensors.items()}, path / SINGLE_FILE)
    expected = [read(path, 3, rank, dtype, 1) for rank in range(3)]
    monkeypatch.setattr(stream, "CHUNK_BYTES", 1000)
    for rank in range(3):
        found = read(path, 3, rank, dtype, 4)
        assert found.keys() == expected[rank].keys()
        assert all(torch.equal(found[name], expected[rank][name]) for name in found)


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), -(2.0**121)])
def test_a_value_no_model_has_is_named_whichever_thread_finds_it(tmp_path: Path, value: float) -> None:
    path = build_llama(tmp_path / "llama")
    tensors = load_file(path / SINGLE_FILE)
    tensors["model.layers.1.self_attn.o_proj.weight"][17, 5] = value
    save_file(tensors, path / SINGLE_FILE)
    with pytest.raises(
        ModelLoadError, match=r"tensor 'model\.layers\.1\.self_attn\.o_proj\.weight': expected finite weights"
    ):
        read(path, 1, 0, "bfloat16", 4)


def test_weights_of_a_pickled_file_are_those_of_safetensors(tmp_path: Path) -> None:
    path = build_bloom(tmp_path / "bloom")
    description = describe(path, tokenizer=False)
    plan = shard_plan(description, 2)
    expected = NativeSource(description, plan, 1, None)
    expected_fields = expected.read()
    torch.save(load_file(path / SINGLE_FILE), path / SINGLE_PICKLED_FILE)
    (path / SINGLE_FILE).unlink()
    with pytest.raises(ModelLoadError, match="which hold Python objects"):
        describe(path, tokenizer=False)
    found = NativeSource(describe(path, tokenizer=False, allow_pickled_weights=True), plan, 1, None)
    fields = found.read()
    assert all(torch.equal(fields[name], expected_fields[name]) for name in expected_fields)
    assert all(torch.equal(found.matrices[name].memory, expected.matrices[name].memory) for name in expected.matrices)
