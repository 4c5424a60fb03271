"""What ranks that keep their model are asked, and what they answer: files in one folder."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from corebound.engine.bench.peers.adapters.protocol import BenchCase, BenchReport, CaseReport

_WARM_UP_TOKENS = 4
_MOST_WARM_UP_PROMPT = 512


@dataclass(frozen=True, kw_only=True)
class ResidentJob:
    """The model to keep, and the folder of the turns. The ranks end when the process `owner_pid` has."""

    model_dir: str
    dtype: str
    folder: str
    owner_pid: int
    kv_cache_gib: float

    def turn_path(self, number: int) -> Path:
        """Return where a turn is asked for."""
        return Path(self.folder) / f"turn-{number}.json"

    def report_path(self, number: int) -> Path:
        """Return where a turn is answered."""
        return Path(self.folder) / f"report-{number}.json"

    def state_path(self, rank: int) -> Path:
        """Return where a rank says what it is doing."""
        return Path(self.folder) / f"state-{rank}.json"


@dataclass(frozen=True, kw_only=True)
class TurnCase:
    """Prompts to continue together, or one prompt by a beam search, `num_times` times one after the other."""

    name: str
    case: BenchCase
    num_beams: int = 1
    num_times: int = 1

    def for_warm_up(self) -> TurnCase:
        """Return a case like this one of other prompts, shorter where they are very long, and with few tokens."""
        prompts = [prompt[-_MOST_WARM_UP_PROMPT:] for prompt in self.case.for_warm_up().prompt_token_ids]
        return dataclasses.replace(self, case=BenchCase(prompt_token_ids=prompts, num_new_tokens=_WARM_UP_TOKENS))


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What the ranks do when it is their turn; with `warm_up` each case once before it counts, with other prompts."""

    cases: Sequence[TurnCase]
    warm_up: bool = True

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Turn:
        """Return the turn of parsed JSON."""
        cases = [TurnCase(**{**case, "case": BenchCase(**case["case"])}) for case in fields["cases"]]
        return cls(**{**fields, "cases": cases})


@dataclass(frozen=True, kw_only=True)
class TurnReport:
    """What a turn found. Memory is that of all ranks: resident after the turn, and before the model was loaded."""

    report: BenchReport
    resident_bytes: int
    before_load_bytes: int

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> TurnReport:
        """Return the report of parsed JSON."""
        report = fields["report"]
        cases = [CaseReport(**case) for case in report["cases"]]
        return cls(**{**fields, "report": BenchReport(**{**report, "cases": cases})})


def write_whole(path: Path, fields: object) -> None:
    """Write JSON so that whoever finds the file finds it whole."""
    unfinished = path.with_suffix(".new")
    unfinished.write_text(json.dumps(fields), encoding="utf-8")
    unfinished.rename(path)
