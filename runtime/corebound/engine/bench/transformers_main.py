"""The same measurement with transformers, in one process: `python -m corebound.engine.bench.transformers_main`."""

from __future__ import annotations

import itertools
import re
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from corebound.engine.bench.job import BenchJob, BenchReport
from corebound.engine.job import read_job


class _Clock:
    """Stands where transformers streams tokens to, and notes when each one came."""

    def __init__(self) -> None:
        self.times_s: list[float] = []

    def put(self, _: Any) -> None:
        self.times_s.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is left to do when a text ends."""


@torch.inference_mode()
def main() -> int:
    """Measure, write the report, and return the exit code."""
    from transformers import AutoModelForCausalLM

    job = BenchJob(**read_job())
    if job.num_threads is not None:
        torch.set_num_threads(job.num_threads)
    model = AutoModelForCausalLM.from_pretrained(job.model_dir, dtype=getattr(torch, job.dtype))
    # No end of sequence: every round generates as much as was asked for.
    model.generation_config.eos_token_id = None
    prompt = torch.tensor([job.prompt_token_ids])
    for count in {2, job.num_warm_up_tokens}:
        _generate(model, prompt, count)
    started_s = time.perf_counter()
    times = _generate(model, prompt, job.num_new_tokens)
    elapsed_s = time.perf_counter() - started_s
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    peak = re.search(r"^VmHWM:\s+(\d+)", status, re.MULTILINE)
    BenchReport(
        num_threads=torch.get_num_threads(),
        first_token_ms=1e3 * (times[0] - started_s),
        next_token_ms=1e3 * statistics.median(b - a for a, b in itertools.pairwise(times)),
        tokens_per_s=job.num_new_tokens / elapsed_s,
        peak_rss_bytes=int(peak[1]) << 10 if peak else 0,
    ).write(job.report_path)
    return 0


def _generate(model: Any, prompt: torch.Tensor, count: int) -> list[float]:
    clock = _Clock()
    model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=count,
        do_sample=False,
        pad_token_id=0,
        streamer=clock,
    )
    # The first call hands over the prompt.
    return clock.times_s[1:]


if __name__ == "__main__":
    raise SystemExit(main())
