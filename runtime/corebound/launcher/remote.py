"""A launch whose agents run elsewhere: starts them by a transport, greets them, makes the plan and follows it."""

from __future__ import annotations

import secrets
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from corebound.config import env
from corebound.launcher.addresses import meeting_address
from corebound.launcher.follow import Follower
from corebound.launcher.forward import forwarded
from corebound.launcher.greeting import Greeting, Hello
from corebound.launcher.hosts import is_this_machine
from corebound.launcher.link import Link
from corebound.launcher.outcome import LaunchOutcome
from corebound.launcher.parts import make_linked_parts
from corebound.launcher.plan import LaunchPlan, TopologyOf, plan
from corebound.launcher.rendezvous import StartInterruptedError
from corebound.launcher.signals import SignalPipe
from corebound.launcher.spec import LaunchSpec
from corebound.launcher.supervise import FORWARDED
from corebound.launcher.transports import mpi, ssh
from corebound.launcher.wait import SSH_PORT, wait_for_hosts
from corebound.logs import get_logger

_log = get_logger(__name__)


def run_remote(spec: LaunchSpec, draft: LaunchPlan, topology_of: TopologyOf) -> LaunchOutcome:
    """Run a launch by ssh, MPI or Slurm to its end and return how it ended.

    Raises: CoreboundError when a host cannot take part; then no rank was started anywhere.
    """
    environ = env.snapshot()
    inherited = {**environ, **spec.file_environ}
    exported, warnings = forwarded(inherited, inherited.get("COREBOUND_EXPORT"), spec.file_environ)
    for text in warnings:
        _log.warning("%s", text)
    if spec.save_pid:
        _log.warning("--save_pid has no effect on a launch on other hosts: each host has an agent of its own")
    with SignalPipe(FORWARDED) as signals:
        try:
            if spec.wait_for_hosts_s > 0:
                others = [node.host for node in draft.nodes if spec.force_multi or not is_this_machine(node.host)]
                wait_for_hosts(others, spec.ssh_port or SSH_PORT, spec.wait_for_hosts_s, signals)
            with _agents(spec, draft, environ, signals) as (links, hint_for):
                return _lead(spec, draft, topology_of, exported, Follower(links, signals, hint_for))
        except StartInterruptedError as stop:
            return LaunchOutcome(exit_code=128 + stop.number, interrupted=stop.number)


def _lead(
    spec: LaunchSpec, draft: LaunchPlan, topology_of: TopologyOf, exported: Mapping[str, str], follower: Follower
) -> LaunchOutcome:
    """Greet the agents, tell each its part and return how the ranks ended."""
    try:
        hellos = follower.greet(_greetings(spec, draft))
        if hellos is None:
            follower.outcome.exit_code = 128 + (follower.outcome.interrupted or 0)
            return follower.outcome
        whole = _final_plan(spec, draft, hellos, topology_of)
        for text in whole.warnings:
            _log.warning("%s", text)
        pythons = {node.host: python_on(spec, node.host) for node in whole.nodes}
        return follower.run(make_linked_parts(spec, whole, secrets.token_hex(8), exported, pythons))
    finally:
        follower.close()


def launch_commands(spec: LaunchSpec, whole: LaunchPlan, environ: Mapping[str, str]) -> tuple[tuple[str, ...], ...]:
    """Return the commands that start the agents; what is known only at the launch is a name in capitals.

    Raises: ConfigError when --launcher_args cannot be read, or a host is not of the Slurm allocation.
    """
    hosts = [node.host for node in whole.nodes]
    if (dialect := mpi.DIALECTS.get(spec.launcher or "ssh")) is not None:
        tool = dialect.find(environ) or Path(dialect.tools[0])
        start = mpi.Start(spec, dialect.names(hosts, environ), "HOSTFILE", "LAUNCHER:PORT", mpi.interface_to(hosts))
        return (dialect.shown(start, str(tool), environ),)
    return tuple(_ssh_words(spec, host, environ) for host in hosts)


def python_on(spec: LaunchSpec, host: str) -> str:
    """Return the Python of a host: the same path as here unless the user says otherwise."""
    forks = spec.launcher in (None, "ssh") and is_this_machine(host) and not spec.force_multi
    return sys.executable if forks or spec.remote_python is None else spec.remote_python


@contextmanager
def _agents(
    spec: LaunchSpec, draft: LaunchPlan, environ: Mapping[str, str], signals: SignalPipe
) -> Iterator[tuple[Sequence[Link], Callable[[Sequence[str]], str | None]]]:
    hosts = [node.host for node in draft.nodes]
    if (dialect := mpi.DIALECTS.get(spec.launcher or "ssh")) is not None:
        with mpi.started(dialect, spec, hosts, environ, signals) as links:
            yield links, mpi.hint_for
        return
    links = []
    try:
        for host in hosts:
            here = is_this_machine(host) and not spec.force_multi
            # Secrets of a file go to no other host, but ranks here inherit all that the launcher has.
            own = {**environ, **spec.file_environ} if here else environ
            links.append(ssh.start(host, _ssh_words(spec, host, environ), own))
        yield links, ssh.hint_for
    finally:
        for link in links:
            if not link.ended:
                link.close(kill=True)


def _ssh_words(spec: LaunchSpec, host: str, environ: Mapping[str, str]) -> tuple[str, ...]:
    # Among several hosts this machine needs no ssh to itself.
    if is_this_machine(host) and not spec.force_multi:
        return ssh.here_command(spec)
    tool = shutil.which("ssh", path=environ.get("PATH")) or "ssh"
    return (tool, *ssh.ssh_command(spec, host, environ)[1:])


def _greetings(spec: LaunchSpec, draft: LaunchPlan) -> dict[str, Greeting]:
    return {
        node.host: Greeting(
            host=node.host,
            working_dir=str(Path.cwd()),
            log_level=env.settings().log_level,
            # Ranks meet on the first host, so it is there that the port must be free.
            reserve_port=node.node_rank == 0,
            master_port=spec.master_port,
        )
        for node in draft.nodes
    }


def _final_plan(
    spec: LaunchSpec, draft: LaunchPlan, hellos: Mapping[str, Hello], topology_of: TopologyOf
) -> LaunchPlan:
    """Return the plan with the address and the port at which ranks meet."""
    address = spec.master_addr
    if address is None:
        address = meeting_address([hellos[node.host].of_host(node.host) for node in draft.nodes])
    port = hellos[draft.nodes[0].host].port
    return plan(
        replace(spec, master_addr=address),
        topology_of,
        environ={**env.snapshot(), **spec.file_environ},
        master_port=port,
    )
