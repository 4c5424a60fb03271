"""corebound bench allreduce: the sum over ranks, beside the hardware's floor and gloo, in the same run."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from corebound.cli.launch_options import launch_options, spec_from_options
from corebound.cli.tables import format_bytes, render_table
from corebound.errors import CommError
from corebound.launcher.launch import launch

_UNITS = {"": 1, "b": 1, "kib": 1024, "mib": 1024**2, "gib": 1024**3, "kb": 1000, "mb": 1000**2, "gb": 1000**3}
_SIZE = re.compile(r"(\d+)\s*([a-z]*)", re.IGNORECASE)
_LARGEST_BYTES = 1024**3
DEFAULT_SIZES = ("8KiB", "64KiB", "1MiB")
DEFAULT_SIZES_OF_HOSTS = ("8KiB", "64KiB", "1MiB", "16MiB")
METHOD = (
    "microseconds a call on rank 0, CLOCK_MONOTONIC around each call; blocks of all rows alternate within every round, "
    "in rotating order, a barrier before each block. floor: processes swap the payload through shared memory and add "
    "it, in plain C++; the better of plain and streaming stores."
)
HOSTS_METHOD = (
    "microseconds a call on rank 0, CLOCK_MONOTONIC around each call; blocks of all rows alternate within every "
    "round, in rotating order, a barrier before each block. network: bytes of one call that arrive at any host "
    "from another, by the kernel's count of every connection, headers included; expected: what the algorithm should "
    "send, without headers (oneCCL chooses its own)."
)
FAKE = "The hosts are pretended: groups of ranks of this machine with a /dev/shm each, talking over loopback. "


class SizeType(click.ParamType[int]):
    """A number of bytes with an optional unit: 8192, 8KiB, 1MiB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number of bytes."""
        if isinstance(value, int):
            return value
        match = _SIZE.fullmatch(str(value).strip())
        unit = _UNITS.get(match[2].lower()) if match else None
        if match is None or unit is None:
            self.fail(f"expected bytes such as 8192, 8KiB or 1MiB, found {value!r}", param, ctx)
        num_bytes = int(match[1]) * unit
        if not 4 <= num_bytes <= _LARGEST_BYTES or num_bytes % 4:
            self.fail(f"expected a multiple of 4 from 4 bytes to 1 GiB, found {value!r}", param, ctx)
        return num_bytes


@click.command()
@click.option("--bytes", "sizes", type=SizeType(), multiple=True, help="Message size; repeatable.  [8KiB 64KiB 1MiB]")
@click.option(
    "--dtype",
    type=click.Choice(["bfloat16", "float16", "float32", "int32"]),
    default="bfloat16",
    show_default=True,
    help="Type of the elements.",
)
@click.option("--num-ranks", type=click.IntRange(2, 64), help="Ranks on this machine, without --hostfile.  [2]")
@click.option("--rounds", type=click.IntRange(1, 1000), default=20, show_default=True, help="Blocks of each row.")
@click.option(
    "--fake-hosts",
    type=click.IntRange(2, 16),
    help="Split the ranks into so many groups that share memory only among themselves, as hosts do, and compare the "
    "hierarchical provider with flat ones. All stay on this machine and talk over loopback. Needs root.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")
@launch_options
def allreduce(
    sizes: tuple[int, ...],
    dtype: str,
    num_ranks: int | None,
    rounds: int,
    fake_hosts: int | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Time the all-reduce over pinned ranks: shared memory (native, and from Python), gloo, and the floor.

    On several hosts: flat gloo, flat oneCCL, and hierarchical with gloo and with oneCCL between the hosts.

    \b
    Examples:
      corebound bench allreduce
      corebound bench allreduce --bytes 8KiB --bytes 32MiB --num-ranks 2 --json
      corebound bench allreduce --fake-hosts 2 --num-ranks 4
      corebound bench allreduce --hostfile hosts
    """  # noqa: D301  click reads the \b
    several = options["hostfile"] is not None
    if several and (num_ranks or fake_hosts):
        raise click.BadParameter("the hostfile says how many ranks run where", param_hint="--hostfile")
    num_ranks = num_ranks or 2
    if fake_hosts and num_ranks <= fake_hosts:
        raise click.BadParameter(
            f"expected more ranks than the {fake_hosts} hosts, found {num_ranks}", param_hint="--num-ranks"
        )
    defaults = DEFAULT_SIZES_OF_HOSTS if fake_hosts or several else DEFAULT_SIZES
    request = {
        "bytes": list(sizes) or [SizeType().convert(text, None, None) for text in defaults],
        "dtype": dtype,
        "rounds": rounds,
    }
    with contextlib.ExitStack() as stack:
        request["fake_hosts"] = stack.enter_context(_shared_memories(fake_hosts)) if fake_hosts else []
        if not several and options["num_accelerators"] is None:
            options["num_accelerators"] = num_ranks
        result, exit_code = run_ranks(request, options)
    if exit_code:
        return exit_code
    if as_json:
        click.echo(json.dumps(result, indent=2))
    else:
        click.echo(render(result))
    return 0


@contextlib.contextmanager
def _shared_memories(num_hosts: int) -> Iterator[list[str]]:
    """Make a directory for each host to use as its /dev/shm."""
    with tempfile.TemporaryDirectory(prefix="corebound-fake-hosts-", dir="/dev/shm") as directory:
        places = [Path(directory) / f"host{number}" for number in range(num_hosts)]
        for place in places:
            place.mkdir()
        yield [str(place) for place in places]


def run_ranks(request: dict[str, Any], options: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """Return what the ranks measured, and the exit code of the launch (the result is empty unless it is 0).

    Raises: CommError when they end without a result; whatever `launch` raises.
    """
    command = (sys.executable, "-m", "corebound.comm.bench_rank", "--request", json.dumps(request))
    spec = spec_from_options(command, bind_by_default=True, **options)
    with _captured_stdout() as written:
        exit_code = launch(spec)
        text = written()
    if exit_code:
        return {}, exit_code
    try:
        result = json.loads(text)
    except ValueError as error:
        raise CommError(
            "bench allreduce: the ranks ended without a result", hint="COREBOUND_LOG_LEVEL=debug"
        ) from error
    method = HOSTS_METHOD if "hierarchical" in result else METHOD
    return {**result, "method": f"{FAKE if request['fake_hosts'] else ''}{method}"}, 0


@contextlib.contextmanager
def _captured_stdout() -> Iterator[Callable[[], str]]:
    """Collect what ranks, wherever they are, write to standard output; yields what returns it."""
    sys.stdout.flush()
    saved = os.dup(1)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 1)

        def written() -> str:
            file.seek(0)
            return file.read().decode()

        try:
            yield written
        finally:
            os.dup2(saved, 1)
            os.close(saved)


def render(result: dict[str, Any]) -> str:
    """Return the table for humans."""
    first = result["rows"][0]
    title = f"all-reduce, {first['dtype']}, {first['num_ranks']} ranks"
    if "num_hosts" in first:
        return f"{title} on {first['num_hosts']} hosts\n{_hosts_table(result)}\n\n{result['method']}"
    header = ("size", "provider", "entry", "p10 us", "p50 us", "p90 us", "p99 us", "of floor")
    rows = [
        (
            format_bytes(row["bytes"]),
            row["provider"],
            row["entry"],
            *(row[f"p{p}_us"] for p in (10, 50, 90, 99)),
            f"{row['p50_us'] / row['floor_us']:.2f}x",
        )
        for row in result["rows"]
    ]
    return f"{title}\n{render_table(header, rows)}\n\n{METHOD}"


def _hosts_table(result: dict[str, Any]) -> str:
    header = ("size", "provider", "p10 us", "p50 us", "p90 us", "p99 us", "of gloo", "expected", "network")
    rows = [
        (
            format_bytes(row["bytes"]),
            f"{row['provider']} ({row['host_link']})" if row["host_link"] else row["provider"],
            *(row[f"p{p}_us"] for p in (10, 50, 90, 99)),
            f"{row['p50_us'] / row['gloo_us']:.2f}x",
            "-" if row["bytes_between_hosts"] is None else f"{row['bytes_between_hosts']} B",
            f"{row['network_bytes']} B",
        )
        for row in result["rows"]
    ]
    return render_table(header, rows)
