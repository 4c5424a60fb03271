"""What this machine is: allowed CPUs, sockets, NUMA nodes, caches, memory and instruction sets, read without torch."""

from __future__ import annotations

from corebound.topology.cpulist import format_cpu_list, parse_cpu_list
from corebound.topology.isa import IsaReport, IsaVariant
from corebound.topology.model import Cache, CgroupLimits, Core, Cpu, HugePages, Memory, NumaNode, Topology
from corebound.topology.process_place import ProcessPlace, read_process_place
from corebound.topology.read import read_topology

__all__ = [
    "Cache",
    "CgroupLimits",
    "Core",
    "Cpu",
    "HugePages",
    "IsaReport",
    "IsaVariant",
    "Memory",
    "NumaNode",
    "ProcessPlace",
    "Topology",
    "format_cpu_list",
    "parse_cpu_list",
    "read_process_place",
    "read_topology",
]
