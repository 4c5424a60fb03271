"""How busy the machine was, from two looks at /proc."""

from __future__ import annotations

from pathlib import Path

import pytest

from corebound.engine.bench import load


def write(root: Path, ticks: str, average: str = "1.50 0 0 1/2 3") -> None:
    (root / "stat").write_text(f"cpu  {ticks} 0 0\ncpu0 1 2 3\n")
    (root / "loadavg").write_text(average)


def test_time_is_split_into_own_others_idle_and_stolen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = iter([1.0, 3.0])
    monkeypatch.setattr(load, "own_cpu_s", lambda: next(own))
    monkeypatch.setattr(load.os, "sysconf", lambda name: 100)
    write(tmp_path, "100 0 100 1000 0 0 0 0")
    watch = load.LoadWatch(tmp_path)
    write(tmp_path, "500 0 200 1350 50 0 0 100")
    # 1000 ticks passed: 400 idle, 100 stolen, 500 busy, of which two seconds are ours.
    assert watch.finish().to_json() == {
        "idle_share": 0.4,
        "own_share": 0.2,
        "other_share": 0.3,
        "steal_share": 0.1,
        "load_average_1min": 1.5,
    }


def test_own_time_of_processes_from_before_is_no_more_than_what_was_busy(tmp_path: Path, monkeypatch) -> None:
    own = iter([0.0, 1e6])
    monkeypatch.setattr(load, "own_cpu_s", lambda: next(own))
    write(tmp_path, "0 0 0 0 0 0 0 0")
    watch = load.LoadWatch(tmp_path)
    write(tmp_path, "30 0 0 70 0 0 0 0")
    found = watch.finish()
    assert (found.own_share, found.other_share) == (0.3, 0.0)


def test_this_machine_can_be_watched() -> None:
    found = load.LoadWatch().finish()
    assert found.load_average_1min >= 0
