"""The promised time to load: at most half as long again as `cat` of the same files, measured in turns with it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fixtures.tiny_models import build_bloom

pytestmark = [pytest.mark.native, pytest.mark.multiproc]


def bench_load(*words: str, timeout_s: float) -> dict[str, Any]:
    command = [sys.executable, "-m", "corebound", "bench", "load", *words, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@pytest.mark.bench
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("num_ranks", [1, 2])
@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "int4"])
def test_what_is_written_for_ranks_loads_in_at_most_one_and_a_half_times_cat(dtype: str, num_ranks: int) -> None:
    words = ["--shape", "llama-1.1b", "--dtype", dtype, "--num-ranks", str(num_ranks), "--written"]
    plain, written = bench_load(*words, timeout_s=1700)["rows"]
    print({row["source"]: round(row["ratio"], 2) for row in (plain, written)})
    assert written["source"] == "written for ranks"
    assert written["ratio"] <= 1.5, written


@pytest.mark.bench
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "int4"])
def test_a_plain_checkpoint_loads_within_the_bounds_that_were_measured(dtype: str) -> None:
    rows = bench_load("--shape", "llama-1.1b", "--dtype", dtype, "--cold", timeout_s=1700)["rows"]
    print({row["files"]: round(row["ratio"], 2) for row in rows})
    assert [row["files"] for row in rows] == ["in the page cache", "on the disk"]
    assert all(row["source"] == "checkpoint" for row in rows)
    # 1.22 to 2.08 were measured on a guest whose memory the hypervisor gives back and takes; 1.5 is the aim.
    assert rows[0]["ratio"] <= 2.25 and rows[1]["ratio"] <= 1.5, rows


@pytest.mark.timeout(300)
def test_a_checkpoint_and_what_is_written_of_it_are_measured_and_nothing_is_left(tmp_path: Path) -> None:
    model = build_bloom(tmp_path / "bloom")
    (tmp_path / "work").mkdir()
    words = ["--model", str(model), "--dtype", "int4:g32", "--num-ranks", "2", "--rounds", "3", "--written", "--cold"]
    report = bench_load(*words, "--work-dir", str(tmp_path / "work"), timeout_s=280)
    plain, from_disk, written, written_from_disk = report["rows"]
    assert from_disk["files"] == written_from_disk["files"] == "on the disk"
    assert plain["num_bytes"] == (model / "model.safetensors").stat().st_size
    assert (plain["source"], written["source"]) == ("checkpoint", "written for ranks")
    assert plain["weights"] == "int4:g32" and written["weights"] == "int4:g32:asym"
    for row in report["rows"]:
        assert row["num_ranks"] == 2
        steady = [times.pop("is_steady") for times in row["rounds"]]
        assert all(0 < seconds < 60 for times in row["rounds"] for seconds in times.values())
        if row["files"] == "on the disk":
            assert steady == [True] * 3
        else:
            assert (steady.count(True) == 3 and steady[-1]) or len(steady) == 12
        assert row["num_kept"] == (steady.count(True) or len(steady))
    assert list((tmp_path / "work").iterdir()) == []
    assert "own_share" in report["machine_load"]
