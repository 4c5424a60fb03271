"""The role host_tuning on a node with a systemd of its own: what it does, again, after a restart, and undone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cluster.ansible_runs import ROOT, recap, run_playbook
from lab import machine
from lab.conftest import Grow
from lab.podman import Podman
from lab.state import unit_state

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.native, pytest.mark.timeout(1800)]

INVENTORY = ROOT / "inventories/lab"
DEPLOY_TIMEOUT_S = 1200.0
# A container may not write to the kernel's files, and must not: they are those of the machine below. Ordinary files
# are laid over them, with what a machine that needs tuning would show.
KERNEL = {
    "/proc/sys/vm/swappiness": "60",
    "/proc/sys/kernel/numa_balancing": "1",
    "/sys/kernel/mm/transparent_hugepage/enabled": "always",
}
TUNED = {
    "/proc/sys/vm/swappiness": "10",
    "/proc/sys/kernel/numa_balancing": "0",
    "/sys/kernel/mm/transparent_hugepage/enabled": "madvise",
}
IRQBALANCE = "[Service]\nExecStart=/bin/sleep infinity\n[Install]\nWantedBy=multi-user.target\n"
PLACES = [
    "/etc/sysctl.d/90-corebound.conf",
    "/etc/security/limits.d/90-corebound.conf",
    "/etc/systemd/system/corebound-host-tuning.service",
    "/etc/systemd/system/multi-user.target.wants/corebound-host-tuning.service",
    "/srv/host_tuning",
]


@pytest.fixture(scope="module", autouse=True)
def one(grow: Grow) -> None:
    """Puts up a node."""
    grow(1)


@pytest.fixture
def kernel(podman: Podman) -> Iterator[Callable[[], dict[str, str]]]:
    """Returns what the kernel's files of node1 hold, which are ordinary ones for the time of a test."""
    pid = podman("inspect", "--format", "{{.State.Pid}}", "node1").stdout.strip()
    inside = ["nsenter", f"--target={pid}", "--mount", "--pid", "--"]
    podman.execute("node1", "mkdir", "-p", "/srv/kernel")
    for number, (path, value) in enumerate(KERNEL.items()):
        podman.execute("node1", "sh", "-c", f"echo {value} > /srv/kernel/{number}")
        machine.run(*inside, "mount", "--bind", f"/srv/kernel/{number}", path)
    podman.execute("node1", "sh", "-c", f"printf '{IRQBALANCE}' > /etc/systemd/system/irqbalance.service")
    podman.execute("node1", "systemctl", "enable", "--now", "--quiet", "irqbalance.service")
    yield lambda: {path: podman.execute("node1", "cat", path).strip() for path in KERNEL}
    for path in KERNEL:
        machine.run(*inside, "umount", "--lazy", path)
    podman.execute("node1", "systemctl", "disable", "--now", "--quiet", "irqbalance.service")
    podman.execute("node1", "rm", "-r", "/srv/kernel", "/etc/systemd/system/irqbalance.service")


def tune(playbook: str, *options: str, **variables: Any) -> dict[str, int]:
    """Returns the numbers of a run of the role host_tuning on node1, or of its undoing."""
    done = run_playbook(
        f"../tests/cluster/{playbook}",
        INVENTORY,
        "--limit",
        "node1",
        *options,
        timeout_s=DEPLOY_TIMEOUT_S,
        **{"one_role": "host_tuning", "host_tuning_dir": "/srv/host_tuning", **variables},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return recap(done.stdout, "node1")


def test_tuning_survives_a_restart_and_is_put_back_exactly(
    podman: Podman, kernel: Callable[[], dict[str, str]]
) -> None:
    settings = {"host_tuning_manage_kernel": True, "host_tuning_stop_irqbalance": True}
    assert tune("one_role.yml", "--check", **settings)["changed"] > 0
    assert kernel() == KERNEL

    tune("one_role.yml", **settings)
    assert kernel() == TUNED
    assert unit_state(podman, "irqbalance.service") == ("inactive", "disabled")
    assert "corebound - memlock unlimited" in podman.execute("node1", "cat", PLACES[1])
    assert "-vm.swappiness = 10" in podman.execute("node1", "cat", PLACES[0])
    assert tune("one_role.yml", **settings)["changed"] == 0

    # As after a restart of the machine: the kernel has its own values again, and the unit runs.
    for number, value in enumerate(KERNEL.values()):
        podman.execute("node1", "sh", "-c", f"echo {value} > /srv/kernel/{number}")
    podman.execute("node1", "systemctl", "restart", "corebound-host-tuning.service")
    assert kernel() == TUNED

    assert tune("one_role.yml", **{**settings, "host_tuning_swappiness": ""})["changed"] > 0
    assert kernel() == {**TUNED, "/proc/sys/vm/swappiness": "60"}

    tune("undo_role.yml")
    assert kernel() == KERNEL
    assert unit_state(podman, "irqbalance.service") == ("active", "enabled")
    look = f"for place in {' '.join(PLACES)}; do [ ! -e $place ] || echo $place; done"
    left = podman.execute("node1", "sh", "-c", look)
    assert left == ""
    assert tune("undo_role.yml")["changed"] == 0


def test_a_container_is_tuned_without_its_kernel(podman: Podman) -> None:
    before = {path: podman.execute("node1", "cat", path) for path in KERNEL}
    tune("one_role.yml")
    assert {path: podman.execute("node1", "cat", path) for path in KERNEL} == before
    assert "memlock" in podman.execute("node1", "cat", PLACES[1])
    assert podman("exec", "node1", "test", "-e", PLACES[0], check=False).returncode == 1
    assert tune("one_role.yml")["changed"] == 0
    tune("undo_role.yml")
    assert podman("exec", "node1", "test", "-e", PLACES[1], check=False).returncode == 1


def test_a_kernel_that_cannot_be_set_is_named_with_the_remedy() -> None:
    done = run_playbook(
        "../tests/cluster/one_role.yml",
        INVENTORY,
        "--limit",
        "node1",
        timeout_s=DEPLOY_TIMEOUT_S,
        one_role="host_tuning",
        host_tuning_dir="/srv/host_tuning",
        host_tuning_manage_kernel=True,
        host_tuning_swappiness="11",
    )
    tune("undo_role.yml")
    assert done.returncode != 0
    said = " ".join(done.stdout.split())
    assert "host node1: /proc/sys/vm/swappiness: found" in said
    assert "set host_tuning_manage_kernel to false" in said
