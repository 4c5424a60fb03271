"""`corebound bench`: what this machine can do, and how close Corebound comes to it."""

from __future__ import annotations

import click

from corebound.cli.lazy_group import LazyGroup

# Subcommand -> (module that holds its click command under the same name, one line of help). Some need torch.
BENCHMARKS: dict[str, tuple[str, str]] = {
    "allreduce": ("corebound.cli.bench_allreduce", "Time the sum over ranks, beside the floor and gloo."),
    "generate": ("corebound.cli.bench_generate", "Time prefill and decode of a model."),
    "load": ("corebound.cli.bench_load", "Time loading a model, in turns with `cat` of its files."),
    "machine": ("corebound.cli.bench_machine", "Measure all ceilings: reads, products of matrices, cache lines."),
    "memory": ("corebound.cli.bench_memory", "Measure the read bandwidth of memory, the ceiling of decode."),
    "peers": ("corebound.cli.bench_peers", "Measure Corebound and other engines in turns, and write a report."),
    "quality": ("corebound.cli.bench_quality", "Measure what int8 and int4 weights cost in perplexity and logits."),
    "targets": ("corebound.cli.bench_targets", "Measure every promised figure beside its limit."),
}


@click.command(cls=LazyGroup, table=BENCHMARKS, noun="benchmark")
def bench() -> None:
    """Measure this machine and Corebound on it, against its own ceiling.

    \b
    Examples:
      corebound bench machine
      corebound bench memory
      corebound bench allreduce --bytes 8KiB
      corebound bench generate --shape llama-1.1b --num-ranks 2 --compare transformers
      corebound bench load --shape llama-1.1b --written
      corebound bench quality --model demo
      corebound bench targets --results reports/targets.json
    """  # noqa: D301  click reads the \b
