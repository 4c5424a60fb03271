"""From what was asked to what will run: hosts and slots to ranks. Pure but for the two readers it is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from corebound.errors import ConfigError
from corebound.launcher.binding import Binding, arrange, omp_num_threads
from corebound.launcher.corelist import parse_core_list
from corebound.launcher.hostfile import Host, read_hostfile
from corebound.launcher.hostfilter import parse_filter, select_slots
from corebound.launcher.spec import DEFAULT_MASTER_PORT, LOCALHOST, LaunchSpec
from corebound.topology import Topology

TopologyOf = Callable[[str], Topology | None]


@dataclass(frozen=True, kw_only=True)
class RankPlan:
    """One process of a launch. `slot` is its place on its host; `binding` None is not known from here."""

    rank: int
    local_rank: int
    host: str
    slot: int
    command: tuple[str, ...]
    env: Mapping[str, str]
    binding: Binding | None

    def as_row(self) -> dict[str, Any]:
        """Return the rank as `corebound plan --json` prints it."""
        binding = self.binding
        return {
            "rank": self.rank,
            "local_rank": self.local_rank,
            "host": self.host,
            "slot": self.slot,
            "cpus": None if binding is None else list(binding.cpus),
            "memory_nodes": None if binding is None else list(binding.memory_nodes),
            "memory_policy": None if binding is None else binding.memory_policy,
            "num_threads": None if binding is None else binding.num_threads,
            "env": dict(self.env),
            "command": list(self.command),
        }


@dataclass(frozen=True, kw_only=True)
class NodePlan:
    """One host of a launch; `bound` None means that its agent decides."""

    host: str
    node_rank: int
    num_slots: int
    ranks: tuple[RankPlan, ...]
    bound: bool | None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LaunchPlan:
    """Everything that a launch will start, in rank order."""

    nodes: tuple[NodePlan, ...]
    master_addr: str
    master_port: int
    warnings: tuple[str, ...] = ()

    @property
    def ranks(self) -> tuple[RankPlan, ...]:
        """All ranks, by number."""
        return tuple(rank for node in self.nodes for rank in node.ranks)


def plan(
    spec: LaunchSpec,
    topology_of: TopologyOf,
    *,
    hosts_of: Callable[[Path], tuple[Host, ...]] = read_hostfile,
    master_port: int | None = None,
    environ: Mapping[str, str] | None = None,
) -> LaunchPlan:
    """Return the plan for a spec; ranks follow the order of hosts, then of slots.

    `topology_of` returns the topology of a host by name, None where it cannot be seen from here. `master_port` is the
    port to use where the spec asks for none. `environ` is the environment that ranks inherit.

    Raises: ConfigError when the hostfile, the filter and the counts do not fit together, or ranks do not fit on cores.
    """
    num_slots, slots = _choose(spec, topology_of, hosts_of)
    master_addr = spec.master_addr or (next(iter(slots)) if len(slots) > 1 or spec.no_ssh else "127.0.0.1")
    port = spec.master_port or master_port or DEFAULT_MASTER_PORT
    if spec.node_rank is not None and spec.node_rank >= len(slots):
        raise ConfigError(f"--node_rank: expected 0 to {len(slots) - 1} for {len(slots)} hosts, found {spec.node_rank}")
    launch_env = {
        "WORLD_SIZE": str(sum(len(taken) for taken in slots.values())),
        "CROSS_SIZE": str(len(slots)),
        "MASTER_ADDR": master_addr,
        "MASTER_PORT": str(port),
    }
    nodes: list[NodePlan] = []
    for host, taken in slots.items():
        node = NodePlan(host=host, node_rank=len(nodes), num_slots=num_slots[host], ranks=(), bound=None)
        first_rank = sum(len(earlier.ranks) for earlier in nodes)
        nodes.append(_fill_node(spec, node, taken, first_rank, topology_of(host), launch_env, environ or {}))
    return LaunchPlan(
        nodes=tuple(nodes), master_addr=master_addr, master_port=port, warnings=_without_effect(spec, nodes)
    )


def _fill_node(
    spec: LaunchSpec,
    node: NodePlan,
    slots: tuple[int, ...],
    first_rank: int,
    topology: Topology | None,
    launch_env: Mapping[str, str],
    environ: Mapping[str, str],
) -> NodePlan:
    arrangement = None
    if topology is not None:
        core_list = None if spec.bind_core_list is None else parse_core_list(spec.bind_core_list)
        arrangement = arrange(topology, node.num_slots, bind_cores=spec.binds, core_list=core_list)
    ranks = []
    for local_rank, slot in enumerate(slots):
        place = {
            "RANK": str(first_rank + local_rank),
            "LOCAL_RANK": str(local_rank),
            "LOCAL_SIZE": str(len(slots)),
            "LOCAL_WORLD_SIZE": str(len(slots)),
            "CROSS_RANK": str(node.node_rank),
            **launch_env,
        }
        binding = None if arrangement is None else arrangement.bindings[slot]
        threads = {}
        if arrangement is not None and binding is not None:
            threads["OMP_NUM_THREADS"] = omp_num_threads(binding, arrangement.bound, environ)
        extra = (f"--local_rank={local_rank}",) if spec.pass_local_rank else ()
        ranks.append(
            RankPlan(
                rank=first_rank + local_rank,
                local_rank=local_rank,
                host=node.host,
                slot=slot,
                command=(*spec.command, *extra, *spec.arguments),
                env={**place, **threads, **spec.env, **place},
                binding=binding,
            )
        )
    if arrangement is None:
        return replace(node, ranks=tuple(ranks))
    return replace(node, ranks=tuple(ranks), bound=arrangement.bound, warnings=arrangement.warnings)


def _choose(
    spec: LaunchSpec, topology_of: TopologyOf, hosts_of: Callable[[Path], tuple[Host, ...]]
) -> tuple[dict[str, int], dict[str, tuple[int, ...]]]:
    """Return the number of slots of each host, and the slots that are used on each of those that take part."""
    if spec.hostfile is not None:
        hosts = hosts_of(spec.hostfile)
    elif spec.hosts:
        hosts = tuple(Host(host.name, spec.num_accelerators or host.num_slots) for host in spec.hosts)
    else:
        hosts = (Host(LOCALHOST, spec.num_accelerators or _default_slots(topology_of(LOCALHOST))),)
    include = None if spec.include is None else parse_filter(spec.include, where="--include")
    exclude = None if spec.exclude is None else parse_filter(spec.exclude, where="--exclude")
    slots = select_slots(hosts, include, exclude)
    if spec.num_nodes is not None:
        if spec.num_nodes > len(slots):
            raise ConfigError(f"--num_nodes {spec.num_nodes}: {spec.hosts_source} has {len(slots)} hosts")
        slots = dict(list(slots.items())[: spec.num_nodes])
    num_slots = {host.name: host.num_slots for host in hosts}
    if spec.num_accelerators is not None and spec.hostfile is not None:
        for name in slots:
            if spec.num_accelerators > num_slots[name]:
                raise ConfigError(
                    f"--num_accelerators {spec.num_accelerators}: host {name} has {num_slots[name]} slots",
                    hint=f"raise slots= of {name} in {spec.hostfile}, or ask for fewer",
                )
            # The count replaces the slots of the file, so that the ranks still share the whole machine.
            num_slots[name] = spec.num_accelerators
            slots[name] = tuple(range(spec.num_accelerators))
    return num_slots, slots


def _default_slots(topology: Topology | None) -> int:
    if topology is None:
        return 1
    return len({core.node for core in topology.physical_cores()})


def _without_effect(spec: LaunchSpec, nodes: list[NodePlan]) -> tuple[str, ...]:
    """Return a warning for each setting that was given and changes nothing."""
    if len(nodes) > 1 or spec.launcher not in (None, "local"):
        return ()
    given = {
        "--remote_python": spec.remote_python,
        "--ssh_port": spec.ssh_port,
        "--launcher_args": spec.launcher_args,
        "--venv_script": spec.venv_script,
    }
    return tuple(f"{flag} has no effect on a launch on this machine alone" for flag, value in given.items() if value)
