"""Whole steps of every family by the native decoder: every variant, several ranks, and quantized weights.

The bounds are those of test_native_decoder: three times the error that independent roundings of bfloat16 would make.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from corebound import kernels
from corebound.comm.single import SingleCollectives
from corebound.models import loading
from corebound.models.native_decoder import NativeDecoder
from corebound.models.storage import rank_storage
from corebound.quantization.reference import dequantize
from corebound.quantization.rtn import quantize
from corebound.quantization.scheme import parse_scheme
from corebound.sharding import shard_plan
from fixtures.decoder_families import CASES, FEW, require_clear_choices
from fixtures.decoding import EXPERTS, Runner, transformers_logits
from fixtures.thread_group import ThreadCollectives, run_ranks
from fixtures.tiny_models import NUM_LAYERS, VOCAB_SIZE

pytestmark = pytest.mark.native

PROMPTS = [
    [int(token) for token in torch.randint(3, VOCAB_SIZE, (length,), generator=torch.Generator().manual_seed(length))]
    for length in (37, 1, 9)
]
Built = Callable[[str], Path]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return functools.cache(lambda name: CASES[name](tmp_path_factory.mktemp("model") / name))


@pytest.fixture(scope="module")
def exact(built: Built) -> Callable[..., torch.Tensor]:
    """float32, with the weights that bfloat16, or a scheme, leaves; by transformers."""

    @functools.cache
    def logits(name: str, scheme: str | None = None) -> torch.Tensor:
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(built(name), dtype=torch.float32, experts_implementation=EXPERTS)
        for parameter in model.parameters():
            parameter.data = parameter.data.bfloat16().float()
        for of, module in model.named_modules():
            if scheme is None or not isinstance(module, torch.nn.Linear) or of.endswith("shared_expert_gate"):
                continue
            if of != "lm_head":
                module.weight.data = dequantize(quantize(module.weight.data, parse_scheme(scheme)))
            elif not model.config.tie_word_embeddings:
                module.weight.data = dequantize(quantize(module.weight.data, parse_scheme("int8")))
        for of, experts in model.named_parameters():
            if scheme is not None and of.endswith(("experts.gate_up_proj", "experts.down_proj")):
                for expert in experts.data:
                    expert.copy_(dequantize(quantize(expert, parse_scheme(scheme))))
        require_clear_choices(model)
        with torch.inference_mode():
            return torch.cat([model(torch.tensor([prompt])).logits[0] for prompt in PROMPTS])

    return logits


def rms(x: torch.Tensor) -> float:
    return math.sqrt(float(x.square().mean()))


def bound_of(exact: torch.Tensor) -> float:
    return 3 * 2**-9 * math.sqrt(8 * NUM_LAYERS + 4) * rms(exact)


def logits_of(path: Path, group: SingleCollectives | ThreadCollectives, dtype: str = "bfloat16") -> torch.Tensor:
    runner = Runner(path, group, dtype)
    assert isinstance(runner.decoder, NativeDecoder)
    return torch.cat(runner.logits(PROMPTS))


def test_a_choice_between_two_experts_that_rounding_could_turn_is_refused(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    path = CASES["mixtral"](tmp_path / "m")
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, experts_implementation=EXPERTS)
    with torch.no_grad():
        model.model.layers[1].mlp.gate.weight[1:] = model.model.layers[1].mlp.gate.weight[0]
    require_clear_choices(model)
    with pytest.raises(AssertionError, match="take another seed"):
        model(torch.tensor([PROMPTS[0]]))


@pytest.mark.parametrize("name", FEW)
def test_every_variant_gives_the_logits_of_bf16(
    variant: str, built: Built, exact: Callable[..., torch.Tensor], name: str
) -> None:
    wanted = exact(name)
    assert rms(logits_of(built(name), SingleCollectives()) - wanted) <= bound_of(wanted)


@pytest.mark.parametrize("name", [name for name in CASES if name not in FEW])
def test_every_model_gives_the_logits_of_bf16(built: Built, exact: Callable[..., torch.Tensor], name: str) -> None:
    wanted = exact(name)
    assert rms(logits_of(built(name), SingleCollectives()) - wanted) <= bound_of(wanted)


@pytest.mark.parametrize("name", FEW)
def test_native_operators_give_the_logits_of_float32(built: Built, name: str) -> None:
    runner = Runner(built(name), SingleCollectives(), torch.float32)
    assert not isinstance(runner.decoder, NativeDecoder) and kernels.all_native()
    wanted = torch.cat(transformers_logits(built(name), PROMPTS))
    worst = float((torch.cat(runner.logits(PROMPTS)) - wanted).abs().max())
    assert worst <= 64 * torch.finfo(torch.float32).eps * float(wanted.abs().max())


@pytest.mark.parametrize(("name", "num_ranks"), [*((name, 3) for name in FEW), ("falcon-new", 2), ("stablelm", 4)])
def test_ranks_together_give_the_logits_of_bf16(
    built: Built, exact: Callable[..., torch.Tensor], name: str, num_ranks: int
) -> None:
    wanted = exact(name)
    for found in run_ranks(num_ranks, lambda group: logits_of(built(name), group)):
        assert rms(found - wanted) <= bound_of(wanted)


@pytest.mark.parametrize("name", FEW)
def test_tokens_one_at_a_time_are_those_of_the_whole_sequence(built: Built, name: str) -> None:
    runner = Runner(built(name), SingleCollectives(), "bfloat16")
    prompts = [PROMPTS[0][:5], PROMPTS[2]]
    outputs = runner.greedy(prompts, 12)
    whole = runner.logits([[*prompt, *output] for prompt, output in zip(prompts, outputs, strict=True)])
    for prompt, output, logits in zip(prompts, outputs, whole, strict=True):
        said = logits[len(prompt) - 1 : -1]
        lost = said.amax(1) - said.gather(1, torch.tensor(output).unsqueeze(1)).squeeze(1)
        assert float(lost.max()) <= 2 * bound_of(logits)  # of two words that are as likely either may be taken


@pytest.mark.parametrize("scheme", ["int8", "int4:g32:sym"])
@pytest.mark.parametrize(
    "name", ["qwen3-biases", "phi3-partial-window", "falcon-uneven-groups", "gpt_neox", "mixtral", "qwen2_moe"]
)
def test_quantized_logits_are_those_of_what_the_codes_mean(
    built: Built, exact: Callable[..., torch.Tensor], name: str, scheme: str
) -> None:
    wanted = exact(name, scheme)
    # AMX rounds weights with group scales to bf16 too, which doubles the square of the error; others round inputs of
    # more than 16 rows to bytes: 1.6 of the bound is the most of these models.
    assert rms(logits_of(built(name), SingleCollectives(), scheme) - wanted) <= 2 * bound_of(wanted)


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "qwen3_moe"])
def test_experts_give_the_same_bits_with_any_number_of_threads(
    built: Built, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(num_threads: int) -> tuple[torch.Tensor, torch.Tensor]:
        monkeypatch.setattr(loading, "team_cpus", lambda: [-1] * num_threads)
        runner = Runner(built(name), SingleCollectives(), "bfloat16")
        return torch.cat(runner.logits(PROMPTS)), runner.last_logits([PROMPTS[0][:3]])

    one = found(1)
    assert all(torch.equal(a, b) for a, b in zip(found(3), one, strict=True))


@pytest.mark.parametrize("scheme", ["bfloat16", "int8", "int4"])
@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe-renormalised"])
def test_a_token_reads_the_weights_of_its_experts_alone(built: Built, name: str, scheme: str) -> None:
    decoder = Runner(built(name), SingleCollectives(), scheme).decoder
    assert isinstance(decoder, NativeDecoder)
    description = decoder.description
    plan = shard_plan(description, 1)
    stored = rank_storage(description, plan, 0, None if scheme == "bfloat16" else parse_scheme(scheme))
    of_experts = sum(matrix.num_bytes for matrix in stored.matrices if ".experts." in matrix.field)
    idle = of_experts * (description.num_experts - 2) // description.num_experts
    assert decoder.weight_bytes_per_token == stored.num_bytes - stored.embedding_bytes - idle == stored.bytes_per_token
