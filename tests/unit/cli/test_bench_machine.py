"""`corebound bench machine`: rounds become rows, in a table and in JSON."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from corebound.cli import bench_machine as module
from corebound.kernels.gemm_probe import GemmPeak
from corebound.kernels.latency_probe import LineLatency
from corebound.kernels.memory_probe import ReadBandwidth


@pytest.fixture(autouse=True)
def order(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Measurements that answer at once: 10, 20, 30 by round, with a best that is one more."""
    calls: list[str] = []

    def value(name: str) -> float:
        calls.append(name)
        return 10.0 * calls.count(name)

    def read(cpus, **_):
        rate = value(f"read {cpus}")
        return ReadBandwidth(
            cpus=cpus, bytes_per_thread=1, median_gb_per_s=rate, best_gb_per_s=rate + 1, loop="2 streams"
        )

    def gemm(dtype, num_threads, *, size, **_):
        rate = value(f"{dtype} {num_threads}")
        return GemmPeak(
            dtype=dtype,
            num_threads=num_threads,
            size=size,
            median_gflop_per_s=rate,
            best_gflop_per_s=rate + 1,
            layout="transposed",
        )

    def latency(cpu, other):
        ns = value(f"line {cpu} {other}")
        return LineLatency(cpus=(cpu, other), median_ns=ns, best_ns=ns - 1)

    monkeypatch.setattr(module, "core_sets", lambda topology: [(0,), (0, 4)])
    monkeypatch.setattr(module, "core_pairs", lambda topology: [(0, 4)])
    monkeypatch.setattr(module, "measure_read", read)
    monkeypatch.setattr(module, "measure_gemm", gemm)
    monkeypatch.setattr(module, "measure_latency", latency)
    return calls


def test_rows_are_medians_and_bests_over_rounds_that_take_turns(order: list[str]) -> None:
    done = CliRunner().invoke(module.machine, ["--json", "--rounds", "3"])
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert [(row["cpus"], row["read_gb_per_s"], row["best_gb_per_s"]) for row in result["memory"]] == [
        ([0], 20.0, 31.0),
        ([0, 4], 20.0, 31.0),
    ]
    assert {row["dtype"] for row in result["gemm"]} == {"bfloat16", "float32", "int8"}
    assert {(row["gflop_per_s"], row["best_gflop_per_s"]) for row in result["gemm"]} == {(20.0, 31.0)}
    assert result["latency"] == [{"cpus": [0, 4], "one_way_ns": 20.0, "best_ns": 9.0}]
    assert {"idle_share", "other_share", "steal_share", "load_average_1min"} <= result["load"].keys()
    third = len(order) // 3
    assert order[:third] == order[third : 2 * third] == order[2 * third :]


def test_the_tables_have_units_and_say_how_busy_the_machine_was() -> None:
    text = CliRunner().invoke(module.machine, ["--rounds", "1"]).stdout
    for words in ("read GB/s", "GFLOP/s", "one way ns", "other processes took"):
        assert words in text
