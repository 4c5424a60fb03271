"""The shared-memory collectives between real processes: right sums, identical bits, any size, any mixture."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from multiproc import comm_tasks as tasks
from multiproc.rank_harness import Ranks, start_ranks

pytestmark = [pytest.mark.multiproc, pytest.mark.native]

GROUPS = {"two": [0, 1], "three": [1, 2, 4], "four": [0, 1, 2, 3], "five": [0, 1, 2, 3, 4]}
CHUNK_BYTES = tasks.PAGE
CHOICES = [(False, False), (False, True), (True, False), (True, True)]


@pytest.fixture(scope="module")
def job() -> Iterator[Ranks]:
    with start_ranks(5) as ranks:
        joined = ranks.run(tasks.join, timeout_s=60)
        assert [state["name"] for state in joined] == ["shm"] * 5
        for name, members in GROUPS.items():
            ranks.run(tasks.make_group, name, members, CHUNK_BYTES)
        ranks.run(tasks.make_group, "default", [0, 1])
        yield ranks


def test_each_rank_knows_its_place_and_one_line_says_what_was_chosen() -> None:
    with start_ranks(2) as ranks:
        states = ranks.run(tasks.join, timeout_s=60)
    assert [(state["rank"], state["size"]) for state in states] == [(0, 2), (1, 2)]
    lines = [line for state in states for line in state["log"] if line.startswith("collectives:")]
    assert len(lines) == 1
    assert lines[0].startswith("collectives: shm for ranks 0,1 (every rank mapped every other's segment")


@pytest.mark.parametrize("choice", CHOICES, ids=["one", "one-streaming", "two", "two-streaming"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int32"])
@pytest.mark.parametrize("name", GROUPS)
def test_sums_equal_the_reference_and_all_ranks_hold_identical_bits(
    job: Ranks, name: str, dtype: str, choice: tuple[bool, bool]
) -> None:
    chunk = CHUNK_BYTES // (2 if "16" in dtype else 4)
    sizes = [0, 1, 3, 31, 32, 33, 1000, chunk - 1, chunk, chunk + 1, 2 * chunk + 5]
    digests = [seen for seen in job.run(tasks.check_sums, name, dtype, sizes, *choice) if seen]
    assert len(digests) == len(GROUPS[name])
    assert all(seen == digests[0] for seen in digests)
    assert len(digests[0]) == len(sizes)


def test_sizes_around_every_threshold_of_the_default_group_sum_right(job: Ranks) -> None:
    rules = job.run(tasks.make_group, "fresh", [0, 1])[0]["rules"]
    assert rules[-1]["max_bytes"] == 512 * 1024
    edges = [rule["max_bytes"] // 2 for rule in rules]
    sizes = [edge + step for edge in edges for step in (-1, 0, 1)] + [3 * edges[-1]]
    for streaming in (False, True):
        seen = [d for d in job.run(tasks.check_sums, "fresh", "bfloat16", sizes, False, streaming) if d]
        assert seen[0] == seen[1]


def test_algorithms_give_the_same_bits(job: Ranks) -> None:
    results = [job.run(tasks.check_sums, "five", "bfloat16", [4097], *choice)[0] for choice in CHOICES]
    assert all(result == results[0] for result in results)


@pytest.mark.parametrize("name", GROUPS)
def test_gather_and_broadcast_move_any_dtype_from_any_root(job: Ranks, name: str) -> None:
    job.run(tasks.check_moves, name, [0, 1, 3, 511, 512, 513, 4096, 5000])


@pytest.mark.parametrize("name", ["two", "five"])
def test_any_mixture_of_operations_sizes_and_delays_stays_right(job: Ranks, name: str) -> None:
    digests = {seen for seen in job.run(tasks.mix_operations, name, 400, seed=5) if seen}
    assert len(digests) == 1


def test_groups_that_share_ranks_do_not_disturb_each_other(job: Ranks) -> None:
    job.run(tasks.check_two_groups, "three", "four")


def test_views_that_are_not_contiguous_receive_the_result(job: Ranks) -> None:
    job.run(tasks.check_views, "three")


def test_a_dtype_that_shared_memory_cannot_sum_goes_through_gloo_and_is_logged_once(job: Ranks) -> None:
    for result in job.run(tasks.sum_unsupported, "two")[:2]:
        assert result["total"] == [0.2] * 3
        assert result["log"] == ["all_reduce of torch.float64 goes through gloo: shared memory does not sum it"]


def test_objects_of_any_length_arrive_and_others_are_an_error_everywhere(job: Ranks) -> None:
    for got in job.run(tasks.objects, "three"):
        assert got in ([], [[0, 0], [1, 5000], [2, 10000], "CommError"])


@pytest.mark.parametrize("isa", ["generic", "avx2", "avx512", "avx512_bf16"])
def test_a_forced_variant_is_the_active_one_and_gives_the_reference_bits(job: Ranks, isa: str) -> None:
    job.start(tasks.force_isa, isa)
    outcomes = job.finish()
    if outcomes[0].error_type == "KernelError":
        lack = outcomes[0].error.partition("cannot run here: ")[2]
        assert lack, outcomes[0].error
        pytest.skip(lack)
    details = job.run(tasks.make_group, "forced", [0, 1, 2], CHUNK_BYTES)
    assert [each.get("variant") for each in details] == [isa, isa, isa, None, None]
    for dtype in ("float32", "bfloat16", "float16", "int32"):
        digests = job.run(tasks.check_sums, "forced", dtype, [1, 17, 95, 2049], False, False)
        assert digests[0] == digests[1] == digests[2] != []


def test_operators_pass_torchs_checks_and_can_be_compiled(job: Ranks) -> None:
    assert job.run(tasks.operator_checks, "two")[:2] == [["checked"], ["checked"]]


def test_a_late_rank_delays_and_does_not_fail_the_others(job: Ranks) -> None:
    job.start(tasks.call, "two", "all_reduce", ranks=[0])
    job.start(tasks.call, "two", "all_reduce", late_s=0.5, ranks=[1])
    waited_s = job.finish(ranks=[0, 1])
    assert waited_s[0].value > 0.4
    assert not waited_s[1].error_type


def test_nothing_has_a_name_in_shared_memory_while_groups_live(job: Ranks) -> None:
    assert job.segments() == []
