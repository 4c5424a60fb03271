"""The shipped model under plain transformers: it loads offline, and its greedy text is readable and always the same."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import corebound

DEMO_DIR = Path(corebound.__file__).parent / "demo"
TRAINING_DIR = Path(__file__).resolve().parents[2] / "runtime" / "demo_training"
GOLDEN: dict[str, str] = json.loads((Path(__file__).parent / "demo_model_golden.json").read_text(encoding="utf-8"))
MAX_NEW_TOKENS = 110


@pytest.fixture(scope="module")
def demo() -> Iterator[tuple[Any, Any]]:
    # A model this small only loses by a second thread, above all on a busy machine.
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    tokenizer = transformers.AutoTokenizer.from_pretrained(DEMO_DIR, local_files_only=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(DEMO_DIR, local_files_only=True, dtype=torch.float32)
    yield tokenizer, model.eval()
    torch.set_num_threads(num_threads)


def continuation(demo: tuple[Any, Any], prompt: str) -> tuple[str, bool]:
    tokenizer, model = demo
    encoded = tokenizer(prompt, return_tensors="pt")
    with torch.inference_mode():
        ids = model.generate(**encoded, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)[0]
    new = ids[encoded["input_ids"].shape[1] :]
    return tokenizer.decode(new, skip_special_tokens=True), bool(new[-1] == tokenizer.eos_token_id)


def test_the_directory_loads_as_a_bloom_with_its_own_tokenizer(demo: tuple[Any, Any]) -> None:
    tokenizer, model = demo
    assert type(model).__name__ == "BloomForCausalLM"
    assert len(tokenizer) == model.config.vocab_size
    assert tokenizer.eos_token_id == model.config.eos_token_id
    stored = transformers.AutoModelForCausalLM.from_pretrained(DEMO_DIR, local_files_only=True)
    assert stored.dtype == torch.bfloat16


@pytest.mark.parametrize("text", ['"Stop," said Anna: 3 ships!', "naïve café — 船", "  two  spaces\n\ttab"])
def test_the_tokenizer_gives_any_text_back(demo: tuple[Any, Any], text: str) -> None:
    tokenizer, _ = demo
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize("prompt", sorted(GOLDEN))
def test_greedy_text_in_float32_is_the_golden_text_and_comes_to_an_end(demo: tuple[Any, Any], prompt: str) -> None:
    text, ended = continuation(demo, prompt)
    assert text == GOLDEN[prompt]
    assert ended
    assert text[-1] in '.!?"'


@pytest.mark.parametrize("prompt", sorted(GOLDEN))
def test_no_golden_text_runs_in_a_circle(prompt: str) -> None:
    words = re.findall(r"\w+[^\w\s]*", GOLDEN[prompt].lower())
    assert len(words) >= 12
    assert not any(first == second for first, second in pairwise(words))
    groups = [tuple(words[i : i + 5]) for i in range(len(words) - 4)]
    assert len(set(groups)) == len(groups), "five words in a row come twice"


def test_a_batch_padded_on_the_left_gives_the_text_of_each_prompt_alone(demo: tuple[Any, Any]) -> None:
    tokenizer, model = demo
    prompts = sorted(GOLDEN)[:4]
    encoded = tokenizer(prompts, return_tensors="pt", padding=True)
    with torch.inference_mode():
        ids = model.generate(**encoded, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
    texts = tokenizer.batch_decode(ids[:, encoded["input_ids"].shape[1] :], skip_special_tokens=True)
    assert texts == [GOLDEN[prompt] for prompt in prompts]


@pytest.mark.slow
def test_the_training_script_writes_a_loadable_directory_and_repeats_itself(tmp_path: Path) -> None:
    shape = ("--hidden-size", "24", "--num-layers", "1", "--num-heads", "6", "--vocab-size", "400")
    amount = ("--num-steps", "4", "--batch-texts", "4", "--num-tokenizer-texts", "200", "--num-held-out-texts", "8")
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(TRAINING_DIR.parent)}
    for name in ("one", "two"):
        command = [sys.executable, str(TRAINING_DIR / "train.py"), "--output", str(tmp_path / name), *shape, *amount]
        done = subprocess.run(command, capture_output=True, text=True, env=env)
        assert done.returncode == 0, done.stderr
        assert "step 4/4 loss" in done.stderr
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two")]
    assert weights[0] == weights[1]
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "one", local_files_only=True)
    assert model.config.n_head == 6
    manifest = json.loads((tmp_path / "one" / "corebound-manifest.json").read_text())["files"]
    assert manifest["model.safetensors"]["bytes"] == len(weights[0])
