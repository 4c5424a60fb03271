"""The sums of bench peers: everyone's in turns, and what is said of who fails."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from corebound.cli import bench_peers_sums as module
from corebound.cli.launch_options import spec_from_options
from corebound.engine.bench.peers import process
from corebound.engine.bench.peers.adapters.protocol import SumReport


def test_without_flags_the_launch_is_that_of_this_machine() -> None:
    options = module._default_options()
    assert options["hostfile"] is None and options["num_accelerators"] is None
    spec = spec_from_options(("true",), bind_by_default=True, **options | {"num_accelerators": 2})
    assert spec.num_accelerators == 2


def test_rows_are_medians_over_rounds_and_a_failure_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("vllm", "deepspeed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / ".setup").touch()
    turns: list[str] = []

    def ours():
        turns.append("ours")
        time = 10.0 * turns.count("ours")
        return [{"provider": "shm", "entry": "native", "bytes": 8192, **{f"p{p}_us": time for p in (10, 50, 90, 99)}}]

    def theirs(peer, folder, job):
        turns.append(peer.environment)
        assert (job.num_ranks, job.num_threads, job.message_bytes) == (2, 1, list(module.SIZES))
        if peer.environment == "deepspeed":
            raise process.PeerError("no g++")
        return SumReport(times_us={"8192": [5.0, 5.0, 5.0]}, version="1")

    monkeypatch.setattr(module, "_pairs", lambda: {"near": tuple(os.sched_getaffinity(0))})
    monkeypatch.setattr(module, "_ours", ours)
    monkeypatch.setattr(process, "time_sums", theirs)
    # An engine has its sums under each of its names.
    rows, failures = module.measure(["vllm", "vllm_tp", "deepspeed_tp", "llama_cpp"], tmp_path, 3, lambda text: None)
    assert turns == ["ours", "deepspeed", "vllm", "ours", "vllm", "ours", "vllm"]
    assert [(row["provider"], row["p50_us"]) for row in rows] == [("shm", 20.0), ("vllm_tp", 5.0)]
    assert failures == [{"engine": "deepspeed_tp", "dtype": "all-reduce, bfloat16", "reason": "no g++"}]


def test_sums_are_timed_in_every_placement_on_its_own_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = os.sched_getaffinity(0)
    pairs = {"near": tuple(allowed), "far": (min(allowed),)}
    seen: list[set[int]] = []

    def ours():
        seen.append(os.sched_getaffinity(0))
        time = float(len(seen))
        return [{"provider": "shm", "entry": "native", "bytes": 8192, **{f"p{p}_us": time for p in (10, 50, 90, 99)}}]

    monkeypatch.setattr(module, "_pairs", lambda: pairs)
    monkeypatch.setattr(module, "_ours", ours)
    rows, _ = module.measure([], tmp_path, 2, lambda text: None)
    assert seen == [set(pairs["near"]), set(pairs["far"])] * 2
    assert os.sched_getaffinity(0) == allowed
    # Rounds 1 and 3 are near, 2 and 4 far.
    assert [(row["placement"], row["p50_us"]) for row in rows] == [("near", 2.0), ("far", 3.0)]


def test_who_is_not_installed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_pairs", lambda: {"near": tuple(os.sched_getaffinity(0))})
    monkeypatch.setattr(module, "_ours", list)
    rows, (failure,) = module.measure(["vllm"], tmp_path, 1, lambda text: None)
    assert rows == []
    assert (failure["engine"], failure["dtype"]) == ("vllm_tp", "all-reduce, bfloat16")
    assert failure["reason"].endswith("`make bench-peers PEERS=vllm`")
