"""The ways to split a model over the ranks of some hosts, and the best of them."""

from __future__ import annotations

from collections.abc import Sequence

from corebound.engine.predict.ceilings import Ceilings
from corebound.engine.predict.model import Prediction, Workload, predict
from corebound.errors import ShardingError
from corebound.models.architecture import Architecture

DTYPES = ("bfloat16", "int8", "int4")


def rank_counts(num_cores: int, num_numa_nodes: int) -> list[int]:
    """Return the numbers of ranks on a host worth comparing: each has equally many whole cores of one NUMA node.

    Fewer ranks than nodes would read weights from a node that is not their own, which no ceiling says the price of.
    """
    return [count for count in range(num_numa_nodes, num_cores + 1) if num_cores % count == 0]


def compare(
    architecture: Architecture,
    dtypes: Sequence[str],
    counts: Sequence[int],
    num_hosts: int,
    ceilings: Ceilings,
    work: Workload,
) -> list[Prediction]:
    """Return a prediction for every dtype and number of ranks on a host that the model can be split over.

    Raises: ShardingError when it can be split over none of them.
    """
    found: list[Prediction] = []
    refusal: ShardingError | None = None
    for dtype in dtypes:
        for count in counts:
            try:
                found.append(predict(architecture, dtype, count, num_hosts, ceilings, work))
            except ShardingError as error:
                refusal = error
    if not found and refusal is not None:
        raise refusal
    return found


def best(predictions: Sequence[Prediction]) -> Prediction | None:
    """Return the one with the soonest next token among those that fit, the soonest first token where they are equal."""
    fitting = [prediction for prediction in predictions if prediction.fits]
    return min(fitting, key=lambda row: (row.next_token.total_s, row.first_token.total_s), default=None)
