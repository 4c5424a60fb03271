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


@pytest.fixture(scope="module")
def expected(model_dirs):
    """Greedy tokens of transformers, one prompt at a time and so without padding."""
    tokens = {}
    for name, path in model_dirs.items():
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        tokens[name] = [
            model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=MAX_NEW_TOKENS, pad_token_id=0)[
                0, len(prompt) :
            ].tolist()
            for prompt in prompts_of_unequal_length()
        ]
    return tokens


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


@pytest.mark.parametrize("kernels", ["native", "reference"])
@pytest.mark.parametrize("num_ranks", RANK_COUNTS)
def test_greedy_tokens_are_those_of_transformers(tmp_path, model_dirs, expected, num_ranks, kernels):
    results = generate(tmp_path, [case(path) for path in model_dirs.values()], num_ranks, kernels)
    assert dict(zip(model_dirs, map(token_ids, results), strict=True)) == expected


def test_small_chunks_and_preemption_change_no_token(tmp_path, model_dirs, expected):
    names = ["bloom-tied", "llama-kv2"]
    # 17 KiB a block of one rank: four blocks are less than the four prompts need together.
    tight = {"max_step_tokens": 7, "max_num_sequences": 4, "kv_cache_gib": 4 * 17 / 2**20}
    results = generate(tmp_path, [case(model_dirs[name], options=tight) for name in names], 2)
    assert [token_ids(outputs) for outputs in results] == [expected[name] for name in names]


@pytest.fixture(scope="module")
def sampled_cases(model_dirs):
    shapes = [
        {"temperature": 1.0},
        {"temperature": 0.8, "top_k": 12},
        {"temperature": 1.2, "top_p": 0.9, "repetition_penalty": 1.3},
    ]
    return [
        case(model_dirs[name], params=shape | {"seed": 11}) for name in ("bloom-tied", "llama-kv2") for shape in shapes
    ]


@pytest.fixture(scope="module")
def sampled_alone(tmp_path_factory, sampled_cases):
    return [token_ids(outputs) for outputs in generate(tmp_path_factory.mktemp("alone"), sampled_cases, 1)]


@pytest.mark.parametrize("num_ranks", RANK_COUNTS[1:])
def test_a_seed_gives_the_same_text_on_any_number_of_ranks(tmp_path, sampled_cases, sampled_alone, num_ranks):
    results = generate(tmp_path, sampled_cases, num_ranks)
    assert [token_ids(outputs) for outputs in results] == sampled_alone


def test_a_sampled_text_does_not_depend_on_its_neighbours(tmp_path, sampled_cases, sampled_alone):
    alone = [sampled_cases[0] | {"prompts": [prompt]} for prompt in sampled_cases[0]["prompts"]]
    results = generate(tmp_path, alone, 2)
    assert [token_ids(outputs)[0] for outputs in results] == sampled_alone[0]


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
