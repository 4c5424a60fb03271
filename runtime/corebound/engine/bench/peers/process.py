"""Runs one measurement of another engine in a process of its own, in that engine's environment."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
from pathlib import Path

from corebound.engine.bench.peers.adapters.protocol import BenchJob, BenchReport, SumReport, read_report, read_sums
from corebound.engine.bench.peers.catalog import ADAPTERS, Peer
from corebound.errors import CoreboundError

TIMEOUT_S = 1800.0
_NUM_LINES = 6


class PeerError(CoreboundError):
    """Another engine is not there, or failed; its measurement is reported as such and the others go on."""


def convert(peer: Peer, folder: Path, job: BenchJob) -> BenchJob:
    """Return the job with the model in the engine's own format, which is written once and kept beside the model.

    Raises: PeerError.
    """
    if not peer.converts:
        return job
    model = Path(job.model_dir)
    target = model.parent / "converted" / f"{model.name}-{peer.environment}-{job.dtype}"
    job = dataclasses.replace(job, converted_dir=str(target))
    if not (target / ".complete").is_file():
        target.mkdir(parents=True, exist_ok=True)
        _run(peer, folder, dataclasses.replace(job, action="convert"))
        (target / ".complete").touch()
    return job


def measure(peer: Peer, folder: Path, job: BenchJob) -> BenchReport:
    """Return what the engine reports of a job.

    Raises: PeerError.
    """
    path = Path(job.report_path)
    path.unlink(missing_ok=True)
    _run(peer, folder, job)
    if not path.is_file():
        raise PeerError("ended without a report")
    report = read_report(path)
    if len(report.cases) != len(job.cases):
        raise PeerError(f"reported {len(report.cases)} of {len(job.cases)} cases")
    return report


def time_sums(peer: Peer, folder: Path, job: BenchJob) -> SumReport:
    """Return the times of an engine's own sums over the ranks of a job.

    Raises: PeerError.
    """
    path = Path(job.report_path)
    path.unlink(missing_ok=True)
    _run(peer, folder, job, adapter=peer.sum_adapter)
    if not path.is_file():
        raise PeerError("ended without a report")
    return read_sums(path)


def _run(peer: Peer, folder: Path, job: BenchJob, adapter: str | None = None) -> None:
    python = peer.python(folder)
    if python is None:
        raise PeerError(peer.why_missing(folder))
    # `env` adds variables to those of this process, which only corebound.config reads.
    command = ["env", *(f"{name}={value}" for name, value in _variables(peer, job).items())]
    # A group of its own, so that ranks that an engine starts end with it.
    process = subprocess.Popen(
        [*command, str(python), str(ADAPTERS / (adapter or peer.adapter))],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        _, errors = process.communicate(job.to_bytes(), timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired as late:
        raise PeerError(f"did not end within {TIMEOUT_S:.0f} s") from late
    finally:
        _end_group(process)
    if process.returncode != 0:
        lines = errors.decode(errors="replace").strip().splitlines()[-_NUM_LINES:]
        raise PeerError(f"{job.action} ended with exit code {process.returncode}: " + " | ".join(lines))


def _variables(peer: Peer, job: BenchJob) -> dict[str, str]:
    threads = {"OMP_NUM_THREADS": str(job.num_threads)} if job.num_threads is not None else {}
    return {"PYTHONNOUSERSITE": "1", "TOKENIZERS_PARALLELISM": "false", **threads, **peer.variables}


def _end_group(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()
