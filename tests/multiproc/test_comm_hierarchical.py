"""Collectives of ranks on several hosts, which here are groups of ranks with a /dev/shm each, talking over loopback."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from multiproc import comm_tasks as tasks
from multiproc.rank_harness import Ranks, needs_ccl, start_hosts

pytestmark = [pytest.mark.multiproc, pytest.mark.native]

LAYOUTS = {
    "two by two": [[0, 1], [2, 3]],
    "two and one": [[0, 1], [2]],
    "one and three": [[0], [1, 2, 3]],
    "interleaved": [[0, 2], [1, 3]],
    "three hosts": [[0, 1], [2, 3], [4]],
    "three by two": [[0, 1], [2, 3], [4, 5]],
}
DTYPES = ["float32", "bfloat16", "float16", "int32"]
# Around lines, slices, chunks of the segments (4096 B) and what three hosts or more sum by owners (64 KiB).
SIZES = [0, 1, 3, 31, 33, 64, 129, 1000, 2047, 2049, 5001]
LONG_SIZES = [40_001, 300_007, 1_100_003]


# Levels are the same over both; what differs is who sends to whom.
JOBS = [pytest.param((layout, link), id=f"{layout}, {link}") for layout in LAYOUTS for link in ("tcp", "gloo")]
JOBS += [
    pytest.param((layout, "ccl"), id=f"{layout}, ccl", marks=needs_ccl)
    for layout in ("two by two", "one and three", "three by two")
]


@pytest.fixture(scope="module", params=JOBS)
def job(request: pytest.FixtureRequest) -> Iterator[Ranks]:
    """The ranks of a layout, in a world with default segments and a group with small ones."""
    layout, link = request.param
    hosts = LAYOUTS[layout]
    with start_hosts(hosts, COREBOUND_HOST_LINK=link) as ranks:
        joined = ranks.run(tasks.join, "auto", timeout_s=60)
        assert {state["name"] for state in joined} == {"hierarchical"}
        assert set(ranks.run(tasks.carrier_of, "world")) == {link}
        assert {tuple(map(tuple, hosts)) for hosts in ranks.run(tasks.hosts_of, "world")} == {
            tuple(tuple(members) for members in hosts)
        }
        ranks.run(tasks.shrink_pieces, 64 * 1024)
        ranks.run(tasks.make_group, "small", list(range(len(joined))), tasks.PAGE, "hierarchical")
        yield ranks


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_round_once_a_level_and_all_ranks_of_all_hosts_hold_identical_bits(job: Ranks, dtype: str) -> None:
    for name, sizes in (("small", SIZES), ("world", LONG_SIZES)):
        results = [job.run(tasks.check_level_sums, name, dtype, sizes, num_slices) for num_slices in (1, 0)]
        digests = [digest for result in results for digest in result]
        assert len(digests[0]) == len(sizes)
        assert all(digest == digests[0] for digest in digests)


def test_gather_and_broadcast_move_any_dtype_from_any_root(job: Ranks) -> None:
    job.run(tasks.check_moves, "small", [0, 1, 3, 511, 513, 5000])


def test_any_mixture_of_operations_sizes_and_delays_stays_right(job: Ranks) -> None:
    assert len(set(job.run(tasks.mix_operations, "small", 150, seed=5))) == 1


def test_views_that_are_not_contiguous_receive_the_result(job: Ranks) -> None:
    job.run(tasks.check_views, "world")


def test_a_dtype_that_is_not_summed_goes_through_gloo_and_is_logged_once(job: Ranks) -> None:
    for result in job.run(tasks.sum_unsupported, "small"):
        assert len(result["log"]) == 1
        assert result["log"][0].startswith("all_reduce of torch.float64 goes through gloo")


def test_objects_of_any_length_arrive_and_others_are_an_error_everywhere(job: Ranks) -> None:
    for got in job.run(tasks.objects, "world"):
        assert got == [*([root, 5000 * root] for root in range(len(job.processes))), "CommError"]
