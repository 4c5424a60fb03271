"""IPEX: transformers' `generate` on a model that `ipex.llm.optimize` has repacked."""

from __future__ import annotations

import causal_lm
import intel_extension_for_pytorch as ipex
import torch
from protocol import BenchReport, peak_rss_bytes, read_job


@torch.inference_mode()
def main() -> int:
    """Measure, write the report, and return the exit code."""
    job = read_job()
    model = ipex.llm.optimize(causal_lm.load(job).eval(), dtype=getattr(torch, job.dtype), inplace=True)
    cases = causal_lm.measure(model, job)
    BenchReport(
        num_threads=torch.get_num_threads(),
        peak_rss_bytes=peak_rss_bytes(),
        cases=cases,
        version=ipex.__version__.split("+")[0],
    ).write(job.report_path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
