"""`corebound bench allreduce` on real ranks: the rows it promises, and the speed that the project claims."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from corebound.cli.bench import bench
from fixtures.mounting import can_mount
from multiproc.rank_harness import needs_ccl

pytestmark = [pytest.mark.multiproc, pytest.mark.native]


def measured(*arguments: str) -> dict[tuple[str, str], dict[str, Any]]:
    result = CliRunner().invoke(bench, ["allreduce", "--json", *arguments])
    assert result.exit_code == 0, result.output
    return {(row["provider"], row.get("host_link") or row["entry"]): row for row in json.loads(result.stdout)["rows"]}


def test_every_provider_has_a_row_with_the_fixed_keys() -> None:
    rows = measured("--bytes", "4KiB", "--dtype", "float32", "--rounds", "2")
    assert set(rows) == {
        ("floor", "plain"),
        ("floor", "streaming"),
        ("gloo", "python"),
        ("shm", "native"),
        ("shm", "python"),
    }
    for row in rows.values():
        assert (row["dtype"], row["bytes"], row["num_ranks"]) == ("float32", 4096, 2)
        assert 0 < row["p10_us"] <= row["p50_us"] <= row["p90_us"] <= row["p99_us"]
    assert rows["shm", "native"]["floor_us"] == min(rows["floor", e]["p50_us"] for e in ("plain", "streaming"))


needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="this machine lacks the right to mount: each host gets a /dev/shm of its own"
)


@needs_root
@needs_ccl
def test_hosts_are_compared_with_the_bytes_that_cross_the_network_counted() -> None:
    rows = measured("--fake-hosts", "2", "--num-ranks", "4", "--bytes", "64KiB", "--rounds", "1")
    links = [("hierarchical", link) for link in ("gloo", "ccl", "tcp")]
    assert set(rows) == {("gloo", "python"), ("ccl", "python"), *links}
    for row in rows.values():
        assert (row["num_ranks"], row["num_hosts"], row["bytes"]) == (4, 2, 65536)
        assert 0 < row["p10_us"] <= row["p50_us"] <= row["p99_us"]
    # Each host sends its sums once. In gloo's ring two links lie between hosts, each carrying 1.5 times the data.
    for key, factor in (*((link, 2) for link in links), (("gloo", "python"), 3)):
        assert rows[key]["bytes_between_hosts"] == factor * 65536
        assert factor * 65536 <= rows[key]["network_bytes"] < factor * 65536 * 1.05
    assert rows["ccl", "python"]["bytes_between_hosts"] is None


@pytest.mark.bench
@needs_root
@needs_ccl
@pytest.mark.parametrize("size", ["8KiB", "64KiB", "1MiB", "16MiB"])
def test_hierarchical_is_faster_than_flat_sums_on_two_hosts_of_two_ranks(size: str) -> None:
    rows = measured("--fake-hosts", "2", "--num-ranks", "4", "--bytes", size, "--rounds", "6")
    assert rows["hierarchical", "tcp"]["p50_us"] < rows["gloo", "python"]["p50_us"]
    if size != "8KiB":
        assert rows["hierarchical", "tcp"]["p50_us"] < rows["ccl", "python"]["p50_us"]


@pytest.mark.bench
def test_8_kib_is_20_times_faster_than_gloo_and_within_twice_the_floor() -> None:
    rows = measured("--bytes", "8KiB")
    shm, gloo = rows["shm", "native"], rows["gloo", "python"]
    assert shm["p50_us"] * 20 <= gloo["p50_us"]
    assert rows["shm", "python"]["p50_us"] * 20 <= gloo["p50_us"]
    assert shm["p50_us"] <= 2 * shm["floor_us"]


@pytest.mark.skipif(not can_mount(), reason="this machine lacks the right to mount, or unshare")
def test_a_small_shared_memory_is_one_error_and_no_bus_error() -> None:
    bench_command = f"{sys.executable} -m corebound bench allreduce --bytes 8MiB --rounds 1"
    result = subprocess.run(
        ["unshare", "-m", "sh", "-c", f"mount -t tmpfs -o size=16m tmpfs /dev/shm && exec {bench_command}"],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "runtime")},
    )
    assert result.returncode == 5, result.stderr
    # The launcher repeats a rank's last lines, indented.
    assert [line[:6] for line in result.stderr.splitlines()].count("error:") == 1, result.stderr
    assert "/dev/shm is too small: " in result.stderr
    assert "--shm-size=1g" in result.stderr
    assert "Traceback" not in result.stderr
