"""Puts the Kubernetes cluster up and takes it down, whatever an earlier one left behind."""

from __future__ import annotations

import fcntl
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from k8s import control_plane, images, machine, node, processes
from k8s.access import Access
from k8s.build import build
from k8s.definition import mpijob_definition
from k8s.layout import ROOT, ClusterError, Layout, nodes

NODES_TIMEOUT_S = 120.0
# The real operator in place of the stand-in: the path of its binary.
OPERATOR = "MPI_OPERATOR_BIN"


@contextmanager
def only_one(layout: Layout) -> Iterator[None]:
    """Lets one process at a time put the cluster up or down; every checkout on this machine shares it."""
    layout.home.mkdir(parents=True, exist_ok=True)
    with layout.lock.open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def check_machine(layout: Layout) -> None:
    """Raises where no cluster can be put up."""
    reason = machine.why_not()
    if reason:
        raise ClusterError(reason)
    hidden = [folder for folder in ("/run", "/var/lib", "/var/log") if layout.home.is_relative_to(folder)]
    if hidden:
        raise ClusterError(
            f"COREBOUND_K8S_DIR {layout.home} is below {hidden[0]}, over which a node puts a folder of its own"
        )


def is_up(layout: Layout) -> bool:
    """Returns whether the cluster is up with all its nodes."""
    # A node counts as ready for some time after its kubelet has died.
    if not processes.running() or processes.ended(layout) or not control_plane.ready(layout):
        return False
    return Access(layout).num_ready_nodes() == len(nodes(layout))


def up(layout: Layout, image: str = "") -> float:
    """Puts the cluster up, with an image of podman's on its nodes, and returns how many seconds that took."""
    check_machine(layout)
    with only_one(layout):
        started = time.monotonic()
        made = build(layout)
        if made:
            print(f"k8s: made {', '.join(made)} in {time.monotonic() - started:.0f} s", file=sys.stderr)
        started = time.monotonic()
        if not is_up(layout):
            take_down(layout)
            try:
                start(layout)
            except BaseException:
                # The logs are what is needed now; the next `up` or `down` removes them.
                stop(layout)
                raise
        if image:
            images.import_image(layout, nodes(layout), image)
        return time.monotonic() - started


def start(layout: Layout) -> None:
    """Starts everything on a machine where nothing of a cluster is left."""
    machine.guard_addresses()
    layout.run.mkdir(mode=0o700)
    control_plane.write_certificates(layout)
    node.make_bridge()
    control_plane.start_etcd(layout)
    members = nodes(layout)
    first = [node.start_node(member) for member in members]
    control_plane.start_api_server(layout)
    control_plane.start_controllers(layout)
    for member, process in zip(members, first, strict=True):
        node.wait_for_containerd(member, process)
        images.import_pause(member)
        node.start_kubelet(member)
    access = Access(layout)
    access.define(mpijob_definition())
    start_helpers(layout)
    hint = f"logs: {layout.logs}"
    processes.wait_until(
        lambda: access.num_ready_nodes() == len(members), "all nodes are ready", NODES_TIMEOUT_S, hint=hint
    )
    processes.wait_until(access.has_service_account, "namespace default is ready", NODES_TIMEOUT_S, hint=hint)


def start_helpers(layout: Layout) -> None:
    """Starts the name server, and the operator or what stands in for it."""
    search = {"PYTHONPATH": str(ROOT / "tests"), "COREBOUND_K8S_DIR": str(layout.home)}
    processes.start(layout, "dns", sys.executable, "-m", "k8s.dns", env=search)
    operator = os.environ.get(OPERATOR)
    if operator:
        words = [str(Path(operator).resolve(strict=True)), f"--kubeconfig={layout.run / 'admin.kubeconfig'}"]
        words += ["--lock-namespace=default", "-alsologtostderr"]
        processes.start(layout, "operator", *words)
    else:
        processes.start(layout, "operator", sys.executable, "-m", "k8s.operator_stand_in", env=search)


def stop(layout: Layout) -> None:
    """Ends all processes and removes what they had of the kernel."""
    processes.end_all()
    node.remove_networks(layout)
    machine.lift_guard()


def take_down(layout: Layout) -> None:
    """Leaves nothing of a cluster but programs and images."""
    stop(layout)
    if layout.run.exists():
        node.forget(layout)


def down(layout: Layout) -> None:
    """Takes the cluster down and puts the machine back."""
    if not layout.home.exists():
        return
    reason = machine.why_not()
    if reason:
        raise ClusterError(reason)
    with only_one(layout):
        take_down(layout)
