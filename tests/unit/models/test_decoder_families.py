"""Every family's decoder against transformers, at one to four ranks that are threads of this process.

The bounds are those of test_decoder: in float32 64 roundings of the largest logit, in 16 bits 2 sigma.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from corebound import kernels
from fixtures.decoder_families import CASES, FEW
from fixtures.decoding import Runner, transformers_greedy, transformers_logits
from fixtures.thread_group import ThreadCollectives, run_ranks
from fixtures.tiny_models import NUM_LAYERS, VOCAB_SIZE

NUM_NEW = 6
PROMPTS = [
    [int(token) for token in torch.randint(3, VOCAB_SIZE, (length,), generator=torch.Generator().manual_seed(length))]
    for length in (23, 1, 9)
]


class Expected:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.logits = transformers_logits(path, PROMPTS)
        self.greedy = transformers_greedy(path, PROMPTS[:2], NUM_NEW)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Expected]:
    made: dict[str, Expected] = {}

    def of(name: str) -> Expected:
        if name not in made:
            made[name] = Expected(CASES[name](tmp_path_factory.mktemp("model") / name))
        return made[name]

    return of


@pytest.fixture(autouse=True)
def reference_kernels() -> Iterator[None]:
    """Keep the tests independent of whether the native library was built."""
    with kernels.forced(mode="reference"):
        yield


@pytest.mark.parametrize(
    ("name", "num_ranks"),
    [*((name, ranks) for name in CASES for ranks in (1, 4)), *((name, ranks) for name in FEW for ranks in (2, 3))],
)
def test_float32_logits_and_greedy_tokens_are_those_of_transformers(
    expected: Callable[[str], Expected], name: str, num_ranks: int
) -> None:
    case = expected(name)
    largest = max(float(logits.abs().max()) for logits in case.logits)

    def work(group: ThreadCollectives) -> tuple[list[torch.Tensor], list[list[int]]]:
        runner = Runner(case.path, group)
        return runner.logits(PROMPTS), runner.greedy(PROMPTS[:2], NUM_NEW)

    for logits, tokens in run_ranks(num_ranks, work):
        worst = max(float((a - b).abs().max()) for a, b in zip(logits, case.logits, strict=True))
        assert worst <= 64 * torch.finfo(torch.float32).eps * largest
        assert tokens == case.greedy


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["gemma", "granite", "gptj", "opt", "qwen3"])
def test_logits_of_16_bits_are_within_the_stated_bound(
    expected: Callable[[str], Expected], name: str, dtype: torch.dtype
) -> None:
    path = expected(name).path
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype).float()
    with torch.inference_mode():
        exact = torch.cat([model(torch.tensor([prompt])).logits[0] for prompt in PROMPTS])
    sigma = torch.finfo(dtype).eps / 2 * math.sqrt(8 * NUM_LAYERS + 4) * float(exact.square().mean().sqrt())
    for logits in run_ranks(2, lambda group: torch.cat(Runner(path, group, dtype).logits(PROMPTS))):
        assert float((logits - exact).square().mean().sqrt()) <= 2 * sigma


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_norms_that_count_from_one_have_the_bits_of_transformers(
    expected: Callable[[str], Expected], dtype: torch.dtype
) -> None:
    """1 + w was rounded to the type of the model, by up to one part in 256."""
    path = expected("gemma").path
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    [decoder] = run_ranks(1, lambda group: Runner(path, group, dtype).decoder)
    x = torch.randn(7, model.config.hidden_size, generator=torch.Generator().manual_seed(0)).to(dtype)
    pairs = [(decoder.weights.final_norm, model.model.norm)]
    for ours, theirs in zip(decoder.weights.layers, model.model.layers, strict=True):
        pairs += [(ours.attention_norm, theirs.input_layernorm), (ours.mlp_norm, theirs.post_attention_layernorm)]
    for weights, norm in pairs:
        want = norm(x)
        assert torch.equal(decoder._normalise(x, None, weights)[0], want)
        rounded = ((norm.weight.float() + 1.0).to(dtype),)
        assert not torch.equal(decoder._normalise(x, None, rounded)[0], want)


@pytest.mark.parametrize(
    ("name", "of_layer"),
    [("gptj", 1), ("gpt_neox", 1), ("gpt_neox-sequential", 2), ("falcon-new", 1), ("qwen2", 2)],
)
def test_layers_with_a_parallel_residual_need_one_sum_over_the_ranks(
    expected: Callable[[str], Expected], name: str, of_layer: int
) -> None:
    def work(group: ThreadCollectives) -> int:
        runner = Runner(expected(name).path, group)
        runner.logits(PROMPTS)
        return group.num_all_reduces - 1  # the test's own gather of the logits

    assert run_ranks(2, work) == [of_layer * NUM_LAYERS + 1] * 2
