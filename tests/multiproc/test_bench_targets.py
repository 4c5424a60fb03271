"""`corebound bench targets` on real ranks that keep a tiny model, and the page made of what it found."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from corebound.cli import bench_peers, bench_targets
from corebound.engine.bench.ruler import Reading, Ruler
from corebound.engine.bench.targets.settings import Settings
from corebound.topology import read_topology

pytestmark = [pytest.mark.native, pytest.mark.multiproc]


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> dict[str, Any]:
    # A real reading needs gigabytes and seconds; what is tested is everything around it.
    reading = Reading(read_gb_per_s=20.0, best_read_gb_per_s=21.0, gemm_gflop_per_s=1000.0)
    monkeypatch.setattr(Ruler, "read", lambda self: reading)
    for name in ("usual_line_ns", "line_ns"):
        monkeypatch.setattr(Ruler, name, lambda self: reading.line_ns)
    words = ["--shapes", "llama-tiny", "--rounds", "2", "--prompt-tokens", "40"]
    words += ["--new-tokens", "8", "--only", "ranks,beams,busy"]
    words += ["--cache-dir", str(tmp_path / "shapes"), "--results", str(tmp_path / "targets.json"), "--json"]
    # One that every machine's caches hold.
    monkeypatch.setattr(bench_targets, "Settings", partial(Settings, cached_shapes=("llama-tiny",), num_pairs=2))
    done = CliRunner().invoke(bench_targets.targets, words)
    assert done.exit_code == 0, done.output
    # Ranks that keep their models share cores on purpose; the launchers write to the descriptor itself.
    assert "another job of yours" not in capfd.readouterr().err
    return dict(json.loads(done.stdout))


@pytest.mark.timeout(300)
def test_ranks_keep_their_model_for_all_rounds_and_every_line_has_its_figures(
    found: dict[str, Any], tmp_path: Path
) -> None:
    lines = {row["line"] for row in found["rows"]}
    assert lines == {"ranks", "beams", "busy"}
    for row in found["rows"]:
        if row["found"] is None:
            assert row["note"]
            continue
        assert row["num_rounds"] == 2
        assert row["found"]["median"] > 0
        assert row["measured"]["median"] > 0 and row["limit"]["median"] > 0
    has_two_cores = len(read_topology().physical_cores()) > 1
    assert any("2 ranks over 1, next token" in row["what"] for row in found["rows"]) == has_two_cores
    (beam,) = [row for row in found["rows"] if row["line"] == "beams"]
    assert beam["measured"]["median"] < 1000  # ms a step: what its steps took, and not the search as a whole
    page = tmp_path / "docs" / "page.md"
    page.parent.mkdir()
    words = ["--from-results", str(tmp_path / "targets.json"), "--output", str(page)]
    assert CliRunner().invoke(bench_peers.peers, words).exit_code == 0
    text = page.read_text(encoding="utf-8")
    assert "promises are kept" in text
    assert "| beam 4 over batch 4, next token: llama-tiny, bfloat16 | at most 1.15 |" in text
    assert str(tmp_path) not in text
