"""`corebound bench` on real processes: ours and transformers in turns on a tiny model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.native, pytest.mark.multiproc, pytest.mark.slow]


@pytest.mark.timeout(900)
def test_two_ranks_and_transformers_continue_the_same_prompts_alike(tmp_path: Path) -> None:
    words = ["bench", "generate", "--shape", "llama-tiny", "--cache-dir", str(tmp_path), "--rounds", "1", "--json"]
    words += ["--prompt-tokens", "8,40", "--batch", "1,3", "--new-tokens", "6", "--compare", "transformers"]
    words += ["--dtype", "float32"]
    done = subprocess.run(
        [sys.executable, "-m", "corebound", *words], capture_output=True, text=True, timeout=800, check=False
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["failures"] == []
    assert [(row["engine"], row["num_prompt_tokens"], row["batch_size"]) for row in result["rows"]] == [
        (engine, length, batch) for engine in ("corebound", "transformers") for length in (8, 40) for batch in (1, 3)
    ]
    assert all(row["fraction_of_ceiling"] > 0 and row["prefill_fraction_of_gemm"] > 0 for row in result["rows"])
    assert [item["num_equal_tokens"] for item in result["comparisons"]] == [6] * 4
