"""What `corebound plan` predicts, round by round, against what the rounds measured."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from corebound.engine.bench.series import Sample
from corebound.engine.bench.targets.finding import ONE_CORE, Finding, Measured, NotMeasured, promise, ratios_of
from corebound.engine.bench.targets.samples import Samples, Who, steady
from corebound.engine.predict.measure import measure_ceilings
from corebound.engine.predict.model import Prediction, Workload, predict
from corebound.kernels.latency_probe import are_alike, distance_ns
from corebound.models.architecture import Architecture
from corebound.topology import Topology

BOUND = 0.15
_MAX_TRIES = 3
_FIRST, _NEXT, _MEMORY = "first token", "next token", "memory"


@dataclass(frozen=True, kw_only=True)
class RoundPredictions:
    """What one round's ceilings predict, and how long a cache line took between the processors then."""

    line_ns: float
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
        """Measure the ceilings, again where the processors were moved meanwhile, and add the predictions of a round."""
        cpus = [core.cpus[0] for core in self.topology.physical_cores()]
        for _ in range(_MAX_TRIES):
            before_ns = distance_ns(cpus)
            ceilings = measure_ceilings(self.topology)
            if are_alike(before_ns, after_ns := distance_ns(cpus)):
                break
        made = {
            who: predict(self.architecture, who.dtype, who.num_ranks, 1, ceilings, self.work) for who in self.everyone
        }
        self.of_round.append(RoundPredictions(line_ns=after_ns, of=made))


def compare(predictions: Sequence[RoundPredictions], samples: Samples, shape: str, case: str) -> list[Finding]:
    """Return predicted over measured: first token, next token and memory of all ranks that did `case`.

    A round's times are held against the prediction of the round in which the processors lay most like in it.
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
                )
            )
    return findings


def _nearest(predictions: Sequence[RoundPredictions], sample: Sample) -> RoundPredictions:
    """Return the predictions made where a line took as long as around the sample, the latest made of equal ones."""
    line_ns = sample.after.line_ns
    alike = [made for made in predictions if are_alike(made.line_ns, line_ns)]
    return min(alike or predictions, key=lambda made: abs(made.line_ns - line_ns))


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
