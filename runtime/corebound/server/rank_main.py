"""What each rank of `corebound serve` runs: `python -m corebound.server.rank_main`, the job as JSON on rank 0."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

from corebound.comm import Collectives
from corebound.comm.rank_process import leave, run_rank
from corebound.engine.inbox import Inbox
from corebound.engine.job import ModelJob, read_job
from corebound.engine.request import SamplingParams
from corebound.server.http import HttpServer

# How long answers may take to be sent at the end. After a failure this rank has to say why before the others, which
# find out by it, say that it has failed.
_ANSWER_WAIT_S = 5.0
_FAILURE_WAIT_S = 0.3
_POLL_S = 0.1
_STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(frozen=True, kw_only=True)
class Job(ModelJob):
    """What the command line asks of the ranks."""

    served_model_name: str
    host: str
    port: int


def main() -> int:
    """Load the model and serve it until told to stop; return the exit code."""
    return run_rank(_run)


def _run(collectives: Collectives) -> None:
    job = Job(**collectives.broadcast_object(read_job() if collectives.rank == 0 else None))
    inbox = Inbox()
    with _listening(job, inbox) if collectives.rank == 0 else nullcontext():
        job.require_same_model()
        with job.load(collectives) as llm:
            # The first request should not be the one that finds out that something does not work.
            llm.generate([[0]], SamplingParams(max_new_tokens=2, ignore_eos=True))
            # From here on rank 0 finishes what it has begun, and the others follow it to the end.
            for number in _STOPS:
                signal.signal(number, (lambda *_: inbox.drain()) if llm.is_first else signal.SIG_IGN)
            if llm.is_first:
                inbox.open()
                sys.stderr.write(f"ready: {job.served_model_name} on http://{job.host}:{job.port}/v1/completions\n")
            llm.serve(inbox)


@contextmanager
def _listening(job: Job, inbox: Inbox) -> Iterator[None]:
    """Answer HTTP from before the model is loaded, so that a probe sees a process that lives."""
    with HttpServer(job.host, job.port, inbox, job.served_model_name) as server:
        thread = threading.Thread(target=server.serve_forever, args=(_POLL_S,), name="http", daemon=True)
        thread.start()
        wait_s = _FAILURE_WAIT_S
        try:
            yield
            wait_s = _ANSWER_WAIT_S
        finally:
            server.shutdown()
            server.wait_for_answers(wait_s)


if __name__ == "__main__":
    leave(main())
