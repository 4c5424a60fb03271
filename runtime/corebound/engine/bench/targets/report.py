"""The part of a report that holds our promises: promised, found, met."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from corebound.engine.bench.markdown import date_and_machine, machine_table, markdown_table, span
from corebound.engine.bench.targets.settings import LINES

HEADER = ("what", "promised", "found", "p10", "p90", "rounds", "measured", "limit", "met")
METHOD = """\
## How the promises are judged

Our ranks load each model once and then take turns; between turns the same cores read memory that no cache holds and
multiply bfloat16 matrices. *Found* is the median over the rounds of the ratio of *measured* and *limit*, each of the
same round, beside its p10 and p90. The first token is the median of three long prompts, in the oldest run of one. A
round of the long context computes its prompt anew and is judged by the steps after it. Predictions are made from
ceilings that every round measures again.

Two ranks are held against one, beams against a batch, and not against the machine: no reading comes between them. Both
take short turns, several in every round and either first in every other pair, with a glance at how long a cache line
takes between two cores before, between and after them. A pair counts when the glances are alike, a round when a quarter
of its pairs do; its ratio is the median of theirs. A round begins up to twice as many pairs as it wants to count, for
30 seconds. Runs that say nothing of pairs are older: there each side was measured once a round, for longer, one right
after the other.

Memory is that of the process after its first prompt. What is promised is the part that came with the model, less what
Python and torch held before any model was there, since the promise is that weights are in memory once; the whole
process is told beside it. Between `cat` and each load as much fresh memory as the weights take is got and given back,
until that takes as long twice running, so that what a hypervisor must give first is not taken for the work of loading;
the notes say how long that took. Rounds of loading count that are steady: memory came as before after them, and the
processors were not moved; where the notes say nothing of that, memory was taken once, and all count. *Rounds* are those
that count.
"""


def render_run(result: dict[str, Any]) -> list[str]:
    """Return the parts of one run."""
    rows, load = result["rows"], result["load"]
    conditions = (
        f"{result['num_rounds']} rounds in {result['elapsed_s'] / 60:.0f} minutes. {_readings(result['readings'])}"
        f"{_turns(result.get('turns'))}{_pairs(result.get('pairs'))}"
        f"Other processes took {load['other_share']:.0%} of the processors' time, the hypervisor "
        f"{load['steal_share']:.0%}. {count_met(rows)}"
    )
    parts = [f"## Promises, {date_and_machine(result)}", machine_table(result["machine"]), conditions]
    for line, found in rows_by_line(rows).items():
        parts += [f"### {LINES[line][:1].upper()}{LINES[line][1:]}"]
        parts += [markdown_table(HEADER, [cells_of(row) for row in found])]
        notes = dict.fromkeys(row["note"] for row in found if row["note"])
        parts += [f"{note[:1].upper()}{note[1:]}." for note in notes]
        if line == "quality" and result["quality"]:
            parts.append(_quality(result["quality"]))
    return parts


def _readings(readings: Sequence[dict[str, float]]) -> str:
    if not readings:
        return ""
    reads = [reading["read_gb_per_s"] for reading in readings]
    products = [reading["gemm_gflop_per_s"] for reading in readings]
    return (
        f"Read bandwidth {span(reads, 1)} GB/s, bfloat16 GEMM peak {span(products, 0)} GFLOP/s (median, and range over "
        f"{len(readings)} readings). "
    )


def _turns(turns: dict[str, int] | None) -> str:
    if turns is None:
        return ""
    return (
        "Turns around which a cache line between the first core and the last took another time than is usual in their "
        "round, by more than a quarter, because the hypervisor had moved the processors, were done again, up to three "
        f"times, those of more than 20 s never: {turns['repeated']} times in all; {turns['moved']} turns are of moved "
        "processors all the same. Rounds in which they did not lie the same for all that is compared do not count "
        "where there are others. "
    )


def _pairs(pairs: dict[str, int] | None) -> str:
    if pairs is None or pairs["done"] == 0:
        return ""
    return (
        f"Of {pairs['done']} pairs of turns that are held against each other the processors lay still in "
        f"{pairs['still']}. "
    )


def _quality(printed: dict[str, Any]) -> str:
    header = ("weights", "bits a weight", "perplexity", "logits error", "same top token")
    rows = [
        (
            row["scheme"],
            f"{row['bits_per_weight']:.2f}",
            f"{row['perplexity']:.4f}",
            f"{row['logits_error']:.5f}",
            f"{row['same_top_token']:.2%}",
        )
        for row in printed["rows"]
    ]
    return markdown_table(header, rows)


def cells_of(row: dict[str, Any]) -> tuple[str, ...]:
    """Return the cells of a row under `HEADER`."""
    if row["found"] is None:
        return (row["what"], row["promised"], "not measured", "", "", "", "", "", "")
    found = row["found"]
    met = {True: "yes", False: "no", None: ""}[row["is_met"]]
    spread = tuple(f"{found[name]:.3f}" for name in ("median", "p10", "p90"))
    quantities = (_quantity(row["measured"]), _quantity(row["limit"]))
    pairs = sum(row.get("pairs_per_round", ()))
    rounds = f"{row['num_rounds']}, {pairs} pairs" if pairs else str(row["num_rounds"])
    return (row["what"], row["promised"], *spread, rounds, *quantities, met)


def _quantity(measured: dict[str, Any] | None) -> str:
    if measured is None:
        return ""
    value = measured["median"]
    digits = 2 if abs(value) < 100 else 0
    return f"{measured['name']} {value:.{digits}f} {measured['unit']}".rstrip()


def count_met(rows: Sequence[dict[str, Any]]) -> str:
    """Return how many promises are kept, in words."""
    promised = [row for row in rows if row["is_met"] is not None]
    missing = [row for row in rows if row["found"] is None]
    text = f"{sum(row['is_met'] for row in promised)} of {len(promised)} promises are kept"
    return f"{text}; {len(missing)} could not be measured here." if missing else f"{text}."


def rows_by_line(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of every line, in the order of the lines."""
    return {line: found for line in LINES if (found := [row for row in rows if row["line"] == line])}
