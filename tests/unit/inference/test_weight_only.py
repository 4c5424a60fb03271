"""Linear layers of whole numbers in a module: what they compute, what they weigh, and on ranks."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

import corebound
from corebound.inference import InferenceEngine
from corebound.inference.configuration import InferenceConfig
from corebound.inference.prepare import prepare_module
from corebound.inference.weight_only import QuantizedLinear, QuantizedRowLinear, QuantizedWeight, quantize_linears
from corebound.quantization import reference
from corebound.quantization.rtn import quantize
from corebound.quantization.scheme import parse_scheme
from fixtures.families import FAMILIES
from fixtures.thread_group import run_ranks
from fixtures.tiny_models import build_llama

DEMO = Path(corebound.__file__).parent / "demo"
IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])


@pytest.mark.parametrize("num_inputs", [32, 48, 50, 33])
@pytest.mark.parametrize("scheme", ["int8", "int8:g32:asym", "int4", "int4:g32:sym"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_product_with_codes_is_that_of_the_reference(scheme: str, num_inputs: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight, x, bias = torch.randn(70, num_inputs), torch.randn(2, 3, num_inputs).to(dtype), torch.randn(70).to(dtype)
    quantized = QuantizedWeight(weight, parse_scheme(scheme))
    matrix = quantize(weight, parse_scheme(scheme))
    expected = reference.linear(x.view(6, -1), matrix, bias).view(2, 3, 70).float()
    assert torch.equal(quantized.values(torch.float32), reference.dequantize(matrix))
    error = (quantized.multiply(x, bias).float() - expected).abs().max() / expected.abs().max()
    assert error < {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}[dtype]


@pytest.mark.parametrize(("scheme", "bytes_per_weight"), [("int8", 1), ("int4:g64", 0.5)])
def test_codes_take_the_memory_that_they_promise(scheme: str, bytes_per_weight: float) -> None:
    linear = nn.Linear(1024, 256)
    made = QuantizedLinear(linear, parse_scheme(scheme))
    num_bytes = sum(buffer.nbytes for buffer in made.buffers())
    assert num_bytes < 1.2 * bytes_per_weight * 1024 * 256
    assert not [name for name, _ in made.named_parameters() if name != "bias"]


def test_a_layer_that_stands_in_two_places_is_quantized_once() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    model.append(model[0])
    assert quantize_linears(model, parse_scheme("int8")) == 1
    assert model[0] is model[2]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_llama(tmp_path_factory.mktemp("models") / "llama")


def logits(path: Path, num_ranks: int, **keywords: Any) -> torch.Tensor:
    config = InferenceConfig.read(None, keywords)
    models = [AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32) for _ in range(num_ranks)]

    def work(collectives: Any) -> Any:
        prepared = prepare_module(models[collectives.rank], config, collectives)
        engine = InferenceEngine(prepared, config, collectives)
        kinds = {type(module) for module in engine.module.modules()}
        assert (QuantizedRowLinear in kinds) == (config.scheme is not None and num_ranks > 1)
        answer: torch.Tensor = engine(IDS).logits.detach().float()
        generated = engine.generate(input_ids=IDS, max_new_tokens=3)
        return answer, generated

    answers = run_ranks(num_ranks, work)
    assert all(torch.equal(answer[0], answers[0][0]) for answer in answers)
    assert all(answer[1].shape == (1, 9) for answer in answers)
    found: torch.Tensor = answers[0][0]
    return found


@pytest.mark.parametrize(
    ("given", "scheme"),
    [({}, "int8"), ({"weight": {"num_bits": 4, "group_size": 32, "q_type": "symmetric"}}, "int4:g32:sym")],
)
def test_a_quantized_model_computes_what_its_codes_stand_for(given: dict[str, Any], scheme: str, llama: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear) and name != "lm_head":
            layer.weight.data = reference.dequantize(quantize(layer.weight.data, parse_scheme(scheme)))
    found = logits(llama, 1, dtype="fp32", quant={"enabled": True, **given})
    assert torch.allclose(found, model(IDS).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("num_ranks", [1, 2])
@pytest.mark.parametrize("dtype", ["int8", torch.int8])
def test_int8_means_weights_only_and_stays_near_the_floats(dtype: Any, num_ranks: int, llama: Path) -> None:
    """DeepSpeed: "no int8 -> init_inference(dtype=int8) raises"."""
    exact = logits(llama, 1, dtype="fp32")
    error = (logits(llama, num_ranks, dtype=dtype) - exact).norm() / exact.norm()
    assert 0 < error < 0.06


@pytest.mark.native
@pytest.mark.parametrize("dtype", ["int8", "int4:g32"])
def test_the_engine_continues_from_the_codes_of_the_module(dtype: str, caplog: pytest.LogCaptureFixture) -> None:
    model = AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32)
    engine = corebound.init_inference(model, dtype=dtype)
    ids = torch.tensor([[293, 425, 777]])
    with caplog.at_level(logging.INFO, logger="corebound"):
        own = engine.generate(input_ids=ids, max_new_tokens=12)
    assert "generate: Corebound's NativeDecoder" in caplog.text
    assert torch.equal(own, engine.module.generate(input_ids=ids, max_new_tokens=12))


def test_quantized_weights_keep_the_models_own_blocks_and_say_so(llama: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    engine = corebound.init_inference(model, dtype=torch.int8, replace_with_kernel_inject=True)
    assert engine.injection_report is None
    assert "replace_with_kernel_inject has no effect with quantized weights" in caplog.text


@pytest.mark.native
@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize("family", ["llama", "phi3", "gemma", "falcon-7b", "opt", "qwen3"])
def test_a_decoder_of_a_modules_weights_gives_the_tokens_of_one_of_its_files(
    family: str, dtype: str, tmp_path: Path
) -> None:
    FAMILIES[family].build().save_pretrained(tmp_path)
    engine = corebound.init_inference(FAMILIES[family].build(), dtype=dtype)
    own = engine.generate(input_ids=IDS, max_new_tokens=8)[0, IDS.shape[1] :].tolist()
    with corebound.LLM(tmp_path, dtype=dtype, text=False) as llm:
        (loaded,) = llm.generate(IDS.tolist(), corebound.SamplingParams(max_new_tokens=8))
    assert own == list(loaded.token_ids)
