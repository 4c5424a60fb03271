"""Measures by how much every family's loading raises a rank's peak memory, and writes that to docs/models.md.

`make models-memory`, or `PYTHONPATH=tests python -m models_memory [FAMILY ...]`, which prints the rows of some. Every
figure is from processes that have loaded nothing before. A rank that needed more than its part of the weights and what
is allowed beyond is written as such, and makes the exit code 1.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from corebound.errors import KernelError, ModelLoadError
from corebound.models import describe
from corebound.models.injection import describe_block
from fixtures.families import FAMILIES
from fixtures.large_models import MIB, config_of, save_large_model
from fixtures.module_parity import quiet_transformers
from models_pages import finish, wanted_families
from multiproc import memory_tasks
from multiproc.memory_tasks import Grown
from multiproc.rank_harness import Ranks, preload, start_ranks

BEGIN, END = "<!-- models-memory: begin -->\n", "<!-- models-memory: end -->\n"

RANKS = (1, 2)
# The readers' buffers (1 MiB each), the code of libraries that loading is the first to run (3 MiB), Python's own
# objects (headers of the files, layers), what malloc keeps of matrices below its threshold for mappings, and huge pages
# at both ends of the arena (2 MiB each).
CONSTANT_BYTES = 16 * MIB
TIMEOUT_S = 100


@dataclass(frozen=True)
class Loader:
    """A way to load: what a rank runs, and what may be in memory twice, as it is said on the page."""

    task: Callable[..., Grown]
    settings: dict[str, Any]
    joins_block: bool = False


LOADERS = {
    "decoder": Loader(memory_tasks.load_decoder, {}),
    "init_inference": Loader(memory_tasks.load_module, {}),
    "init_inference, inject": Loader(memory_tasks.load_module, {"replace_with_kernel_inject": True}, joins_block=True),
}


@dataclass(frozen=True)
class Cell:
    """What the ranks of one load needed; `lacks` says why nothing was loaded."""

    family: str
    loader: str
    num_ranks: int
    ranks: tuple[Grown, ...] = ()
    lacks: str = ""

    @property
    def holds(self) -> bool:
        """Return whether every rank's peak is its part of the weights and no more than is allowed beyond."""
        joined = LOADERS[self.loader].joins_block
        return all(
            grown.peak_bytes <= grown.shard_bytes + CONSTANT_BYTES + joined * grown.block_bytes for grown in self.ranks
        )

    def __str__(self) -> str:
        if self.lacks:
            return f"no: {self.lacks}" if self.num_ranks == RANKS[0] else "-"
        worst = max(self.ranks, key=lambda grown: grown.peak_bytes - grown.shard_bytes)
        beyond = (worst.peak_bytes - worst.shard_bytes) / MIB
        return f"{'' if self.holds else '**more** '}{worst.shard_bytes / MIB:.1f} {beyond:+.1f}"


def cells(family: str, loader: str, path: Path) -> list[Cell]:
    """Return the cells of one row, of a checkpoint of the family at `path`."""
    if lack := lacks(family, loader):
        return [Cell(family, loader, num_ranks, lacks=lack) for num_ranks in RANKS]
    row = []
    for num_ranks in RANKS:
        with start_ranks(num_ranks, COREBOUND_LOG_LEVEL="warning") as job:
            row.append(Cell(family, loader, num_ranks, grown(job, loader, path)))
    return row


def grown(job: Ranks, loader: str, path: Path) -> tuple[Grown, ...]:
    """Return what each rank of a job needed to load a checkpoint."""
    how = LOADERS[loader]
    return tuple(job.run(how.task, path, timeout_s=TIMEOUT_S, **how.settings))


def lacks(family: str, loader: str) -> str:
    """Return what a way to load lacks that the family needs, by its configuration alone; nothing where it loads."""
    config = config_of(family)
    if loader == "decoder":
        with tempfile.TemporaryDirectory() as directory:
            config.architectures = [f"{FAMILIES[family].classes}ForCausalLM"]
            config.save_pretrained(directory)
            # That there are no weights is found out after what the configuration asks for.
            try:
                describe(directory, tokenizer=False)
            except ModelLoadError as error:
                return error.message.partition("config.json: ")[2].removeprefix("architectures: ")
    if LOADERS[loader].joins_block:
        try:
            describe_block(config)
        except KernelError as error:
            return error.message.partition("cannot express ")[2]
    return ""


def table(rows: list[list[Cell]]) -> str:
    """Return the rows as a table in Markdown."""
    lines = [
        f"torch {torch.__version__.partition('+')[0]}, transformers {transformers.__version__}.",
        "",
        "| family | loaded by | " + " | ".join(f"{ranks} rank{'s' * (ranks > 1)}, MiB" for ranks in RANKS) + " |",
        "|---" * (2 + len(RANKS)) + "|",
    ]
    lines += [f"| {row[0].family} | {row[0].loader} | " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure every family; write the table, or print the rows of the families that were named."""
    wanted = wanted_families("models_memory", __doc__)
    preload("transformers", "multiproc.memory_tasks")
    rows = []
    for family in wanted or FAMILIES:
        with tempfile.TemporaryDirectory() as directory, quiet_transformers():
            path = save_large_model(family, Path(directory) / "model")
            rows += [cells(family, loader, path) for loader in LOADERS]
        print(family, file=sys.stderr)
    return finish(
        rows, wanted, table, (BEGIN, END), lambda cell: f"{cell.family}, {cell.loader}, {cell.num_ranks} ranks: {cell}"
    )


if __name__ == "__main__":
    sys.exit(main())
