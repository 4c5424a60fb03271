"""Roles that are switched on by a group, on nodes with a systemd of their own: what they do, again, and undone.

The tests share two nodes and go through their life in the order of this file.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml

from cluster.ansible_runs import ROOT, recap, run_playbook
from lab import machine
from lab.conftest import Grow
from lab.podman import Podman

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.native, pytest.mark.timeout(1800)]

INVENTORY = ROOT / "inventories/lab"
DEPLOY_TIMEOUT_S = 1200.0
UNIT = "corebound-inference.service"
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


def wait_until(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    """Returns when the condition holds; fails when the time is over."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s"
        time.sleep(0.2)


@pytest.fixture(scope="module", autouse=True)
def two(grow: Grow) -> None:
    """Puts up two nodes."""
    grow(2)


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
        f"../tests/cluster/{playbook}", INVENTORY, "--limit", "node1", *options, timeout_s=DEPLOY_TIMEOUT_S,
        **{"one_role": "host_tuning", "host_tuning_dir": "/srv/host_tuning", **variables},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return recap(done.stdout, "node1")


def state_of(podman: Podman, unit: str, name: str = "node1") -> tuple[str, str]:
    """Returns whether a unit is active, and whether it is enabled."""
    shown = podman.execute(name, "systemctl", "show", "--property=ActiveState,UnitFileState", unit)
    values = dict(line.partition("=")[::2] for line in shown.splitlines())
    return values["ActiveState"], values["UnitFileState"]


def test_tuning_survives_a_restart_and_is_put_back_exactly(
    podman: Podman, kernel: Callable[[], dict[str, str]]
) -> None:
    settings = {"host_tuning_manage_kernel": True, "host_tuning_stop_irqbalance": True}
    assert tune("one_role.yml", "--check", **settings)["changed"] > 0
    assert kernel() == KERNEL

    tune("one_role.yml", **settings)
    assert kernel() == TUNED
    assert state_of(podman, "irqbalance.service") == ("inactive", "disabled")
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
    assert state_of(podman, "irqbalance.service") == ("active", "enabled")
    left = podman.execute("node1", "sh", "-c", f"ls -d {' '.join(PLACES)} 2>/dev/null || true")
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
        "../tests/cluster/one_role.yml", INVENTORY, "--limit", "node1", timeout_s=DEPLOY_TIMEOUT_S,
        one_role="host_tuning", host_tuning_dir="/srv/host_tuning", host_tuning_manage_kernel=True,
        host_tuning_swappiness="11",
    )  # fmt: skip
    tune("undo_role.yml")
    assert done.returncode != 0
    said = " ".join(done.stdout.split())
    assert "host node1: /proc/sys/vm/swappiness: found" in said
    assert "set host_tuning_manage_kernel to false" in said


@pytest.fixture(scope="module")
def site(podman: Podman, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Returns the function that runs a playbook on the lab with a launch as a service on both nodes."""
    subprocess.run([sys.executable, str(ROOT / "runtime/packaging/build_wheel.py")], check=True, timeout=900)
    folder = tmp_path_factory.mktemp("service")
    for name in ("node1", "node2"):
        podman("cp", str(ROOT / "tests/lab/long_running.py"), f"{name}:/srv/long_running.py")
    variables = {
        "inference_service_command": ["/srv/long_running.py"],
        "inference_service_launch_options": ["--bind_cores_to_rank", "--no_local_rank"],
        "inference_service_environment": {"MOTTO": '100 % of $HOME "quoted"'},
        "inference_service_restart_s": 1,
        "inference_service_max_restarts": 3,
    }
    group = {"children": {"nodes": {}}, "vars": variables}
    extra = folder / "service.yml"
    extra.write_text(yaml.safe_dump({"all": {"children": {"inference_service": group}}}), encoding="utf-8")
    reports = {"corebound_reports_dir": str(folder / "reports"), "cluster_tests_max_new_tokens": 4}

    def run(playbook: str, *options: str, **more: Any) -> subprocess.CompletedProcess[str]:
        words = ["--inventory", str(extra), *options]
        return run_playbook(playbook, INVENTORY, *words, timeout_s=DEPLOY_TIMEOUT_S, **{**reports, **more})

    return run


def ranks(podman: Podman, name: str) -> list[str]:
    """Returns the process ids of the service's ranks on a node."""
    listed = podman("exec", name, "pgrep", "--full", "long_running.py$", check=False).stdout.split()
    return [pid for pid in listed if "COREBOUND_JOB_ID" in podman.execute(name, "cat", f"/proc/{pid}/environ")]


def main_pid(podman: Podman) -> str:
    return podman.execute("node1", "systemctl", "show", "--property=MainPID", "--value", UNIT).strip()


Site = Callable[..., subprocess.CompletedProcess[str]]


def test_the_service_is_ready_when_all_ranks_run_and_a_second_deploy_changes_nothing(
    podman: Podman, site: Site
) -> None:
    done = site("site.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert state_of(podman, UNIT) == ("active", "enabled")
    assert state_of(podman, UNIT, "node2")[0] == "inactive"
    status = podman.execute("node1", "systemctl", "show", "--property=StatusText", "--value", UNIT)
    assert status.strip() == "4 ranks run on 2 hosts"
    assert len(ranks(podman, "node1")) == len(ranks(podman, "node2")) == 2
    journal = podman.execute("node1", "journalctl", "--unit", UNIT, "--no-pager", "--output", "cat")
    assert '100 % of $HOME "quoted"' in journal
    owner = podman.execute("node1", "ps", "-o", "user=", "-p", main_pid(podman)).strip()
    assert owner == "corebound"
    before = main_pid(podman)
    again = site("site.yml")
    assert again.returncode == 0, again.stdout + again.stderr
    assert (recap(again.stdout, "node1")["changed"], recap(again.stdout, "node2")["changed"]) == (0, 0)
    assert main_pid(podman) == before


def test_the_whole_launch_is_started_again_when_a_rank_fails(podman: Podman, site: Site) -> None:
    before = {name: set(ranks(podman, name)) for name in ("node1", "node2")}
    podman.execute("node2", "touch", "/home/corebound/fail-3")
    wait_until(lambda: all(len(now := set(ranks(podman, name))) == 2 and not now & before[name] for name in before))
    journal = podman.execute("node1", "journalctl", "--unit", UNIT, "--no-pager", "--output", "cat")
    assert re.search(r"rank 3 on \S+ .*exited with 7|rank 3 on .* 7", journal)


def test_a_protected_inventory_names_the_service_and_its_ranks_before_reset(podman: Podman, site: Site) -> None:
    for playbook in ("site.yml", "reset.yml"):
        done = site(playbook, corebound_protected=True)
        assert done.returncode != 0
        assert f"node1: service {UNIT} is active" in done.stdout
        for name in ("node1", "node2"):
            assert re.search(rf"{name}: job [0-9a-f]+ \(user corebound, pids ", done.stdout)
        assert "run it again with CONFIRM=lab" in done.stdout
    assert state_of(podman, UNIT)[0] == "active"


def test_too_many_restarts_leave_it_failed_and_deploy_says_why(podman: Podman, site: Site) -> None:
    for _ in range(8):
        if state_of(podman, UNIT)[0] == "failed":
            break
        before = main_pid(podman)
        podman.execute("node1", "touch", "/home/corebound/fail-0")
        wait_until(lambda before=before: main_pid(podman) != before or state_of(podman, UNIT)[0] == "failed")  # type: ignore[misc]
    wait_until(lambda: state_of(podman, UNIT)[0] == "failed")
    podman("exec", "node1", "rm", "-f", "/home/corebound/fail-0")
    assert ranks(podman, "node1") == ranks(podman, "node2") == []
    podman.execute("node1", "systemctl", "reset-failed", UNIT)
    podman.execute("node1", "systemctl", "start", UNIT)
    assert len(ranks(podman, "node2")) == 2


def test_a_clean_stop_leaves_nothing_on_any_node(podman: Podman, site: Site) -> None:
    podman.execute("node1", "systemctl", "stop", UNIT)
    assert state_of(podman, UNIT)[0] == "inactive"
    for name in ("node1", "node2"):
        assert ranks(podman, name) == []
        assert "corebound" not in podman.execute(name, "ls", "/dev/shm")


def test_reset_with_confirmation_removes_the_service(podman: Podman, site: Site) -> None:
    podman.execute("node1", "systemctl", "start", UNIT)
    done = site("reset.yml", corebound_protected=True, corebound_confirm="lab")
    assert done.returncode == 0, done.stdout
    assert podman("exec", "node1", "test", "-e", f"/etc/systemd/system/{UNIT}", check=False).returncode == 1
    assert ranks(podman, "node1") == ranks(podman, "node2") == []
    assert podman("exec", "node1", "test", "-e", "/opt/corebound", check=False).returncode == 1
    assert recap(site("reset.yml").stdout, "node1")["changed"] == 0
