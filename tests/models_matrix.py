"""Runs every family on 1 to 4 ranks, in every type and kernel mode, and writes what came out to docs/models.md.

`make models-matrix`, or `PYTHONPATH=tests python -m models_matrix [FAMILY ...]`, which prints the rows of some. A cell
that differs from the whole model is written as such, and makes the exit code 1.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from typing import Any

import torch
import transformers

from corebound import kernels
from corebound.comm import Collectives
from corebound.errors import KernelError
from corebound.models.injection import describe_block, inject_kernels
from corebound.sharding.modules import shard_module
from fixtures.families import FAMILIES, Family
from fixtures.module_parity import LONG, RIGHT, SHORT, Answer, Sharder, answer, quiet_transformers
from fixtures.thread_group import ThreadCollectives, run_ranks
from models_pages import finish, wanted_families

BEGIN, END = "<!-- models-matrix: begin -->\n", "<!-- models-matrix: end -->\n"

RANKS = (1, 2, 3, 4)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def _inject(model: Any, collectives: Collectives) -> object:
    shard_module(model, collectives)
    return inject_kernels(model, collectives)


# How the blocks of a model compute: `module` is transformers' own code on split matrices, `inject` blocks of ours,
# `inject-reference` the same with the reference of every operator.
MODES: dict[str, Sharder] = {"module": shard_module, "inject": _inject, "inject-reference": _inject}

FLOAT32_ERROR = 2e-5  # of the largest logit
BFLOAT16_FACTOR = 2.0  # times the error that bfloat16 has on the whole model


@dataclass(frozen=True)
class Cell:
    """What one family on some ranks gave, in a type and a mode.

    Errors are of logits, as a part of the largest logit, against the whole model in float32 with the same weights: in
    float32 that of the worst token, in bfloat16 that of the median token, because rounding may turn a router's choice
    between experts. `whole_error` is the one that the whole model has in this type. `lacks` says what the mode has not
    got that the family needs; nothing is run then.
    """

    family: str
    num_ranks: int
    dtype: str
    mode: str
    same_tokens: bool
    error: float
    whole_error: float
    lacks: str = ""

    @property
    def holds(self) -> bool:
        """Return whether it is what it has to be: in float32 the same tokens, in bfloat16 no worse than bfloat16 is."""
        if self.lacks:
            return True
        if self.dtype == "float32":
            return self.same_tokens and self.error < FLOAT32_ERROR
        return self.error <= BFLOAT16_FACTOR * self.whole_error

    def __str__(self) -> str:
        if self.lacks:
            return f"no: {self.lacks}" if self.num_ranks == RANKS[0] else "-"
        if self.dtype == "float32":
            return f"{'same' if self.holds else '**differs**'}, {self.error:.0e}"
        return f"{'' if self.holds else '**differs**, '}{self.error:.0e}"


def cells(name: str, dtype: str, mode: str) -> list[Cell]:
    """Return the cells of one row: greedy tokens with padding on the left, logits with padding on either side."""
    family = FAMILIES[name]
    if MODES[mode] is _inject and (lack := lacks(family)):
        return [Cell(name, num_ranks, dtype, mode, False, 0.0, 0.0, lack) for num_ranks in RANKS]
    cases = (SHORT, RIGHT, *((LONG,) if family.window else ()))
    exact = [answer(_build(family, dtype).float(), case) for case in cases]
    whole = _error([answer(_build(family, dtype), case) for case in cases], exact, dtype)
    row = []
    for num_ranks in RANKS:

        def work(group: ThreadCollectives) -> list[Answer]:
            model = _build(family, dtype)
            MODES[mode](model, group)
            return [answer(model, case) for case in cases]

        with kernels.forced(mode="reference" if mode.endswith("-reference") else None):
            ranks = run_ranks(num_ranks, work)
        same = all(
            want.tokens is None or torch.equal(one.tokens, want.tokens)
            for answers in ranks
            for one, want in zip(answers, exact, strict=True)
        )
        row.append(Cell(name, num_ranks, dtype, mode, same, max(_error(one, exact, dtype) for one in ranks), whole))
    return row


def lacks(family: Family) -> str:
    """Return what blocks of ours lack that the family's have; nothing where they can be replaced."""
    try:
        describe_block(family.config())
    except KernelError as error:
        return error.message.partition("cannot express ")[2]
    return ""


def _build(family: Family, dtype: str) -> Any:
    model = family.build()
    # Only parameters: from_pretrained keeps the buffers of positions in float32.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(DTYPES[dtype])
    return model


def _error(found: list[Answer], wanted: list[Answer], dtype: str) -> float:
    tokens = torch.cat(
        [
            (one.logits.float() - want.logits).abs().amax(-1) / want.logits.abs().max()
            for one, want in zip(found, wanted, strict=True)
        ]
    )
    return float(tokens.max() if dtype == "float32" else tokens.median())


def table(rows: list[list[Cell]]) -> str:
    """Return the rows as a table in Markdown."""
    lines = [
        f"torch {torch.__version__.partition('+')[0]}, transformers {transformers.__version__}.",
        "",
        "| family | dtype | kernel mode | " + " | ".join(f"{ranks} rank{'s' * (ranks > 1)}" for ranks in RANKS) + " |",
        "|---" * (3 + len(RANKS)) + "|",
    ]
    for row in rows:
        first = row[0]
        lines.append(f"| {first.family} | {first.dtype} | {first.mode} | " + " | ".join(map(str, row)) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the matrix; write it, or print the rows of the families that were named."""
    wanted = wanted_families("models_matrix", __doc__)
    # Which attention runs in plain torch is no matter here, and every rank of every cell would say it.
    logging.getLogger("corebound.models.injection").setLevel(logging.ERROR)
    rows = []
    with quiet_transformers():
        for name in wanted or FAMILIES:
            rows += [cells(name, dtype, mode) for mode in MODES for dtype in DTYPES]
            print(name, file=sys.stderr)
    return finish(rows, wanted, table, (BEGIN, END), str)


if __name__ == "__main__":
    sys.exit(main())
