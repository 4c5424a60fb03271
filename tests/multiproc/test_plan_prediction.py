"""What `corebound plan` predicts against what is measured right after it."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from typing import Any

import pytest

pytestmark = [pytest.mark.bench, pytest.mark.native, pytest.mark.multiproc]

_ROUNDS = 3
_MOST_APART = 0.25


def corebound(*words: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "corebound", *words], capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("shape", "dtype", "num_ranks"),
    [
        ("llama-1.1b", "bfloat16", 1),
        ("llama-1.1b", "bfloat16", 2),
        ("llama-1.1b", "int4", 1),
        ("bloom-560m", "bfloat16", 1),
    ],
)
def test_first_token_next_token_and_memory_are_as_predicted(shape: str, dtype: str, num_ranks: int) -> None:
    words = ["--shape", shape, "--dtype", dtype, "--prompt-tokens", "512", "--json"]
    ratios: dict[str, list[float]] = {"first_token_ms": [], "next_token_ms": [], "memory": []}
    for _ in range(_ROUNDS):
        asked = ["plan", *words, "--context", "520", "--num_accelerators", str(num_ranks)]
        (predicted,) = corebound(*asked)["model"]
        bench = ["bench", "generate", *words, "--num-ranks", str(num_ranks), "--rounds", "1", "--new-tokens", "16"]
        (measured,) = corebound(*bench)["rows"]
        for name in ("first_token_ms", "next_token_ms"):
            ratios[name].append(predicted[name] / measured[name])
        ratios["memory"].append(predicted["memory_bytes_per_host"] / measured["peak_rss_bytes"])
    medians = {name: statistics.median(values) for name, values in ratios.items()}
    assert all(1 - _MOST_APART < value < 1 + _MOST_APART for value in medians.values()), ratios
