"""Reading slices: what all ranks hold together is the checkpoint, and damaged bytes are named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from corebound.errors import ModelLoadError
from corebound.sharding import Geometry, ShardPlan, shard_plan, stream
from corebound.sharding.checkpoint import SINGLE_FILE, read_checkpoint
from corebound.sharding.match import match_parameters
from corebound.sharding.plan import model_parameters
from corebound.sharding.reading import Meter, Scratch, opened
from corebound.sharding.table import Decision

LLAMA = Geometry(
    name="tiny",
    family="llama",
    num_layers=1,
    hidden_size=48,
    num_heads=6,
    num_kv_heads=2,
    head_dim=8,
    intermediate_size=100,
    vocab_size=101,
    features=frozenset({"untied_head", "attention_bias", "mlp_bias"}),
)
BLOOM = Geometry(
    name="tiny",
    family="bloom",
    num_layers=1,
    hidden_size=48,
    num_heads=6,
    num_kv_heads=6,
    head_dim=8,
    intermediate_size=192,
    vocab_size=101,
)


FALCON = replace(BLOOM, family="falcon", num_kv_heads=2, features=frozenset({"biases", "two_norms"}))
PHI3 = replace(LLAMA, family="phi3", features=frozenset())


def write_model(path: Path, model: Geometry, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tensors = {p.name: torch.randn(p.shape, generator=generator).to(dtype) for p in model_parameters(model)}
    save_file(tensors, path / SINGLE_FILE)
    return tensors


def load(path: Path, plan: ShardPlan, rank: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return stream.load_shard(plan, rank, match_parameters(plan.geometry, read_checkpoint(path)), dtype=dtype)


def gather(plan: ShardPlan, shards: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Put every rank's parts back where the plan took them from; replicated parts must agree."""
    whole = {p.name: torch.full(p.shape, float("nan")) for p in plan.parameters}
    for rank, fields in enumerate(shards):
        filled = dict.fromkeys(fields, 0)
        for p in plan.parameters:
            local = plan.local_shape(p, rank)
            at = filled[p.field]
            part = fields[p.field][at : at + local[0]]
            filled[p.field] = at + local[0]
            index = torch.tensor([i for r in plan.ranges(p, rank) for i in r])
            target = whole[p.name]
            before = target.index_select(p.rule.cut_dim, index)
            assert bool((before.isnan() | (before == part)).all())
            target.index_copy_(p.rule.cut_dim, index, part)
        assert all(filled[name] == fields[name].shape[0] for name in fields)
    return whole


@pytest.mark.parametrize("chunk_bytes", [1, 1000, 4 << 20])
@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("model", [LLAMA, BLOOM, FALCON, PHI3], ids=lambda model: model.family)
def test_split_and_gathered_is_the_original(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Geometry, num_ranks: int, chunk_bytes: int
) -> None:
    monkeypatch.setattr(stream, "CHUNK_BYTES", chunk_bytes)
    original = write_model(tmp_path, model)
    plan = shard_plan(model, num_ranks)
    whole = gather(plan, [load(tmp_path, plan, rank) for rank in range(num_ranks)])
    assert all(torch.equal(whole[name], original[name]) for name in original)


@pytest.mark.parametrize("page_bytes", [0, 1 << 30])
def test_columns_read_row_by_row_or_cut_from_whole_rows_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page_bytes: int
) -> None:
    monkeypatch.setattr(stream, "_PAGE_BYTES", page_bytes)
    original = write_model(tmp_path, LLAMA)
    plan = shard_plan(LLAMA, 3)
    parts = [load(tmp_path, plan, rank)["layers.0.mlp_out_weight"] for rank in range(3)]
    assert torch.equal(torch.cat(parts, dim=1), original["model.layers.0.mlp.down_proj.weight"])


def test_a_tensor_of_another_size_is_filled_part_by_part(tmp_path: Path) -> None:
    original = write_model(tmp_path, LLAMA)["model.layers.0.mlp.down_proj.weight"]
    entry = read_checkpoint(tmp_path).tensors["model.layers.0.mlp.down_proj.weight"]
    rows, columns = torch.empty(8, 100), torch.empty(48, 30, dtype=torch.bfloat16)
    with opened(entry.path) as descriptor:
        reader = stream.PartReader(descriptor, entry, Meter(0, None), Scratch())
        reader.fill(rows, [range(40, 45), range(3)], 0)
        stream.PartReader(descriptor, entry, Meter(0, None)).fill(columns, [range(50, 80)], 1)
    assert torch.equal(rows, torch.cat((original[40:45], original[:3])))
    assert torch.equal(columns, original[:, 50:80].bfloat16())


@pytest.mark.parametrize("source", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("target", [torch.float32, torch.bfloat16, torch.float16])
def test_types_are_converted_as_torch_does(tmp_path: Path, source: torch.dtype, target: torch.dtype) -> None:
    original = write_model(tmp_path, LLAMA, source)
    fields = load(tmp_path, shard_plan(LLAMA, 1), 0, target)
    expected = original["model.layers.0.mlp.down_proj.weight"].to(target)
    assert torch.equal(fields["layers.0.mlp_out_weight"], expected)
    assert {tensor.dtype for tensor in fields.values()} == {target}


def test_progress_counts_exactly_the_bytes_of_the_shard(tmp_path: Path) -> None:
    write_model(tmp_path, LLAMA)
    plan = shard_plan(LLAMA, 4)
    entries = match_parameters(LLAMA, read_checkpoint(tmp_path))
    calls: list[tuple[int, int]] = []
    meter = Meter(stream.shard_bytes(plan, 2, entries), lambda done, total: calls.append((done, total)))
    stream.load_shard(plan, 2, entries, dtype=torch.bfloat16, meter=meter)
    assert calls[-1] == (4 * plan.num_elements(2), 4 * plan.num_elements(2))
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 2.0**121])
def test_a_value_no_model_has_is_named_with_file_and_tensor(tmp_path: Path, value: float) -> None:
    tensors = write_model(tmp_path, LLAMA)
    tensors["model.layers.0.self_attn.o_proj.weight"][17, 5] = value
    save_file(tensors, tmp_path / SINGLE_FILE)
    with pytest.raises(
        ModelLoadError, match=r"model\.safetensors: tensor 'model\.layers\.0\.self_attn\.o_proj\.weight'"
    ):
        load(tmp_path, shard_plan(LLAMA, 2), 0)


def test_the_top_bit_of_an_exponent_flipped_anywhere_is_found(tmp_path: Path) -> None:
    write_model(tmp_path, LLAMA, torch.bfloat16)
    path = tmp_path / SINGLE_FILE
    entry = read_checkpoint(tmp_path).tensors["lm_head.weight"]
    content = bytearray(path.read_bytes())
    content[entry.start + 2 * 1000 + 1] ^= 0x40
    path.write_bytes(content)
    with pytest.raises(ModelLoadError, match=r"tensor 'lm_head\.weight': expected finite weights"):
        load(tmp_path, shard_plan(LLAMA, 1), 0, torch.bfloat16)


def test_a_weight_too_large_for_float16_names_the_remedy(tmp_path: Path) -> None:
    tensors = write_model(tmp_path, LLAMA)
    tensors["model.norm.weight"][3] = 70000.0
    save_file(tensors, tmp_path / SINGLE_FILE)
    load(tmp_path, shard_plan(LLAMA, 1), 0, torch.bfloat16)
    with pytest.raises(ModelLoadError, match=r"tensor 'model\.norm\.weight': a weight of 70000 does not fit float16"):
        load(tmp_path, shard_plan(LLAMA, 1), 0, torch.float16)


def test_a_file_cut_after_it_was_described_is_an_error_not_garbage(tmp_path: Path) -> None:
    write_model(tmp_path, LLAMA)
    entries = match_parameters(LLAMA, read_checkpoint(tmp_path))
    path = tmp_path / SINGLE_FILE
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelLoadError, match="the file ends at byte"):
        stream.load_shard(shard_plan(LLAMA, 1), 0, entries, dtype=torch.float32)
    path.unlink()
    with pytest.raises(ModelLoadError, match="cannot be read: No such file"):
        stream.load_shard(shard_plan(LLAMA, 1), 0, entries, dtype=torch.float32)


def test_every_decision_of_the_tables_is_exercised_here() -> None:
    used = {p.rule.decision for model in (LLAMA, BLOOM) for p in model_parameters(model)}
    assert used == set(Decision)
