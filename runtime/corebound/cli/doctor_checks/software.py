"""Checks of what runs on the machine: instruction sets, native libraries, torch, kernels, permissions, limits."""

from __future__ import annotations

import errno
import os
import re

from corebound.cli.doctor_checks.base import Check, Facts, Status
from corebound.errors import KernelError
from corebound.kernels.selection import OPS
from corebound.native import wrong_torch_hint
from corebound.native_ccl import CclUnavailableError

_PACKAGES = ("safetensors", "tokenizers", "transformers")
_MIN_OPEN_FILES = 1024
_CAP_SYS_NICE = 23
_POLICY_HINT = (
    "docker: `--cap-add SYS_NICE`; Kubernetes: kubelet `memoryManagerPolicy: Static`, or a Localhost seccomp profile "
    "that allows get_mempolicy, set_mempolicy and mbind"
)


def isa(facts: Facts) -> Check:
    """The best variant that the processor and the operating system allow together."""
    report = facts.topology.isa
    detail = f"{report.best} is the best variant ({report.brand or 'unknown processor'}; from {report.source})"
    if report.warnings:
        hint = "`make native` builds the native library; COREBOUND_ISA names the variant to use where sources disagree"
        return Check("isa", "warn", f"{detail}; {'; '.join(report.warnings)}", hint)
    if report.source == "none":
        return Check(
            "isa", "warn", "unknown: /proc/cpuinfo lists no flags", "check that /proc is mounted, or copied whole"
        )
    if report.best == "generic":
        lacks = ", ".join(next(v.missing for v in report.variants if v.name == "avx2"))
        hint = "use a processor with AVX2, or a VM type that passes it on (such as `cpu: host`)"
        return Check("isa", "warn", f"{detail}: several times slower; avx2 is missing {lacks}", hint)
    return Check("isa", "pass", detail)


def isa_active(facts: Facts) -> Check:
    """The variant that kernels use, forced or not."""
    forced = facts.settings.isa
    try:
        active = facts.probes.active_isa(forced)
    except KernelError as error:
        if forced is None:
            return Check("isa-active", "warn", f"no native kernels: {error.message}", error.hint or "make native")
        return Check(
            "isa-active", "fail", f"COREBOUND_ISA={forced}: {error.message}", "unset it, or name one that runs"
        )
    return Check("isa-active", "pass", active if forced is None else f"{active}, forced by COREBOUND_ISA")


def register_state(facts: Facts) -> Check:
    """The operating system saves the registers of what the processor offers, and AMX is permitted."""
    report = facts.topology.isa
    if report.xcr0 is None:
        return Check("register-state", "pass", "XCR0 not visible; the flags of /proc/cpuinfo respect it")
    saved = {"AVX": report.os_avx, "AVX-512": report.os_avx512, "AMX": report.os_amx}
    detail = f"XCR0 {report.xcr0:#x} saves {', '.join(name for name, value in saved.items() if value) or 'SSE only'}"
    if report.features.get("avx512f") and not report.os_avx512:
        return Check(
            "register-state",
            "warn",
            f"{detail}, but the processor has AVX-512",
            "let the hypervisor pass AVX-512 state on, or boot without `noxsave` and `clearcpuid`",
        )
    if report.features.get("amx_tile") and not report.amx_permission:
        return Check(
            "register-state",
            "warn",
            f"{detail}; the processor has AMX, but the kernel does not permit it: prefill is several times slower",
            "Linux 5.16 or later; in a container, a seccomp profile that allows arch_prctl",
        )
    amx = "AMX permitted" if report.amx_permission else "this processor has no AMX"
    return Check("register-state", "pass", f"{detail}; {amx}")


def native_libraries(facts: Facts) -> list[Check]:
    """Both native libraries are there; the core one loads."""
    checks = []
    for name, probe in (
        ("native-core", facts.probes.core_library),
        ("native-operators", facts.probes.torch_operators),
    ):
        try:
            checks.append(Check(name, "pass", f"{probe()} {'loads' if name == 'native-core' else 'is there'}"))
        except KernelError as error:
            checks.append(Check(name, "fail", error.message, error.hint or "rebuild with `make native`"))
    return checks


def one_ccl(facts: Facts) -> Check:
    """The optional binding to oneCCL, and the libraries below it."""
    asked = next((v for v in ("COREBOUND_COMM", "COREBOUND_HOST_LINK") if facts.environ.get(v) == "ccl"), None)
    try:
        return Check("oneccl", "pass", f"{facts.probes.ccl()} is there")
    except CclUnavailableError as error:
        detail = error.message.removeprefix("oneCCL: ")
        if asked:
            return Check("oneccl", "fail", f"{detail}; {asked}=ccl asks for it", error.hint or "")
        return Check("oneccl", "pass", f"not used: {detail}; TCP carries data between hosts")


def torch(facts: Facts) -> Check:
    """A torch that the native operators fit."""
    version = facts.probes.package_version("torch")
    try:
        abi = facts.probes.torch_abi()
    except KernelError as error:
        return Check("torch", "fail", error.message, error.hint or "install Corebound again")
    if version is None:
        hint = f"{wrong_torch_hint(abi)}; a head node that only launches needs none"
        return Check("torch", "fail", f"not installed; ranks need {abi}", hint)
    if not abi.fits(version):
        return Check("torch", "fail", f"{version}; the native operators need {abi}", wrong_torch_hint(abi))
    return Check("torch", "pass", version)


def accelerator(facts: Facts) -> Check:
    """The accelerators that a process could use, and the one that was asked for."""
    asked, found = facts.settings.accelerator, facts.probes.accelerators()
    choices = ", ".join(["cpu", *found])
    if asked is not None and asked != "cpu" and asked not in found:
        return Check(
            "accelerator",
            "fail",
            f"COREBOUND_ACCELERATOR={asked}: no such extension is installed",
            f"choices: {choices}; docs/accelerators.md",
        )
    if asked is not None:
        return Check("accelerator", "pass", f"{asked}, as COREBOUND_ACCELERATOR asks")
    if not found:
        return Check("accelerator", "pass", "cpu")
    origins = ", ".join(f"{name} ({origin})" for name, origin in found.items())
    return Check("accelerator", "pass", f"the one with a device and the highest priority of {origins}; else cpu")


def packages(facts: Facts) -> Check:
    """The Python packages that ranks need beside torch."""
    versions = {name: facts.probes.package_version(name) for name in _PACKAGES}
    missing = [name for name, version in versions.items() if version is None]
    if missing:
        return Check("packages", "fail", f"not installed: {', '.join(missing)}", f"pip install {' '.join(missing)}")
    return Check("packages", "pass", ", ".join(f"{name} {version}" for name, version in versions.items()))


def kernels(facts: Facts) -> list[Check]:
    """One check for each op: its native variant, or its fallback and why."""
    if facts.settings.kernels == "reference":
        return [Check(f"kernel.{op}", "pass", "reference, as COREBOUND_KERNELS=reference asks") for op in OPS]
    problem, hint = "", "build the native libraries with `make native`"
    active: dict[str, str] = {}
    try:
        facts.probes.torch_operators()
        active = {row["op"]: row["active"] for row in facts.probes.kernel_table()}
    except KernelError as error:
        problem, hint = error.message, error.hint or hint
    status: Status = "fail" if facts.settings.kernels == "native" else "warn"
    checks = []
    for op in OPS:
        if op in active:
            checks.append(Check(f"kernel.{op}", "pass", f"native, {active[op]}"))
        else:
            reason = problem or "the native library does not have it"
            checks.append(Check(f"kernel.{op}", status, f"falls back to plain torch: {reason}", hint))
    return checks


def numa_tools(facts: Facts) -> Check:
    """Whether numactl and libnuma are there, which help to look but are not needed."""
    found = [name for name, present in (("numactl", facts.probes.program("numactl")),) if present]
    found += ["libnuma"] if facts.probes.loads("libnuma.so.1") else []
    if found:
        return Check("numa-tools", "pass", f"{' and '.join(found)} found")
    return Check("numa-tools", "pass", "no numactl, no libnuma: not needed, ranks set their memory policy themselves")


def memory_policy(facts: Facts) -> Check:
    """Ranks may choose the node that their memory comes from."""
    number = facts.probes.memory_policy_errno()
    if number == 0:
        return Check("memory-policy", "pass", "get_mempolicy and set_mempolicy are permitted")
    reason = f"{errno.errorcode.get(number, number)} ({os.strerror(number)})"
    if number == errno.ENOSYS or len(facts.topology.nodes) == 1:
        return Check("memory-policy", "pass", f"refused with {reason}; one node has no choice to make")
    return Check(
        "memory-policy",
        "warn",
        f"refused with {reason}: ranks are bound to cores only, and memory is local just by first touch",
        _POLICY_HINT,
    )


def sys_nice(facts: Facts) -> Check:
    """The capability that containers lack when memory policy is refused."""
    match = re.search(r"^CapEff:\s*([0-9a-f]+)$", facts.tree.text("proc/self/status") or "", re.MULTILINE)
    if match is None:
        return Check("sys-nice", "pass", "capabilities not visible")
    if int(match[1], 16) >> _CAP_SYS_NICE & 1:
        return Check("sys-nice", "pass", "CAP_SYS_NICE held")
    return Check("sys-nice", "pass", "CAP_SYS_NICE not held; it matters only where memory policy is refused")


def open_files(facts: Facts) -> Check:
    """Enough open files for logs, sockets and weight files."""
    soft, hard = facts.probes.open_files()
    limits = f"soft {_limit(soft)}, hard {_limit(hard)}"
    if 0 <= soft < _MIN_OPEN_FILES:
        return Check("open-files", "warn", f"{limits}: a launch of many ranks may run out", "ulimit -n 65536")
    return Check("open-files", "pass", limits)


def _limit(value: int) -> str:
    return "unlimited" if value < 0 else str(value)
