"""The agent of one node: binds and starts its ranks, supervises them and cleans up.

Run as `python -m corebound.launcher.agent`. Its part of the plan is the first line of standard input. Later lines are
`{"signal": n}`, from elsewhere with the `"cause"`, see `StopCause`; the end of standard input means that the launcher
is gone. `--events-fd N` names a descriptor for events; without it they are logged.

Under a launcher elsewhere it is `--link stdio`, or `--link HOST:PORT,... VARIABLE` to connect back, where the variable
says which of the agents we are. Then the launcher's first line is a greeting, the part comes after our answer, empty
objects are signs of life, and all we say goes back in frames.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
from contextlib import ExitStack
from pathlib import Path

from corebound import logs, native_ccl
from corebound.config import env
from corebound.errors import EXIT_LAUNCH, CoreboundError, LaunchError
from corebound.launcher.addresses import interface_towards, machine_id, own_addresses
from corebound.launcher.binding import Arrangement, arrange, omp_num_threads
from corebound.launcher.channel import PR_SET_CHILD_SUBREAPER, guard, over_stdio, over_tcp, peer_side_address
from corebound.launcher.corelist import render_core_list
from corebound.launcher.events import EventWriter, Failure
from corebound.launcher.frames import LOST_S
from corebound.launcher.greeting import Greeting, Hello, greeting_from_json
from corebound.launcher.part import AgentPart, RankPart, part_from_json
from corebound.launcher.ports import reserve_port
from corebound.launcher.processes import jobs_on_cpus, remove_segments
from corebound.launcher.ranks import make_log_dir, start_rank
from corebound.launcher.shim import set_death_signal
from corebound.launcher.signals import SignalPipe, awaitable_children
from corebound.launcher.spec import LOCALHOST
from corebound.launcher.supervise import WATCHED, Supervisor
from corebound.topology import Topology, read_topology
from corebound.topology.pod import read_pod
from corebound.topology.tree import Tree

_INTERFACE_VARIABLES = ("GLOO_SOCKET_IFNAME", "FI_TCP_IFACE", "CCL_KVS_IFACE")
# What MPI and Slurm say about the agent would mislead its ranks: they are not the processes that were started.
_STARTERS = (
    "HYDI_",
    "HYDRA_",
    "MPI_LOCAL",
    "OMPI_",
    "ORTE_",
    "PMI_",
    "PMIX_",
    "PRTE_",
    "SLURM_LOCALID",
    "SLURM_PROCID",
)
_FOREIGN_BINDING = ("KMP_AFFINITY", "GOMP_CPU_AFFINITY")


@awaitable_children()
def main(argv: list[str]) -> int:
    """Carry out the part on standard input and return the exit code of the launch."""
    if argv[:1] == ["--link"]:
        return _main_linked(*argv[1:])
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
            code = _report(events, host, error)
    events.done(code)
    return code


def _main_linked(link: str, identity_from: str = "") -> int:
    """Do as `main` does for a launcher elsewhere. What starts us by MPI takes any exit code but 0 for an accident."""
    job_fd = guard()
    logs.setup("info")
    channel = over_stdio() if link == "stdio" else over_tcp(link, *env.agent_identity(identity_from))
    host = socket.gethostname()
    code = EXIT_LAUNCH
    with SignalPipe(WATCHED) as signals, ExitStack() as held:
        try:
            if (word := channel.word()) is not None:
                greeting = greeting_from_json(word)
                host = greeting.host
                logs.setup(greeting.log_level)
                channel.events.hello(_prepare(greeting, held).to_event())
                if (word := channel.word()) is not None:
                    part = part_from_json(word)
                    os.write(job_fd, part.job_id.encode())
                    code = run_part(part, host, channel.events, signals, channel.rest(), lost_s=LOST_S)
        except CoreboundError as error:
            code = _report(channel.events, host, error)
    channel.close(code)
    return code if link == "stdio" else 0


def _prepare(greeting: Greeting, held: ExitStack) -> Hello:
    """Go to the working directory, take the port if that is our task, and return what the launcher must know."""
    try:
        os.chdir(greeting.working_dir)
    except OSError as error:
        raise LaunchError(
            f"working directory {greeting.working_dir}: {error.strerror}",
            hint="start the launch from a directory that every host has, such as a shared one",
        ) from error
    port = held.enter_context(reserve_port(greeting.master_port)).port if greeting.reserve_port else None
    return Hello(
        pid=os.getpid(),
        machine=machine_id(),
        addresses=own_addresses(),
        reached_at=env.ssh_server_address() or peer_side_address(),
        port=port,
    )


def _report(events: EventWriter, host: str, error: CoreboundError) -> int:
    events.failed(Failure(host=host, exit_code=error.exit_code, reason=f"failed: {error.message}", hint=error.hint))
    return error.exit_code


def run_part(
    part: AgentPart,
    host: str,
    events: EventWriter,
    signals: SignalPipe,
    control: bytes = b"",
    lost_s: float | None = None,
) -> int:
    """Run the ranks of a part to their end, remove what they left and return the exit code.

    `control` is what was already read of the launcher's later words. A launcher that has been silent for `lost_s` is
    gone. Raises: CoreboundError before any rank is started.
    """
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    if part.parent_pid is not None:
        set_death_signal(part.parent_pid, signal.SIGTERM)
    if part.log_prefix is not None:
        make_log_dir(Path(part.log_prefix).parent)
    topology = read_topology()
    arrangement = arrange(topology, part.num_slots, bind_cores=part.bind_cores, core_list=part.core_list)
    environ = _base_environ(part, arrangement, events)
    _require_ccl(environ)
    supervisor = Supervisor(
        host=host,
        grace_s=part.grace_s,
        events=events,
        signals=signals,
        control=control,
        lost_s=lost_s,
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
            _tell_of_pod(part, host, arrangement, topology, events)
            _warn_of_other_jobs(part, host, arrangement, events)
        except CoreboundError as error:
            supervisor.fail(
                Failure(host=host, exit_code=error.exit_code, reason=f"failed: {error.message}", hint=error.hint)
            )
        return supervisor.run()
    finally:
        remove_segments(part.job_id)


def _tell_of_pod(part: AgentPart, host: str, arrangement: Arrangement, topology: Topology, events: EventWriter) -> None:
    """Say in one line which CPUs a pod has and which of them ranks got; warn when they are not the pod's alone."""
    pod = read_pod(Tree(), topology, env.snapshot())
    if pod is None:
        return
    ranks = f"{len(part.ranks)} rank{'' if len(part.ranks) == 1 else 's'}"
    what = f"{host}: {ranks} not bound; the pod has"
    if arrangement.bound:
        own = sorted({cpu for rank in part.ranks for cpu in arrangement.bindings[rank.slot].cpus})
        what = f"{host}: bound {ranks} to CPUs {render_core_list(own)}; the pod has"
    text = f"{what} {pod.describe(topology)}"
    if pod.own_cpus:
        events.note(text)
    else:
        events.warning(f"{text}; `corebound doctor` in the pod says what would give it its own")


def _warn_of_other_jobs(part: AgentPart, host: str, arrangement: Arrangement, events: EventWriter) -> None:
    """Say so when cores that the ranks are bound to are another job's as well.

    Looked for once the own ranks are there, so that of two launches that start together at least one sees the other.
    """
    if not arrangement.bound or env.job_id() is not None:  # a launch inside a rank shares that rank's cores on purpose
        return
    own = {cpu for rank in part.ranks for cpu in arrangement.bindings[rank.slot].cpus}
    others = jobs_on_cpus(own, part.job_id)
    if others:
        shared = render_core_list(sorted(set().union(*others.values())))
        events.warning(
            f"{host}: another job of yours runs on CPUs {shared} of this one too, which slows down both: "
            "give each its own slots with --include, or its own CPUs with --bind_core_list"
        )


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
    environ = {**env.snapshot(), **part.environ}
    if part.meets_elsewhere:
        environ = {**_interfaces(part), **environ}
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


def _require_ccl(environ: dict[str, str]) -> None:
    """Check that oneCCL can work where it is asked for by name.

    Raises: CclUnavailableError naming what is missing.
    """
    settings = env.settings(environ)
    if "ccl" in (settings.comm, settings.host_link):
        native_ccl.require()


def _interfaces(part: AgentPart) -> dict[str, str]:
    """Return what tells libraries which interface leads to the other hosts: on their own they ask for our host name,
    which on many machines means the loopback.
    """
    interface = interface_towards(part.ranks[0].env["MASTER_ADDR"], own_addresses())
    return {} if interface is None else dict.fromkeys(_INTERFACE_VARIABLES, interface)


def _rank_environ(part: AgentPart, rank: RankPart, arrangement: Arrangement, environ: dict[str, str]) -> dict[str, str]:
    threads = omp_num_threads(arrangement.bindings[rank.slot], arrangement.bound, environ)
    environ = {name: value for name, value in environ.items() if not name.startswith(_STARTERS)}
    return {**environ, "OMP_NUM_THREADS": threads, **rank.env, "COREBOUND_JOB_ID": part.job_id}


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
