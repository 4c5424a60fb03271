"""Which CPUs the bandwidth probe measures, and with how much memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from corebound.errors import KernelError
from corebound.kernels.memory_probe import bytes_beyond_caches, core_sets, measure_read
from corebound.topology import Topology, read_topology
from fixtures.topology_trees import shared_machine


def machine(name: str) -> Topology:
    return read_topology(str(shared_machine(name)))


def test_a_small_machine_is_measured_core_by_core_and_as_a_whole() -> None:
    assert core_sets(machine("vm")) == [(0,), (1,), (2,), (3,), (0, 1, 2, 3)]


def test_one_thread_of_each_core_is_measured() -> None:
    topology = machine("adjacent-smt")
    whole = core_sets(topology)[-1]
    assert len(whole) == len(topology.physical_cores()) == 8
    assert len({topology.cpu(cpu).siblings for cpu in whole}) == 8


def test_a_large_machine_is_measured_by_one_core_and_all_cores_of_each_node() -> None:
    sets = core_sets(machine("xeon-2s-ht"))
    assert [len(cpus) for cpus in sets] == [1, 1, 56, 56, 112]


def test_a_machine_of_one_core_is_measured_once() -> None:
    topology = machine("vm")
    assert core_sets(topology, max_single_cores=0) == [(0,), (0, 1, 2, 3)]


def test_buffers_are_eight_times_the_cache_within_reach_but_never_small() -> None:
    topology = machine("xeon-2s-ht")
    (cache,) = [c for c in topology.caches if c.level == 3 and 0 in c.cpus]
    assert bytes_beyond_caches(topology, [0]) == 8 * cache.size_bytes
    assert bytes_beyond_caches(topology, range(56)) == max(32 << 20, 8 * cache.size_bytes // 56)


def test_buffers_leave_half_of_the_available_memory() -> None:
    topology = machine("vm")
    total = 4 * bytes_beyond_caches(topology, [0, 1, 2, 3])
    assert 0 < total <= topology.memory.available_bytes // 2


def test_no_cpu_is_an_error() -> None:
    with pytest.raises(KernelError, match="expected at least one CPU, found none"):
        measure_read([], bytes_per_thread=1 << 20)


@pytest.mark.native
def test_reading_gives_a_plausible_rate_for_the_cpus_asked_for() -> None:
    cpus = [core.cpus[0] for core in read_topology().physical_cores()][:2]
    result = measure_read(cpus, bytes_per_thread=8 << 20, num_repetitions=3)
    assert result.cpus == tuple(cpus)
    assert 0.1 < result.median_gb_per_s <= result.best_gb_per_s < 10_000
    assert "stream" in result.loop


@pytest.mark.native
def test_the_memory_that_is_read_is_in_huge_pages_where_the_system_grants_them() -> None:
    granted = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not granted.is_file() or "[never]" in granted.read_text():
        pytest.skip("this machine lacks transparent huge pages")
    cpu = read_topology().physical_cores()[0].cpus[0]
    assert measure_read([cpu], bytes_per_thread=64 << 20, num_repetitions=1).huge_page_fraction > 0.5


@pytest.mark.native
def test_a_cpu_that_is_not_there_is_an_error_that_names_it() -> None:
    with pytest.raises(KernelError, match="cannot pin a thread to CPU 8191"):
        measure_read([8191], bytes_per_thread=1 << 20, num_repetitions=1)


@pytest.mark.native
def test_less_than_a_page_of_memory_is_an_error() -> None:
    with pytest.raises(KernelError, match="expected at least one CPU, one repetition and 4096 bytes"):
        measure_read([0], bytes_per_thread=4095)
