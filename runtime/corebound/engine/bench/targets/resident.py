"""Ranks of this machine that keep their model loaded and do turns when asked."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from corebound.config import env
from corebound.engine.bench.targets.turn_files import ResidentJob, Turn, TurnCase, TurnReport, write_whole
from corebound.errors import LaunchError
from corebound.launcher import LaunchSpec, launch

_LAUNCH = (sys.executable, "-m", "corebound.engine.bench.targets.resident")
_RANK = (sys.executable, "-m", "corebound.engine.bench.targets.resident_rank")
_LOOK_EVERY_S = 0.02
_END_WITHIN_S = 60.0
# A long prompt on a small machine takes a minute: what takes this long hangs.
_TURN_WITHIN_S = 900.0
_ON_PURPOSE = "residents"


class ResidentRanks:
    """One model on `num_ranks` ranks, loaded by the first turn; without `cpus` the ranks share all allowed cores."""

    def __init__(
        self,
        model_dir: Path,
        dtype: str,
        num_ranks: int,
        *,
        kv_cache_gib: float,
        cpus: Iterable[int] | None = None,
        turn_within_s: float = _TURN_WITHIN_S,
    ) -> None:
        self._num_ranks = num_ranks
        self._turn_within_s = turn_within_s
        self._num_turns = 0
        request = {"num_ranks": num_ranks, "cpus": None if cpus is None else sorted(cpus)}
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="corebound-resident-"))
            self._job = ResidentJob(
                model_dir=str(model_dir.resolve()),
                dtype=dtype,
                folder=folder,
                owner_pid=os.getpid(),
                kv_cache_gib=kv_cache_gib,
            )
            path = Path(folder) / "request.json"
            write_whole(path, request | {"job": dataclasses.asdict(self._job)})
            with path.open("rb") as stream:
                self._process = subprocess.Popen(_LAUNCH, stdin=stream, stdout=subprocess.DEVNULL)
            stack.callback(self._end)
            self._stack = stack.pop_all()

    def turn(self, cases: Sequence[TurnCase], *, warm_up: bool = True) -> TurnReport:
        """Return what one turn found; with `warm_up` each case is done once before it counts, with other prompts.

        Raises: LaunchError when the ranks have ended, or take longer than a turn may.
        """
        number = self._num_turns
        self._num_turns += 1
        write_whole(self._job.turn_path(number), dataclasses.asdict(Turn(cases=cases, warm_up=warm_up)))
        report = self._job.report_path(number)
        end_s = time.monotonic() + self._turn_within_s
        while not report.is_file():
            # Looked for once more: the report may have come right before the end.
            if (code := self._process.poll()) is not None and not report.is_file():
                raise LaunchError(
                    f"ranks that kept a model ended with exit code {code}", hint="the lines above say why"
                )
            if time.monotonic() > end_s:
                self._process.terminate()  # asked for another turn or the end, they would not hear
                raise LaunchError(
                    f"{self._job.dtype} of {self._job.model_dir}: no report of turn {number} within "
                    f"{self._turn_within_s:g} s; {self._states()}",
                    hint="a machine that swaps is as slow: free memory, or measure fewer lines at a time with --only",
                )
            time.sleep(_LOOK_EVERY_S)
        return TurnReport.from_json(json.loads(report.read_text(encoding="utf-8")))

    def _states(self) -> str:
        """Return what each rank said last that it was doing."""
        said = []
        for rank in range(self._num_ranks):
            path = self._job.state_path(rank)
            state = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else "not started"
            said.append(f"rank {rank}: {state}")
        return "; ".join(said)

    def close(self) -> None:
        """Let the ranks end, and wait until they have."""
        self._stack.close()

    def _end(self) -> None:
        if self._process.poll() is None:
            write_whole(self._job.turn_path(self._num_turns), None)
        try:
            self._process.wait(_END_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._process.terminate()  # the launcher stops its ranks
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def main() -> int:
    """Launch the ranks of the request on standard input and return their exit code."""
    request = json.load(sys.stdin)
    if request["cpus"] is not None:
        os.sched_setaffinity(0, request["cpus"])
    # As of a launch inside a rank: who keeps a model shares its cores with the others on purpose, and sleeps meanwhile.
    env.put("COREBOUND_JOB_ID", _ON_PURPOSE)
    return launch(
        LaunchSpec(
            command=_RANK,
            num_accelerators=request["num_ranks"],
            # None binds where every rank can have a core of its own.
            bind_cores_to_rank=None,
            rank0_stdin=json.dumps(request["job"]).encode(),
        )
    )


if __name__ == "__main__":
    raise SystemExit(main())
