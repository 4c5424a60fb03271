"""A model directory that is wrong in any way is one clear error naming the file, before torch is needed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from corebound.errors import CoreboundError, ModelLoadError
from corebound.models import describe
from fixtures.tiny_models import build_bloom, build_llama


@pytest.fixture(scope="module")
def bloom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_bloom(tmp_path_factory.mktemp("models") / "tiny-bloom", tokenizer=True)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_llama(tmp_path_factory.mktemp("models") / "tiny-llama", tokenizer=True)


@pytest.fixture
def copy(bloom: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bloom, tmp_path / "model"))


def edit_config(path: Path, **changes: Any) -> Path:
    file = path / "config.json"
    config = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in config.items() if value != "DELETE"}))
    return path


def refused(path: Path, **options: Any) -> ModelLoadError:
    with pytest.raises(ModelLoadError) as caught:
        describe(path, **options)
    assert caught.value.exit_code == 6
    assert str(path) in caught.value.message
    return caught.value


def test_bloom_is_described(bloom: Path) -> None:
    model = describe(bloom)
    assert (model.name, model.family, model.architecture) == ("tiny-bloom", "bloom", "BloomForCausalLM")
    assert (model.num_layers, model.hidden_size, model.num_heads, model.num_kv_heads) == (2, 48, 6, 6)
    assert (model.vocab_size, model.max_positions, model.dtype, model.tied_head) == (101, None, "float32", True)
    assert (model.bos_token_id, model.eos_token_ids) == (1, (2,))
    assert model.num_parameters == sum(t.numel() for t in load_file(bloom / "model.safetensors").values())


def test_llama_is_described(llama: Path) -> None:
    model = describe(str(llama))
    assert (model.family, model.num_kv_heads, model.intermediate_size, model.head_dim) == ("llama", 2, 100, 8)
    assert (model.max_positions, model.tied_head, model.activation) == (256, False, "silu_gated")
    assert model.rope is not None
    assert model.rope.theta == 10000.0


def test_describing_imports_no_torch(bloom: Path) -> None:
    code = (
        "import sys; from corebound.models import describe, resolve_model, verify_manifest; "
        "from corebound.sharding import shard_plan; "
        f"shard_plan(describe({str(bloom)!r}), 4); verify_manifest(resolve_model({str(bloom)!r})); "
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules), 'torch was imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)}, timeout=60)


def test_names_of_older_configs_are_read(copy: Path) -> None:
    edit_config(copy, hidden_size="DELETE", n_embed=48, n_layer="DELETE", num_hidden_layers=2)
    edit_config(copy, n_head="DELETE", num_attention_heads=6, tie_word_embeddings="DELETE")
    assert describe(copy).num_layers == 2


def test_rope_settings_of_older_configs_are_read(llama: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(llama, tmp_path / "model"))
    edit_config(path, rope_parameters="DELETE", rope_theta=5e5, rope_scaling={"type": "linear", "factor": 2.0})
    rope = describe(path).rope
    assert rope is not None
    assert (rope.theta, rope.scaling, rope.factor) == (5e5, "linear", 2.0)


def test_generation_config_decides_what_ends_a_text(copy: Path) -> None:
    (copy / "generation_config.json").write_text('{"eos_token_id": [7, 9, -1]}')
    assert describe(copy).eos_token_ids == (7, 9)


def test_without_generation_config_the_config_decides(copy: Path) -> None:
    (copy / "generation_config.json").unlink(missing_ok=True)
    assert describe(edit_config(copy, eos_token_id=[3, 4])).eos_token_ids == (3, 4)
    error = refused(edit_config(copy, eos_token_id="end"))
    assert 'config.json: eos_token_id: expected a token id or a list of them, found "end"' in error.message


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"architectures": "DELETE"}, "architectures: missing"),
        ({"architectures": ["BlomForCausalLM"]}, "architectures: unknown BlomForCausalLM"),
        ({"n_layer": "DELETE"}, "n_layer or num_hidden_layers: missing"),
        ({"n_layer": 0}, "n_layer: expected a whole number of at least 1, found 0"),
        ({"n_layer": True}, "n_layer: expected a whole number"),
        ({"n_head": 5}, "n_head: expected a divisor of the hidden size 48, found 5"),
        ({"layer_norm_epsilon": "small"}, 'layer_norm_epsilon: expected a number above 0, found "small"'),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings: expected true or false, found 1"),
        (
            {"quantization_config": {"quant_method": "fp8"}},
            "quantization_config.quant_method: expected one of awq",
        ),
        ({"quantization_config": 3}, "quantization_config: expected an object, found 3"),
    ],
)
def test_a_wrong_field_of_config_is_named(copy: Path, changes: dict[str, Any], problem: str) -> None:
    assert problem in refused(edit_config(copy, **changes)).message


def test_an_unknown_architecture_gets_the_nearest_name(copy: Path) -> None:
    hint = refused(edit_config(copy, architectures=["BlomForCausalLM"])).hint
    assert hint is not None and hint.startswith("did you mean `BloomForCausalLM`? known: BloomForCausalLM, Falcon")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"hidden_act": "gelu"}, "hidden_act: expected one of silu, which this version computes"),
        ({"num_key_value_heads": 4}, "num_key_value_heads: expected a divisor of num_attention_heads, 6, found 4"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4}},
            "rope_parameters.rope_type: expected one of",
        ),
        ({"rope_parameters": {"rope_type": "linear"}}, "rope_parameters.factor: missing"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "rope_parameters.partial_rotary_factor: expected 1.0"),
        ({"head_dim": 7}, "head_dim: expected an even number"),
        ({"intermediate_size": 99}, "mlp.gate_proj.weight': expected shape [99, 48]"),
    ],
)
def test_what_llama_cannot_compute_is_said(llama: Path, tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    path = edit_config(Path(shutil.copytree(llama, tmp_path / "model")), **changes)
    assert problem in refused(path).message


@pytest.mark.parametrize("text", ["{", "[]", "\x00", '{"a": 1,}'])
def test_a_damaged_config_is_named(copy: Path, text: str) -> None:
    (copy / "config.json").write_text(text)
    assert "config.json" in refused(copy).message


def test_a_directory_that_is_missing_or_empty_is_named(tmp_path: Path) -> None:
    assert "no such directory" in refused(tmp_path / "nothing").message
    assert f"{tmp_path}/config.json: missing" in refused(tmp_path).message
    (tmp_path / "file").write_text("")
    assert "not a directory" in refused(tmp_path / "file").message


def test_a_missing_tokenizer_is_an_error_unless_not_wanted(copy: Path) -> None:
    (copy / "tokenizer.json").unlink()
    assert "tokenizer missing: expected one of tokenizer.json" in refused(copy).message
    describe(copy, tokenizer=False)


@pytest.mark.parametrize("keep", [0, 100])
def test_a_cut_tokenizer_is_an_error(copy: Path, keep: int) -> None:
    file = copy / "tokenizer.json"
    file.write_bytes(file.read_bytes()[:keep])
    assert "tokenizer.json: damaged or cut short" in refused(copy).message


def test_cut_weights_are_an_error(copy: Path) -> None:
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4096])
    assert "model.safetensors: cut short" in refused(copy).message


def test_a_changed_name_in_the_header_is_an_error(copy: Path) -> None:
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes().replace(b"ln_f.weight", b"ln_g.weight", 1))
    message = refused_by_name(copy)
    assert "ln_g.weight" in message
    assert "missing: ln_f.weight" in message


def test_integer_weights_are_an_error(copy: Path) -> None:
    file = copy / "model.safetensors"
    tensors = load_file(file)
    tensors["transformer.ln_f.weight"] = torch.ones(48, dtype=torch.int8)
    save_file(tensors, file)
    error = refused(copy)
    assert "tensor 'transformer.ln_f.weight': expected dtype F32, F16, BF16, found I8" in error.message


def refused_by_name(path: Path) -> str:
    with pytest.raises(CoreboundError) as caught:
        describe(path)
    return caught.value.message


def test_a_key_that_is_there_twice_and_bytes_that_are_no_text_say_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama", "model_type": "bloom"}')
    with pytest.raises(ModelLoadError, match=r"config\.json: key 'model_type': expected once .* found twice") as caught:
        describe(tmp_path)
    assert caught.value.hint == "remove one of the two"
    (tmp_path / "config.json").write_bytes(b'{"model_type": "\xff"}')
    with pytest.raises(ModelLoadError, match=r"config\.json: not UTF-8 text: .* at byte 16") as caught:
        describe(tmp_path)
    assert caught.value.hint == "fetch the file again"
    (tmp_path / "config.json").write_text('{"n": ' + "[" * 200_000)
    with pytest.raises(ModelLoadError, match=r"config\.json: cannot be read"):
        describe(tmp_path)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"vocab_size": 2**31}, "vocab_size: expected a whole number of at most 2147483647, found 2147483648"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps: expected a number above 0, found 1000"),
        ({"num_hidden_layers": 2**30}, "num_hidden_layers: expected at most 1048576, found 1073741824"),
        (
            {"num_hidden_layers": 1024, "num_local_experts": 1025},
            "num_hidden_layers times num_local_experts: expected at most 1048576, found 1049600",
        ),
        ({"num_local_experts": 10**9}, "num_local_experts: expected at most 1048576, found 2000000000"),
        ({"num_local_experts": 2**64}, "num_local_experts: expected a whole number of at most 2147483647, found 1844"),
    ],
)
def test_numbers_beyond_any_model_are_refused_before_anything_is_made_of_them(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], problem: str
) -> None:
    def listed(geometry: object) -> None:
        raise AssertionError("parameters are listed")

    monkeypatch.setattr("corebound.sharding.match.model_parameters", listed)
    shutil.copytree(llama, tmp_path / "copy")
    experts = {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral"}
    assert problem in refused(edit_config(tmp_path / "copy", **experts | changes)).message
