"""Generation on 1 to 4 ranks: the tokens of transformers, whatever the split, the batch and the kernels."""

import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from corebound.launcher import LaunchSpec, launch
from fixtures.tiny_models import VOCAB_SIZE, build_bloom, build_llama

pytestmark = [pytest.mark.multiproc, pytest.mark.slow, pytest.mark.timeout(300)]

WORKER = Path(__file__).with_name("generation_worker.py")
RANK_COUNTS = (1, 2, 3, 4)
MAX_NEW_TOKENS = 20


def prompts_of_unequal_length():
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(3, VOCAB_SIZE, (length,), generator=generator).tolist() for length in (3, 40, 1, 17)]


def models():
    """Name to builder: every way in which heads, KV heads and the head's weight can be split over ranks."""
    builders = {f"bloom-{'tied' if tied else 'untied'}": (build_bloom, {"tied": tied}) for tied in (True, False)}
    for num_kv_heads in (6, 3, 2, 1):
        builders[f"llama-kv{num_kv_heads}"] = (build_llama, {"num_kv_heads": num_kv_heads})
    builders["llama-tied"] = (build_llama, {"tied": True})
    return builders


@pytest.fixture(scope="module")
def model_dirs(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {name: build(root / name, tokenizer=True, **options) for name, (build, options) in models().items()}


def tokens_of_transformers(model_dirs, **params):
    """Tokens of transformers for every model, one prompt at a time and so without padding."""
    tokens = {}
    for name, path in model_dirs.items():
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        tokens[name] = [
            model.generate(
                torch.tensor([prompt]), do_sample=False, max_new_tokens=MAX_NEW_TOKENS, pad_token_id=0, **params
            )[0, len(prompt) :].tolist()
            for prompt in prompts_of_unequal_length()
        ]
    return tokens


@pytest.fixture(scope="module")
def greedy(model_dirs):
    return tokens_of_transformers(model_dirs)


@pytest.fixture(scope="module")
def beams(model_dirs):
    return tokens_of_transformers(model_dirs, num_beams=4)


def generate(tmp_path, cases, num_ranks, kernels="auto"):
    """Run the cases on `num_ranks` ranks and return the outputs of each."""
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    outputs = tmp_path / "outputs.json"
    spec = LaunchSpec(
        command=(sys.executable, str(WORKER)),
        arguments=(str(tmp_path / "cases.json"), str(outputs)),
        num_accelerators=num_ranks,
        env={"COREBOUND_KERNELS": kernels, "OMP_NUM_THREADS": "1"},
    )
    assert launch(spec) == 0
    return json.loads(outputs.read_text())


def case(model_dir, **changes):
    params = {"max_new_tokens": MAX_NEW_TOKENS} | changes.pop("params", {})
    options = {"kv_cache_gib": 0.01} | changes.pop("options", {})
    prompts = prompts_of_unequal_length()
    return {"model": str(model_dir), "prompts": prompts, "params": params, "options": options} | changes


def token_ids(outputs):
    return [output["token_ids"] for output in outputs]


SAMPLED_MODELS = ("bloom-tied", "llama-kv2")
SAMPLED = (
    {"temperature": 1.0, "seed": 11},
    {"temperature": 0.8, "top_k": 12, "seed": 11},
    {"temperature": 1.2, "top_p": 0.9, "repetition_penalty": 1.3, "seed": 2**64 - 1},
)


def sampled_cases(model_dirs):
    return [case(model_dirs[name], params=params) for name in SAMPLED_MODELS for params in SAMPLED]


@pytest.fixture(scope="module")
def sampled_on_one_rank(tmp_path_factory, model_dirs):
    results = generate(tmp_path_factory.mktemp("alone"), sampled_cases(model_dirs), 1)
    return [token_ids(outputs) for outputs in results]


@pytest.mark.parametrize("num_ranks", RANK_COUNTS)
def test_tokens_are_those_of_transformers_on_any_number_of_ranks(
    tmp_path, model_dirs, greedy, beams, sampled_on_one_rank, num_ranks
):
    plain = [case(path) for path in model_dirs.values()]
    wide = [case(path, params={"num_beams": 4}) for path in model_dirs.values()]
    # One launch for all, because starting ranks takes longer than generating.
    results = generate(tmp_path, plain + wide + sampled_cases(model_dirs), num_ranks, kernels="native")
    tokens = [token_ids(outputs) for outputs in results]
    count = len(model_dirs)
    assert dict(zip(model_dirs, tokens[:count], strict=True)) == greedy
    assert dict(zip(model_dirs, tokens[count : 2 * count], strict=True)) == beams
    assert tokens[2 * count :] == sampled_on_one_rank, "a seed gave other texts than on one rank"


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_reference_kernels_give_the_same_tokens(tmp_path, model_dirs, greedy, num_ranks):
    results = generate(tmp_path, [case(path) for path in model_dirs.values()], num_ranks, kernels="reference")
    assert dict(zip(model_dirs, map(token_ids, results), strict=True)) == greedy


# Bytes of one block on one of two ranks: keys and values, 2 layers, 8 elements a head of 4 bytes, 32 tokens.
KV_HEAD_BLOCK_BYTES = 2 * 2 * 8 * 4 * 32


@pytest.mark.parametrize(("name", "num_kv_heads"), [("bloom-tied", 3), ("llama-kv2", 1)])
def test_small_chunks_and_preemption_change_no_token(tmp_path, model_dirs, greedy, capfd, name, num_kv_heads):
    # The prompts start in five blocks and need six at their ends.
    cache_gib = 5 * num_kv_heads * KV_HEAD_BLOCK_BYTES / 2**30
    tight = {"max_step_tokens": 7, "max_num_sequences": 4, "kv_cache_gib": cache_gib}
    results = generate(tmp_path, [case(model_dirs[name], options=tight)], 2)
    assert token_ids(results[0]) == greedy[name]
    assert "160 tokens in 5 blocks" in capfd.readouterr().err


def test_a_sampled_text_does_not_depend_on_its_neighbours(tmp_path, model_dirs, sampled_on_one_rank):
    whole = sampled_cases(model_dirs)[0]
    results = generate(tmp_path, [whole | {"prompts": [prompt]} for prompt in whole["prompts"]], 2)
    assert [token_ids(outputs)[0] for outputs in results] == sampled_on_one_rank[0]


def test_a_request_that_cannot_run_ends_every_rank_with_its_reason(tmp_path, model_dirs, capfd):
    too_long = case(model_dirs["llama-kv2"], prompts=[[5] * 300])
    (tmp_path / "cases.json").write_text(json.dumps([too_long]))
    spec = LaunchSpec(
        command=(sys.executable, str(WORKER), str(tmp_path / "cases.json"), str(tmp_path / "out")),
        num_accelerators=2,
        env={"OMP_NUM_THREADS": "1"},
    )
    assert launch(spec) != 0
    assert "prompt 0 has 300 tokens: the model's context is 256" in capfd.readouterr().err
