"""transformers, in one process: its own `generate` on a model as it is loaded."""

from __future__ import annotations

import causal_lm
import torch
import transformers
from protocol import BenchReport, peak_rss_bytes, read_job


@torch.inference_mode()
def main() -> int:
    """Measure, write the report, and return the exit code."""
    job = read_job()
    cases = causal_lm.measure(causal_lm.load(job), job)
    BenchReport(
        num_threads=torch.get_num_threads(),
        peak_rss_bytes=peak_rss_bytes(),
        cases=cases,
        version=transformers.__version__,
    ).write(job.report_path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
