"""Where a rank runs, as the kernel says it."""

import os
import subprocess
import sys

from corebound.engine.place import place_of_this_rank


def test_the_place_of_this_process_is_the_kernels_view():
    place = place_of_this_rank("single")
    assert place["cpus"] == sorted(os.sched_getaffinity(0))
    assert place["memory_nodes"] and all(isinstance(node, int) for node in place["memory_nodes"])
    assert place["host"] == os.uname().nodename
    assert (place["rank"], place["local_rank"], place["comm"]) == (0, 0, "single")
    assert place["isa"] in ("reference", "generic", "avx2", "avx512", "avx512_vnni", "avx512_bf16", "amx")


def test_peak_memory_grows_with_what_was_used():
    # In a process of its own: this one may have used more before.
    code = (
        "from corebound.engine.place import place_of_this_rank as place\n"
        "before = place('single')['peak_rss_bytes']\n"
        "data = bytearray(b'x' * (64 << 20))\n"
        "print(place('single')['peak_rss_bytes'] - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) >= 60 << 20
