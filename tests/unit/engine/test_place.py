"""Where a rank runs, as the kernel says it."""

import os

from corebound.engine.place import place_of_this_rank


def test_the_place_of_this_process_is_the_kernels_view():
    place = place_of_this_rank("single")
    assert place["cpus"] == sorted(os.sched_getaffinity(0))
    assert place["memory_nodes"] and all(isinstance(node, int) for node in place["memory_nodes"])
    assert place["host"] == os.uname().nodename
    assert (place["rank"], place["local_rank"], place["comm"]) == (0, 0, "single")
    assert place["isa"] in ("reference", "generic", "avx2", "avx512", "avx512_bf16", "amx")


def test_peak_memory_grows_with_what_was_used():
    before = place_of_this_rank("single")["peak_rss_bytes"]
    data = bytearray(os.urandom(1 << 20)) * 64
    assert place_of_this_rank("single")["peak_rss_bytes"] >= before + (16 << 20)
    assert len(data) == 64 << 20
