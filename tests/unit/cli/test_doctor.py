from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from corebound.cli import doctor
from corebound.cli import main as cli_main
from corebound.cli.doctor_checks import machine, probes, software
from corebound.cli.doctor_checks.base import Check, Facts, Probes
from corebound.config.env import Settings
from corebound.errors import KernelError
from corebound.kernels.selection import OPS
from corebound.native import TorchAbi
from corebound.native_ccl import CclUnavailableError
from corebound.topology import IsaReport, read_topology
from corebound.topology.isa import assess_isa
from corebound.topology.tree import Tree
from fixtures.topology_trees import MACHINES, shared_machine, write_machine


def unavailable(*_: object) -> Any:
    raise KernelError("native library missing: libcorebound.so", hint="build it with `make native`")


HEALTHY = Probes(
    memory_policy_errno=lambda: 0,
    program=lambda name: f"/usr/bin/{name}",
    loads=lambda _: True,
    accelerators=dict,
    package_version=lambda name: {"torch": "2.13.0+cpu"}.get(name, "1.0"),
    torch_abi=lambda: TorchAbi(is_stable=True, version=(2, 10)),
    open_files=lambda: (20000, 20000),
    core_library=lambda: "libcorebound.so",
    torch_operators=lambda: "libcorebound_torch.so",
    ccl=lambda: "libcorebound_ccl.so",
    active_isa=lambda force: force or "avx512",
    kernel_table=lambda: [{"op": op, "active": "avx512"} for op in OPS],
)


def facts_of(name: str, root: Path | None = None) -> Facts:
    """Facts of a named machine on which every live probe is healthy; below `root` if files are to be changed."""
    tree = shared_machine(name) if root is None else write_machine(name, root)
    return Facts(topology=read_topology(tree), tree=Tree(tree), probes=HEALTHY)


@pytest.fixture
def vm(tmp_path: Path) -> Facts:
    return facts_of("vm", tmp_path)


def with_files(facts: Facts, files: dict[str, str]) -> Facts:
    for path, text in files.items():
        target = facts.tree.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(f"{text}\n")
    return replace(facts, topology=read_topology(facts.tree.root))


def probing(facts: Facts, **changes: Any) -> Facts:
    return replace(facts, probes=replace(facts.probes, **changes))


def with_isa(facts: Facts, report: IsaReport) -> Facts:
    return replace(facts, topology=replace(facts.topology, isa=report))


def test_a_healthy_vm_passes_everything(vm: Facts) -> None:
    checks = doctor.evaluate(vm, doctor.FILE_CHECKS + doctor.LIVE_CHECKS)
    assert [check for check in checks if check.status != "pass"] == []
    assert len({check.name for check in checks}) == len(checks)


@pytest.mark.parametrize("name", MACHINES)
def test_every_machine_gets_an_answer_and_every_complaint_a_next_step(name: str) -> None:
    checks = doctor.evaluate(facts_of(name), doctor.FILE_CHECKS)
    assert len(checks) >= len(doctor.FILE_CHECKS)
    assert all(check.detail for check in checks)
    assert all(check.hint for check in checks if check.status != "pass")
    assert not [check for check in checks if check.status == "fail"]


def test_a_complaint_without_a_next_step_cannot_be_made() -> None:
    with pytest.raises(AssertionError):
        Check("x", "warn", "something is wrong")


def test_a_container_with_less_time_than_cpus_is_warned() -> None:
    facts = facts_of("container-6-of-128")
    assert machine.allowed_cpus(facts).detail == "6 of 128 CPUs, 3 of 64 cores (4-6,68-70)"
    quota = machine.cpu_quota(facts)
    assert quota.status == "warn"
    assert "3 CPUs of time on 6 CPUs" in quota.detail
    assert machine.shared_memory(facts).status == "warn"
    assert "--shm-size" in machine.shared_memory(facts).hint
    assert "limits it to 8 GiB" in machine.memory(facts).detail


def test_a_cpu_set_that_cuts_a_core_in_half_is_warned() -> None:
    facts = facts_of("xeon-2s-ht")
    cut = replace(facts, topology=read_topology(facts.tree.root, affinity=[0, 112, 1]))
    check = machine.allowed_cpus(cut)
    assert check.status == "warn"
    assert "of 1 core only some SMT siblings" in check.detail


def test_one_cpu_of_every_core_is_a_choice_not_a_defect() -> None:
    facts = facts_of("xeon-2s-ht")
    firsts = replace(facts, topology=read_topology(facts.tree.root, affinity=range(112)))
    assert machine.allowed_cpus(firsts).status == "pass"


def test_uneven_nodes_are_warned() -> None:
    facts = facts_of("xeon-2s-ht")
    assert machine.numa(facts).status == "pass"
    uneven = replace(facts, topology=read_topology(facts.tree.root, affinity=[*range(10), 60]))
    assert machine.numa(uneven).status == "warn"
    assert "node 0: 10 cores, node 1: 1 core" in machine.numa(uneven).detail


def test_nodes_without_memory_or_permission_for_it_are_warned(tmp_path: Path) -> None:
    assert "nodes 1 have CPUs but no memory" in machine.numa(facts_of("cpu-only-node")).detail
    container = facts_of("container-6-of-128", tmp_path)
    files = {"sys/fs/cgroup/kubepods.slice/pod1.slice/box.scope/cpuset.mems.effective": "1"}
    assert "cpuset.mems forbids" in machine.numa(with_files(container, files)).detail


def test_hbm_nodes_are_counted() -> None:
    check = machine.numa(facts_of("flat-hbm"))
    assert check.status == "pass"
    assert "2 hbm" in check.detail


def test_automatic_numa_balancing_is_warned_on_several_nodes_only(vm: Facts, tmp_path: Path) -> None:
    on = {"proc/sys/kernel/numa_balancing": "1"}
    assert machine.numa_balancing(with_files(facts_of("sparse-nodes", tmp_path / "two"), on)).status == "warn"
    assert machine.numa_balancing(with_files(vm, on)).status == "pass"


@pytest.mark.parametrize(
    ("check", "path", "good", "bad"),
    [
        (
            machine.transparent_huge_pages,
            "sys/kernel/mm/transparent_hugepage/enabled",
            "[always] madvise never",
            "always madvise [never]",
        ),
        (machine.governor, "sys/devices/system/cpu/cpu1/cpufreq/scaling_governor", "performance", "powersave"),
        (
            machine.clocksource,
            "sys/devices/system/clocksource/clocksource0/current_clocksource",
            "kvm-clock",
            "hpet",
        ),
    ],
)
def test_a_kernel_setting_that_costs_speed_is_warned(
    vm: Facts, check: Callable[[Facts], Check], path: str, good: str, bad: str
) -> None:
    assert check(with_files(vm, {path: good})).status == "pass"
    assert check(with_files(vm, {path: bad})).status == "warn"


def test_little_memory_is_warned(vm: Facts) -> None:
    poor = with_files(vm, {"proc/meminfo": "MemTotal: 4194304 kB\nMemAvailable: 1048576 kB"})
    assert machine.memory(poor).status == "warn"


def test_missing_shared_memory_names_the_fallback(vm: Facts) -> None:
    check = machine.shared_memory(with_files(vm, {"proc/mounts": "proc /proc proc rw 0 0"}))
    assert check.status == "warn"
    assert "gloo" in check.detail


def test_outside_of_a_pod_nothing_is_said_of_kubelets(vm: Facts) -> None:
    assert [check.detail for check in machine.container(vm)] == ["no container seen"]


def test_a_pod_with_cpus_of_its_own_passes_and_names_them(tmp_path: Path) -> None:
    facts = facts_of("container-6-of-128", tmp_path)
    pod = "sys/fs/cgroup/kubepods.slice/pod1.slice/box.scope"
    own = with_files(facts, {f"{pod}/cpu.max": "600000 100000"})
    assert [(check.name, check.status) for check in machine.container(own)] == [
        ("container", "pass"),
        ("cpu-manager", "pass"),
        ("topology-manager", "pass"),
    ]
    assert machine.container(own)[1].detail == (
        "static, as far as can be seen: 6 of the node's 128 CPUs (4-6,68-70), of its own; "
        "its limit of 6 CPUs is what is allowed"
    )


def test_a_pod_without_cpus_of_its_own_is_told_what_the_kubelet_needs(vm: Facts) -> None:
    _, manager, _ = machine.container(replace(vm, environ={"KUBERNETES_SERVICE_HOST": "10.0.0.1"}))
    assert manager.status == "warn"
    assert "shared with other pods (all of the node's); the set may change" in manager.detail
    assert "cpuManagerPolicy: static" in manager.hint


def test_a_pod_whose_cores_lie_on_more_nodes_than_they_need_is_told_of_the_topology_manager(tmp_path: Path) -> None:
    facts = facts_of("container-6-of-128", tmp_path)
    spread = with_files(facts, {"sys/fs/cgroup/kubepods.slice/pod1.slice/box.scope/cpuset.cpus.effective": "4,36"})
    check = machine.container(spread)[2]
    assert (check.status, check.detail) == ("warn", "2 cores, which one NUMA node could give, lie on nodes 0-1")
    assert "topologyManagerPolicy: single-numa-node" in check.hint


@pytest.mark.parametrize(
    ("mount", "said"),
    [
        ("shm /dev/shm tmpfs rw,size=524288k 0 0", "; what the container runtime gives by default"),
        ("tmpfs /dev/shm tmpfs rw,size=524288k 0 0", "; a volume in memory, part of the limit of 8 GiB"),
        ("/dev/vda /dev/shm ext4 rw,size=524288k 0 0", "; it is on a disk: every sum of ranks writes to it"),
    ],
)
def test_shared_memory_of_a_pod_is_named_by_its_kind(tmp_path: Path, mount: str, said: str) -> None:
    check = machine.shared_memory(with_files(facts_of("container-6-of-128", tmp_path), {"proc/mounts": mount}))
    assert check.detail == f"/dev/shm has 512 MiB, 512 MiB usable{said}"
    assert check.status == ("warn" if "disk" in said else "pass")


def test_instruction_sets_that_sources_dispute_are_warned(vm: Facts) -> None:
    disputed = with_isa(vm, assess_isa(None, ["avx2", "fma", "f16c"], native_problem="it was not built"))
    assert software.isa(disputed).status == "warn"
    assert "it was not built" in software.isa(disputed).detail
    assert "unknown" in software.isa(with_isa(vm, assess_isa(None, None))).detail
    slow = software.isa(with_isa(vm, assess_isa(None, ["sse2"])))
    assert slow.status == "warn"
    assert "avx2 is missing avx2, fma, f16c" in slow.detail


def test_a_forced_variant_that_cannot_run_fails_and_names_those_that_can(vm: Facts) -> None:
    def refuse(_: str | None) -> str:
        raise KernelError('instruction-set variant "avx9" is not known; expected one of avx2, generic')

    forced = replace(vm, settings=Settings(isa="avx9"))
    check = software.isa_active(probing(forced, active_isa=refuse))
    assert check.status == "fail"
    assert "COREBOUND_ISA=avx9" in check.detail
    assert "avx2, generic" in check.detail
    assert software.isa_active(replace(vm, settings=Settings(isa="avx2"))).detail == "avx2, forced by COREBOUND_ISA"
    assert software.isa_active(probing(vm, active_isa=unavailable)).status == "warn"


def test_register_state_that_the_system_withholds_is_warned(vm: Facts) -> None:
    base = IsaReport("native", xcr0=0xE7, os_avx=True, os_avx512=True, os_amx=False, amx_permission=False)
    assert software.register_state(with_isa(vm, base)).status == "pass"
    amx = replace(base, features={"amx_tile": True})
    assert "arch_prctl" in software.register_state(with_isa(vm, amx)).hint
    masked = replace(base, features={"avx512f": True}, os_avx512=False)
    assert "has AVX-512" in software.register_state(with_isa(vm, masked)).detail


def test_missing_native_libraries_fail_with_the_way_to_build_them(vm: Facts) -> None:
    checks = software.native_libraries(probing(vm, core_library=unavailable, torch_operators=unavailable))
    assert [(check.name, check.status) for check in checks] == [("native-core", "fail"), ("native-operators", "fail")]
    assert all("make native" in check.hint for check in checks)


@pytest.mark.parametrize(
    ("version", "status"),
    [("2.13.0+cpu", "pass"), ("2.10.0", "pass"), ("3.0", "pass"), ("2.9.1", "fail"), ("1.13", "fail"), (None, "fail")],
)
def test_torch_must_be_recent_enough(vm: Facts, version: str | None, status: str) -> None:
    assert software.torch(probing(vm, package_version=lambda _: version)).status == status


def test_torch_must_be_the_one_that_a_classic_build_was_made_for(vm: Facts) -> None:
    flavour = TorchAbi(is_stable=False, version=(2, 8))
    for version, status in (("2.8.0+cpu", "pass"), ("2.8.1", "pass"), ("2.9.0", "fail"), ("2.13.0", "fail")):
        facts = probing(vm, package_version=lambda _, version=version: version, torch_abi=lambda: flavour)
        assert software.torch(facts).status == status, version
    assert "torch 2.8 and no other" in software.torch(facts).detail


def test_missing_packages_are_listed(vm: Facts) -> None:
    check = software.packages(probing(vm, package_version=lambda name: None if name == "tokenizers" else "1"))
    assert (check.status, check.hint) == ("fail", "pip install tokenizers")


def test_the_kernel_table_has_a_row_for_every_op_with_its_fallback(vm: Facts) -> None:
    partial = probing(vm, kernel_table=lambda: [{"op": "gelu", "active": "avx2"}])
    rows = {check.name: check for check in software.kernels(partial)}
    assert set(rows) == {f"kernel.{op}" for op in OPS}
    assert rows["kernel.gelu"].detail == "native, avx2"
    assert rows["kernel.attention"].status == "warn"
    assert "does not have it" in rows["kernel.attention"].detail


def test_kernels_without_a_library_fall_back_or_fail_as_the_setting_says(vm: Facts) -> None:
    broken = probing(vm, kernel_table=unavailable)
    assert {check.status for check in software.kernels(broken)} == {"warn"}
    native_only = replace(broken, settings=Settings(kernels="native"))
    assert {check.status for check in software.kernels(native_only)} == {"fail"}
    reference = replace(broken, settings=Settings(kernels="reference"))
    assert {check.status for check in software.kernels(reference)} == {"pass"}


def test_memory_policy_that_seccomp_refuses_names_consequence_and_remedy(vm: Facts) -> None:
    refused = probing(facts_of("sparse-nodes"), memory_policy_errno=lambda: errno.EPERM)
    check = software.memory_policy(refused)
    assert check.status == "warn"
    assert "EPERM" in check.detail
    assert "first touch" in check.detail
    assert "SYS_NICE" in check.hint
    assert software.memory_policy(probing(vm, memory_policy_errno=lambda: errno.EPERM)).status == "pass"


def test_numa_tools_are_reported_but_never_demanded(vm: Facts) -> None:
    bare = probing(vm, program=lambda _: None, loads=lambda _: False)
    assert software.numa_tools(vm).detail == "numactl and libnuma found"
    assert software.numa_tools(bare).status == "pass"
    assert "not needed" in software.numa_tools(bare).detail


def test_the_capability_is_read_from_the_status_file(vm: Facts) -> None:
    held = with_files(vm, {"proc/self/status": "Cpus_allowed_list:\t0-3\nCapEff:\t0000000000800000"})
    assert software.sys_nice(held).detail == "CAP_SYS_NICE held"
    dropped = with_files(vm, {"proc/self/status": "Cpus_allowed_list:\t0-3\nCapEff:\t00000000a80425fb"})
    assert "not held" in software.sys_nice(dropped).detail


@pytest.mark.parametrize(("soft", "status"), [(256, "warn"), (1024, "pass"), (-1, "pass")])
def test_a_low_limit_of_open_files_is_warned(vm: Facts, soft: int, status: str) -> None:
    assert software.open_files(probing(vm, open_files=lambda: (soft, -1))).status == status


def test_a_check_that_cannot_be_made_fails_alone(vm: Facts) -> None:
    def broken(_: Facts) -> Check:
        raise OSError(errno.EIO, "broken disk")

    checks = doctor.evaluate(vm, (broken, machine.smt))
    assert [check.status for check in checks] == ["fail", "pass"]
    assert "broken disk" in checks[0].detail


def test_the_text_has_a_line_for_each_check_one_hint_for_a_run_of_them_and_a_count() -> None:
    text = doctor.render(
        [Check("a", "pass", "fine"), Check("bb", "warn", "slow", "do x"), Check("c", "warn", "slow", "do x")]
    )
    assert "pass" in text.splitlines()[0]
    assert text.count("-> do x") == 1
    assert text.endswith("1 passed, 2 warnings, 0 failed")


def test_a_failed_check_is_exit_code_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "run_checks", lambda _: [Check("a", "fail", "broken", "mend it")])
    assert cli_main.main(["doctor"]) == 1
    assert "mend it" in capsys.readouterr().out


def test_warnings_alone_are_exit_code_0(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "run_checks", lambda _: [Check("a", "warn", "slow", "mend it")])
    assert cli_main.main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["checks"] == [
        {"name": "a", "status": "warn", "detail": "slow", "hint": "mend it"}
    ]


def test_a_root_that_is_missing_is_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli_main.main(["doctor", "--root", str(tmp_path / "nowhere")]) == 2
    assert "no such directory" in capsys.readouterr().err


def test_another_machines_files_answer_only_what_files_can(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli_main.main(["doctor", "--json", "--root", str(shared_machine("snc4"))]) == 0
    names = {check["name"] for check in json.loads(capsys.readouterr().out)["checks"]}
    assert "numa" in names
    assert not names & {"torch", "native-core", "memory-policy"}


def test_probing_the_memory_policy_leaves_it_as_it_was() -> None:
    before = Path("/proc/self/numa_maps")
    policies = {line.split()[1] for line in before.read_text().splitlines()} if before.exists() else set()
    assert probes.memory_policy_errno() in (0, errno.EPERM, errno.ENOSYS)
    assert policies == ({line.split()[1] for line in before.read_text().splitlines()} if before.exists() else set())


@pytest.fixture
def head_node(tmp_path: Path) -> Callable[[str], subprocess.CompletedProcess[str]]:
    """Runs a verb in an interpreter that sees click and Corebound only, as on a head node without torch."""
    import click

    (tmp_path / "click").symlink_to(Path(click.__file__).parent)
    (tmp_path / "corebound").symlink_to(Path(doctor.__file__).parents[1])

    def run(verb: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-S", "-m", "corebound", verb, "--json"]
        environment = {"PYTHONPATH": str(tmp_path), "PATH": os.environ["PATH"]}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    return run


def test_without_torch_doctor_answers_and_says_that_torch_is_missing(
    head_node: Callable[[str], subprocess.CompletedProcess[str]],
) -> None:
    result = head_node("doctor")
    checks = {check["name"]: check for check in json.loads(result.stdout)["checks"]}
    assert result.returncode == 1
    assert checks["torch"]["status"] == "fail"
    assert "not installed" in checks["torch"]["detail"]
    assert checks["allowed-cpus"]["status"] == "pass"


def test_without_torch_topology_answers(head_node: Callable[[str], subprocess.CompletedProcess[str]]) -> None:
    result = head_node("topology")
    assert result.returncode == 0
    assert json.loads(result.stdout)["allowed_cpus"] == sorted(os.sched_getaffinity(0))


@pytest.mark.bench
@pytest.mark.parametrize(("verb", "limit_s"), [("doctor", 0.5), ("topology", 0.4)])
def test_facts_come_in_a_fraction_of_a_second(
    head_node: Callable[[str], subprocess.CompletedProcess[str]], verb: str, limit_s: float
) -> None:
    times = []
    for _ in range(5):
        start = time.perf_counter()
        head_node(verb)
        times.append(time.perf_counter() - start)
    assert min(times) < limit_s


def test_the_accelerator_that_would_be_used_is_told_without_loading_any(vm: Facts) -> None:
    npu = replace(HEALTHY, accelerators=lambda: {"npu": "vendor-npu 2.0, npu:Device"})
    assert software.accelerator(vm).detail == "cpu"
    assert (
        "priority of npu (vendor-npu 2.0, npu:Device); else cpu" in software.accelerator(replace(vm, probes=npu)).detail
    )
    asked = replace(vm, probes=npu, settings=Settings(accelerator="npu"))
    assert software.accelerator(asked).detail == "npu, as COREBOUND_ACCELERATOR asks"
    unknown = software.accelerator(replace(asked, settings=Settings(accelerator="gpu")))
    assert (unknown.status, unknown.hint) == ("fail", "choices: cpu, npu; docs/accelerators.md")


def test_oneccl_is_optional_until_it_is_asked_for(vm: Facts) -> None:
    def missing() -> str:
        raise CclUnavailableError("oneCCL: libfabric.so.1 not found", hint="pip install impi-rt")

    assert software.one_ccl(vm).detail == "libcorebound_ccl.so is there"
    without = replace(vm, probes=replace(HEALTHY, ccl=missing))
    assert software.one_ccl(without).status == "pass"
    assert "libfabric.so.1 not found" in software.one_ccl(without).detail
    asked = software.one_ccl(replace(without, environ={"COREBOUND_HOST_LINK": "ccl"}))
    assert (asked.status, asked.hint) == ("fail", "pip install impi-rt")
    assert "COREBOUND_HOST_LINK=ccl asks for it" in asked.detail
