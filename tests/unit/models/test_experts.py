"""Ranks that compute with different variants are refused where they would choose experts, and nowhere else."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from corebound import kernels
from corebound.errors import ModelError
from corebound.kernels import Row
from corebound.models import load_model
from fixtures.thread_group import ThreadCollectives, run_ranks
from fixtures.tiny_models import build_family

_rank = threading.local()
_VARIANTS = ("amx", "amx", "avx2")


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_family(tmp_path_factory.mktemp("model") / "mixtral", "mixtral", num_local_experts=4)


def _loaded(path: Path, dtype: str) -> Callable[[ThreadCollectives], str]:
    def work(group: ThreadCollectives) -> str:
        _rank.index = group.rank
        try:
            load_model(path, dtype, group)
        except ModelError as error:
            assert error.hint is not None and "COREBOUND_ISA" in error.hint
            return error.message
        return "loaded"

    return work


def _rows() -> list[Row]:
    variant = _VARIANTS[_rank.index]
    return [Row(op=op, implementation="native", variant=variant, reason="") for op in kernels.OPS]


def test_a_model_with_experts_is_refused_on_ranks_of_different_variants(
    mixtral: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "running_table", _rows)
    assert run_ranks(2, _loaded(mixtral, "float32")) == ["loaded"] * 2
    for message in run_ranks(3, _loaded(mixtral, "float32")):
        parts = message.split("; found ")[1].split(", ")
        assert [part.split(" on ")[0] for part in parts] == ["rank 0", "rank 1", "rank 2"]
        assert [part.split(": ")[1].split()[0] for part in parts] == list(_VARIANTS)
    llama = build_family(tmp_path / "mistral", "mistral")
    assert run_ranks(3, _loaded(llama, "float32")) == ["loaded"] * 3


@pytest.mark.native
def test_a_model_with_experts_is_refused_where_only_some_ranks_have_the_native_decoder(
    mixtral: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "all_native", lambda: _rank.index == 0)
    for message in run_ranks(2, _loaded(mixtral, "bfloat16")):
        first, second = message.split("; found ")[1].split(", ")
        assert ": native decoder of" in first and "operators with torch" in second


@pytest.mark.native
def test_a_model_with_experts_is_refused_on_native_decoders_of_different_variants(
    mixtral: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("corebound.models.native_decoder.active_isa", lambda: _VARIANTS[_rank.index])
    assert run_ranks(2, _loaded(mixtral, "bfloat16")) == ["loaded"] * 2
    assert all("rank 2" in message for message in run_ranks(3, _loaded(mixtral, "bfloat16")))
