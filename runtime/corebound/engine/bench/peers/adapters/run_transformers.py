"""transformers, in one process: its own `generate` on a model as it is loaded."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from protocol import BenchCase, BenchReport, CaseReport, StepClock, peak_rss_bytes, read_job


class _Steps:
    """Is asked after each step whether to stop, and notes the time instead."""

    def __init__(self) -> None:
        self.clock = StepClock()

    def __call__(self, input_ids: torch.Tensor, _: Any, **__: Any) -> torch.Tensor:
        self.clock.tick()
        return torch.zeros(len(input_ids), dtype=torch.bool)


def generate(model: Any, case: BenchCase, count: int) -> CaseReport:
    """Continue the prompts of a case by `count` tokens and return the times."""
    prompt = torch.tensor(case.prompt_token_ids)
    steps = _Steps()
    out = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=count,
        do_sample=False,
        pad_token_id=0,
        stopping_criteria=transformers.StoppingCriteriaList([steps]),
    )
    return steps.clock.report(out[0, prompt.shape[1] :].tolist())


@torch.inference_mode()
def main() -> int:
    """Measure, write the report, and return the exit code."""
    job = read_job()
    if job.num_threads is not None:
        torch.set_num_threads(job.num_threads)
    auto: Any = transformers.AutoModelForCausalLM
    model = auto.from_pretrained(job.model_dir, dtype=getattr(torch, job.dtype))
    # No end of sequence: every round generates as much as was asked for.
    model.generation_config.eos_token_id = None
    cases = []
    for case in job.cases:
        generate(model, case, job.num_warm_up_tokens)
        cases.append(generate(model, case, case.num_new_tokens))
    BenchReport(
        num_threads=torch.get_num_threads(),
        peak_rss_bytes=peak_rss_bytes(),
        cases=cases,
        version=transformers.__version__,
    ).write(job.report_path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
