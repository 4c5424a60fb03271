"""What steps of made-up decoders take beside what products alone tell: layers, inputs, the cache, prompts."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager

from corebound.engine.predict.ceilings import AttentionRate, InputTime
from corebound.engine.predict.times import attention_flop
from corebound.kernels.panel_format import Kind
from corebound.kernels.panel_probe import FORMATS, PanelProbe, ProductRate
from corebound.models.decoder_probe import HEAD_DIM, DecoderProbe, ProbeShape

PROMPT_TOKENS = 512
# The widest of which some layers fit the memory: the wider they are, the more of a step are its products.
_WIDTHS = ((2048, 5632), (1024, 2816), (512, 1408), (256, 704))
_LEAST_LAYERS = 4
_CACHED_TOKENS = 1024
# Heads and kv heads of those whose attention is timed: eight queries read the same keys, or one.
_HEADS = ((32, 4), (16, 16))
_ROUNDS, _PROMPTS, _SMALL_STEPS = 3, 3, 20
_LEAST_S, _LEAST_NS = 1e-4, 0.01


def layer_seconds(cpus: Sequence[int]) -> float:
    """Return what a layer costs whose products are next to nothing, of one token: its barriers above all."""
    shape = ProbeShape(num_layers=16)
    with closing(DecoderProbe(cpus, shape, tokens=1)) as probe:
        return probe.next_seconds(1, _SMALL_STEPS) / shape.num_layers


def prompt_rates(cpus: Sequence[int]) -> tuple[ProductRate, ...]:
    """Return the rates of products in a prompt of PROMPT_TOKENS, without what its layers take for all else.

    A decoder's own team and buffers do them: tiles are made once for all members, and the weights come from memory.
    """
    beside_s = _prompt_layer_seconds(cpus, ProbeShape(num_layers=4))
    return tuple(_prompt_rate(cpus, kind, beside_s) for kind in FORMATS)


def _prompt_rate(cpus: Sequence[int], kind: Kind, beside_s: float) -> ProductRate:
    one, two = (ProbeShape(num_layers=count, hidden=2048, inner=5632, form=FORMATS[kind]) for count in (1, 2))
    with (
        closing(DecoderProbe(cpus, one, tokens=PROMPT_TOKENS)) as short,
        closing(DecoderProbe(cpus, two, tokens=PROMPT_TOKENS)) as long,
    ):
        # What both begin and end with falls out.
        layer_s = long.prompt_seconds(_PROMPTS) - short.prompt_seconds(_PROMPTS)
    # They were measured on a machine that may have other work: what is left is not to become nothing.
    products_s = max(layer_s - beside_s, layer_s / 2, _LEAST_S)
    return ProductRate(
        kind=kind, num_rows=PROMPT_TOKENS, matrix_bytes=one.layer_bytes, weights_per_s=one.layer_weights / products_s
    )


def _prompt_layer_seconds(cpus: Sequence[int], shape: ProbeShape) -> float:
    """Return what a layer of a prompt costs whose products are next to nothing: its attention above all."""
    with closing(DecoderProbe(cpus, shape, tokens=PROMPT_TOKENS)) as probe:
        return probe.prompt_seconds(_PROMPTS) / shape.num_layers


def input_time(probe: PanelProbe, kind: Kind, layer_s: float) -> InputTime:
    """Return what is left of a step from memory without its products and `layer_s` a layer, for each input of them.

    Rows are rounded and normalised, and every product ends with a wait for the member that has its last panel: all
    grow with the inputs.
    """

    def product_s() -> float:
        return 1 / probe.measure(kind, 1, probe.bytes_per_thread, 1).weights_per_s

    with _from_memory(probe, ProbeShape(num_layers=1, form=FORMATS[kind]), tokens=1) as (shape, decoder):
        weight_s, step_s = _least(product_s, functools.partial(decoder.next_seconds, 1, 1))
    layer_left_s = step_s / shape.num_layers - layer_s - shape.layer_weights * weight_s
    return InputTime(kind=kind, time_ns=max(_LEAST_NS, layer_left_s / shape.layer_inputs * 1e9))


def attention_rates(probe: PanelProbe, read_gb_per_s: float) -> tuple[AttentionRate, ...]:
    """Return how fast the probe's cores are at attention; they read no cache faster than memory.

    The context of a token is one that weights have driven out of the caches.
    """
    rates = []
    for num_heads, num_kv_heads in _HEADS:
        heads = ProbeShape(num_layers=4, num_heads=num_heads, num_kv_heads=num_kv_heads)
        flop = attention_flop(num_heads * HEAD_DIM, 0, PROMPT_TOKENS)
        rates.append(
            AttentionRate(
                group_heads=num_heads // num_kv_heads,
                cache_gb_per_s=min(read_gb_per_s, _cache_gb_per_s(probe, heads)),
                prompt_gflop_per_s=flop / _prompt_layer_seconds(probe.cpus, heads) * 1e-9,
            )
        )
    return tuple(rates)


def _cache_gb_per_s(probe: PanelProbe, heads: ProbeShape) -> float:
    heads = dataclasses.replace(heads, form=FORMATS["int4"])  # the fastest steps, of which the cache is most
    with _from_memory(probe, heads, tokens=_CACHED_TOKENS) as (shape, decoder):
        short_s, long_s = _least(
            *(functools.partial(decoder.next_seconds, context, 1) for context in (1, _CACHED_TOKENS))
        )
    num_bytes = shape.num_layers * shape.cached_bytes * (_CACHED_TOKENS - 1)
    return num_bytes / max(long_s - short_s, _LEAST_S) * 1e-9


def _least(*timed: Callable[[], float]) -> list[float]:
    """Return the least of some times of each, taken in turns.

    What is wanted are differences between them, which one disturbance in either would drown.
    """
    rounds = [[time_of() for time_of in timed] for _ in range(_ROUNDS)]
    return [min(found) for found in zip(*rounds, strict=True)]


@contextmanager
def _from_memory(probe: PanelProbe, shape: ProbeShape, *, tokens: int) -> Iterator[tuple[ProbeShape, DecoderProbe]]:
    """Enter with a decoder as large as the probe's memory, on the probe's CPUs."""
    for hidden, inner in _WIDTHS:
        shape = dataclasses.replace(shape, hidden=hidden, inner=inner)
        num_layers = probe.memory.num_bytes // shape.layer_bytes
        if num_layers >= _LEAST_LAYERS:
            break
    shape = dataclasses.replace(shape, num_layers=max(1, num_layers))
    with closing(DecoderProbe(probe.cpus, shape, tokens=tokens, memory=probe.memory)) as decoder:
        yield shape, decoder
