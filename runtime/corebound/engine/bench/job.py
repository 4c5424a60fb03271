"""What one measurement is asked to do and what it answers: JSON on standard input, JSON in a file."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class BenchJob:
    """Continue a prompt of `prompt_token_ids` by `num_new_tokens`, after a warm-up of `num_warm_up_tokens`."""

    model_dir: str
    dtype: str
    prompt_token_ids: list[int]
    num_new_tokens: int
    num_warm_up_tokens: int
    report_path: str
    num_threads: int | None = None

    def to_bytes(self) -> bytes:
        """Return the job as standard input of the process that does it."""
        return json.dumps(dataclasses.asdict(self)).encode()


@dataclass(frozen=True, kw_only=True)
class BenchReport:
    """What one measurement found.

    Units: `peak_rss_bytes` is the sum over processes; `num_threads` is per process; `next_token_ms` the median.
    """

    num_threads: int
    first_token_ms: float
    next_token_ms: float
    tokens_per_s: float
    peak_rss_bytes: int
    weight_bytes_per_token: int | None = None
    cpus: list[int] | None = None

    def write(self, path: str) -> None:
        """Write the report where the job asked for it."""
        Path(path).write_text(json.dumps(dataclasses.asdict(self)), encoding="utf-8")


def read_report(path: Path) -> BenchReport:
    """Return the report that a measurement wrote."""
    return BenchReport(**json.loads(path.read_text(encoding="utf-8")))
