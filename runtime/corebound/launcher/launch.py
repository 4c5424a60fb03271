"""Carries out a launch: reserves a port, starts the agents, forwards signals, reports the first failure."""

from __future__ import annotations

import json
import os
import secrets
import selectors
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from corebound.config import env
from corebound.errors import EXIT_LAUNCH, ConfigError
from corebound.launcher import notify
from corebound.launcher.events import Failure, failure_from_event
from corebound.launcher.hosts import is_this_machine, topology_reader
from corebound.launcher.outcome import LaunchOutcome
from corebound.launcher.parts import make_part
from corebound.launcher.plan import LaunchPlan, NodePlan, plan
from corebound.launcher.ports import reserve_port
from corebound.launcher.processes import processes_of_job, remove_segments, send
from corebound.launcher.ranks import make_log_dir
from corebound.launcher.signals import SignalPipe, awaitable_children, describe_status
from corebound.launcher.spec import LaunchSpec
from corebound.launcher.supervise import FORWARDED
from corebound.launcher.transports.local import LocalAgent
from corebound.logs import get_logger

_log = get_logger(__name__)


def launch(spec: LaunchSpec) -> int:
    """Run a launch to its end and return its exit code: 0, the first failing rank's, or 128+n for signal n.

    The failure is logged with host, rank, reason and last lines.

    Raises: CoreboundError when the launch cannot be started as asked.
    """
    outcome = run_launch(spec)
    report(outcome)
    return outcome.exit_code


def report(outcome: LaunchOutcome) -> None:
    """Log how a launch failed or what stopped it; nothing if all went well."""
    if outcome.failure is not None:
        _log.error("%s", outcome.failure.render())
    elif outcome.interrupted is not None:
        _log.warning("stopped by %s", outcome.interrupted.name)


@awaitable_children()
def run_launch(spec: LaunchSpec) -> LaunchOutcome:
    """Run a launch to its end and return how it ended; nothing is left running and no segment remains.

    Raises: CoreboundError when the launch cannot be started as asked.
    """
    topology_of = topology_reader()
    environ = {**env.snapshot(), **spec.file_environ}
    draft = plan(spec, topology_of)
    if transport_of(spec, draft) != "local":
        from corebound.launcher.remote import run_remote  # a local launch should not wait for what it does not need

        return run_remote(spec, draft, topology_of)
    # Without a transport the nodes must agree on the port on their own, so none may choose.
    asked = draft.master_port if spec.no_ssh else spec.master_port
    # Rank 0 listens on the first node; on the others the port may belong to anybody.
    listens = spec.node_rank in (None, 0)
    with reserve_port(asked) if listens else nullcontext() as reservation:
        port = draft.master_port if reservation is None else reservation.port
        whole = plan(spec, topology_of, environ=environ, master_port=port)
        node = whole.nodes[spec.node_rank or 0]
        for text in whole.warnings:
            _log.warning("%s", text)
        return _run_agent(spec, whole, node)


def transport_of(spec: LaunchSpec, whole: LaunchPlan) -> str:
    """Return the transport that reaches the hosts of a plan: what was asked for, else local or ssh.

    Raises: ConfigError when local was asked for and there are other hosts.
    """
    names = [node.host for node in whole.nodes]
    alone = spec.no_ssh or (len(names) == 1 and is_this_machine(names[0]))
    if spec.launcher == "local" and not alone:
        raise ConfigError(
            f"--launcher local runs on this machine alone, the plan has {', '.join(names)}",
            hint="choose hosts with --include or --num_nodes, or another --launcher",
        )
    if spec.no_ssh or spec.launcher == "local":
        return "local"
    return spec.launcher or ("local" if alone and not spec.force_multi else "ssh")


def _run_agent(spec: LaunchSpec, whole: LaunchPlan, node: NodePlan) -> LaunchOutcome:
    job_id = secrets.token_hex(8)
    if spec.log_dir is not None:
        make_log_dir(spec.log_dir)
    part = replace(make_part(spec, node, job_id), parent_pid=os.getpid(), environ=spec.file_environ)
    outcome = LaunchOutcome()
    with SignalPipe(FORWARDED) as signals:
        agent = LocalAgent(part)
        with _pid_file(spec, agent.pid):
            _follow(agent, signals, outcome)
            code = agent.wait()
    if outcome.exit_code < 0:
        # No word of its end: the agent was killed. Its ranks died with it; what they had started may live on.
        outcome.exit_code = code if code else EXIT_LAUNCH
        if outcome.failure is None:
            outcome.failure = Failure(host=node.host, pid=agent.pid, exit_code=code, reason=describe_status(code))
        _clean_up(job_id)
    return outcome


def _follow(agent: LocalAgent, signals: SignalPipe, outcome: LaunchOutcome) -> None:
    """Handle the agent's events and our own signals until the agent has ended; exit_code -1 if it did not say how."""
    outcome.exit_code = -1
    pending = b""
    with selectors.DefaultSelector() as selector:
        selector.register(agent.events_fd, selectors.EVENT_READ)
        selector.register(signals, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is signals:
                    for number in signals.read():
                        if number in FORWARDED:
                            outcome.interrupted = outcome.interrupted or number
                            notify.stopping(f"stopped by {number.name}")
                            agent.signal(number)
                    continue
                data = os.read(agent.events_fd, 1 << 16)
                if not data:
                    return
                *lines, pending = (pending + data).split(b"\n")
                for line in lines:
                    _on_event(json.loads(line), outcome)


def _on_event(event: dict[str, Any], outcome: LaunchOutcome) -> None:
    kind = event["event"]
    if kind == "started":
        outcome.pids = {int(rank): pid for rank, pid in event["pids"].items()}
        _log.debug("ranks started: %s", ", ".join(f"{rank} is pid {pid}" for rank, pid in outcome.pids.items()))
    elif kind == "running":
        notify.ready(len(outcome.pids), num_hosts=1)
    elif kind == "note":
        _log.info("%s", event["text"])
    elif kind == "warning":
        _log.warning("%s", event["text"])
    elif kind == "failed":
        outcome.failure = failure_from_event(event)
        notify.stopping(outcome.failure.render())
    elif kind == "done":
        outcome.exit_code = event["exit_code"]


def _clean_up(job_id: str) -> None:
    """Kill what a killed agent could not, and remove the job's segments."""
    deadline_s = time.monotonic() + 2.0
    while (left := processes_of_job(job_id)) and time.monotonic() < deadline_s:
        send(left, signal.SIGKILL)
        time.sleep(0.02)
    remove_segments(job_id)


@contextmanager
def _pid_file(spec: LaunchSpec, agent_pid: int) -> Iterator[None]:
    if not spec.save_pid:
        yield
        return
    path = Path(tempfile.gettempdir()) / f"{os.getpid()}.corebound"
    try:
        path.unlink(missing_ok=True)  # of a process that had our number before us
        with path.open("x") as file:  # the directory is everybody's: never follow a link that somebody put there
            file.write(f"{agent_pid}\n")
    except OSError as error:
        _log.warning("--save_pid: %s: %s; the launch goes on without", path, error.strerror)
        yield
        return
    _log.info("the agent's process id is in %s", path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
