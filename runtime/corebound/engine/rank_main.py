"""What each rank of `corebound generate` runs: `python -m corebound.engine.rank_main`, the job as JSON on rank 0."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from typing import Any

from corebound.comm import Collectives
from corebound.comm.rank_process import leave, run_rank
from corebound.engine.job import ModelJob, read_job
from corebound.engine.metrics import summary
from corebound.engine.output import write_output
from corebound.engine.request import RequestOutput, SamplingParams


@dataclass(frozen=True, kw_only=True)
class Job(ModelJob):
    """What the command line asks of the ranks. `started_unix_s` is when the user pressed return."""

    prompts: list[str]
    params: dict[str, Any]
    as_json: bool
    started_unix_s: float


def main() -> int:
    """Load the model, continue the prompts, print on rank 0; return the exit code."""
    return run_rank(_run)


def _run(collectives: Collectives) -> None:
    job = Job(**collectives.broadcast_object(read_job() if collectives.rank == 0 else None))
    job.require_same_model()
    _generate(job, collectives)


def _generate(job: Job, collectives: Collectives) -> None:
    with job.load(collectives) as llm:
        ready_s = time.time() - job.started_unix_s
        streams = len(job.prompts) == 1 and not job.as_json
        started_s = time.perf_counter()
        outputs = llm.generate(
            job.prompts, SamplingParams.from_json(job.params), on_text=_write_text if streams else None
        )
        report = {"ready_s": ready_s, **summary(outputs, time.perf_counter() - started_s), "ranks": llm.ranks()}
        if llm.is_first:
            _print(outputs, report, job, streams)


def _write_text(_: int, text: str) -> None:
    write_output(text)


def _print(outputs: list[RequestOutput], report: dict[str, Any], job: Job, was_streamed: bool) -> None:
    if job.as_json:
        write_output(json.dumps({"outputs": [output.to_json() for output in outputs], **report}) + "\n")
        return
    write_output("\n" if was_streamed else "".join(f"{output.prompt}{output.text}\n\n" for output in outputs))
    sys.stderr.write(_line(outputs, report) + "\n")


def _line(outputs: list[RequestOutput], report: dict[str, Any]) -> str:
    num_tokens = sum(len(output.token_ids) for output in outputs)
    later = report["next_token_ms"]
    parts = [
        f"{num_tokens} tokens",
        f"{report['tokens_per_s']:.1f} tokens/s",
        f"first token {report['first_token_ms']:.1f} ms",
        *([f"next {later:.1f} ms"] if later is not None else []),
        f"ready in {report['ready_s']:.1f} s",
        "1 rank" if len(report["ranks"]) == 1 else f"{len(report['ranks'])} ranks",
    ]
    return ", ".join(parts)


if __name__ == "__main__":
    leave(main())
