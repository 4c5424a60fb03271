"""What quantization costs, as `bench quality` measures it, against transformers with the same weights."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import corebound
from corebound.engine.bench.dequantized import write_dequantized
from corebound.engine.bench.quality import (
    HELD_OUT_FILE,
    QualityMeter,
    bits_per_weight,
    encode_texts,
    random_texts,
)
from corebound.models import ModelDescription, describe
from corebound.quantization import Scheme
from corebound.quantization.reference import dequantize
from corebound.quantization.rtn import quantize
from fixtures.packed_weights import pack_model
from fixtures.tiny_models import build_bloom, build_llama

TEXTS = [[5, 7, 9, 11], [3, 4], [8] * 40, list(range(3, 90))]
INT4 = Scheme(4, 32, False)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> ModelDescription:
    return describe(build_llama(tmp_path_factory.mktemp("llama") / "llama"), tokenizer=False)


def logits_of(path: Path, text: list[int]) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    with torch.inference_mode():
        return model(torch.tensor([text])).logits[0]


def written(description: ModelDescription, target: Path, scheme: Scheme | None, *, head: bool = False) -> Path:
    target.mkdir()
    write_dequantized(description, target, scheme, head=head)
    return target


def test_the_figures_are_those_of_transformers(llama: ModelDescription, tmp_path: Path) -> None:
    found = QualityMeter(llama, TEXTS, is_text=True).measure(INT4)
    path = written(llama, tmp_path / "int4", INT4)
    loss, change, size, num_same, num_tokens = 0.0, 0.0, 0.0, 0, 0
    for text in TEXTS:
        plain, changed = logits_of(llama.path, text), logits_of(path, text)
        loss -= float(changed.log_softmax(1)[range(len(text) - 1), text[1:]].sum())
        change += float(
            ((changed - changed.mean(1, keepdim=True)) - (plain - plain.mean(1, keepdim=True))).square().sum()
        )
        size += float((plain - plain.mean(1, keepdim=True)).square().sum())
        num_same += int((plain.argmax(1) == changed.argmax(1)).sum())
        num_tokens += len(text)
    assert found.perplexity == pytest.approx(math.exp(loss / (num_tokens - len(TEXTS))), rel=1e-4)
    assert found.logits_error == pytest.approx(math.sqrt(change / size), rel=1e-3)
    assert found.same_top_token == pytest.approx(num_same / num_tokens, abs=1.5 / num_tokens)
    assert found.logits_error > 0.01, "4 bits must show"


def test_plain_weights_cost_nothing_and_fewer_bits_more(llama: ModelDescription) -> None:
    meter = QualityMeter(llama, TEXTS, is_text=True)
    plain = meter.measure(None)
    assert (plain.logits_error, plain.same_top_token) == (0.0, 1.0)
    errors = [meter.measure(scheme).logits_error for scheme in (Scheme(8, 32, False), Scheme(8, None, True), INT4)]
    assert 0 < errors[0] < errors[1] < errors[2] < 1


def test_texts_of_all_lengths_count_though_they_are_measured_in_parts(
    llama: ModelDescription, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = QualityMeter(llama, TEXTS, is_text=True).measure(INT4)
    monkeypatch.setattr("corebound.engine.bench.quality._MAX_STEP_TOKENS", 50)
    parts = QualityMeter(llama, TEXTS, is_text=True).measure(INT4)
    assert parts.perplexity == pytest.approx(whole.perplexity, rel=1e-5)
    assert parts.logits_error == pytest.approx(whole.logits_error, rel=1e-3)


def test_only_matrices_of_layers_are_quantized_unless_the_head_is_asked_for(
    llama: ModelDescription, tmp_path: Path
) -> None:
    before = load_file(llama.path / "model.safetensors")
    for head in (False, True):
        after = load_file(written(llama, tmp_path / str(head), INT4, head=head) / "model.safetensors")
        assert set(after) == set(before)
        for name, tensor in before.items():
            is_quantized = tensor.dim() == 2 and ("layers." in name or (head and name == "lm_head.weight"))
            expected = dequantize(quantize(tensor, INT4)) if is_quantized else tensor.float()
            assert torch.equal(after[name], expected), name


def test_a_tied_head_is_the_embedding(tmp_path: Path) -> None:
    description = describe(build_bloom(tmp_path / "bloom"), tokenizer=False)
    before = load_file(description.path / "model.safetensors")["transformer.word_embeddings.weight"]
    for head in (False, True):
        after = load_file(written(description, tmp_path / str(head), INT4, head=head) / "model.safetensors")
        assert torch.equal(after["word_embeddings.weight"], before) != head


@pytest.mark.parametrize("method", ["awq", "gptq", "gptq-in-order-of-activations"])
def test_a_packed_model_is_what_transformers_makes_of_its_values(tmp_path: Path, method: str) -> None:
    source = build_llama(tmp_path / "plain", num_heads=8, hidden_size=64, intermediate_size=96)
    config = {"quant_method": method.partition("-")[0], "bits": 4, "group_size": 32, "desc_act": method.count("-") > 0}
    weights = pack_model(source, tmp_path / "packed", **config)
    packed = describe(tmp_path / "packed", tokenizer=False)
    path = written(packed, tmp_path / "whole", None)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    for parameter in model.parameters():
        parameter.data = parameter.data.half().float()  # as pack_model stores what it does not pack
    for name, module in model.named_modules():
        if name in weights:
            module.weight.data = weights[name].values().float()
    with torch.inference_mode():
        expected = model(torch.tensor([TEXTS[3]])).logits[0]
    assert torch.equal(logits_of(path, TEXTS[3]), expected)


def test_random_texts_are_the_same_each_time(llama: ModelDescription) -> None:
    texts = random_texts(llama)
    assert texts == random_texts(llama)
    assert {len(text) for text in texts} == {64}
    assert max(itertools.chain(*texts)) < llama.vocab_size
    assert QualityMeter(llama, texts, is_text=False).measure(INT4).perplexity is None


def test_bits_count_scales_and_zeros(llama: ModelDescription) -> None:
    assert bits_per_weight(Scheme(4, 128, True), llama) == 4 + 16 / 128
    assert bits_per_weight(Scheme(4, 128, False), llama) == 4 + 20 / 128
    assert bits_per_weight(Scheme(8, None, True), llama) == 8 + 16 / 48


def test_the_demo_model_has_the_perplexity_of_its_training_run() -> None:
    # A few of the 400 texts; all together have the 1.452 that training.json states.
    demo = describe(Path(corebound.__file__).parent / "demo")
    texts = encode_texts(demo, HELD_OUT_FILE.read_text(encoding="utf-8").splitlines())
    assert len(texts) == 400
    few = texts[100:104]
    model = AutoModelForCausalLM.from_pretrained(demo.path, dtype=torch.float32).eval()
    with torch.inference_mode():
        losses = [
            torch.nn.functional.cross_entropy(
                model(torch.tensor([text])).logits[0, :-1], torch.tensor(text[1:]), reduction="sum"
            )
            for text in few
        ]
    expected = math.exp(float(sum(losses)) / sum(len(text) - 1 for text in few))
    assert QualityMeter(demo, few, is_text=True).measure(None).perplexity == pytest.approx(expected, rel=1e-4)
