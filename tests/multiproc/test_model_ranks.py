"""The decoder on real ranks: transformers' tokens, and identical bits on all of them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from corebound.launcher import LaunchSpec, launch
from fixtures.decoding import transformers_greedy
from fixtures.tiny_models import VOCAB_SIZE, build_bloom, build_llama

pytestmark = [pytest.mark.multiproc, pytest.mark.slow, pytest.mark.timeout(300)]

WORKER = Path(__file__).with_name("model_worker.py")
TESTS = Path(__file__).parents[1]
PROMPTS = [[5, 17, 80, 3, 44, 9, 61, 23, 11, 90, 35], [7], [12, 99, 31, 4]]
NUM_NEW_TOKENS = 8


def run(tmp_path: Path, num_ranks: int, task: dict[str, Any], **environment: str) -> list[dict[str, Any]]:
    """Return what every rank reported for the task."""
    task = {**task, "output": str(tmp_path / "report")}
    (tmp_path / "task.json").write_text(json.dumps(task))
    spec = LaunchSpec(
        command=(sys.executable, str(WORKER)),
        arguments=(str(tmp_path / "task.json"),),
        num_accelerators=num_ranks,
        env={"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{TESTS.parent / 'runtime'}:{TESTS}", **environment},
    )
    assert launch(spec) == 0
    return [json.loads((tmp_path / f"report.{rank}").read_text()) for rank in range(num_ranks)]


@pytest.mark.parametrize(
    ("family", "num_ranks", "provider", "dtype"),
    [
        ("bloom", 2, "auto", "bfloat16"),
        ("bloom", 4, "auto", "float32"),
        ("bloom", 3, "gloo", "float32"),
        ("llama", 2, "auto", "float32"),
        ("llama", 4, "auto", "bfloat16"),
        ("llama", 3, "gloo", "bfloat16"),
    ],
)
def test_all_ranks_hold_identical_bits(tmp_path: Path, family: str, num_ranks: int, provider: str, dtype: str) -> None:
    build = {"bloom": build_bloom, "llama": build_llama}[family]
    model = build(tmp_path / family)
    task = {"do": "greedy", "model": str(model), "prompts": PROMPTS, "num_new_tokens": NUM_NEW_TOKENS, "dtype": dtype}
    # What native steps hold alike stays inside of them: the plain decoder is the one that can be watched.
    kernels = "reference" if dtype == "bfloat16" else "auto"
    reports = run(tmp_path, num_ranks, task, COREBOUND_COMM=provider, COREBOUND_KERNELS=kernels)
    assert len({report["digest"] for report in reports}) == 1
    assert provider in ("auto", reports[0]["provider"])
    if dtype == "float32":
        expected = transformers_greedy(model, PROMPTS, NUM_NEW_TOKENS)
        assert all(report["tokens"] == expected for report in reports)


@pytest.mark.native
@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_steps_in_one_call_choose_what_all_ranks_choose_step_by_step(tmp_path: Path, num_ranks: int) -> None:
    models = [build_llama(tmp_path / "llama"), build_llama(tmp_path / "ties")]
    tensors = load_file(models[1] / "model.safetensors")
    head, half = tensors["lm_head.weight"], VOCAB_SIZE // 2
    head[half : 2 * half] = head[:half]  # every best word is equalled by one of another rank's
    save_file(tensors, models[1] / "model.safetensors", metadata={"format": "pt"})
    task = {"do": "together", "models": [str(path) for path in models], "prompts": PROMPTS, "num_new_tokens": 20}
    reports = run(tmp_path, num_ranks, task)
    assert all(report == reports[0] for report in reports)
    for found in reports[0]["models"]:
        assert found["together"] == found["tokens"]
        # All end with the step in which the poisoned token is fed, and only who feeds it has no token there.
        end = min(row.index(found["poison"]) for row in found["tokens"] if found["poison"] in row) + 1
        for row, broken in zip(found["tokens"], found["broken"], strict=True):
            is_fed = row[end - 1] == found["poison"]
            assert broken == ([*row[:end], None] if is_fed else row[: end + 1])
    seen = {token for row in reports[0]["models"][1]["tokens"] for token in row}
    assert seen & set(range(half)) and not seen & set(range(half, 2 * half))
