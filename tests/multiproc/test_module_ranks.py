"""transformers' own modules on real ranks: the whole model's tokens, identical bits, and only a part in memory."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from corebound.launcher import LaunchSpec, launch
from fixtures.families import FAMILIES
from fixtures.module_parity import SHORT, answer, quiet_transformers

pytestmark = [pytest.mark.multiproc, pytest.mark.slow, pytest.mark.timeout(300)]

WORKER = Path(__file__).with_name("module_worker.py")
TESTS = Path(__file__).parents[1]
# Sums of float32 and of bfloat16, gathered logits, experts, a paired sum, squares over ranks.
SEVERAL = ["bloom", "qwen2_moe", "falcon-40b", "olmo2"]
INJECTED = ["bloom", "falcon-40b", "olmo2"]
MIB = 1 << 20


def run(tmp_path: Path, num_ranks: int, task: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what every rank reported for the task."""
    (tmp_path / "task.json").write_text(json.dumps({**task, "output": str(tmp_path / "report")}))
    spec = LaunchSpec(
        command=(sys.executable, str(WORKER)),
        arguments=(str(tmp_path / "task.json"),),
        num_accelerators=num_ranks,
        env={"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{TESTS.parent / 'runtime'}:{TESTS}"},
    )
    assert launch(spec) == 0
    return [json.loads((tmp_path / f"report.{rank}").read_text()) for rank in range(num_ranks)]


@pytest.mark.parametrize(("families", "inject"), [(SEVERAL, False), (INJECTED, True)], ids=["module", "inject"])
def test_split_models_generate_alike_on_real_ranks(tmp_path: Path, families: list[str], inject: bool) -> None:
    """#4154, #7278: ranks that differ."""
    first, *others = run(tmp_path, 2, {"do": "tokens", "families": families, "inject": inject})
    assert first["provider"] == "shm"
    assert all(other == first for other in others)
    with quiet_transformers():
        for name in families:
            assert first["float32"][name]["tokens"] == answer(FAMILIES[name].build(), SHORT).tokens.tolist()


@pytest.mark.parametrize("inject", [False, True], ids=["module", "inject"])
def test_a_rank_needs_memory_for_its_part_of_a_model_on_the_meta_device(tmp_path: Path, inject: bool) -> None:
    """#3644, #3192, #6617: each rank read the whole model, 4 x 130 GB on one host."""
    sizes = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 4, "vocab_size": 8000}
    with quiet_transformers():
        FAMILIES["llama"].build(**sizes).save_pretrained(tmp_path / "model")
    for report in run(tmp_path, 2, {"do": "memory", "model": str(tmp_path / "model"), "inject": inject}):
        assert 30 * MIB < report["shard_bytes"] < 150 * MIB
        # One block's q, k, v (640 outputs of a rank) and gate and up (2048) exist twice while they are joined.
        joined_bytes = (640 + 2048) * sizes["hidden_size"] * 4 if inject else 0
        assert report["peak_bytes"] < report["shard_bytes"] + joined_bytes + 16 * MIB
