"""What a run prepares: a copy of a model with a longer context, and the turns of every line."""

from __future__ import annotations

import json
from pathlib import Path

from corebound.engine.bench.targets.plan_turns import main_turns
from corebound.engine.bench.targets.run import longer_model
from corebound.engine.bench.targets.samples import Who
from corebound.engine.bench.targets.settings import LINES, Settings

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


def test_two_ranks_follow_one_and_one_core_has_no_two_ranks() -> None:
    turns = main_turns({"ranks"}, SETTINGS, 1000, 2, is_first=True)
    assert [turn.who for turn in turns] == [Who(dtype="bfloat16", num_ranks=count) for count in (1, 2)]
    assert [[case.name for case in turn.cases] for turn in turns] == [["decode", "prompt"]] * 2
    assert {turn.who.num_ranks for turn in main_turns(set(LINES), SETTINGS, 1000, 1, is_first=True)} == {1}


def test_a_second_shape_is_measured_for_what_is_promised_of_it() -> None:
    turns = main_turns({"decode", "beams", "busy"}, SETTINGS, 1000, 2, is_first=False)
    assert [(turn.who.dtype, [case.name for case in turn.cases]) for turn in turns] == [("bfloat16", ["decode"])]
    predicted = main_turns({"plan"}, SETTINGS, 1000, 2, is_first=False)
    assert len(predicted) == 6 and {turn.who.num_ranks for turn in predicted} == {1, 2}


def test_only_one_turn_has_a_busy_core() -> None:
    turns = main_turns({"busy"}, SETTINGS, 1000, 2, is_first=True)
    assert [turn.is_busy for turn in turns] == [False, True]
    assert turns[0].cases[0].case == turns[1].cases[0].case
