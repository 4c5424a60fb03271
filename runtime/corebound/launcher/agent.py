"""The agent of one node: binds and starts its ranks, supervises them and cleans up.

Run as `python -m corebound.launcher.agent`. Its part of the plan is the first line of standard input. Later lines are
`{"signal": n}`; the end of standard input means that the launcher is gone. `--events-fd N` names a descriptor for
events; without it they are logged.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys

from corebound import logs
from corebound.config import env
from corebound.errors import CoreboundError
from corebound.launcher.binding import Arrangement, arrange, omp_num_threads
from corebound.launcher.events import EventWriter, Failure
from corebound.launcher.part import AgentPart, RankPart, part_from_json
from corebound.launcher.processes import remove_segments
from corebound.launcher.ranks import start_rank
from corebound.launcher.shim import set_death_signal
from corebound.launcher.signals import SignalPipe, awaitable_children
from corebound.launcher.spec import LOCALHOST
from corebound.launcher.supervise import WATCHED, Supervisor
from corebound.topology import read_topology

_PR_SET_CHILD_SUBREAPER = 36
_FOREIGN_BINDING = ("KMP_AFFINITY", "GOMP_CPU_AFFINITY")


@awaitable_children()
def main(argv: list[str]) -> int:
    """Carry out the part on standard input and return the exit code of the launch."""
    events_fd = int(argv[1]) if argv[:1] == ["--events-fd"] else None
    if events_fd is not None:
        os.set_inheritable(events_fd, False)
    logs.setup(env.settings().log_level)
    events = EventWriter(events_fd)
    with SignalPipe(WATCHED) as signals:
        host = socket.gethostname()
        try:
            line, control = _first_line(0)
            part = part_from_json(line)
            host = host if part.host == LOCALHOST else part.host
            code = run_part(part, host, events, signals, control)
        except CoreboundError as error:
            code = error.exit_code
            events.failed(Failure(host=host, exit_code=code, reason=f"failed: {error.message}", hint=error.hint))
    events.done(code)
    return code


def run_part(part: AgentPart, host: str, events: EventWriter, signals: SignalPipe, control: bytes = b"") -> int:
    """Run the ranks of a part to their end, remove what they left and return the exit code.

    `control` is what was already read of the launcher's later words. Raises: CoreboundError before any rank is started.
    """
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    if part.parent_pid is not None:
        set_death_signal(part.parent_pid, signal.SIGTERM)
    topology = read_topology()
    arrangement = arrange(topology, part.num_slots, bind_cores=part.bind_cores, core_list=part.core_list)
    environ = _base_environ(part, arrangement, events)
    supervisor = Supervisor(
        host=host,
        grace_s=part.grace_s,
        events=events,
        signals=signals,
        control=control,
        several_memory_nodes=sum(node.memory_bytes > 0 for node in topology.nodes) > 1,
    )
    try:
        pids = {}
        try:
            for rank in part.ranks:
                binding = arrangement.bindings[rank.slot]
                process = start_rank(
                    rank,
                    binding=binding if arrangement.bound else None,
                    environ=_rank_environ(part, rank, arrangement, environ),
                    stdin=part.rank0_stdin if rank.rank == 0 else None,
                    log_prefix=part.log_prefix,
                )
                supervisor.watch(process)
                pids[rank.rank] = process.pid
            events.started(pids)
        except CoreboundError as error:
            supervisor.fail(
                Failure(host=host, exit_code=error.exit_code, reason=f"failed: {error.message}", hint=error.hint)
            )
        return supervisor.run()
    finally:
        remove_segments(part.job_id)


def _first_line(fd: int) -> tuple[str, bytes]:
    """Return the first line and what was read beyond it."""
    data = b""
    while b"\n" not in data:
        chunk = os.read(fd, 1 << 16)
        if not chunk:
            break
        data += chunk
    line, _, rest = data.partition(b"\n")
    return line.decode(), rest


def _base_environ(part: AgentPart, arrangement: Arrangement, events: EventWriter) -> dict[str, str]:
    environ = env.snapshot()
    for text in arrangement.warnings:
        events.warning(text)
    if arrangement.bound:
        for name in _FOREIGN_BINDING:
            if environ.pop(name, None) is not None:
                events.warning(f"{name} is unset for the ranks: it would fight the binding to cores")
        threads = arrangement.bindings[part.ranks[0].slot].num_threads
        if environ.get("OMP_NUM_THREADS", str(threads)) != str(threads):
            events.warning(
                f"OMP_NUM_THREADS={environ['OMP_NUM_THREADS']} is replaced: each rank gets as many threads as cores"
            )
    return environ


def _rank_environ(part: AgentPart, rank: RankPart, arrangement: Arrangement, environ: dict[str, str]) -> dict[str, str]:
    threads = omp_num_threads(arrangement.bindings[rank.slot], arrangement.bound, environ)
    return {**environ, "OMP_NUM_THREADS": threads, **rank.env, "COREBOUND_JOB_ID": part.job_id}


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
