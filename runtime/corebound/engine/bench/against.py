"""The promises that are held against other engines: ours and the best of theirs, from what `bench peers` found."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from corebound.engine.bench.markdown import date_and_machine, markdown_table, size_name
from corebound.engine.bench.peers.tables import format_of, title_of, title_of_run
from corebound.engine.bench.placements import FAR, NEAR
from corebound.engine.bench.series import rounds_that_count
from corebound.engine.bench.session import OURS

_HEADER = ("what", "promised", "found", "ours", "the other", "met")
_SUM_BYTES = (8 << 10, 64 << 10, 1 << 20, 32 << 20)
_SUM_RIVALS = ("vllm_tp", "deepspeed_tp")
_BATCH, _BATCH_BOUND = 16, 1.2
_BFLOAT16 = "bfloat16"

_METHOD = """\
Ours and the other are those with the best median over all rounds. *Found* is the median over the rounds of the ratio
within a round, where it says so over those, three at least, in which the processors lay the same: around both turns, or
in runs whose results have `lines_ns_per_round` around both cases; or the ratio of the two medians: of sums, and of
engines that were not there in every round.
"""

Row = dict[str, Any]
Line = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Compared:
    """What two engines are compared by: of a row, and of a comparison of rounds."""

    figure: str
    ratio: str
    per_round: str
    unit: str
    lower_is_better: bool = True

    def of(self, row: Row) -> float:
        """Return the figure of a row."""
        return float(row[self.figure])

    def best(self, rows: Sequence[Row]) -> Row:
        """Return the row with the best median."""
        return min(rows, key=self.of) if self.lower_is_better else max(rows, key=self.of)


_NEXT = _Compared(figure="next_token_ms", ratio="decode_speed_ratio", per_round="ratio_per_round", unit="ms")
_FIRST = _Compared(
    figure="first_token_ms", unit="ms", ratio="first_token_ratio", per_round="first_token_ratio_per_round"
)
_SPEED = _Compared(
    figure="decode_tokens_per_s",
    ratio="decode_speed_ratio",
    per_round="ratio_per_round",
    unit="tokens/s",
    lower_is_better=False,
)


def render_against(results: Sequence[dict[str, Any]]) -> list[str]:
    """Return the parts of a page: a table of the promises for each run of engines that took turns, and its method."""
    parts = []
    for result in results:
        rows, sums = result["rows"], result.get("all_reduce") or []
        rounds = result.get("comparisons") or []
        lines = [*_faster(rows, rounds), *_batch(rows, rounds)] if _has_others(rows) else []
        lines += _sums(sums) if _has_others(rows) or _summed_by_others(sums) else []
        if lines:
            parts += [f"## Against other engines, {title_of_run(result)}, {date_and_machine(result)}"]
            parts += [markdown_table(_HEADER, lines), _METHOD]
    return parts


def _has_others(rows: Sequence[Row]) -> bool:
    return any(row["engine"] != OURS for row in rows)


def _summed_by_others(sums: Sequence[Row]) -> bool:
    return any(row["provider"] in _SUM_RIVALS for row in sums)


def _faster(rows: Sequence[Row], rounds: Sequence[Row]) -> Iterable[Line]:
    """Yield how many times as long the best of the others takes, by dtype and prompt, at batch 1."""
    alone = [row for row in rows if row["batch_size"] == 1]
    for dtype in dict.fromkeys(row["dtype"] for row in alone):
        for length in sorted({row["num_prompt_tokens"] for row in alone}):
            found = [row for row in alone if (row["dtype"], row["num_prompt_tokens"]) == (dtype, length)]
            ours, others = _parted(found, None)
            for by, name in ((_NEXT, "next token"), (_FIRST, "first token")):
                what = f"{name}, {dtype}, prompt of {length}: fastest other over ours"
                yield from _held(what, 1.0, by, ours, others, rounds)


def _batch(rows: Sequence[Row], rounds: Sequence[Row]) -> Iterable[Line]:
    found = [row for row in rows if (row["batch_size"], row["dtype"]) == (_BATCH, _BFLOAT16)]
    what = f"batch {_BATCH}, bfloat16, tokens/s: ours over vLLM-CPU"
    return _held(what, _BATCH_BOUND, _SPEED, *_parted(found, ("vllm", "vllm_tp")), rounds)


def _parted(rows: Sequence[Row], names: Sequence[str] | None) -> tuple[list[Row], list[Row]]:
    ours = [row for row in rows if row["engine"] == OURS]
    return ours, [row for row in rows if row["engine"] != OURS and (names is None or row["engine"] in names)]


def _held(
    what: str, bound: float, by: _Compared, ours: Sequence[Row], others: Sequence[Row], rounds: Sequence[Row]
) -> Iterable[Line]:
    """Yield the line of the best of ours against the best of the others; none where we were not measured."""
    if not ours:
        return
    mine = by.best(ours)
    if not others:
        yield (what, f"at least {bound:g}", "not measured", _named(mine, by), "none ran", "")
        return
    theirs = by.best(others)
    slower, faster = (theirs, mine) if by.lower_is_better else (mine, theirs)
    found = f"{(ratio := by.of(slower) / by.of(faster)):.2f}, of medians"
    for one in rounds:
        same = all(one[key] == mine[key] for key in ("dtype", "num_ranks", "num_prompt_tokens", "batch_size"))
        if same and one["with"] == theirs["engine"] and by.ratio in one:
            ratio, counted = _of_rounds(one, by)
            found = f"{ratio:.2f}{counted}"
    yield (what, f"at least {bound:g}", found, _named(mine, by), _named(theirs, by), _met(ratio, bound))


def _of_rounds(one: Row, by: _Compared) -> tuple[float, str]:
    """Return the ratio of a comparison, and how many rounds count where that is not all.

    Runs of before that was known count all rounds, and some counted fewer than are enough.
    """
    if "round_counts" not in one:
        return float(one[by.ratio]), ""
    counts, ratios = rounds_that_count(one["round_counts"]), one[by.per_round]
    told = "" if all(counts) else f", {sum(counts)} of {len(counts)} rounds"
    return statistics.median(itertools.compress(ratios, counts)), told


def _sums(rows: Sequence[Row]) -> Iterable[Line]:
    """Yield the other engines' sums over ours, by placement and size; both are called from Python."""
    found = list(dict.fromkeys(row.get("placement", NEAR) for row in rows))
    for placement in [*found, *(name for name in (NEAR, FAR) if rows and name not in found)]:
        if placement not in found:
            what = f"all-reduce, {placement} cores: fastest other over ours"
            yield (what, "at least 1", "not measured", f"this machine has no two {placement} cores", "", "")
        for num_bytes in _SUM_BYTES:
            here = [row for row in rows if (row["bytes"], row.get("placement", NEAR)) == (num_bytes, placement)]
            if here:
                yield _sum(f"all-reduce of {size_name(num_bytes)}, {placement} cores: fastest other over ours", here)


def _sum(what: str, rows: Sequence[Row]) -> Line:
    ours = [row for row in rows if (row["provider"], row["entry"]) == ("shm", "python")]
    theirs = [row for row in rows if row["provider"] in _SUM_RIVALS]
    said = f"{ours[0]['p50_us']:.2f} us" if ours else "no shared memory"
    if not ours or not theirs:
        return (what, "at least 1", "not measured", said, "" if theirs else "none ran", "")
    other = min(theirs, key=lambda row: float(row["p50_us"]))
    named = f"{title_of(other['provider'])}: {other['p50_us']:.2f} us"
    ratio = other["p50_us"] / ours[0]["p50_us"]
    return (what, "at least 1", f"{ratio:.2f}, of medians", said, named, _met(ratio, 1.0))


def _named(row: Row, by: _Compared) -> str:
    ours = f"{row['num_ranks']} rank{'s' * (row['num_ranks'] > 1)}"
    who = ours if row["engine"] == OURS else title_of(row["engine"])
    return f"{who}, {format_of(row)}: {by.of(row):.2f} {by.unit}"


def _met(ratio: float, bound: float) -> str:
    return "yes" if ratio >= bound else "no"
