from __future__ import annotations

import functools
import os
from pathlib import Path

import pytest

from corebound.errors import HostError
from corebound.topology import Topology, read_topology
from fixtures.topology_trees import GIB, MACHINES, shared_machine, write_machine


@functools.cache
def read(name: str) -> Topology:
    """The topology of a named machine, read once."""
    return read_topology(shared_machine(name))


def node_cpus(topology: Topology) -> dict[int, tuple[int, ...]]:
    return {node.id: node.cpus for node in topology.nodes}


@pytest.mark.parametrize("name", MACHINES)
def test_every_machine_has_one_core_for_each_group_of_allowed_siblings(name: str) -> None:
    topology = read(name)
    cores = topology.physical_cores()
    members = [cpu for core in cores for cpu in core.cpus]
    assert sorted(members) == list(topology.allowed_cpus)
    for core in cores:
        assert {topology.cpu(cpu).socket for cpu in core.cpus} == {core.socket}
        assert {topology.cpu(cpu).node for cpu in core.cpus} == {core.node}
        assert set(core.cpus) <= set(topology.cpu(core.cpus[0]).siblings)


@pytest.mark.parametrize("name", MACHINES)
def test_every_online_cpu_is_on_a_node_that_lists_it(name: str) -> None:
    topology = read(name)
    for cpu in topology.cpus:
        if cpu.online:
            assert cpu.id in topology.node(cpu.node).cpus
            assert cpu.id in cpu.siblings
        else:
            assert cpu.id not in topology.allowed_cpus
            assert (cpu.socket, cpu.node, cpu.siblings) == (-1, -1, ())


def test_two_sockets_with_split_sibling_numbering() -> None:
    topology = read("xeon-2s-ht")
    assert len(topology.allowed_cpus) == 224
    assert topology.sockets == (0, 1)
    assert topology.threads_per_core == 2
    cores = topology.physical_cores()
    assert len(cores) == 112
    assert cores[0].cpus == (0, 112)
    assert cores[56].cpus == (56, 168)
    assert (cores[55].node, cores[56].node) == (0, 1)
    assert [topology.memory_nodes_of(node) for node in (0, 1)] == [(0,), (1,)]
    assert topology.node(0).distances == {0: 10, 1: 21}
    assert topology.warnings == ()


def test_caches_are_listed_once_with_their_size_and_sharers() -> None:
    topology = read("xeon-2s-ht")
    l3 = [cache for cache in topology.caches if cache.level == 3]
    assert [(cache.size_bytes, len(cache.cpus)) for cache in l3] == [(107520 << 10, 112)] * 2
    l2 = [cache for cache in topology.caches if cache.level == 2]
    assert len(l2) == 112
    assert l2[0].cpus == (0, 112)
    l1 = {(cache.kind, cache.size_bytes) for cache in topology.caches if cache.level == 1}
    assert l1 == {("data", 48 << 10), ("instruction", 32 << 10)}


def test_snc4_shows_four_nodes_on_each_socket() -> None:
    topology = read("snc4")
    assert len(topology.nodes) == 8
    assert topology.num_nodes_of_socket(0) == topology.num_nodes_of_socket(1) == 4
    assert topology.node(5).cpus == (*range(70, 84), *range(182, 196))
    assert topology.cpu(70).socket == 1
    assert topology.node(0).distances[3] == 12
    assert topology.node(0).distances[4] == 21


@pytest.mark.parametrize("name", ["flat-hbm", "flat-hbm-no-hmat"])
def test_flat_hbm_pairs_each_cpu_node_with_its_nearest_memory_only_node(name: str) -> None:
    topology = read(name)
    assert [node.kind for node in topology.nodes] == ["dram", "dram", "hbm", "hbm"]
    assert [topology.hbm_node_of(node) for node in (0, 1)] == [2, 3]
    assert topology.memory_nodes_of(0) == (0,)
    assert node_cpus(topology)[2] == ()


def test_hbm_that_is_only_recognised_by_its_place_is_said_to_be_a_guess() -> None:
    assert read("flat-hbm").warnings == ()
    assert "states no bandwidth for memory-only nodes 2, 3" in read("flat-hbm-no-hmat").warnings[0]


def test_hbm_in_cache_mode_is_a_cache_of_the_node_not_a_node() -> None:
    topology = read("hbm-cache")
    assert len(topology.nodes) == 2
    assert [node.memory_side_cache_bytes for node in topology.nodes] == [64 * GIB] * 2
    assert topology.hbm_node_of(0) is None


def test_memory_that_firmware_calls_slower_is_not_taken_for_hbm() -> None:
    topology = read("cxl")
    assert [node.kind for node in topology.nodes] == ["dram", "dram", "far", "far"]
    assert topology.hbm_node_of(0) is None


def test_memory_as_far_as_another_socket_is_not_guessed_to_be_hbm() -> None:
    # One memory-only node and one CPU node with memory would pair; a kernel that ignored the HMAT showed them so.
    topology = read("qemu-odd-memory")
    assert [node.kind for node in topology.nodes] == ["dram", "cpu-only", "far"]
    assert topology.node(0).distances[2] == 40
    assert topology.hbm_node_of(0) is None
    assert "taken for far memory, since they are as far from every CPU as another socket" in topology.warnings[0]
    assert topology.memory_nodes_of(1) == (0,)


def test_hbm_of_four_nodes_is_known_by_the_bandwidth_that_a_real_kernel_shows() -> None:
    topology = read("qemu-snc2-hbm")
    assert [node.kind for node in topology.nodes] == ["dram"] * 4 + ["hbm"] * 4
    assert [topology.hbm_node_of(node) for node in range(4)] == [4, 5, 6, 7]
    assert [core.cpus for core in topology.physical_cores()[:2]] == [(0, 1), (2, 3)]
    assert not any("bandwidth" in text for text in topology.warnings)


def test_interleaved_numbering_keeps_even_and_odd_cpus_apart() -> None:
    topology = read("interleaved")
    assert topology.node(0).cpus == tuple(range(0, 32, 2))
    assert topology.node(1).cpus == tuple(range(1, 32, 2))
    cores = topology.physical_cores()
    assert cores[0].cpus == (0, 16)
    assert cores[8].cpus == (1, 17)


def test_adjacent_sibling_numbering_is_two_cpus_to_a_core() -> None:
    cores = read("adjacent-smt").physical_cores()
    assert [core.cpus for core in cores[:3]] == [(0, 1), (2, 3), (4, 5)]


def test_epyc_with_four_nodes_a_socket_has_an_l3_for_every_eight_cores() -> None:
    topology = read("epyc-nps4")
    assert topology.num_nodes_of_socket(1) == 4
    l3 = [cache for cache in topology.caches if cache.level == 3]
    assert len(l3) == 16
    assert l3[1].cpus == (*range(8, 16), *range(136, 144))
    assert topology.isa.best == "avx512_bf16"


def test_a_container_gets_its_six_cpus_its_node_and_the_limit_of_its_pod() -> None:
    topology = read("container-6-of-128")
    assert topology.allowed_cpus == (4, 5, 6, 68, 69, 70)
    assert [core.cpus for core in topology.physical_cores()] == [(4, 68), (5, 69), (6, 70)]
    assert len(topology.all_cores()) == 64
    assert topology.cgroup.version == "v2"
    assert topology.cgroup.cpu_quota == 3.0
    assert topology.memory.limit_bytes == 8 * GIB
    # 8 GiB less the 3 in use, of which 1 is file cache that the kernel drops first.
    assert topology.memory.available_bytes == 6 * GIB
    assert topology.memory.shm_total_bytes == 64 << 20
    assert [node.allowed for node in topology.nodes] == [True, False]
    assert topology.memory_nodes_of(1) == (0,)


def test_cgroup_v1_without_a_namespace_is_read_below_its_mounts() -> None:
    topology = read("cgroup-v1-hybrid")
    assert topology.allowed_cpus == (8, 9, 10, 11)
    assert topology.cgroup.version == "hybrid"
    assert topology.cgroup.memory_nodes == (1,)
    assert topology.cgroup.cpu_quota == 2.5
    assert topology.memory.limit_bytes == 4 * GIB
    assert topology.memory.available_bytes == 3 * GIB


def test_offline_cpus_are_known_but_never_allowed() -> None:
    topology = read("offline")
    assert topology.allowed_cpus == (0, 1, 2, 4, 5, 7)
    assert [cpu.id for cpu in topology.cpus if not cpu.online] == [3, 6]
    # 3 and 6 were the siblings of 7 and 2.
    assert [core.cpus for core in topology.physical_cores()] == [(0, 4), (1, 5), (2,), (7,)]


def test_sparse_node_ids_are_kept() -> None:
    topology = read("sparse-nodes")
    assert node_cpus(topology) == {0: (0, 1, 2, 3), 8: (4, 5, 6, 7)}
    assert topology.node(8).distances == {0: 21, 8: 10}
    assert topology.memory_nodes_of(8) == (8,)


def test_fake_numa_nodes_with_the_same_cpus_count_as_one_for_cpus_and_all_for_memory() -> None:
    topology = read("fake-numa")
    assert [node.id for node in topology.cpu_nodes()] == [0, 2]
    assert topology.memory_nodes_of(0) == topology.memory_nodes_of(1) == (0, 1)
    assert topology.memory_nodes_of(2) == (2, 3)
    assert topology.cpu(4).node == 2


def test_cpus_without_memory_of_their_own_use_the_nearest() -> None:
    topology = read("cpu-only-node")
    assert topology.node(1).kind == "cpu-only"
    assert topology.memory_nodes_of(1) == (0,)


def test_a_one_node_vm_is_plain() -> None:
    topology = read("vm")
    assert topology.threads_per_core == 1
    assert len(topology.physical_cores()) == 4
    assert topology.memory.total_bytes == 16 * GIB
    assert topology.memory.limit_bytes is None
    assert topology.memory.transparent_huge_pages == "madvise"
    assert [(pool.page_bytes, pool.num_free) for pool in topology.memory.huge_pages] == [(2 << 20, 12), (1 << 30, 0)]
    assert topology.warnings == ()


def test_without_sysfs_cpuinfo_gives_cores_and_sockets_with_one_warning() -> None:
    topology = read("no-sysfs")
    assert topology.sockets == (0, 1)
    assert [core.cpus for core in topology.physical_cores()][:2] == [(0, 8), (1, 9)]
    assert len(topology.nodes) == 1
    assert len(topology.warnings) == 1
    # A node that was not seen must not become a memory policy.
    assert topology.memory_nodes_of(0) == ()


def test_without_sysfs_and_cpuinfo_the_affinity_remains_with_one_warning() -> None:
    topology = read("nothing")
    assert topology.allowed_cpus == (0, 1, 2, 3)
    assert len(topology.physical_cores()) == 4
    assert topology.isa.best == "generic"
    assert len(topology.warnings) == 1


def test_a_container_with_a_rewritten_online_file_keeps_its_real_cpus() -> None:
    topology = read("lxcfs")
    assert topology.allowed_cpus == (12, 13)
    assert "changes sysfs" in topology.warnings[0]


def test_a_given_affinity_replaces_that_of_the_files(tmp_path: Path) -> None:
    write_machine("vm", tmp_path)
    assert read_topology(tmp_path, affinity=[2, 1, 99]).allowed_cpus == (1, 2)


def test_an_affinity_without_any_existing_cpu_is_an_error_that_shows_both(tmp_path: Path) -> None:
    write_machine("vm", tmp_path)
    with pytest.raises(HostError, match="affinity 7-8, online 0-3"):
        read_topology(tmp_path, affinity=(7, 8))


def test_a_cpuset_that_shares_nothing_with_the_affinity_is_reported_and_left_out(tmp_path: Path) -> None:
    write_machine("container-6-of-128", tmp_path)
    topology = read_topology(tmp_path, affinity=(0, 1))
    assert topology.allowed_cpus == (0, 1)
    assert "no CPU in common" in topology.warnings[0]


def test_a_root_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="no such directory"):
        read_topology(tmp_path / "nowhere")


def test_a_root_without_sys_and_proc_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="neither sys nor proc"):
        read_topology(tmp_path)


def test_a_malformed_file_is_named(tmp_path: Path) -> None:
    write_machine("vm", tmp_path)
    path = tmp_path / "sys/devices/system/cpu/online"
    path.write_text("zero-three\n")
    with pytest.raises(HostError, match=str(path)):
        read_topology(tmp_path)


def test_this_machine_gives_the_affinity_that_the_kernel_reports() -> None:
    topology = read_topology()
    assert set(topology.allowed_cpus) == os.sched_getaffinity(0)
    assert topology.memory.total_bytes > 0
    assert topology.memory.available_bytes <= topology.memory.total_bytes


def test_a_narrowed_affinity_of_this_process_is_seen() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert read_topology().allowed_cpus == (min(before),)
    finally:
        os.sched_setaffinity(0, before)
