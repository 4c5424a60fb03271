"""Short generations across the lab's nodes, while or after something was done to a node, and what they come to."""

from __future__ import annotations

import json
import time

from lab.deployed import Deployed
from lab.jobs import ACROSS, GENERATE, START_S, Job, eventually
from lab.layout import Node

SHORT = (*GENERATE, "--json", "--max-new-tokens", "8")
# A host that was cut off ends its ranks itself: it misses the launcher after 10 s, asks, waits and kills.
CUT_OFF_S = 20.0


class Watch:
    """The time since the fault; `record` prints it for the report of the run."""

    def __init__(self) -> None:
        self._started_s = time.monotonic()

    def check(self, job: Job, code: int, within_s: float) -> None:
        """The job has ended with this code, and in this time."""
        found = job.end(within_s + 120)
        seconds = time.monotonic() - self._started_s
        print(f"exit code {found} after {seconds:.1f} s (allowed: {within_s:g} s)\n{job.stderr[-3000:]}")
        assert found == code, job.stderr
        assert seconds < within_s


def second(lab: Deployed) -> Node:
    """Returns the node that faults happen to; the launcher is on the other."""
    return lab.nodes[1]


def tokens_across(lab: Deployed, *words: str, timeout_s: float = START_S, **environ: str) -> list[int]:
    """Returns the tokens that all ranks of both nodes say together."""
    done = lab.run("node1", *SHORT, *ACROSS, *words, timeout_s=timeout_s, **environ)
    assert done.returncode == 0, done.stderr
    tokens: list[int] = json.loads(done.stdout)["outputs"][0]["token_ids"]
    return tokens


def failing(lab: Deployed, *, code: int, within_s: float, after: str = "", **environ: str) -> Job:
    """Returns a short generation that ended with this code, and in this time, counted from when it said `after`."""
    job = Job(lab.start("node1", *SHORT, *ACROSS, **environ))
    assert eventually(lambda: after in job.stderr or job.process.poll() is not None, START_S), job.stderr
    assert after in job.stderr, job.stderr
    Watch().check(job, code, within_s)
    return job


def right_or_refused(lab: Deployed, expected: list[int], *, within_s: float) -> None:
    """A short generation says what it should, or fails with a message that names a node; either in this time."""
    watch = time.monotonic()
    job = Job(lab.start("node1", *SHORT, *ACROSS))
    code = job.end(within_s)
    print(f"exit code {code} after {time.monotonic() - watch:.1f} s\n{job.stderr[-3000:]}")
    if code == 0:
        assert json.loads(job.stdout)["outputs"][0]["token_ids"] == expected
    else:
        assert code in (4, 5)
        assert any(word in job.stderr for node in lab.nodes for word in (node.address, f"host {node.name}"))
