"""`corebound bench peers`: Corebound and other engines in turns on the same weights and prompts, and a report."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

from corebound.cli import bench_generate, bench_peers_sums, bench_targets
from corebound.cli.bench_generate import NumbersType
from corebound.cli.bench_model import benchmark_model_dir
from corebound.cli.signals import ended_by_sigterm
from corebound.config.suggest import require_choice
from corebound.engine.bench import results as files
from corebound.engine.bench import session
from corebound.engine.bench.load import LoadWatch
from corebound.engine.bench.page import write_page
from corebound.engine.bench.peers import machine
from corebound.engine.bench.peers.catalog import DEFAULT_FOLDER, PEERS
from corebound.engine.bench.shapes import SHAPES
from corebound.errors import ConfigError
from corebound.topology import read_topology


@click.command()
@click.option("--peers", "names", metavar="NAME[,NAME]", help=f"Of {', '.join(PEERS)}.  [all]")
@click.option("--shape", default="llama-1.1b", show_default=True, metavar=f"{{{','.join(SHAPES)}}}")
@click.option("--dtype", default="bfloat16", show_default=True, metavar="NAME[,NAME]", help="Of the weights.")
@click.option("--prompt-tokens", default="32,512", show_default=True, type=NumbersType(), metavar="N[,N]")
@click.option("--batch", default="1,4,16", show_default=True, type=NumbersType(), metavar="N[,N]")
@click.option("--new-tokens", default=48, show_default=True, type=click.IntRange(2), metavar="N")
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1), help="Rounds; figures are medians.")
@click.option(
    "--ranks", "ranks", default="1,2", show_default=True, type=NumbersType(), help="Of ours.", metavar="N[,N]"
)
@click.option("--all-reduce/--no-all-reduce", "sums", default=True, show_default=True, help="Time sums of 2 ranks too.")
@click.option("--only-all-reduce", "only_sums", is_flag=True, help="Time sums of 2 ranks and no engine.")
@click.option("--peers-dir", type=click.Path(path_type=Path), help="Where the engines are installed.", metavar="DIR")
@click.option("--cache-dir", type=click.Path(path_type=Path), help="Where models of a shape are kept.", metavar="DIR")
@click.option(
    "--results", type=click.Path(dir_okay=False, path_type=Path), help="Write the JSON there.", metavar="FILE"
)
@click.option(
    "--from-results",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Measure nothing: report on these earlier results, of `bench targets` too; repeatable.",
    metavar="FILE",
)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Write a report there.", metavar="FILE")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def peers(
    names: str | None,
    from_results: tuple[Path, ...],
    results: Path | None,
    output: Path | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Measure Corebound and other engines in turns, on the same weights, prompts and cores.

    Each engine runs in an environment of its own, made by `make bench-peers`, in a process of its own. Its turn lies
    between two readings of the memory's bandwidth and of the bfloat16 GEMM peak, and its figures are fractions of
    those. Larger batches have prompts of the first length. An engine that is missing or fails is reported with the
    reason. --output writes a report in Markdown, with plots beside it.

    \b
    Examples:
      corebound bench peers --output reports/peers.md --results reports/peers.json
      corebound bench peers --peers llama_cpp,openvino --dtype bfloat16,int8,int4 --rounds 5 --json
      corebound bench peers --shape llama-tiny --rounds 1 --new-tokens 8    a try in a minute
      corebound bench peers --peers vllm,deepspeed --only-all-reduce --rounds 5
      corebound bench peers --from-results reports/peers.json --from-results reports/targets.json \\
          --output reports/benchmarks.md
    """  # noqa: D301  click reads the \b
    for path in (results, output):
        if path is not None:
            files.require_writable(path)
    with ended_by_sigterm():
        found = [files.read(path) for path in from_results] or [measure(_chosen(names, options), results, **options)]
    if output is not None:
        for written in write_page(found, output):
            click.echo(f"written: {written}", err=True)
    click.echo(json.dumps(found[0] if len(found) == 1 else found, indent=2) if as_json else _tables(found))
    return 0


def measure(names: list[str], results: Path | None = None, **options: Any) -> dict[str, Any]:
    """Return everything that one run found, as JSON values; `results` holds what there is after each round."""
    folder = options["peers_dir"] or DEFAULT_FOLDER
    watch = LoadWatch()
    facts: dict[str, Any] = {
        "schema": files.SCHEMA,
        "command": _command(names, options),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": machine.describe(read_topology()),
    }
    if options["only_sums"]:
        found = facts | {"rows": [], "comparisons": [], "failures": [], "readings": [], "num_rounds": options["rounds"]}
    else:
        found = _engines(names, folder, facts | {"shape": options["shape"]}, watch, results, options)
    if options["sums"]:
        rows, failures = bench_peers_sums.measure(
            names, folder, options["rounds"], lambda text: click.echo(text, err=True)
        )
        found |= {"all_reduce": rows, "failures": found["failures"] + failures, "load": watch.finish().to_json()}
    return _save(found, results)


def _engines(
    names: list[str],
    folder: Path,
    facts: dict[str, Any],
    watch: LoadWatch,
    results: Path | None,
    options: dict[str, Any],
) -> dict[str, Any]:
    """Return what the rounds of the engines came to, `facts` included."""
    dtypes = [_known(name) for name in options["dtype"].split(",")]
    directory = benchmark_model_dir(None, options["shape"], options["cache_dir"])
    contenders, left_out = _contenders(names, dtypes, options["ranks"], folder)

    def gather(outcome: session.Outcome) -> dict[str, Any]:
        found = facts | bench_generate.result_of(outcome)
        found["failures"] = [vars(failure) for failure in left_out] + found["failures"]
        found["num_rounds"] = max(len(series.samples) for series in outcome.series)
        found["readings"] = [vars(reading) for reading in outcome.readings]
        return _save(found | {"load": watch.finish().to_json()}, results)

    outcome = bench_generate.run(
        contenders,
        directory,
        options["prompt_tokens"],
        options["batch"],
        options["new_tokens"],
        options["rounds"],
        batch_all_lengths=False,
        on_round=gather,
    )
    return gather(outcome)


def _save(found: dict[str, Any], results: Path | None) -> dict[str, Any]:
    """Write what was found where it was asked for, and return it."""
    if results is not None:
        files.write(results, found)
    return found


def _contenders(
    names: list[str], dtypes: list[str], ranks: tuple[int, ...], folder: Path
) -> tuple[list[session.Contender], list[session.Failure]]:
    """Return who takes part in the order of turns, ours before the others of each dtype, and who does not, and why."""
    taking_part, left_out = [], []
    for dtype in dtypes:
        taking_part += [session.our_ranks(dtype, count) for count in ranks]
        for name in names:
            peer = PEERS[name]
            if peer.python(folder) is None:
                left_out.append(session.Failure(engine=name, dtype=dtype, reason=peer.why_missing(folder)))
            elif dtype not in peer.formats:
                known = ", ".join(peer.formats)
                left_out.append(session.Failure(engine=name, dtype=dtype, reason=f"runs {known} only"))
            else:
                taking_part.append(session.peer_engine(name, peer, dtype, folder))
    return taking_part, left_out


def _chosen(names: str | None, options: dict[str, Any]) -> list[str]:
    if options["only_sums"] and not options["sums"]:
        raise ConfigError("--only-all-reduce and --no-all-reduce leave nothing to measure")
    if names is None:
        return list(PEERS)
    chosen = [require_choice("engine", name, PEERS, where="--peers") for name in names.split(",")]
    if options["only_sums"]:
        bench_peers_sums.require_sums(chosen)
    return chosen


def _known(dtype: str) -> str:
    return require_choice("dtype", dtype, session.BITS_PER_WEIGHT, where="--dtype")


def _command(names: list[str], options: dict[str, Any]) -> str:
    """Return the words that measure this again, without places of this machine."""
    words = ["corebound bench peers"]
    chosen = [f"--peers {','.join(names)}"] if names != list(PEERS) else []
    if options["only_sums"]:
        return " ".join([*words, *chosen, "--only-all-reduce", f"--rounds {options['rounds']}"])
    words += [f"--shape {options['shape']}", f"--dtype {options['dtype']}", *chosen]
    for flag in ("prompt_tokens", "batch", "ranks"):
        words.append(f"--{flag.replace('_', '-')} {','.join(map(str, options[flag]))}")
    words += [f"--new-tokens {options['new_tokens']}", f"--rounds {options['rounds']}"]
    return " ".join(words if options["sums"] else [*words, "--no-all-reduce"])


def _tables(results: list[dict[str, Any]]) -> str:
    return "\n\n".join(table for result in results for table in _tables_of(result))


def _tables_of(result: dict[str, Any]) -> list[str]:
    if result.get("benchmark") == files.TARGETS:
        return [bench_targets.table(result)]
    engines = [bench_generate.table(result)] if result["rows"] else []
    sums = [bench_peers_sums.table(result)] if result.get("all_reduce") else []
    return engines + sums
