"""What the adapters share whose engine leaves `generate` to transformers."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from protocol import BenchCase, BenchJob, CaseReport, StepClock, between_lines


class _Steps:
    """Is asked after each step whether to stop, and notes the time instead."""

    def __init__(self) -> None:
        self.clock = StepClock()

    def __call__(self, input_ids: torch.Tensor, _: Any, **__: Any) -> torch.Tensor:
        self.clock.tick()
        return torch.zeros(len(input_ids), dtype=torch.bool)


def load(job: BenchJob, **options: Any) -> Any:
    """Return the model of a job, made to continue past any end of sequence."""
    if job.num_threads is not None:
        torch.set_num_threads(job.num_threads)
    auto: Any = transformers.AutoModelForCausalLM
    # Releases before 5 call it by another name.
    name = "dtype" if int(transformers.__version__.split(".")[0]) >= 5 else "torch_dtype"
    model = auto.from_pretrained(job.model_dir, **{name: getattr(torch, job.dtype)}, **options)
    model.generation_config.eos_token_id = None
    return model


def measure(model: Any, job: BenchJob) -> list[CaseReport]:
    """Return the times of every case, each after its warm-up."""
    reports = []
    for case in job.cases:
        _generate(model, case.for_warm_up(), job.num_warm_up_tokens)
        reports.append(between_lines(job, case, _generate, model, case, case.num_new_tokens))
    return reports


def _generate(model: Any, case: BenchCase, count: int) -> CaseReport:
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
