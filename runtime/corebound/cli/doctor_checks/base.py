"""What every check of `corebound doctor` is given and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from corebound.cli.doctor_checks import probes
from corebound.config.env import Settings
from corebound.native import TorchAbi, torch_abi
from corebound.topology import Topology
from corebound.topology.native_report import native_active_isa, native_kernel_table
from corebound.topology.tree import Tree

Status = Literal["pass", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    """One result. A warning costs speed or safety; a failure means that ranks will not run as asked."""

    name: str
    status: Status
    detail: str
    hint: str = ""

    def __post_init__(self) -> None:
        # A warning that does not say what to do next is no help.
        assert self.status == "pass" or self.hint, self.name


@dataclass(frozen=True, kw_only=True)
class Probes:
    """What is asked of the running system and not read from a file; tests put their own answers here."""

    memory_policy_errno: Callable[[], int] = probes.memory_policy_errno
    program: Callable[[str], str | None] = probes.program
    loads: Callable[[str], bool] = probes.loads
    accelerators: Callable[[], dict[str, str]] = probes.accelerators
    package_version: Callable[[str], str | None] = probes.package_version
    torch_abi: Callable[[], TorchAbi] = torch_abi
    open_files: Callable[[], tuple[int, int]] = probes.open_files
    core_library: Callable[[], str] = probes.core_library
    torch_operators: Callable[[], str] = probes.torch_operators
    ccl: Callable[[], str] = probes.ccl
    active_isa: Callable[[str | None], str] = native_active_isa
    kernel_table: Callable[[], list[dict[str, Any]]] = native_kernel_table


@dataclass(frozen=True, kw_only=True)
class Facts:
    """All that checks may look at. `environ` is the environment of the process, for what others put there."""

    topology: Topology
    tree: Tree
    settings: Settings = field(default_factory=Settings)
    environ: Mapping[str, str] = field(default_factory=dict)
    probes: Probes = field(default_factory=Probes)
