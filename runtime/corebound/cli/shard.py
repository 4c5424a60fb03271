"""`corebound shard`: a checkpoint in the form that ranks read without converting."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

import click

from corebound.cli.model_job import allow_pickled_weights_option
from corebound.cli.signals import ended_by_sigterm
from corebound.cli.tables import count, format_bytes
from corebound.engine.progress import Progress
from corebound.engine.request import DTYPE_CHOICES, require_dtype
from corebound.models import describe, resolve_model


def _dashes(name: str) -> str:
    return name.replace("_", "-")


@click.command(context_settings={"token_normalize_func": _dashes, "help_option_names": ["-h", "--help"]})
@click.option("--model", required=True, metavar="DIR|ID", help="Directory of a Hugging Face model, an id, or `demo`.")
@click.option("--output", required=True, type=click.Path(path_type=Path), metavar="DIR", help="Directory to write.")
@click.option("--num-ranks", default=1, show_default=True, type=click.IntRange(1), help="Ranks that will load it.")
@click.option("--dtype", default="bfloat16", show_default=True, metavar=f"{{{','.join(DTYPE_CHOICES)}}}")
@click.option("--force", is_flag=True, help="Replace what an earlier call wrote there.")
@allow_pickled_weights_option
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON.")
def shard(
    model: str, output: Path, num_ranks: int, dtype: str, force: bool, allow_pickled_weights: bool, as_json: bool
) -> int:
    """Write a model once in the form that its ranks read without converting.

    Every rank gets a file with its part of the weights, quantized and arranged as its kernels read them; loading it
    takes about as long as reading the file. The directory is a model: give it to --model, with as many ranks as it
    was written for. AWQ and GPTQ checkpoints keep their codes. A directory that was written for some ranks can be
    --model for others, without its checkpoint; its weights stay as they are.

    What is there already is verified and kept; the directory appears when it is whole.

    \b
    Examples:
      corebound shard --model ./llama --output ./llama-int4-2 --num-ranks 2 --dtype int4
      corebound generate --model ./llama-int4-2 --num-accelerators 2 --prompt "The old ship"
      corebound shard --model ./llama-awq --output ./llama-awq-4 --num-ranks 4
      corebound shard --model ./llama-awq-4 --output ./llama-awq-2 --num-ranks 2
    """  # noqa: D301  click reads the \b
    require_dtype(dtype)
    description = describe(resolve_model(model), tokenizer=False, allow_pickled_weights=allow_pickled_weights)
    # Here, because it imports torch, and a mistake in the arguments should not wait for that.
    from corebound.models.shard_writing import write_shards

    started_s = time.perf_counter()
    with ended_by_sigterm(), _one_thread() as num_threads, Progress(f"writing {output}") as progress:
        shards, written = write_shards(
            description, output, num_ranks, dtype, force=force, progress=progress.update, num_threads=num_threads
        )
    seconds = time.perf_counter() - started_s
    if as_json:
        facts = {
            "output": str(output),
            "model": shards.model,
            "weights": shards.weights,
            "num_ranks": shards.num_ranks,
            "num_bytes": shards.num_bytes,
            "written": written,
            "seconds": round(seconds, 3),
        }
        click.echo(json.dumps(facts, indent=2))
    else:
        what = f"{shards.model} as {shards.weights} for {count(shards.num_ranks, 'rank')}, "
        what += format_bytes(shards.num_bytes)
        done = f"written in {seconds:.1f} s" if written else "was there already, and whole"
        click.echo(f"{output}: {what}: {done}")
    return 0


@contextlib.contextmanager
def _one_thread() -> Iterator[int]:
    """Let torch use one thread, and enter with what it had, which is for several parts at once.

    Parts fit a core's cache, so that several threads on one mostly wait, on a busy machine for long.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield before
    finally:
        torch.set_num_threads(before)
