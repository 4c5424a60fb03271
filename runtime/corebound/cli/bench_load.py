"""`corebound bench load`: how long a model takes to load, in turns with `cat` of its files."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import click

from corebound.cli.bench_model import benchmark_model_dir
from corebound.cli.tables import render_table
from corebound.engine.bench.load import LoadWatch
from corebound.engine.bench.load_times import measure_load
from corebound.engine.bench.page_cache import where
from corebound.engine.bench.shapes import SHAPES
from corebound.engine.request import DTYPE_CHOICES, require_dtype
from corebound.errors import ConfigError
from corebound.models import describe
from corebound.models.stored import weights_name
from corebound.quantization.scheme import is_scheme

_COLUMNS = (
    ("model", "model", None),
    ("weights", "weights", None),
    ("read from", "source", None),
    ("ranks", "num_ranks", None),
    ("threads", "num_threads", None),
    ("GB", "gb", 2),
    ("files", "files", None),
    ("cat s", "cat_s", 3),
    ("memory s", "memory_s", 3),
    ("load s", "load_s", 3),
    ("ratio", "ratio", 2),
    ("rounds", "num_kept", None),
    ("all rounds", "ratio_of_all", 2),
)


@click.command()
@click.option("--model", metavar="DIR|ID", help="Directory of a Hugging Face model, an id of the hub, or `demo`.")
@click.option("--shape", metavar=f"{{{','.join(SHAPES)}}}", help="A random model of this shape, written once.")
@click.option("--dtype", default="bfloat16", show_default=True, metavar=f"{{{','.join(DTYPE_CHOICES)}}}")
@click.option("--num-ranks", default=1, show_default=True, type=click.IntRange(1), help="Ranks on this machine.")
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1), help="Rounds; figures are medians.")
@click.option("--cold", is_flag=True, help="Measure also with the files dropped from the page cache before each.")
@click.option("--written", is_flag=True, help="Measure also what `corebound shard` makes of it, in --work-dir.")
@click.option(
    "--work-dir", type=click.Path(path_type=Path, file_okay=False), metavar="DIR", help="For --written; else TMPDIR."
)
@click.option("--cache-dir", type=click.Path(path_type=Path), help="Where models of a shape are kept.", metavar="DIR")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def load(
    model: str | None,
    shape: str | None,
    dtype: str,
    num_ranks: int,
    rounds: int,
    cold: bool,
    written: bool,
    work_dir: Path | None,
    cache_dir: Path | None,
    as_json: bool,
) -> int:
    """Measure how long ranks take until all weights are in their place, in turns with `cat` of the same files.

    Files come from the page cache, where a round before the first puts them, so this is the work that loading adds to
    the disk's; with --cold rounds follow in which they come from the disk, and the column `files` says what stayed in
    memory nevertheless. Before each load fresh memory of as many bytes is taken and given back, in the column
    `memory s`, until that takes as long twice running: on a virtual machine it may be the hypervisor's to give. Rounds
    count during which the processors were not moved and after which memory comes as it did before, others are done
    again, four for each of --rounds at most; the column `all rounds` has the ratio with those that do not count. From
    the disk every round counts.

    \b
    Examples:
      corebound bench load --shape llama-1.1b --written
      corebound bench load --shape llama-1.1b --dtype int8 --cold
      corebound bench load --model ./llama --dtype int4 --num-ranks 2 --json
    """  # noqa: D301  click reads the \b
    require_dtype(dtype)
    if not is_scheme(dtype) and dtype != "bfloat16":
        raise ConfigError(f"--dtype {dtype}: only bfloat16, int8 and int4 have a native decoder", hint="leave it out")
    directory = benchmark_model_dir(model, shape, cache_dir)
    watch = LoadWatch()
    rows = _rows(directory, dtype, num_ranks, rounds, cold)
    if written and rows[0]["source"] == "checkpoint":
        with _written(directory, dtype, num_ranks, work_dir) as output:
            rows += _rows(output, "bfloat16", num_ranks, rounds, cold)
    facts = {"rows": rows, "machine_load": watch.finish().to_json()}
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    else:
        header = tuple(title for title, _, _ in _COLUMNS)
        click.echo(render_table(header, [_cells(row) for row in rows]))
    return 0


def _cells(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[key] if digits is None else round(row[key], digits) for _, key, digits in _COLUMNS)


def _rows(directory: Path, dtype: str, num_ranks: int, rounds: int, cold: bool) -> list[dict[str, Any]]:
    return [_row(directory, dtype, num_ranks, rounds, dropped) for dropped in ((False, True) if cold else (False,))]


def _row(directory: Path, dtype: str, num_ranks: int, rounds: int, cold: bool) -> dict[str, Any]:
    description = describe(directory, tokenizer=False)
    if description.shards is not None:
        description.shards.require_ranks(num_ranks)
    times = measure_load(directory, dtype, num_ranks, rounds, cold=cold)
    return {
        "model": description.name,
        "weights": weights_name(description, dtype),
        "source": "checkpoint" if description.shards is None else "written for ranks",
        "num_ranks": num_ranks,
        "num_threads": times.num_threads,
        "gb": times.num_bytes / 1e9,
        "num_bytes": times.num_bytes,
        "files": where(times.dropped_share) if cold else "in the page cache",
        **{name: median(getattr(one, name) for one in times.kept) for name in ("cat_s", "memory_s", "load_s")},
        "ratio": times.ratio,
        "num_kept": len(times.kept),
        "ratio_of_all": times.ratio_of_all,
        "rounds": [asdict(one) for one in times.rounds],
    }


@contextlib.contextmanager
def _written(directory: Path, dtype: str, num_ranks: int, work_dir: Path | None) -> Iterator[Path]:
    """Enter with the model written for its ranks; it is removed afterwards."""
    # Here, because it imports torch.
    from corebound.models.shard_writing import write_shards

    with tempfile.TemporaryDirectory(prefix="corebound-load-", dir=work_dir) as parent:
        output = Path(parent) / directory.resolve().name
        write_shards(describe(directory, tokenizer=False), output, num_ranks, dtype)
        yield output
