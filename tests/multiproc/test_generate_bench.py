"""The promised speed of decode, measured beside transformers in the same run."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.bench, pytest.mark.native, pytest.mark.multiproc]


@pytest.mark.timeout(1800)
def test_two_ranks_of_one_core_decode_at_least_half_as_fast_again_as_transformers_on_both() -> None:
    words = ["bench", "generate", "--shape", "llama-1.1b", "--num-ranks", "2", "--compare", "transformers", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "corebound", *words], capture_output=True, text=True, timeout=1700, check=False
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["comparison"]["decode_speed_ratio"] >= 1.5, report
