"""AWQ and GPTQ checkpoints computed with: the logits of the same model with its matrices turned into floats.

In float32 both compute the same numbers in the same order, so logits are equal. In bfloat16 the bound on the root mean
square of the errors is that of test_decoder.py: 2 * 2**-9 * sqrt(8 * layers + 4) of the logits' own.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from corebound import kernels
from corebound.comm import Collectives
from corebound.engine.bench.dequantized import write_dequantized
from corebound.errors import ConfigError, ModelLoadError, ShardingError
from corebound.models import describe, load_model
from corebound.models.native_source import NativeSource
from corebound.sharding import packed_stream, shard_plan
from fixtures.decoding import Runner
from fixtures.packed_weights import pack_model
from fixtures.thread_group import run_ranks
from fixtures.tiny_models import NUM_LAYERS, VOCAB_SIZE, build_bloom, build_family, build_llama

AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": False}
CONFIGS: dict[str, dict[str, Any]] = {
    "awq": AWQ,
    "awq-per-channel": AWQ | {"group_size": -1},
    "gptq": GPTQ,
    "gptq-v2": GPTQ | {"checkpoint_format": "gptq_v2"},
    "gptq-8-bits": GPTQ | {"bits": 8},
    "gptq-8-bits-v2-per-channel": GPTQ | {"bits": 8, "checkpoint_format": "gptq_v2", "group_size": -1},
}
PROMPTS = [
    [int(token) for token in torch.randint(3, VOCAB_SIZE, (length,), generator=torch.Generator().manual_seed(length))]
    for length in (23, 1, 9)
]
Models = Callable[[str, str], tuple[Path, Path]]
FAMILIES: dict[str, Callable[[Path], Path]] = {
    "llama": lambda path: build_llama(path, num_heads=8, num_kv_heads=2, hidden_size=128, intermediate_size=256),
    "bloom": lambda path: build_bloom(path, num_heads=4, hidden_size=64),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Return a packed model and the same one in floats."""
    made: dict[tuple[str, str], tuple[Path, Path]] = {}

    def model(family: str, name: str) -> tuple[Path, Path]:
        if (family, name) not in made:
            root = tmp_path_factory.mktemp(f"{family}-{name}")
            pack_model(FAMILIES[family](root / "plain"), root / "packed", **CONFIGS[name])
            made[family, name] = (root / "packed", in_floats(root / "packed", root / "floats"))
        return made[family, name]

    return model


def in_floats(packed: Path, target: Path) -> Path:
    target.mkdir()
    write_dequantized(describe(packed, tokenizer=False), target, None)
    return target


@pytest.fixture(autouse=True)
def reference_kernels(request: pytest.FixtureRequest) -> Iterator[None]:
    """Keep the unmarked tests independent of whether the native library was built."""
    with kernels.forced(mode="native" if request.node.get_closest_marker("native") else "reference"):
        yield


def run(path: Path, num_ranks: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, list[list[int]]]:
    def work(collectives: Collectives) -> tuple[torch.Tensor, list[list[int]]]:
        runner = Runner(path, collectives, dtype)
        return torch.cat(runner.logits(PROMPTS)), runner.greedy(PROMPTS, 6)

    reports = run_ranks(num_ranks, work)
    assert all(torch.equal(logits, reports[0][0]) and tokens == reports[0][1] for logits, tokens in reports)
    return reports[0]


@pytest.mark.parametrize("num_ranks", [1, 2])
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_float32_logits_are_those_of_the_model_in_floats(
    models: Models, family: str, name: str, num_ranks: int
) -> None:
    packed, floats = models(family, name)
    found, expected = run(packed, num_ranks), run(floats, num_ranks)
    assert torch.equal(found[0], expected[0])
    assert found[1] == expected[1]


@pytest.mark.parametrize(("family", "name"), [("qwen2", "awq"), ("phi3", "gptq"), ("falcon", "awq"), ("opt", "gptq")])
def test_packed_models_of_other_families_are_those_in_floats(tmp_path: Path, family: str, name: str) -> None:
    inner = {"opt": "ffn_dim", "falcon": "ffn_hidden_size"}.get(family, "intermediate_size")
    sizes = {inner: 256, "hidden_size": 128}
    new = {"new_decoder_architecture": True, "num_kv_heads": 2} if family == "falcon" else {}
    pack_model(
        build_family(tmp_path / "plain", family, num_heads=8, **sizes, **new), tmp_path / "packed", **CONFIGS[name]
    )
    found, expected = run(tmp_path / "packed", 2), run(in_floats(tmp_path / "packed", tmp_path / "floats"), 2)
    assert torch.equal(found[0], expected[0])
    assert found[1] == expected[1]


@pytest.mark.native
@pytest.mark.parametrize("num_ranks", [1, 2])
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_panels_give_logits_within_the_roundings_of_bfloat16(
    models: Models, family: str, name: str, num_ranks: int
) -> None:
    packed, floats = models(family, name)
    logits, tokens = run(packed, num_ranks, torch.bfloat16)
    expected, expected_tokens = run(floats, num_ranks)
    sigma = 2.0**-9 * math.sqrt(8 * NUM_LAYERS + 4)
    assert rms(logits - expected) <= 2 * sigma * rms(expected)
    # The first token of each is certain where its lead is larger than the largest error there.
    lead = expected.topk(2).values
    certain = (lead[:, 0] - lead[:, 1]) > 2 * (logits - expected).abs().amax(1)
    assert certain.float().mean() > 0.5
    assert torch.equal(logits.argmax(1)[certain], expected.argmax(1)[certain])
    lasts = torch.tensor([len(prompt) for prompt in PROMPTS]).cumsum(0) - 1
    for index, last in enumerate(lasts.tolist()):
        assert not certain[last] or tokens[index][0] == expected_tokens[index][0]


def rms(values: torch.Tensor) -> float:
    return math.sqrt(float(values.square().mean()))


@pytest.mark.native
@pytest.mark.parametrize("num_ranks", [1, 2])
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_each_matrix_in_panels_is_the_one_in_floats(models: Models, family: str, name: str, num_ranks: int) -> None:
    packed, floats = (describe(path, tokenizer=False) for path in models(family, name))
    for rank in range(num_ranks):
        source = NativeSource(packed, shard_plan(packed, num_ranks), rank, None)
        other = NativeSource(floats, shard_plan(packed, num_ranks), rank, None)
        matrices, fields, expected, expected_fields = source.matrices, source.read(), other.matrices, other.read()
        assert fields.keys() == expected_fields.keys()
        for field, matrix in matrices.items():
            if not field.startswith("layers."):
                continue
            assert matrix.form.kind == f"int{CONFIGS[name]['bits']}"
            assert matrix.form.asymmetric
            assert matrix.form.scale_kind == "float16"
            unit = torch.eye(matrix.inputs, dtype=torch.bfloat16)
            found, wanted = (m.multiply(unit, activation="none") for m in (matrix, expected[field]))
            # The expected ones were rounded to bfloat16.
            assert torch.allclose(found, wanted, rtol=2.0**-8, atol=1e-6)


@pytest.mark.native
def test_zeros_in_the_middle_are_not_kept(tmp_path: Path) -> None:
    pack_model(FAMILIES["llama"](tmp_path / "plain"), tmp_path / "packed", **GPTQ | {"sym": True})
    path = tmp_path / "packed" / "model.safetensors"
    tensors = load_file(path)
    for name, tensor in tensors.items():
        if name.endswith("qzeros") and "layers.0" in name:
            tensor.fill_(0x77777777)  # each 8, less 1
    save_file(tensors, path, metadata={"format": "pt"})
    description = describe(tmp_path / "packed", tokenizer=False)
    matrices = NativeSource(description, shard_plan(description, 1), 0, None).matrices
    asymmetric = {field: matrix.form.asymmetric for field, matrix in matrices.items() if field.startswith("layers.")}
    # The tensors count, not what config.json says of them.
    assert asymmetric == {field: field.startswith("layers.1.") for field in asymmetric}
    expected, _ = run(in_floats(tmp_path / "packed", tmp_path / "floats"), 1)
    found, _ = run(tmp_path / "packed", 1, torch.bfloat16)
    assert rms(found - expected) <= 2 * 2.0**-9 * math.sqrt(8 * NUM_LAYERS + 4) * rms(expected)


@pytest.mark.native
def test_negative_scales_are_kept(tmp_path: Path) -> None:
    pack_model(FAMILIES["llama"](tmp_path / "plain"), tmp_path / "packed", **AWQ)
    path = tmp_path / "packed" / "model.safetensors"
    tensors = load_file(path)
    for name, tensor in tensors.items():
        if name.endswith("scales"):
            tensor[:, ::3] *= -1
    save_file(tensors, path, metadata={"format": "pt"})
    expected, _ = run(in_floats(tmp_path / "packed", tmp_path / "floats"), 1)
    found, _ = run(tmp_path / "packed", 1, torch.bfloat16)
    assert rms(found - expected) <= 2 * 2.0**-9 * math.sqrt(8 * NUM_LAYERS + 4) * rms(expected)


@pytest.mark.native
@pytest.mark.parametrize("native_dtype", [torch.bfloat16, torch.float32])
def test_groups_in_the_order_of_activations_are_kept_as_floats(
    tmp_path: Path, native_dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    pack_model(FAMILIES["llama"](tmp_path / "plain"), tmp_path / "packed", **GPTQ | {"desc_act": True})
    expected, _ = run(in_floats(tmp_path / "packed", tmp_path / "floats"), 1)
    caplog.clear()
    found, _ = run(tmp_path / "packed", 1, native_dtype)
    assert rms(found - expected) <= 2 * 2.0**-9 * math.sqrt(8 * NUM_LAYERS + 4) * rms(expected)
    said = [record.getMessage() for record in caplog.records if "desc_act" in record.getMessage()]
    assert len(said) == 1
    assert "8 matrices with groups in the order of activations" in said[0]
    with pytest.raises(ShardingError, match=r"over 2 ranks: .*o_proj\.g_idx': .* \(desc_act\)"):
        run_ranks(2, lambda collectives: load_model(tmp_path / "packed", "bfloat16", collectives))


def test_large_matrices_are_unpacked_part_by_part(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    packed, floats = models("llama", "awq")
    sizes: list[int] = []

    def watched(*args: Any, **kwargs: Any) -> Any:
        matrix = unpack(*args, **kwargs)
        sizes.append(matrix.codes.numel())
        return matrix

    unpack = packed_stream.unpack
    monkeypatch.setattr(packed_stream, "unpack", watched)
    monkeypatch.setattr(packed_stream, "_CHUNK_CODES", 8192)
    found, expected = run(packed, 1), run(floats, 1)
    assert max(sizes) == 64 * 256
    assert torch.equal(found[0], expected[0])


def test_progress_ends_where_it_should(models: Models) -> None:
    calls: list[tuple[int, int]] = []
    run_ranks(1, lambda group: load_model(models("llama", "gptq")[0], "float32", group, lambda *at: calls.append(at)))
    assert calls[-1][0] == calls[-1][1]
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)


def test_another_scheme_than_that_of_the_weights_is_refused(models: Models) -> None:
    packed, _ = models("llama", "gptq")
    with pytest.raises(ConfigError, match=r"dtype int8: the weights of packed are gptq int4:g32:asym and cannot"):
        run_ranks(1, lambda collectives: load_model(packed, "int8", collectives))
    run_ranks(1, lambda collectives: load_model(packed, "int4:g32:asym", collectives))


def test_a_scale_that_is_not_finite_names_the_matrix(models: Models, tmp_path: Path) -> None:
    packed, _ = models("llama", "awq")
    shutil.copytree(packed, tmp_path / "m")
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.scales"][0, 5] = math.inf
    save_file(tensors, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelLoadError, match=r"safetensors: model\.layers\.1\.mlp\.up_proj\.weight: scales: .* inf"):
        run_ranks(1, lambda collectives: load_model(tmp_path / "m", "float32", collectives))


def test_matrices_that_are_not_packed_are_plain(models: Models, tmp_path: Path) -> None:
    packed, floats = models("llama", "gptq")
    shutil.copytree(packed, tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    tensors, plain = load_file(file), load_file(floats / "model.safetensors")
    for suffix in ("qweight", "qzeros", "scales", "g_idx"):
        del tensors[f"model.layers.0.mlp.down_proj.{suffix}"]
    tensors["model.layers.0.mlp.down_proj.weight"] = next(
        tensor for name, tensor in plain.items() if name.endswith("layers.0.mlp.down_proj.weight")
    )
    save_file(tensors, file, metadata={"format": "pt"})
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    config["quantization_config"]["modules_to_not_convert"] = ["layers.0.mlp.down_proj"]
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    assert torch.equal(run(tmp_path / "m", 1)[0], run(floats, 1)[0])


@pytest.mark.native
@pytest.mark.parametrize("config", [AWQ, GPTQ])
def test_a_packed_head_is_cut_within_words(tmp_path: Path, config: dict[str, Any]) -> None:
    source = build_llama(tmp_path / "plain", num_heads=4, hidden_size=64, intermediate_size=64, vocab_size=104)
    pack_model(source, tmp_path / "packed", head=True, **config)
    description = describe(tmp_path / "packed", tokenizer=False)
    assert shard_plan(description, 2).shares[1].vocab.start % 8 == 4
    with kernels.forced(mode="reference"):
        found, expected = run(tmp_path / "packed", 2), run(in_floats(tmp_path / "packed", tmp_path / "floats"), 2)
    assert torch.equal(found[0], expected[0])
    logits, _ = run(tmp_path / "packed", 2, torch.bfloat16)
    assert rms(logits - expected[0]) <= 2 * 2.0**-9 * math.sqrt(8 * NUM_LAYERS + 4) * rms(expected[0])
