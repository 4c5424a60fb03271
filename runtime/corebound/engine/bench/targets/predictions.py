"""What `corebound plan` predicts, round by round, against what the rounds measured."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from corebound.engine.bench.targets.finding import ONE_CORE, Finding, Measured, NotMeasured, promise, ratios_of
from corebound.engine.bench.targets.samples import Samples, Who
from corebound.engine.predict.measure import measure_ceilings
from corebound.engine.predict.model import Prediction, Workload, predict
from corebound.models.architecture import Architecture
from corebound.topology import Topology

BOUND = 0.15
_FIRST, _NEXT, _MEMORY = "first token", "next token", "memory"


@dataclass(kw_only=True)
class Predictions:
    """The predictions for some ranks from ceilings that every round measures anew."""

    topology: Topology
    architecture: Architecture
    everyone: Sequence[Who]
    work: Workload
    of_round: list[dict[Who, Prediction]] = field(default_factory=list)

    def predict(self) -> None:
        """Measure the ceilings and add the predictions of a round."""
        ceilings = measure_ceilings(self.topology)
        self.of_round.append(
            {who: predict(self.architecture, who.dtype, who.num_ranks, 1, ceilings, self.work) for who in self.everyone}
        )


def compare(predictions: Sequence[dict[Who, Prediction]], samples: Samples, shape: str, case: str) -> list[Finding]:
    """Return predicted over measured: first token, next token and memory of all ranks that did `case`."""
    findings = []
    for who in predictions[0] if predictions else ():
        found = samples.find(who, case)
        if not found:
            continue
        made = [row[who] for row in predictions]
        first, following = (
            [row.first_token.total_s * 1e3 for row in made],
            [row.next_token.total_s * 1e3 for row in made],
        )
        memory = statistics.median(row.host_bytes for row in made) / 2**20
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
