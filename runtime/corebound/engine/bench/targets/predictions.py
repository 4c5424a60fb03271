"""What `corebound plan` predicts, round by round, against what the rounds measured."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from corebound.engine.bench.ruler import Ruler
from corebound.engine.bench.series import Sample
from corebound.engine.bench.targets.finding import ONE_CORE, Finding, Measured, NotMeasured, promise, ratios_of
from corebound.engine.bench.targets.planned import Who
from corebound.engine.bench.targets.samples import Samples, moved_note, steady
from corebound.engine.predict.measure import measure_ceilings
from corebound.engine.predict.model import Prediction, Workload, predict
from corebound.kernels.latency_probe import are_alike
from corebound.models.architecture import Architecture
from corebound.topology import Topology

BOUND = 0.15
_FIRST, _NEXT, _MEMORY = "first token", "next token", "memory"


@dataclass(frozen=True, kw_only=True)
class RoundPredictions:
    """What one round's ceilings predict, and how long a cache line took between the processors, if it stayed so."""

    line_ns: float
    is_steady: bool
    of: dict[Who, Prediction]


@dataclass(kw_only=True)
class Predictions:
    """The predictions for some ranks from ceilings that every round measures anew."""

    topology: Topology
    architecture: Architecture
    everyone: Sequence[Who]
    work: Workload
    of_round: list[RoundPredictions] = field(default_factory=list)

    def predict(self) -> None:
        """Measure the ceilings and add the predictions of a round."""
        ruler = Ruler.of(self.topology)
        line_ns = ruler.usual_line_ns()
        ceilings = measure_ceilings(self.topology)
        is_steady = are_alike(line_ns, ruler.usual_line_ns())
        made = {
            who: predict(self.architecture, who.dtype, who.num_ranks, 1, ceilings, self.work) for who in self.everyone
        }
        self.of_round.append(RoundPredictions(line_ns=line_ns, is_steady=is_steady, of=made))


def compare(predictions: Sequence[RoundPredictions], samples: Samples, shape: str, case: str) -> list[Finding]:
    """Return predicted over measured: first token, next token and memory of all ranks that did `case`.

    A round's times are held against its own prediction, or the nearest one that was made where the processors lay the
    same.
    """
    findings = []
    for who in predictions[0].of if predictions else ():
        found = steady(samples.find(who, case))
        if not found:
            continue
        made = [_nearest(predictions, sample).of[who] for sample in found]
        first, following = (
            [row.first_token.total_s * 1e3 for row in made],
            [row.next_token.total_s * 1e3 for row in made],
        )
        memory = statistics.median(row.of[who].host_bytes for row in predictions) / 2**20
        peak = samples.first[who].report.peak_rss_bytes / 2**20
        for what, unit, predicted, measured in (
            (_FIRST, "ms", first, [sample.case.first_token_ms for sample in found]),
            (_NEXT, "ms", following, [sample.step_ms for sample in found]),
            (_MEMORY, "MiB", [memory], [peak]),
        ):
            findings.append(
                Finding(
                    line="plan",
                    what=_name(what, shape, who),
                    sense="within",
                    bound=BOUND,
                    ratios=ratios_of(predicted, measured),
                    measured=Measured(name="predicted", unit=unit, rounds=predicted),
                    limit=Measured(name="measured", unit=unit, rounds=measured),
                    note=moved_note(found),
                )
            )
    return findings


def _nearest(predictions: Sequence[RoundPredictions], sample: Sample) -> RoundPredictions:
    """Return the predictions of the sample's round; where the processors lay otherwise, those nearest in time.

    Where they never lay as they did around the sample, its own round is taken all the same.
    """
    alike = [
        number
        for number, made in enumerate(predictions)
        if made.is_steady and are_alike(made.line_ns, sample.after.line_ns)
    ]
    return predictions[min(alike, key=lambda number: abs(number - sample.number), default=sample.number)]


def without_two_ranks(dtypes: Sequence[str], shape: str) -> list[NotMeasured]:
    """Return the rows that `compare` would have of two ranks, on a machine of one core."""
    return [
        NotMeasured(
            line="plan",
            what=_name(what, shape, Who(dtype=dtype, num_ranks=2)),
            promised=promise("within", BOUND),
            reason=ONE_CORE,
        )
        for dtype in dtypes
        for what in (_FIRST, _NEXT, _MEMORY)
    ]


def _name(what: str, shape: str, who: Who) -> str:
    return f"{what}, predicted over measured: {shape}, {who}"
