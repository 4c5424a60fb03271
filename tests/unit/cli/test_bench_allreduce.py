"""The allreduce benchmark's flags and table, without ranks."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from corebound.cli import bench_allreduce
from corebound.cli.bench import bench
from corebound.cli.bench_allreduce import SizeType, render

ROW = {
    "provider": "shm",
    "entry": "native",
    "dtype": "bfloat16",
    "bytes": 8192,
    "num_ranks": 2,
    "floor_us": 2.0,
    "p10_us": 1.0,
    "p50_us": 3.0,
    "p90_us": 4.0,
    "p99_us": 5.0,
}


@pytest.mark.parametrize(
    ("text", "num_bytes"), [("8192", 8192), ("8KiB", 8192), ("8 kib", 8192), ("1MiB", 2**20), ("64kB", 64_000)]
)
def test_sizes_have_units(text: str, num_bytes: int) -> None:
    assert SizeType().convert(text, None, None) == num_bytes


@pytest.mark.parametrize("text", ["", "KiB", "8 furlongs", "-8", "0", "3", "2GiB", "1.5KiB"])
def test_other_sizes_are_refused_and_shown(text: str) -> None:
    with pytest.raises(click.BadParameter, match="found"):
        SizeType().convert(text, None, None)


def test_the_table_shows_units_and_the_distance_from_the_floor() -> None:
    lines = render({"rows": [ROW]}).splitlines()
    assert lines[0] == "all-reduce, bfloat16, 2 ranks"
    assert lines[1].split()[:3] == ["size", "provider", "entry"]
    assert lines[2].split() == ["8", "KiB", "shm", "native", "1.0", "3.0", "4.0", "5.0", "1.50x"]


def test_json_has_the_rows_and_the_method(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def run_ranks(request: dict[str, object], options: dict[str, object]) -> tuple[dict[str, object], int]:
        asked.update(request, num_ranks=options["num_accelerators"])
        return {"rows": [ROW], "method": bench_allreduce.METHOD}, 0

    monkeypatch.setattr(bench_allreduce, "run_ranks", run_ranks)
    result = CliRunner().invoke(bench, ["allreduce", "--bytes", "8KiB", "--dtype", "float32", "--json"])
    assert result.exit_code == 0, result.output
    assert asked == {"bytes": [8192], "dtype": "float32", "rounds": 20, "fake_hosts": [], "num_ranks": 2}
    assert '"p50_us": 3.0' in result.output
    assert "CLOCK_MONOTONIC" in result.output


def test_a_mistyped_benchmark_gets_the_nearest_name() -> None:
    result = CliRunner().invoke(bench, ["alreduce"])
    assert result.exit_code == 2
    assert "Did you mean `allreduce`?" in result.output


def test_hosts_have_a_table_of_their_own_with_the_bytes_on_the_network() -> None:
    common = {**{key: ROW[key] for key in ROW if key != "floor_us"}, "num_ranks": 4, "num_hosts": 2, "gloo_us": 30.0}
    rows = [
        {**common, "provider": "gloo", "host_link": None, "bytes_between_hosts": 24576, "p50_us": 30.0}
        | {"network_bytes": 24600},
        {**common, "provider": "hierarchical", "host_link": "ccl", "bytes_between_hosts": 16384, "p50_us": 15.0}
        | {"network_bytes": 16400},
        {**common, "provider": "ccl", "host_link": None, "bytes_between_hosts": None, "network_bytes": 30000},
    ]
    text = render({"rows": rows, "method": "how"})
    assert text.startswith("all-reduce, bfloat16, 4 ranks on 2 hosts\n")
    assert "hierarchical (ccl)" in text
    assert "0.50x    16384 B   16400 B" in text
    assert "-         30000 B" in text
    assert text.endswith("how")


def test_pretended_hosts_need_more_ranks_than_hosts() -> None:
    result = CliRunner().invoke(bench, ["allreduce", "--fake-hosts", "2"])
    assert result.exit_code == 2
    assert "expected more ranks than the 2 hosts, found 2" in result.output


def test_a_hostfile_and_a_number_of_ranks_contradict_each_other() -> None:
    result = CliRunner().invoke(bench, ["allreduce", "--hostfile", "hosts", "--num-ranks", "4"])
    assert result.exit_code == 2
    assert "the hostfile says how many ranks run where" in result.output
