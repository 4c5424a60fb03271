from __future__ import annotations

from typing import Any, ClassVar

import pytest

from corebound.engine.predict import decoder_times
from corebound.kernels.panel_probe import FORMATS, PanelProbe, ProductRate
from corebound.models.decoder_probe import DecoderProbe, ProbeShape

MIB = 1 << 20
LAYER_S = 20e-6
WEIGHT_S = {"bfloat16": 5e-11, "int8": 2.5e-11, "int4": 1.5e-11}
INPUT_S = {"bfloat16": 7e-9, "int8": 5e-9, "int4": 3e-9}
CACHE_GB_PER_S = {8: 12.0, 1: 16.0}
PROMPT_GFLOP_PER_S = {8: 400.0, 1: 200.0}
PROMPT_WEIGHT_S, EMBEDDING_S = 6e-10, 1e-3


class FakeMemory:
    num_bytes = 1024 * MIB


class FakeProbe:
    """Products of a machine whose first round is disturbed."""

    cpus = (0, 1)
    bytes_per_thread = 512 * MIB

    def __init__(self, num_bytes: int = 1024 * MIB) -> None:
        self.memory = FakeMemory()
        self.memory.num_bytes = num_bytes
        self.num_calls = 0

    def measure(self, kind: Any, num_rows: int, num_bytes: int, num_repetitions: int) -> ProductRate:
        assert (num_rows, num_bytes) == (1, self.bytes_per_thread), "of what memory gives, as a decoder has it"
        self.num_calls += 1
        slower = 3.0 if self.num_calls == 1 else 1.0
        return ProductRate(kind=kind, num_rows=1, matrix_bytes=num_bytes, weights_per_s=1 / WEIGHT_S[kind] / slower)


class FakeDecoder:
    """A decoder whose steps take what its parts take together, but for a disturbed second one."""

    made: ClassVar[list[FakeDecoder]] = []

    def __init__(self, cpus: Any, shape: ProbeShape, *, tokens: int, memory: Any = None) -> None:
        assert memory is None or shape.num_layers * shape.layer_bytes <= memory.num_bytes
        self.tokens = tokens
        self.shape, self.num_calls = shape, 0
        self.made.append(self)

    def next_seconds(self, context: int, num_repetitions: int) -> float:
        shape, kind = self.shape, self.shape.form.kind
        cached_s = shape.cached_bytes * context / CACHE_GB_PER_S[shape.num_heads // shape.num_kv_heads] * 1e-9
        layer_s = LAYER_S + shape.layer_weights * WEIGHT_S[kind] + shape.layer_inputs * INPUT_S[kind]
        self.num_calls += 1
        slower = 2.0 if self.num_calls == 2 else 1.0
        return slower * shape.num_layers * (layer_s + (cached_s if context > 1 else 0))

    def prompt_seconds(self, num_repetitions: int) -> float:
        shape = self.shape
        flop = 4 * shape.num_heads * 64 * (self.tokens * (self.tokens + 1) // 2)
        attention_s = flop / PROMPT_GFLOP_PER_S[shape.num_heads // shape.num_kv_heads] * 1e-9
        products_s = shape.layer_weights * PROMPT_WEIGHT_S if shape.hidden > 64 else 0.0
        return EMBEDDING_S * (shape.hidden > 64) + shape.num_layers * (attention_s + products_s)

    def close(self) -> None:
        """Nothing to give back."""


@pytest.fixture(autouse=True)
def decoders(monkeypatch: pytest.MonkeyPatch) -> list[FakeDecoder]:
    monkeypatch.setattr(decoder_times, "DecoderProbe", FakeDecoder)
    monkeypatch.setattr(FakeDecoder, "made", [])
    return FakeDecoder.made


def probe(num_bytes: int = 1024 * MIB) -> PanelProbe:
    return FakeProbe(num_bytes)  # type: ignore[return-value]  # as much of it as is used


def test_inputs_take_what_layers_and_products_leave_of_a_step_whatever_disturbs_a_round() -> None:
    found = {kind: decoder_times.input_time(probe(), kind, LAYER_S).time_ns for kind in FORMATS}
    assert found == pytest.approx({kind: seconds * 1e9 for kind, seconds in INPUT_S.items()})


def test_inputs_never_take_less_than_nothing() -> None:
    assert {decoder_times.input_time(probe(), kind, 1.0).time_ns for kind in FORMATS} == {0.01}


def test_a_cache_takes_what_its_context_adds_to_a_step() -> None:
    found = {row.group_heads: row.cache_gb_per_s for row in decoder_times.attention_rates(probe(), 40.0)}
    assert found == pytest.approx({8: 12.0, 1: 16.0}, rel=2e-3)  # the context has a token more than what it adds


def test_a_cache_is_read_no_faster_than_memory() -> None:
    assert {row.cache_gb_per_s for row in decoder_times.attention_rates(probe(), 9.0)} == {9.0}


def test_attention_of_a_prompt_is_a_layer_without_products() -> None:
    found = {row.group_heads: row.prompt_gflop_per_s for row in decoder_times.attention_rates(probe(), 40.0)}
    assert found == pytest.approx({8: 400.0, 1: 200.0})


def test_products_of_a_prompt_are_what_attention_leaves_of_a_layer() -> None:
    for rate in decoder_times.prompt_rates((0, 1)):
        assert rate.num_rows == 512
        assert rate.weights_per_s == pytest.approx(1 / PROMPT_WEIGHT_S, rel=1e-6)


@pytest.mark.parametrize(("num_bytes", "hidden"), [(1024 * MIB, 2048), (64 * MIB, 512), (16 * MIB, 256)])
def test_decoders_fill_the_memory_and_are_narrower_where_it_is_small(
    decoders: list[FakeDecoder], num_bytes: int, hidden: int
) -> None:
    for kind in FORMATS:
        decoder_times.input_time(probe(num_bytes), kind, LAYER_S)
    plain = next(decoder.shape for decoder in decoders if decoder.shape.form == FORMATS["bfloat16"])
    assert plain.hidden == hidden and plain.num_layers >= 4
    assert num_bytes - plain.layer_bytes < plain.num_layers * plain.layer_bytes <= num_bytes


def test_the_names_that_are_replaced_exist() -> None:
    assert all(hasattr(DecoderProbe, name) for name in ("next_seconds", "prompt_seconds", "close"))
    assert all(hasattr(PanelProbe, name) for name in ("measure", "cpus"))
