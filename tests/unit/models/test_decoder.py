"""The decoder against transformers, at one to four ranks that are threads of this process.

The bound in float32 is 64 roundings of the largest logit. In bfloat16 the roundings of the stream, about 8 a layer
and 4 outside, of 2**-9 each in the mean, would add up to sigma = 2**-9 * sqrt(8 * layers + 4) of the logits' root mean
square if they were independent. Those of a gated MLP multiply, so the bound is 2 sigma for the root mean square of the
errors and 16 sigma for any one; and the first must not exceed what transformers itself loses in bfloat16 by 15 %.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from corebound import kernels
from fixtures.decoding import Runner, transformers_greedy, transformers_logits
from fixtures.thread_group import ThreadCollectives, run_ranks
from fixtures.tiny_models import NUM_LAYERS, VOCAB_SIZE, build_bloom, build_llama

Builder = Callable[[Path], Path]

MODELS: dict[str, Builder] = {
    "bloom-tied": lambda path: build_bloom(path, tied=True),
    "bloom-untied": lambda path: build_bloom(path, tied=False),
    "bloom-residual-after-norm": lambda path: build_bloom(path, apply_residual_connection_post_layernorm=True),
    "bloom-8-heads": lambda path: build_bloom(path, num_heads=8),
    **{
        f"llama-kv{kv}-{'tied' if tied else 'untied'}": lambda path, kv=kv, tied=tied: build_llama(
            path, num_kv_heads=kv, tied=tied
        )
        for kv in (6, 3, 2, 1)
        for tied in (True, False)
    },
    "llama-biases": lambda path: build_llama(path, attention_bias=True, mlp_bias=True),
    # On 4 ranks rank 1 has heads 4 to 7, which read kv head 0 once and kv head 1 three times.
    "llama-uneven-groups": lambda path: build_llama(path, num_heads=15, num_kv_heads=3),
    "llama-wide-heads": lambda path: build_llama(path, head_dim=16),
    "llama-rope-linear": lambda path: build_llama(
        path, rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
    ),
    "llama-rope-llama3": lambda path: build_llama(
        path,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
}
PROMPTS = [
    [int(token) for token in torch.randint(3, VOCAB_SIZE, (length,), generator=torch.Generator().manual_seed(length))]
    for length in (23, 1, 9, 16)
]


class Case:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.logits = transformers_logits(path, PROMPTS)
        self.greedy = transformers_greedy(path, PROMPTS, 10)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    made: dict[str, Case] = {}

    def case(name: str) -> Case:
        if name not in made:
            made[name] = Case(MODELS[name](tmp_path_factory.mktemp(name) / name))
        return made[name]

    return case


@pytest.fixture(autouse=True)
def reference_kernels(request: pytest.FixtureRequest) -> Iterator[None]:
    """Keep the unmarked tests independent of whether the native library was built."""
    if request.node.get_closest_marker("native"):
        yield
        return
    with kernels.forced(mode="reference"):
        yield


def worst(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))


def rms(tensors: list[torch.Tensor]) -> float:
    return math.sqrt(float(torch.cat(tensors).square().mean()))


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("name", MODELS)
def test_float32_logits_and_greedy_tokens_are_those_of_transformers(
    cases: Callable[[str], Case], name: str, num_ranks: int
) -> None:
    check_float32(cases(name), num_ranks)


@pytest.mark.native
@pytest.mark.parametrize("num_ranks", [1, 4])
@pytest.mark.parametrize("name", ["bloom-untied", "llama-kv2-tied", "llama-biases", "llama-uneven-groups"])
def test_native_kernels_give_the_tokens_of_transformers_too(
    cases: Callable[[str], Case], name: str, num_ranks: int
) -> None:
    with kernels.forced(mode="native"):
        check_float32(cases(name), num_ranks)


def check_float32(case: Case, num_ranks: int) -> None:
    bound = 64 * torch.finfo(torch.float32).eps * float(torch.cat(case.logits).abs().max())

    def work(collectives: ThreadCollectives) -> tuple[list[torch.Tensor], list[list[int]]]:
        runner = Runner(case.path, collectives)
        return runner.logits(PROMPTS), runner.greedy(PROMPTS, 10)

    for logits, tokens in run_ranks(num_ranks, work):
        assert worst(logits, case.logits) <= bound
        assert tokens == case.greedy


@pytest.mark.parametrize("num_ranks", [1, 3])
@pytest.mark.parametrize("name", ["bloom-tied", "llama-kv2-untied", "llama-biases"])
def test_bfloat16_logits_are_within_the_stated_bound(cases: Callable[[str], Case], name: str, num_ranks: int) -> None:
    # The reference computes in float32 with the weights that bfloat16 leaves.
    rounded = [t.float() for t in _rounded_reference(cases(name).path)]
    sigma = 2**-9 * math.sqrt(8 * NUM_LAYERS + 4) * rms(rounded)
    theirs = transformers_logits(cases(name).path, PROMPTS, torch.bfloat16)
    their_error = rms([a - b for a, b in zip(theirs, rounded, strict=True)])
    for logits in run_ranks(num_ranks, lambda group: Runner(cases(name).path, group, torch.bfloat16).logits(PROMPTS)):
        error = rms([a - b for a, b in zip(logits, rounded, strict=True)])
        assert error <= min(2 * sigma, 1.15 * their_error)
        assert worst(logits, rounded) <= 16 * sigma


def _rounded_reference(path: Path) -> list[torch.Tensor]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    with torch.inference_mode():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16().float())
        return [model(torch.tensor([prompt])).logits[0] for prompt in PROMPTS]


def test_more_ranks_than_divide_the_heads(cases: Callable[[str], Case]) -> None:
    case = cases("llama-kv2-untied")
    for tokens in run_ranks(5, lambda group: Runner(case.path, group).greedy(PROMPTS, 10)):
        assert tokens == case.greedy


def test_a_tied_head_is_the_embedding_itself(cases: Callable[[str], Case]) -> None:
    (tied,) = run_ranks(1, lambda group: Runner(cases("bloom-tied").path, group).decoder)
    assert tied.weights.head.data_ptr() == tied.weights.embedding.data_ptr()
    (untied,) = run_ranks(1, lambda group: Runner(cases("bloom-untied").path, group).decoder)
    assert untied.weights.head.data_ptr() != untied.weights.embedding.data_ptr()


def test_two_all_reduces_a_layer_and_one_for_the_embedding(cases: Callable[[str], Case]) -> None:
    def work(group: ThreadCollectives) -> int:
        runner = Runner(cases("llama-biases").path, group)
        runner.logits(PROMPTS)
        return group.num_all_reduces - 1  # the test's own gather of the logits

    assert run_ranks(2, work) == [2 * NUM_LAYERS + 1] * 2


def test_the_words_of_all_ranks_are_the_vocabulary(cases: Callable[[str], Case]) -> None:
    decoders = run_ranks(4, lambda group: Runner(cases("bloom-tied").path, group).decoder)
    assert decoders[0].vocab_start == 0
    assert decoders[-1].vocab_stop == VOCAB_SIZE
    assert all(a.vocab_stop == b.vocab_start for a, b in itertools.pairwise(decoders))


def test_weight_bytes_per_token_leave_out_only_an_untied_embedding(cases: Callable[[str], Case]) -> None:
    for name, extra in (("bloom-tied", 0), ("bloom-untied", VOCAB_SIZE * 48 * 4)):
        path = cases(name).path
        (decoder,) = run_ranks(1, lambda group, path=path: Runner(path, group).decoder)
        assert decoder.weight_bytes_per_token == 4 * decoder.description.num_parameters - extra


@pytest.mark.native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["bloom-tied", "llama-kv3-tied", "llama-biases"])
def test_native_and_reference_kernels_agree(cases: Callable[[str], Case], name: str, dtype: torch.dtype) -> None:
    path = cases(name).path
    found = {}
    for mode in ("native", "reference"):
        with kernels.forced(mode=mode) as rows:
            assert {row["implementation"] for row in rows} == {mode}
            found[mode] = run_ranks(2, lambda group: Runner(path, group, dtype).logits(PROMPTS))[0]
    scale = rms(cases(name).logits)
    unit = torch.finfo(dtype).eps
    assert worst(found["native"], found["reference"]) <= 16 * unit * math.sqrt(8 * NUM_LAYERS + 4) * scale
