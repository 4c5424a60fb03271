"""The promises that are held against other engines: ours and the best of theirs, from what `bench peers` found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from corebound.engine.bench.markdown import markdown_table, size_name
from corebound.engine.bench.peers.tables import format_of, title_of
from corebound.engine.bench.session import OURS

_HEADER = ("what", "promised", "found", "ours", "the other", "met")
_SUM_BYTES = (8 << 10, 64 << 10, 1 << 20, 32 << 20)
_SUM_RIVALS = ("vllm_tp", "deepspeed_tp")
_BATCH, _BATCH_BOUND = 16, 1.2
_BFLOAT16 = "bfloat16"

Row = dict[str, Any]


def render_against(results: Sequence[dict[str, Any]]) -> list[str]:
    """Return the parts of a page: a table of the promises for each run of engines that took turns."""
    parts = []
    for result in results:
        lines = [*_faster(result["rows"]), *_batch(result["rows"]), *_sums(result.get("all_reduce") or [])]
        if lines:
            parts += [f"## Against other engines, {result['shape']}, {result['date']}", markdown_table(_HEADER, lines)]
    return parts


def _faster(rows: Sequence[Row]) -> Iterable[tuple[str, ...]]:
    """Yield how many times as long the best of the others takes, by dtype and prompt, at batch 1."""
    alone = [row for row in rows if row["batch_size"] == 1]
    for dtype in dict.fromkeys(row["dtype"] for row in alone):
        for length in sorted({row["num_prompt_tokens"] for row in alone}):
            found = [row for row in alone if (row["dtype"], row["num_prompt_tokens"]) == (dtype, length)]
            for figure, name in (("next_token_ms", "next token"), ("first_token_ms", "first token")):
                what = f"{name}, {dtype}, prompt of {length}: fastest other over ours"
                yield from _compared(what, 1.0, found, partial(_figure, figure), "ms")


def _figure(name: str, row: Row) -> float:
    return float(row[name])


def _compared(what: str, bound: float, rows: Sequence[Row], value: Callable[[Row], float], unit: str) -> Iterable[Any]:
    ours = [row for row in rows if row["engine"] == OURS]
    others = [row for row in rows if row["engine"] != OURS]
    if ours and others:
        mine, theirs = min(ours, key=value), min(others, key=value)
        yield _line(what, bound, value(theirs) / value(mine), _named(mine, value, unit), _named(theirs, value, unit))


def _batch(rows: Sequence[Row]) -> Iterable[tuple[str, ...]]:
    found = [row for row in rows if (row["batch_size"], row["dtype"]) == (_BATCH, _BFLOAT16)]
    ours = [row for row in found if row["engine"] == OURS]
    theirs = [row for row in found if row["engine"] in ("vllm", "vllm_tp")]
    if ours and theirs:
        mine, other = (max(group, key=_speed) for group in (ours, theirs))
        what = f"batch {_BATCH}, bfloat16, tokens/s: ours over vLLM-CPU"
        names = (_named(mine, _speed, "tokens/s"), _named(other, _speed, "tokens/s"))
        yield _line(what, _BATCH_BOUND, _speed(mine) / _speed(other), *names)


def _speed(row: Row) -> float:
    return float(row["decode_tokens_per_s"])


def _sums(rows: Sequence[Row]) -> Iterable[tuple[str, ...]]:
    """Yield the other engines' sums over ours, by size and placement; both are called from Python."""
    for placement in dict.fromkeys(row.get("placement", "near") for row in rows):
        for num_bytes in _SUM_BYTES:
            here = [row for row in rows if (row["bytes"], row.get("placement", "near")) == (num_bytes, placement)]
            ours = [row for row in here if (row["provider"], row["entry"]) == ("shm", "python")]
            theirs = [row for row in here if row["provider"] in _SUM_RIVALS]
            if not ours or not theirs:
                continue
            other = min(theirs, key=lambda row: float(row["p50_us"]))
            what = f"all-reduce of {size_name(num_bytes)}, {placement} cores: fastest other over ours"
            mine, rival = ours[0]["p50_us"], other["p50_us"]
            yield _line(what, 1.0, rival / mine, f"{mine:.2f} us", f"{title_of(other['provider'])} {rival:.2f} us")


def _named(row: Row, value: Callable[[Row], float], unit: str) -> str:
    ours = f"{row['num_ranks']} rank{'s' * (row['num_ranks'] > 1)}"
    who = ours if row["engine"] == OURS else title_of(row["engine"])
    return f"{who}, {format_of(row)}: {value(row):.2f} {unit}"


def _line(what: str, bound: float, ratio: float, ours: str, other: str) -> tuple[str, ...]:
    return (what, f"at least {bound:g}", f"{ratio:.2f}", ours, other, "yes" if ratio >= bound else "no")
