"""Which pairs of cores the latency probe measures, and what it refuses."""

from __future__ import annotations

import pytest

from corebound.errors import KernelError
from corebound.kernels.latency_probe import core_pairs, measure_latency
from corebound.topology import Topology, read_topology
from fixtures.topology_trees import shared_machine


def machine(name: str) -> Topology:
    return read_topology(str(shared_machine(name)))


def test_all_pairs_of_a_small_machine_are_measured() -> None:
    assert core_pairs(machine("vm")) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]


def test_a_large_machine_is_measured_within_a_node_and_between_nodes() -> None:
    topology = machine("xeon-2s-ht")
    pairs = core_pairs(topology)
    assert len(pairs) == 4
    nodes = [{topology.cpu(cpu).node for cpu in pair} for pair in pairs]
    assert [len(both) for both in nodes] == [1, 1, 1, 2]


@pytest.mark.native
def test_a_line_takes_a_plausible_time_between_two_cores() -> None:
    cpus = [core.cpus[0] for core in read_topology().physical_cores()][:2]
    if len(cpus) < 2:
        pytest.skip("this machine lacks a second core")
    found = measure_latency(cpus[0], cpus[1], num_blocks=20)
    assert 1 < found.best_ns <= found.median_ns < 1e8


@pytest.mark.native
def test_a_cpu_that_is_not_there_ends_both_sides_with_its_name() -> None:
    for pair in ((0, 8191), (8191, 0)):
        with pytest.raises(KernelError, match="cannot pin a thread to CPU 8191"):
            measure_latency(*pair, num_blocks=1)


@pytest.mark.native
def test_one_cpu_with_itself_is_refused() -> None:
    with pytest.raises(KernelError, match="expected two different CPUs"):
        measure_latency(0, 0)
