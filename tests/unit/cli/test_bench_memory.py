"""`corebound bench memory`: its table and its JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from click.testing import CliRunner

from corebound.cli import bench_memory
from corebound.kernels.memory_probe import ReadBandwidth


@pytest.fixture(autouse=True)
def _two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(cpus: Sequence[int], *, bytes_per_thread: int, num_repetitions: int) -> ReadBandwidth:
        rate = 20.0 * len(cpus)
        return ReadBandwidth(
            cpus=tuple(cpus),
            bytes_per_thread=64,
            median_gb_per_s=rate,
            best_gb_per_s=rate + num_repetitions,
            loop="2 streams",
            huge_page_fraction=0.5,
        )

    monkeypatch.setattr(bench_memory, "core_sets", lambda topology: [(0,), (4,), (0, 4)])
    monkeypatch.setattr(bench_memory, "measure_read", measured)


def test_json_has_a_row_for_every_set_of_cpus() -> None:
    done = CliRunner().invoke(bench_memory.memory, ["--json", "--repetitions", "3"])
    assert done.exit_code == 0
    rows = json.loads(done.stdout)["rows"]
    assert [(row["num_threads"], row["cpus"], row["read_gb_per_s"], row["best_gb_per_s"]) for row in rows] == [
        (1, [0], 20.0, 23.0),
        (1, [4], 20.0, 23.0),
        (2, [0, 4], 40.0, 43.0),
    ]
    assert {(row["loop"], row["huge_page_fraction"]) for row in rows} == {("2 streams", 0.5)}


def test_the_table_has_units() -> None:
    lines = CliRunner().invoke(bench_memory.memory, []).stdout.splitlines()
    assert lines[0].split("  ")[2:] == ["read GB/s", "best GB/s", "huge pages", "loop"]
    assert lines[-1].split() == ["2", "0,4", "40.0", "49.0", "50%", "2", "streams"]


def test_no_repetitions_is_refused() -> None:
    assert CliRunner().invoke(bench_memory.memory, ["--repetitions", "0"]).exit_code == 2


def test_the_whole_machine_alone_is_one_row_of_a_limited_size(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def measured(cpus: Sequence[int], *, bytes_per_thread: int, num_repetitions: int) -> ReadBandwidth:
        sizes.append(bytes_per_thread)
        return ReadBandwidth(cpus=tuple(cpus), bytes_per_thread=64, median_gb_per_s=1.0, best_gb_per_s=1.0)

    monkeypatch.setattr(bench_memory, "measure_read", measured)
    monkeypatch.setattr(bench_memory, "bytes_beyond_caches", lambda topology, cpus: 5 << 30)
    done = CliRunner().invoke(bench_memory.memory, ["--json", "--whole-machine", "--max-gib", "2"])
    assert [row["cpus"] for row in json.loads(done.stdout)["rows"]] == [[0, 4]]
    assert CliRunner().invoke(bench_memory.memory, ["--max-gib", "2"]).exit_code == 0
    assert sizes == [1 << 30, 2 << 30, 2 << 30, 1 << 30]
    assert CliRunner().invoke(bench_memory.memory, ["--max-gib", "0"]).exit_code == 2
