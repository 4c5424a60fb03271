"""Short measurements that are taken again when a hypervisor moved its processors during them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from corebound.kernels.latency_probe import are_alike, distance_ns, usual_distance_ns

_Result = TypeVar("_Result")
# Of one measurement, and of all together: a machine that was moved for good is measured where it is.
_MAX_TRIES, _MAX_REPEATED = 3, 12


class Held:
    """Calls measurements again that end where the processors are not as far from each other as usual."""

    def __init__(self, cpus: Sequence[int]) -> None:
        self._cpus = tuple(cpus)
        self._distance = usual_distance_ns(self._cpus)
        self.num_repeated = 0

    def __call__(self, measure: Callable[[], _Result]) -> _Result:
        """Return what a measurement finds, of its last try where none was held."""
        for _ in range(_MAX_TRIES - 1):
            found = measure()
            if are_alike(self._distance, distance_ns(self._cpus)) or self.num_repeated == _MAX_REPEATED:
                return found
            self.num_repeated += 1
        return measure()
