"""What a run prepares: a copy of a model with a longer context, and the turns of every line."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from corebound.engine.bench import shapes
from corebound.engine.bench.peers.adapters.protocol import CaseReport
from corebound.engine.bench.targets import run as module
from corebound.engine.bench.targets.finding import NotMeasured
from corebound.engine.bench.targets.plan_turns import main_turns
from corebound.engine.bench.targets.planned import PlannedPair, PlannedTurn, Who
from corebound.engine.bench.targets.resident_rank import together
from corebound.engine.bench.targets.run import Run, longer_model
from corebound.engine.bench.targets.samples import Samples
from corebound.engine.bench.targets.settings import LINES, Settings
from corebound.topology import Topology, read_topology
from fixtures.topology_trees import shared_machine

SETTINGS = Settings()


def test_a_longer_context_shares_the_weights(tmp_path: Path) -> None:
    source = tmp_path / "model"
    source.mkdir()
    (source / "model.safetensors").write_bytes(b"weights")
    (source / "config.json").write_text(json.dumps({"max_position_embeddings": 2048, "hidden_size": 8}))
    (tmp_path / "copies").mkdir()
    made = longer_model(source, tmp_path / "copies", 16000)
    assert made is not None
    assert json.loads((made / "config.json").read_text()) == {"max_position_embeddings": 16000, "hidden_size": 8}
    assert (made / "model.safetensors").resolve() == source / "model.safetensors"
    (source / "config.json").write_text("{}")
    assert longer_model(source, tmp_path, 16000) is None


def test_two_ranks_are_paired_with_one_on_the_same_case() -> None:
    pairs = main_turns({"ranks"}, SETTINGS, 1000, 2, is_first=True)
    assert [[who.num_ranks for who in pair.everyone] for pair in pairs] == [[2, 1]] * 3
    cases = {pair.name: (pair.one.case, pair.other.case) for pair in pairs if isinstance(pair, PlannedPair)}
    assert [name for name, (one, other) in cases.items() if one == other] == [
        "ranks: decode",
        "ranks: short",
        "ranks: prompt",
    ]
    on_one_core = main_turns(set(LINES), SETTINGS, 1000, 1, is_first=True)
    assert {who.num_ranks for turn in on_one_core for who in turn.everyone} == {1}


def test_one_core_has_a_row_with_the_reason_for_every_promise_of_two_ranks(tmp_path: Path) -> None:
    run = Run(
        topology=two_sockets(40, (0,)),
        settings=Settings(shapes=("llama-tiny", "llama-9m")),
        lines=["ranks"],
        model_dir=lambda shape: shapes.write_shape(shape, tmp_path, lambda text: None),
        announce=lambda text: None,
    )
    run.all_groups()
    rows = [found.row() for found in run.found]
    assert [row["promised"] for row in rows] == ["at most 1.05"] * 3 + ["at least 1.7"]
    assert {(row["found"], row["note"]) for row in rows} == {(None, "this machine has one core")}


def test_a_second_shape_is_measured_for_what_is_promised_of_it() -> None:
    (turn,) = main_turns({"decode", "beams", "busy"}, SETTINGS, 1000, 2, is_first=False)
    assert isinstance(turn, PlannedTurn)
    assert (turn.who.dtype, [case.name for case in turn.cases]) == ("bfloat16", ["decode"])
    predicted = main_turns({"plan"}, SETTINGS, 1000, 2, is_first=False)
    assert len(predicted) == 6 and {who.num_ranks for turn in predicted for who in turn.everyone} == {1, 2}


def test_only_one_turn_has_a_busy_core_and_the_free_one_comes_first() -> None:
    turns = main_turns({"busy"}, SETTINGS, 1000, 2, is_first=True)
    assert [turn.is_busy for turn in turns if isinstance(turn, PlannedTurn)] == [False, True]
    (free,), (taken,) = (turn.cases for turn in turns if isinstance(turn, PlannedTurn))
    assert free.case == taken.case


def two_sockets(last_level_mib: int, allowed: tuple[int, ...]) -> Topology:
    topology = read_topology(shared_machine("xeon-2s-ht"))
    last = max(cache.level for cache in topology.caches)
    caches = tuple(
        dataclasses.replace(cache, size_bytes=last_level_mib << 20) if cache.level == last else cache
        for cache in topology.caches
    )
    return dataclasses.replace(topology, caches=caches, allowed_cpus=allowed)


@pytest.mark.parametrize(
    ("shape", "last_level_mib", "allowed", "is_measured"),
    # Half of a cache has to hold the 27.7 MB of llama-tiny. Two sockets of 40 MiB have that together only.
    [
        ("llama-tiny", 40, (0, 1), False),
        ("llama-tiny", 40, (0, 56), False),
        ("llama-tiny", 60, (0, 1), True),
        ("llama-tiny", 60, (0, 56), True),
        ("llama-tiny", 60, (0,), False),
        ("llama-9m", 32, (0, 1), True),
    ],
)
def test_a_cached_model_fits_the_cache_of_the_one_core_that_reads_all_of_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    shape: str,
    last_level_mib: int,
    allowed: tuple[int, ...],
    is_measured: bool,
) -> None:
    turns: list[Who] = []

    def rounds(directory: Path, planned: list[PlannedPair], cases: object, **options: object) -> Samples:
        turns.extend(who for pair in planned for who in pair.everyone)
        return Samples()

    monkeypatch.setattr(module, "run_rounds", rounds)
    run = Run(
        topology=two_sockets(last_level_mib, allowed),
        settings=Settings(cached_shapes=(shape,)),
        lines=["ranks"],
        model_dir=lambda shape: shapes.write_shape(shape, tmp_path, lambda text: None),
        announce=lambda text: None,
    )
    found = run._cached()
    assert [who.cpus for who in turns] == ([allowed[:1], allowed] if is_measured else [])
    if not is_measured:
        (missing,) = found
        assert isinstance(missing, NotMeasured) and missing.promised == "at least 1.7"
        assert ("one core" in missing.reason) and (len(allowed) == 1 or "40 MiB" in missing.reason)


def test_a_case_done_several_times_counts_its_median_first_token_and_all_its_steps() -> None:
    times = [CaseReport(first_token_ms=first, step_ms=[first, 1], elapsed_s=0.5, token_ids=[7]) for first in (9, 90, 8)]
    expected = CaseReport(first_token_ms=9, step_ms=[9, 1, 90, 1, 8, 1], elapsed_s=1.5, token_ids=[7])
    assert together(times) == expected
