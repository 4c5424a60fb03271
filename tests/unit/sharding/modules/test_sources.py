"""Where the weights come from: the model, whose whole tensors are freed, or a checkpoint, of which parts are read."""

import weakref
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file

from corebound.errors import ModelLoadError, ShardingError
from corebound.sharding.checkpoint import read_checkpoint
from corebound.sharding.modules import CheckpointSource, ModelSource, shard_module
from corebound.sharding.reading import Meter
from fixtures.families import FAMILIES
from fixtures.module_parity import SHORT, Answer, answer, quiet_transformers
from fixtures.thread_group import ThreadCollectives, run_ranks


@pytest.fixture(autouse=True)
def _quiet():
    with quiet_transformers():
        yield


def _on_meta(name: str, **changes):
    family = FAMILIES[name]
    with torch.device("meta"):
        model = getattr(transformers, family.classes + "ForCausalLM")(family.config(**changes))
    model.generation_config.eos_token_id = None
    return model


# Fused experts, positions in a buffer, a scaled embedding, heads repeated, a renamed head, norms of heads, two widths.
@pytest.mark.parametrize(
    "name", ["bloom", "mixtral", "qwen2_moe", "gptj", "gemma2", "gpt_neox", "cohere", "stablelm-parallel", "phi3"]
)
def test_a_model_on_the_meta_device_gets_only_its_ranges_and_computes_the_same(name, tmp_path):
    """#3217: a model on the meta device."""
    whole = FAMILIES[name].build()
    whole.save_pretrained(tmp_path)
    want = answer(whole, SHORT)

    def work(group: ThreadCollectives) -> tuple[Answer, int, int]:
        model, bytes_read = _on_meta(name), []
        meter = Meter(0, lambda done, total: bytes_read.append(done))
        shard_module(model, group, source=CheckpointSource(model, read_checkpoint(tmp_path), meter))
        held = sum(parameter.numel() for parameter in {id(p): p for p in model.parameters()}.values())
        return answer(model, SHORT), bytes_read[-1], 4 * held

    for got, num_read, num_held in run_ranks(3, work):
        assert torch.equal(got.tokens, want.tokens)
        torch.testing.assert_close(got.logits, want.logits, rtol=0, atol=2e-5 * float(want.logits.abs().max()))
        # Norms of heads that another rank holds are read and dropped.
        assert num_held <= num_read <= num_held * 1.01


@pytest.mark.parametrize("stored", ["as the model names them", "one tensor for each expert"])
def test_parts_of_a_checkpoint_are_those_of_the_model(stored, tmp_path):
    whole = FAMILIES["mixtral"].build()
    if stored == "as the model names them":
        save_file({name: tensor.clone() for name, tensor in whole.state_dict().items()}, tmp_path / "model.safetensors")
    else:
        whole.save_pretrained(tmp_path)
    files, model = CheckpointSource(whole, read_checkpoint(tmp_path)), ModelSource(whole)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(files.whole(name), tensor)
        for dim, size in enumerate(tensor.shape):
            if tensor.dim() < 3 or dim > 0:  # experts are never dealt
                for ranges in ([range(1, size // 2)], [range(2), range(size // 2 - 1, size - 1)]):
                    assert torch.equal(files.part(name, dim, ranges), model.part(name, dim, ranges)), (
                        name,
                        dim,
                        ranges,
                    )


def test_what_is_no_weight_is_read_whole(tmp_path):
    """Buffers of positions and masks were a KeyError of their type, those without dimensions an IndexError."""
    stored = {
        "positions": torch.arange(12).view(3, 4),
        "mask": torch.tensor([True, False, True]),
        "count": torch.tensor(7),
        "scale": torch.tensor(0.5, dtype=torch.bfloat16),
        "codes": torch.arange(-3, 3, dtype=torch.int8),
        "nothing": torch.empty(0, dtype=torch.int32),
    }
    save_file(stored, tmp_path / "model.safetensors")
    model = torch.nn.Module()
    for name, tensor in stored.items():
        model.register_buffer(name, tensor.float() if name == "scale" else tensor)
    bytes_read = []
    meter = Meter(0, lambda done, total: bytes_read.append(done))
    source = CheckpointSource(model, read_checkpoint(tmp_path), meter)
    for name, buffer in model.named_buffers():
        got = source.whole(name)
        assert got.dtype == buffer.dtype
        assert got.shape == buffer.shape
        assert torch.equal(got, buffer)
    assert bytes_read[-1] == sum(tensor.nbytes for tensor in stored.values())
    ranges = [range(2, 4), range(1)]
    assert torch.equal(source.part("positions", 1, ranges), ModelSource(model).part("positions", 1, ranges))


@pytest.mark.parametrize(
    ("stored", "wanted", "message"),
    [
        (torch.float64, torch.float32, "expected type F32 or F16 or BF16 for the model's float32, found F64"),
        (torch.float8_e4m3fn, torch.bfloat16, "for the model's bfloat16, found F8_E4M3"),
        (torch.int32, torch.bfloat16, "for the model's bfloat16, found I32"),
        (torch.float32, torch.int64, "expected type I64 for the model's int64, found F32"),
        (torch.int32, torch.int64, "expected type I64 for the model's int64, found I32"),
    ],
)
@pytest.mark.parametrize("shape", [(4, 6), (5,), ()])
def test_a_tensor_of_a_type_that_is_no_weight_is_an_error_that_names_file_and_tensor(
    tmp_path, stored, wanted, message, shape
):
    save_file({"table": torch.zeros(shape).to(stored)}, tmp_path / "model.safetensors")
    model = torch.nn.Module()
    model.register_buffer("table", torch.zeros(shape, dtype=wanted))
    source = CheckpointSource(model, read_checkpoint(tmp_path))
    with pytest.raises(ModelLoadError, match=rf"model\.safetensors: tensor 'table': .*{message}"):
        source.whole("table")
    if shape:
        with pytest.raises(ModelLoadError, match=message):
            source.part("table", 0, [range(2)])


def test_weights_are_read_in_the_type_of_the_model(tmp_path):
    FAMILIES["llama"].build().save_pretrained(tmp_path)
    model = _on_meta("llama").to(torch.bfloat16)
    source = CheckpointSource(model, read_checkpoint(tmp_path))
    run_ranks(1, lambda group: shard_module(model, group, source=source))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32


def test_a_model_on_the_meta_device_without_a_source_is_an_error_that_names_a_tensor():
    with pytest.raises(ShardingError, match=r"model\.embed_tokens\.weight is on the meta device"):
        run_ranks(1, lambda group: shard_module(_on_meta("llama"), group))


def test_a_tensor_that_the_checkpoint_lacks_is_an_error_that_names_it(tmp_path):
    FAMILIES["llama"].build(num_hidden_layers=1).save_pretrained(tmp_path)
    _fails(tmp_path, r"model\.layers\.1\.self_attn\.q_proj\.weight: the checkpoint has no such tensor")


def test_a_tensor_of_another_shape_is_an_error_that_names_file_and_shapes(tmp_path):
    FAMILIES["llama"].build(intermediate_size=96).save_pretrained(tmp_path)
    _fails(tmp_path, r"model.safetensors: tensor .*gate_proj.weight': expected shape \[100, 48\], found \[96, 48\]")


def _fails(path: Path, message: str):
    model = _on_meta("llama")
    source = CheckpointSource(model, read_checkpoint(path))
    with pytest.raises(ModelLoadError, match=message):
        run_ranks(1, lambda group: shard_module(model, group, source=source))


@pytest.mark.parametrize("name", ["llama", "mixtral", "bloom"])
def test_each_whole_weight_of_the_model_is_freed_before_the_next_but_one_is_cut(name):
    """#3644, #3192: each rank kept the whole model."""

    def work(group: ThreadCollectives) -> list[str]:
        model, taken, kept = FAMILIES[name].build(), {}, []

        class Watched(ModelSource):
            def part(self, name, dim, ranges):
                kept.extend(before for before in list(taken)[:-1] if taken[before]() is not None)
                part = super().part(name, dim, ranges)
                owner, _, leaf = name.rpartition(".")
                if not name.endswith("bias"):
                    taken[name] = weakref.ref(getattr(model.get_submodule(owner), leaf))
                return part

        shard_module(model, group, source=Watched(model))
        assert len(taken) >= 9
        return kept + [name for name, reference in taken.items() if reference() is not None]

    assert run_ranks(2, work) == [[], []]
