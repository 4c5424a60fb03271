"""The decode product comes close to the speed of memory."""

from __future__ import annotations

import mmap
import os
import time

import pytest
import torch

pytestmark = [pytest.mark.native, pytest.mark.bench]


def test_the_bf16_product_reads_its_weight_at_eight_tenths_of_what_memory_gives() -> None:
    from corebound.kernels import forced, linear
    from corebound.kernels.memory_probe import measure_read

    num_bytes, inputs = 256 << 20, 2048
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)  # as the probe has it: the page size is not what is compared
    weight = torch.frombuffer(memory, dtype=torch.bfloat16).view(-1, inputs).fill_(1)
    x = torch.ones(1, inputs, dtype=torch.bfloat16)
    allowed, threads = os.sched_getaffinity(0), torch.get_num_threads()
    cpu = max(allowed)
    products, reads = [], []
    try:
        os.sched_setaffinity(0, {cpu})
        torch.set_num_threads(1)
        with forced(mode="native"):
            linear(x, weight)
            for _ in range(15):  # interleaved, so that both meet the same neighbours; the best of each is its limit
                reads.append(measure_read([cpu], bytes_per_thread=num_bytes, num_repetitions=2).best_gb_per_s)
                start = time.perf_counter()
                linear(x, weight)
                products.append(num_bytes / (time.perf_counter() - start) / 1e9)
    finally:
        torch.set_num_threads(threads)
        os.sched_setaffinity(0, allowed)
    print(f"product {max(products):.1f} GB/s, read {max(reads):.1f} GB/s, ratio {max(products) / max(reads):.2f}")
    assert max(products) > 0.8 * max(reads)
