"""A rank killed at a random moment: the job ends at once, says who died, and leaves nothing behind."""

import os
import random
import selectors
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fixtures.tiny_models import build_bloom

pytestmark = [pytest.mark.multiproc, pytest.mark.slow, pytest.mark.timeout(180)]

NUM_RANKS = 2
MAX_END_S = 5.0
START_LIMIT_S = 90.0
# A line on standard error, or the first text on standard output, that says which phase has begun.
PHASES = {"load": "collectives:", "prefill": "KV cache:", "decode": None}
# The moment of the kill is drawn from this long after the phase began.
SPREAD_S = {"start": 1.5, "load": 0.4, "prefill": 0.4, "decode": 1.0}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    # Alibi has no end of context: the text goes on for as long as it is let.
    return build_bloom(tmp_path_factory.mktemp("model") / "bloom", tokenizer=True, n_layer=8)


class Job:
    """`corebound generate` with an endless answer, and what it has said so far."""

    def __init__(self, model_dir):
        # Text goes out token by token; the prompt alone takes several steps.
        command = ["generate", "--model", str(model_dir), "--prompt", "the old ship " * 250, "--ignore-eos"]
        command += ["--max-new-tokens", "100000", "--num-accelerators", str(NUM_RANKS), "--kv-cache-gib", "1"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "corebound", *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUNBUFFERED": "1"},
        )
        self.said = {self.process.stdout: b"", self.process.stderr: b""}
        self._selector = selectors.DefaultSelector()
        for stream in self.said:
            self._selector.register(stream, selectors.EVENT_READ)

    @property
    def errors(self):
        return self.said[self.process.stderr].decode(errors="replace")

    def read_until(self, condition, limit_s):
        """Read what it says until `condition`; return whether that came true in time."""
        end = time.monotonic() + limit_s
        while not condition():
            left = end - time.monotonic()
            if left <= 0:
                return False
            if not self._selector.get_map():
                time.sleep(0.01)  # both streams have ended, the process is about to
            for key, _ in self._selector.select(min(left, 0.02)):
                data = os.read(key.fd, 1 << 16)
                if data:
                    self.said[key.fileobj] += data
                else:
                    self._selector.unregister(key.fileobj)
        return True

    def rank_pids(self):
        """Rank to process id, of the ranks that run by now."""
        found = {}
        for pid, environ in environments():
            if environ.get("RANK") and is_descendant(pid, self.process.pid):
                found[int(environ["RANK"])] = pid
        return found


def environments():
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                data = (entry / "environ").read_bytes()
            except OSError:
                continue
            fields = (field.partition("=") for field in data.decode(errors="replace").split("\0"))
            yield int(entry.name), {name: value for name, _, value in fields}


def is_descendant(pid, ancestor):
    while pid > 1:
        if pid == ancestor:
            return True
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return False
    return False


def job_id_of(pid):
    return next(environ["COREBOUND_JOB_ID"] for found, environ in environments() if found == pid)


def wait_for_phase(job, phase):
    assert job.read_until(lambda: len(job.rank_pids()) == NUM_RANKS, START_LIMIT_S), job.errors
    if phase == "start":
        return
    sign = PHASES[phase]
    begun = (lambda: job.said[job.process.stdout]) if sign is None else (lambda: sign in job.errors)
    assert job.read_until(begun, START_LIMIT_S), job.errors


@pytest.mark.parametrize("phase", ["start", "load", "prefill", "decode", "decode"])
def test_a_killed_rank_ends_the_job_at_once_and_without_a_trace(model_dir, phase):
    seed = random.SystemRandom().randrange(2**32)
    generator = random.Random(seed)
    victim, delay_s = generator.randrange(NUM_RANKS), generator.uniform(0, SPREAD_S[phase])
    print(f"seed {seed}: rank {victim}, {delay_s:.3f} s into {phase}")
    job = Job(model_dir)
    try:
        wait_for_phase(job, phase)
        pids = job.rank_pids()
        job_id = job_id_of(pids[victim])
        job.read_until(lambda: False, delay_s)
        assert job.process.poll() is None, job.errors
        os.kill(pids[victim], signal.SIGKILL)
        killed_s = time.monotonic()
        assert job.read_until(lambda: job.process.poll() is not None, MAX_END_S), (
            f"still running after 5 s: {job.errors}"
        )
        job.read_until(lambda: False, 0.2)
        assert job.process.returncode == 128 + signal.SIGKILL, job.errors
        assert time.monotonic() - killed_s < MAX_END_S
        assert f"rank {victim}" in job.errors and "SIGKILL" in job.errors, job.errors
        left = [pid for pid, environ in environments() if environ.get("COREBOUND_JOB_ID") == job_id]
        assert left == []
        assert [path.name for path in Path("/dev/shm").iterdir() if job_id in path.name] == []
    finally:
        if job.process.poll() is None:
            job.process.terminate()
            job.process.wait(10)
