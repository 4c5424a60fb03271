"""Times sums over the ranks of a job, of any engine's own operator."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from protocol import BenchJob, SumReport

_NUM_BLOCKS = 20
_BLOCK_S = 0.005
_WARM_UP = 0.1  # of every block, left out


def time_sums(job: BenchJob, all_reduce: Callable[[torch.Tensor], object], version: str) -> None:
    """Time `all_reduce` on bfloat16 tensors of every size and let rank 0 write the report.

    Blocks of all sizes take turns, a barrier before each; every rank does as many calls as rank 0 asks for.
    """
    tensors = {num_bytes: torch.zeros(num_bytes // 2, dtype=torch.bfloat16) for num_bytes in job.message_bytes}
    counts = {num_bytes: _calls_per_block(all_reduce, tensor) for num_bytes, tensor in tensors.items()}
    times: dict[str, list[float]] = {str(num_bytes): [] for num_bytes in tensors}
    for _ in range(_NUM_BLOCKS):
        for num_bytes, tensor in tensors.items():
            dist.barrier()
            block = _block(all_reduce, tensor, counts[num_bytes])
            times[str(num_bytes)] += block[int(len(block) * _WARM_UP) :]
    if dist.get_rank() == 0:
        SumReport(times_us=times, version=version).write(job.report_path)


def _calls_per_block(all_reduce: Callable[[torch.Tensor], object], tensor: torch.Tensor) -> int:
    _block(all_reduce, tensor, 5)
    each_s = min(_block(all_reduce, tensor, 10)) / 1e6
    count = torch.tensor([max(10, min(2000, round(_BLOCK_S / each_s)))])
    dist.broadcast(count, 0)
    return int(count)


def _block(all_reduce: Callable[[torch.Tensor], object], tensor: torch.Tensor, count: int) -> list[float]:
    clock, times = time.perf_counter_ns, []
    for _ in range(count):
        started = clock()
        all_reduce(tensor)
        times.append((clock() - started) / 1000)
    return times
