"""What each machine is asked to run, and what its ranks must get by the rules of docs/launching.md."""

from __future__ import annotations

from typing import Any

from topology.machine import FAKE_NUMA, ODD_MEMORY, ONE_NODE, SLOW_MEMORY, SNC2_HBM, TWO_SOCKETS, Machine

MACHINES = {machine.name: machine for machine in (TWO_SOCKETS, SNC2_HBM, ONE_NODE, SLOW_MEMORY, ODD_MEMORY, FAKE_NUMA)}
# How many bound ranks each machine starts: fewer than sockets, than nodes, as many, more, and one for each core.
NUM_RANKS = {
    TWO_SOCKETS.name: (1, 2, 3, 4),
    SNC2_HBM.name: (1, 2, 3, 4, 8),
    ONE_NODE.name: (1, 3),
    SLOW_MEMORY.name: (1, 2),
    FAKE_NUMA.name: (1, 2),
}
FOUR_SLOTS = "localhost slots=4  # one for each node or core\n"
BOUND = "--bind_cores_to_rank"


def _case(name: str, *flags: str, touched_mib: int = 4, **more: Any) -> dict[str, Any]:
    return {"name": name, "flags": list(flags), "touched_mib": touched_mib, **more}


SPECIAL = {
    TWO_SOCKETS.name: [
        _case("more ranks than cores", BOUND, "--num_accelerators", "5"),
        _case("not bound", "--num_accelerators", "2"),
        _case("core list", "--num_accelerators", "2", "--bind_core_list", "0-1,5"),
        _case("affinity", BOUND, "--num_accelerators", "2", affinity="1,4-7"),
        _case("cpuset", BOUND, "--num_accelerators", "2", cpuset={"cpus": "2-5", "memory_nodes": "1"}),
        _case("policy refused", BOUND, "--num_accelerators", "2", refuses_memory_policy=True),
        _case("own thread count", BOUND, "--num_accelerators", "2", environ={"OMP_NUM_THREADS": "7"}),
        _case("chosen slots", BOUND, "--include", "localhost:1,3", hostfile=FOUR_SLOTS),
    ],
    SNC2_HBM.name: [
        _case("slot for each node", BOUND, hostfile=FOUR_SLOTS),
        _case(
            "more than the HBM holds",
            BOUND,
            "--include",
            "localhost:2",
            hostfile=FOUR_SLOTS,
            touched_mib=160,
        ),
        _case("cpuset without HBM", BOUND, "--num_accelerators", "4", cpuset={"cpus": "0-15", "memory_nodes": "0-3"}),
    ],
    ONE_NODE.name: [_case("policy refused", BOUND, "--num_accelerators", "2", refuses_memory_policy=True)],
    SLOW_MEMORY.name: [],
    ODD_MEMORY.name: [
        _case("over both nodes", BOUND, "--num_accelerators", "1"),
        _case("one for each node", BOUND, "--num_accelerators", "2"),
    ],
    FAKE_NUMA.name: [],
}


def cases_of(machine: Machine) -> list[dict[str, Any]]:
    """Returns all that a machine runs."""
    counts = NUM_RANKS.get(machine.name, ())
    return [
        *(_case(f"{count} ranks", BOUND, "--num_accelerators", str(count)) for count in counts),
        *SPECIAL[machine.name],
    ]


def expected_memory(machine: Machine, nodes: set[int]) -> tuple[str, list[int]]:
    """Returns policy and memory nodes of a rank whose cores are on these nodes, all of which have memory."""
    hbm = sorted(found for node in nodes if (found := machine.hbm_of(node)) is not None)
    if len(hbm) == len(nodes):
        return ("preferred" if len(hbm) == 1 else "interleave"), hbm
    own = sorted(part for node in nodes for part in machine.memory_of(node))
    return ("bind" if len(nodes) == 1 else "interleave"), own
