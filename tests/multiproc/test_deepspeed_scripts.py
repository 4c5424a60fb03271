"""Scripts written from DeepSpeed's documents, with only the imports changed, give the tokens of transformers."""

from __future__ import annotations

import functools
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import corebound
from multiproc.launches import Launch

pytestmark = [pytest.mark.multiproc, pytest.mark.timeout(300)]

SCRIPTS = Path(__file__).resolve().parents[1] / "fixtures" / "scripts"
DEMO = Path(corebound.__file__).parent / "demo"
PROMPTS = ["The old ship", "Once upon a time", "In the morning", "A server with two sockets"]
STATISTICS = (
    "Throughput per token including tokenize: ",
    "Start to ready to generate: ",
    "Tokenize and generate ",
    "Start to finish: ",
)

Run = Callable[..., Launch]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Runs a script with `corebound run` to its end; it passes --local_rank, as DeepSpeed does."""
    launches: list[Launch] = []

    def start(num_ranks: int, *args: str | Path) -> Launch:
        command = (
            sys.executable,
            "-m",
            "corebound",
            "run",
            "--num_accelerators",
            str(num_ranks),
            "--bind_cores_to_rank",
        )
        launch = Launch(*command, *args, cwd=tmp_path, env={"TMPDIR": str(tmp_path)})
        launches.append(launch)
        assert launch.end(240) == 0, launch.stderr
        return launch

    yield start
    for launch in launches:
        launch.kill_all()


@functools.cache
def reference(prompt: str, dtype: Any, max_new_tokens: int, *, num_beams: int = 1) -> list[int]:
    """The tokens of transformers alone: the prompt with its continuation."""
    inputs = transformers.AutoTokenizer.from_pretrained(DEMO)(prompt, return_tensors="pt")
    model = transformers.AutoModelForCausalLM.from_pretrained(DEMO, dtype=dtype).eval()
    with torch.inference_mode():
        tokens = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, num_beams=num_beams)
    found: list[int] = tokens[0].tolist()
    return found


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_the_listing_of_the_llama_blog_runs_and_its_module_generates(num_ranks: int, run: Run) -> None:
    launch = run(
        num_ranks, SCRIPTS / "blog_listing.py", "--model", DEMO, "--prompt", PROMPTS[0], "--max_new_tokens", "16"
    )
    answer = json.loads(launch.stdout)
    assert answer["greedy"][0] == reference(PROMPTS[0], torch.bfloat16, 16)
    assert answer["beams"][0] == reference(PROMPTS[0], torch.bfloat16, 16, num_beams=4)
    sampled = re.findall(r"rank (\d) sampled (\[.*\])", launch.stderr)
    assert sorted(rank for rank, _ in sampled) == [str(rank) for rank in range(num_ranks)]
    # Ranks seed themselves differently, and must draw the same tokens nevertheless.
    assert len({tokens for _, tokens in sampled}) == 1
    # Every rank holds its part: half of all matrices, and all of the small tensors.
    assert answer["num_weights"] * num_ranks < 1.02 * 2_370_048


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_the_calls_of_the_accelerator_tutorial_work(num_ranks: int, run: Run) -> None:
    facts = json.loads(run(num_ranks, SCRIPTS / "accelerator_tutorial.py", "--model", DEMO).stdout)
    model = transformers.AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32)
    expected = model.generate(torch.tensor([[5, 6, 7, 8]]), max_new_tokens=8, do_sample=False)
    assert facts["tokens"] == expected.tolist()
    assert facts["allocated"] > 0
    del facts["tokens"], facts["allocated"]
    assert facts == {
        "world_size": num_ranks,
        "index": 0,
        "seed": 7,
        "on_accelerator": True,
        "pinned": [1.0] * 4,
        "device": "cpu",
        "builder": None,
    }


@pytest.mark.parametrize(("num_ranks", "dtype"), [(1, "int8"), (2, "float16")])
def test_the_bloom_inference_script_runs_with_its_options(num_ranks: int, dtype: str, run: Run) -> None:
    """DeepSpeed #4154: "output printed by every rank"; the script prints on rank 0, and nothing else comes out."""
    options = ["--name", DEMO, "--batch_size", "4", "--dtype", dtype, "--num_tokens", "20", "--benchmark"]
    launch = run(num_ranks, SCRIPTS / "bloom_inference.py", *map(str, options))
    tokenizer = transformers.AutoTokenizer.from_pretrained(DEMO)
    tokens = {prompt: reference(prompt, torch.float32, 20) for prompt in PROMPTS}
    expected = [
        f"in={prompt}\nout={tokenizer.decode(tokens[prompt], skip_special_tokens=True)}\n" for prompt in PROMPTS
    ]
    # Rounding to int8 may change a word where two are nearly as likely.
    wanted = expected[:1] if dtype == "int8" else expected
    assert all(launch.stdout.count(text) == 1 for text in wanted), launch.stdout
    for line in STATISTICS:
        assert launch.stdout.count(line) == 1
    assert "pre-from-pretrained: peak" in launch.stderr and "end-of-run: peak" in launch.stderr


def test_more_ranks_in_the_script_than_were_launched_name_the_command(tmp_path: Path) -> None:
    script = tmp_path / "chat.py"
    script.write_text(
        "import torch, corebound as deepspeed\n"
        "deepspeed.init_inference(torch.nn.Linear(1, 1), mp_size=4, dtype=torch.float32)\n"
    )
    launch = Launch("--num_accelerators", "2", script, cwd=tmp_path)
    try:
        assert launch.end(120) != 0
    finally:
        launch.kill_all()
    assert "tp_size is 4, but this script was started on 2 ranks" in launch.stderr
    assert "corebound run --num_accelerators 4 chat.py" in launch.stderr
