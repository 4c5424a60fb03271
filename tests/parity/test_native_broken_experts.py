"""Scores of experts that are no numbers, by every variant: one sequence is lost, its neighbours are what they were."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from corebound.comm.single import SingleCollectives
from corebound.models.native_decoder import NativeDecoder
from fixtures.decoding import Runner
from fixtures.tiny_models import build_family

pytestmark = pytest.mark.native

_BROKEN = 5  # a word that no other sequence has
# Every row takes all experts, so that how many rows an expert has does not depend on the scores.
_MODELS = {
    "mixtral": {"num_local_experts": 3, "num_experts_per_tok": 3},
    "qwen2_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 37,
        "shared_expert_intermediate_size": 51,
        "norm_topk_prob": False,
    },
}
# Steps of 2 to 4 tokens, of which no expert may have more, and of many, where the broken sequence is short and long.
_BATCHES = ([1, 1], [1, 1, 1], [1, 1, 1, 1], [2, 1, 1], [24, 1], [3, 29], [9, 17])


@pytest.fixture(scope="module", params=_MODELS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / request.param
    return build_family(path, request.param, tie_word_embeddings=False, **_MODELS[request.param])


@pytest.mark.parametrize("dtype", ["bfloat16", "int4"])
def test_a_broken_sequence_leaves_the_logits_of_its_neighbours(variant: str, model: Path, dtype: str) -> None:
    runner = Runner(model, SingleCollectives(), dtype)
    assert isinstance(runner.decoder, NativeDecoder)
    draw = torch.Generator().manual_seed(3)
    batches = [[torch.randint(6, 100, (n,), generator=draw).tolist() for n in lengths] for lengths in _BATCHES]
    for prompts in batches:
        prompts[-1] = [_BROKEN] * len(prompts[-1])
    whole = [runner.logits(prompts) for prompts in batches]
    embedding = runner.decoder.weights.embedding
    assert embedding is not None
    embedding[_BROKEN] = float("nan")
    for prompts, wanted in zip(batches, whole, strict=True):
        *others, broken = runner.logits(prompts)
        assert bool(broken.isnan().all())
        assert all(torch.equal(logits, unbroken) for logits, unbroken in zip(others, wanted[:-1], strict=True))
