"""Model directories of AWQ and GPTQ: described and checked as strictly as plain ones."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from corebound.errors import ModelLoadError, ShardingError
from corebound.models import describe
from corebound.quantization.packed import rectangles
from corebound.quantization.reference import dequantize
from corebound.quantization.unpack import unpack
from corebound.sharding import ShardPlan, shard_plan
from corebound.sharding.activation_order import check_activation_order
from corebound.sharding.expected import is_packable, packed_name
from corebound.sharding.plan import Parameter
from fixtures.packed_weights import PlainWeights, pack_model
from fixtures.tiny_models import build_bloom, build_llama

AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": False}
CONFIGS = {
    "awq": AWQ,
    "gptq": GPTQ,
    "gptq-8-bits-v2": GPTQ | {"bits": 8, "checkpoint_format": "gptq_v2"},
    "gptq-per-channel": GPTQ | {"group_size": -1},
}
Tensors = dict[str, torch.Tensor]
Q_PROJ = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # 8 heads of 16, 2 kv heads, 256 inputs of the last matrix: up to 4 ranks keep groups of 32 together.
    path = tmp_path_factory.mktemp("plain") / "tiny"
    return build_llama(path, num_heads=8, num_kv_heads=2, hidden_size=128, intermediate_size=256, tokenizer=True)


@pytest.fixture(scope="module")
def gptq(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packed") / "gptq"
    pack_model(plain, path, **GPTQ)
    return path


def changed(source: Path, target: Path, change: Callable[[Tensors], object]) -> Path:
    """Return a copy of a model directory with other tensors."""
    shutil.copytree(source, target)
    tensors = load_file(source / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


@pytest.mark.parametrize("name", CONFIGS)
def test_packed_matrices_take_the_place_of_plain_ones(plain: Path, tmp_path: Path, name: str) -> None:
    pack_model(plain, tmp_path / "m", **CONFIGS[name])
    model, before = describe(tmp_path / "m"), describe(plain)
    assert model.packed is not None
    assert model.packed.method == CONFIGS[name]["quant_method"]
    assert model.num_parameters == before.num_parameters
    assert model.dtype == "float16"
    assert f"{Q_PROJ}.weight" not in model.entries
    assert model.entries[f"{Q_PROJ}.qweight"].dtype == "I32"
    assert set(before.entries) - set(model.entries) == {
        f"model.layers.{layer}.{part}.weight"
        for layer in (0, 1)
        for part in (
            *(f"self_attn.{letter}_proj" for letter in "qkvo"),
            *(f"mlp.{part}_proj" for part in ("gate", "up", "down")),
        )
    }


def test_bloom_is_packed_too(tmp_path: Path) -> None:
    source = build_bloom(tmp_path / "plain", num_heads=8, tokenizer=True)
    pack_model(source, tmp_path / "m", **GPTQ)
    model = describe(tmp_path / "m")
    assert model.entries["h.0.self_attention.query_key_value.qweight"].shape == (8, 192)
    assert model.input_grain == 32


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_slices_of_all_ranks_are_the_whole_matrices(plain: Path, tmp_path: Path, name: str, num_ranks: int) -> None:
    weights = pack_model(plain, tmp_path / "m", **CONFIGS[name])
    model = describe(tmp_path / "m")
    plan = shard_plan(model, num_ranks)
    with safe_open(tmp_path / "m" / "model.safetensors", framework="pt") as file:
        for parameter in filter(is_packable, plan.parameters):
            if parameter.rule.field == "head_weight":
                continue
            whole = weights[parameter.name.removesuffix(".weight")]
            for rank in range(num_ranks):
                assert torch.equal(*_read_and_expected(file, model, plan, parameter, rank, whole))


def _read_and_expected(
    file: safe_open,
    model: object,
    plan: ShardPlan,
    parameter: Parameter,
    rank: int,
    whole: PlainWeights,
) -> tuple[torch.Tensor, torch.Tensor]:
    packed = model.packed  # type: ignore[attr-defined]  # the description, typed as object here
    num_outputs, num_inputs = parameter.shape
    (cut,) = plan.ranges(parameter, rank)
    rows, columns = (range(num_outputs), cut) if parameter.rule.cut_dim else (cut, range(num_inputs))
    parts = {}
    for suffix, (first, second) in rectangles(packed, num_inputs, rows, columns).items():
        stored = file.get_slice(packed_name(parameter, suffix))
        cuts = (slice(first.start, first.stop), slice(second.start, second.stop))
        parts[suffix] = stored[cuts] if len(stored.get_shape()) == 2 else stored[cuts[0]]
    matrix = unpack(packed, num_inputs, rows, columns, parts, where=parameter.name)
    expected = whole.values()[rows.start : rows.stop, columns.start : columns.stop]
    return dequantize(matrix, torch.float64), expected


def test_matrices_of_one_product_must_be_packed_alike(gptq: Path, tmp_path: Path) -> None:
    def unpack_one(tensors: Tensors) -> None:
        for suffix in ("qweight", "qzeros", "scales", "g_idx"):
            del tensors[f"{Q_PROJ}.{suffix}"]
        tensors[f"{Q_PROJ}.weight"] = torch.zeros(128, 128).half()

    problem = rf"tensor '{Q_PROJ}\.weight': expected gptq int4:g32:asym as for '.*k_proj\.weight', .* found a plain one"
    with pytest.raises(ModelLoadError, match=problem):
        describe(changed(gptq, tmp_path / "m", unpack_one))


def test_describing_packed_weights_imports_no_torch(gptq: Path) -> None:
    code = (
        "import sys; from corebound.models import describe; from corebound.sharding import shard_plan; "
        "from corebound.sharding.activation_order import check_activation_order as check; "
        f"model = describe({str(gptq)!r}); check(shard_plan(model, 2), model.packed, model.entries); "
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules), 'torch was imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)}, timeout=60)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda t: t.pop(f"{Q_PROJ}.qzeros"), rf"1 parameters are missing: {Q_PROJ}\.qzeros"),
        (lambda t: t.pop(f"{Q_PROJ}.qweight"), rf"missing: {Q_PROJ}\.weight"),
        (
            lambda t: t.update({f"{Q_PROJ}.weight": torch.zeros(128, 128)}),
            rf"1 parameters that family 'llama' does not know: {Q_PROJ}\.weight",
        ),
        (
            lambda t: t.update({f"{Q_PROJ}.scales": t[f"{Q_PROJ}.scales"][:3].clone()}),
            rf"tensor '{Q_PROJ}\.scales': expected shape \[4, 128\] \(gptq int4:g32:asym of query x hidden\) from .*"
            r"found \[3, 128\]",
        ),
        (
            lambda t: t.update({f"{Q_PROJ}.qweight": t[f"{Q_PROJ}.qweight"].short()}),
            rf"tensor '{Q_PROJ}\.qweight': expected dtype I32, found I16",
        ),
        (
            lambda t: t.update({f"{Q_PROJ}.scales": t[f"{Q_PROJ}.scales"].double()}),
            rf"tensor '{Q_PROJ}\.scales': expected dtype F16, BF16, F32, found F64",
        ),
        (lambda t: t.update({f"{Q_PROJ}.bias": torch.ones(128)}), rf"does not know: {Q_PROJ}\.bias"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    gptq: Path, tmp_path: Path, change: Callable[[Tensors], object], problem: str
) -> None:
    with pytest.raises(ModelLoadError, match=problem):
        describe(changed(gptq, tmp_path / "m", change))


def test_empty_biases_that_packing_tools_add_are_left_out(gptq: Path, tmp_path: Path) -> None:
    path = changed(gptq, tmp_path / "m", lambda t: t.update({f"{Q_PROJ}.bias": torch.zeros(128).half()}))
    assert f"{Q_PROJ}.bias" not in describe(path).entries


def test_old_files_without_g_idx_are_described(gptq: Path, tmp_path: Path) -> None:
    path = changed(gptq, tmp_path / "m", lambda t: t.pop(f"{Q_PROJ}.g_idx"))
    assert f"{Q_PROJ}.g_idx" not in describe(path).entries


def edit_quantization(path: Path, **fields: object) -> Path:
    file = path / "config.json"
    config = json.loads(file.read_text())
    config["quantization_config"] |= fields
    file.write_text(json.dumps(config))
    return path


def test_g_idx_must_be_there_where_activations_gave_the_order(gptq: Path, tmp_path: Path) -> None:
    path = changed(gptq, tmp_path / "m", lambda t: t.pop(f"{Q_PROJ}.g_idx"))
    with pytest.raises(ModelLoadError, match=rf"missing: {Q_PROJ}\.g_idx"):
        describe(edit_quantization(path, desc_act=True))


def test_a_packed_matrix_that_the_configuration_calls_plain_is_refused(gptq: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(gptq, tmp_path / "m"))
    edit_quantization(path, modules_to_not_convert=["mlp.gate", "self_attn.o_proj"])
    problem = r"o_proj\.qweight': quantized, though modules_to_not_convert names 'self_attn\.o_proj'"
    with pytest.raises(ModelLoadError, match=problem):
        describe(path)
    # Names are compared part by part: `mlp.gate` of a mixture of experts is not `mlp.gate_proj`.
    edit_quantization(path, modules_to_not_convert=["mlp.gate", "lm_head"])
    assert describe(path).packed is not None


def test_packed_tensors_without_a_configuration_get_a_hint(gptq: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(gptq, tmp_path / "m"))
    config = json.loads((path / "config.json").read_text())
    del config["quantization_config"]
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelLoadError) as caught:
        describe(path)
    assert caught.value.hint == "the matrices are quantized, and config.json has no quantization_config that says how"


def test_a_size_that_cannot_be_packed_names_the_tensor(tmp_path: Path) -> None:
    source = build_llama(tmp_path / "plain", num_heads=6, intermediate_size=100, tokenizer=True)
    pack_model(source, tmp_path / "m", **GPTQ)
    problem = r"tensor '.*\.0\.mlp\.gate_proj\.qweight': expected outputs in multiples of 8, as gptq packs, found 100"
    with pytest.raises(ModelLoadError, match=problem):
        describe(tmp_path / "m")


def test_splits_that_cut_through_groups_name_the_numbers_that_work(gptq: Path) -> None:
    model = describe(gptq)
    assert [[part.intermediate for part in shard_plan(model, count).shares] for count in (1, 2)] == [
        [range(256)],
        [range(128), range(128, 256)],
    ]
    with pytest.raises(ShardingError) as caught:
        shard_plan(model, 3)
    assert "cannot split gptq over 3 ranks: 32 neighbouring inputs share a scale and must stay" in caught.value.message
    assert caught.value.hint == "use 1, 2 or 4"


def test_the_mlp_is_dealt_in_whole_groups(gptq: Path) -> None:
    # A 7B LLaMA on 4 ranks: 64 is a grain that torch likes, but 2752 columns each would cut groups of 128.
    model = dataclasses.replace(
        describe(gptq),
        num_heads=32,
        num_kv_heads=32,
        head_dim=128,
        intermediate_size=11008,
        input_grain=128,
    )
    sizes = [len(share.intermediate) for share in shard_plan(model, 4).shares]
    assert sum(sizes) == 11008
    assert sorted(sizes) == [21 * 128, 21 * 128, 22 * 128, 22 * 128]


def test_groups_in_the_order_of_activations_are_refused_on_several_ranks(plain: Path, tmp_path: Path) -> None:
    pack_model(plain, tmp_path / "m", **GPTQ | {"desc_act": True})
    model = describe(tmp_path / "m")
    check_activation_order(shard_plan(model, 1), model.packed, model.entries)
    with pytest.raises(ShardingError, match=r"over 2 ranks: .*layers\.0\.self_attn\.o_proj\.g_idx': .* \(desc_act\)"):
        check_activation_order(shard_plan(model, 2), model.packed, model.entries)


def test_groups_of_neighbours_are_split_even_where_activations_gave_the_order(gptq: Path, tmp_path: Path) -> None:
    path = edit_quantization(Path(shutil.copytree(gptq, tmp_path / "m")), desc_act=True)
    model = describe(path)
    check_activation_order(shard_plan(model, 2), model.packed, model.entries)
