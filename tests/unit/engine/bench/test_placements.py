"""Pairs of cores within a cache and across two."""

from __future__ import annotations

import os

import pytest

from corebound.engine.bench.placements import cache_clusters, on_cpus, placements
from corebound.topology import read_topology
from fixtures.topology_trees import shared_machine


@pytest.mark.parametrize("name", ["vm", "xeon-2s-ht", "epyc-nps4", "adjacent-smt", "sparse-nodes"])
def test_every_core_is_in_one_cluster_and_pairs_are_of_one_or_two(name: str) -> None:
    topology = read_topology(str(shared_machine(name)))
    clusters = cache_clusters(topology)
    of_cpu = {cpu: number for number, cluster in enumerate(clusters) for cpu in cluster}
    assert sorted(of_cpu) == sorted(core.cpus[0] for core in topology.physical_cores())
    pairs = placements(topology)
    assert ("far" in pairs) == (len(clusters) > 1)
    assert "near" in pairs
    for placement, (one, other) in pairs.items():
        assert one != other
        assert (of_cpu[one] == of_cpu[other]) == (placement == "near")


def test_two_sockets_have_far_cores_and_one_small_machine_has_none() -> None:
    assert set(placements(read_topology(str(shared_machine("xeon-2s-ht"))))) == {"near", "far"}
    assert set(placements(read_topology(str(shared_machine("vm"))))) == {"near"}


def test_what_runs_meanwhile_is_where_it_was_asked_to_be() -> None:
    before = os.sched_getaffinity(0)
    with on_cpus([min(before)]):
        assert os.sched_getaffinity(0) == {min(before)}
    assert os.sched_getaffinity(0) == before
