"""How busy the machine was while something was measured, from /proc."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_FIELDS = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")


@dataclass(frozen=True, kw_only=True)
class MachineLoad:
    """What the processors did in a stretch of time, as shares of all their time.

    `own_share` is this process and the children that it has waited for; `other_share` the busy rest, and `steal_share`
    what the hypervisor gave to others. The load average is that of the last minute, at the end.
    """

    idle_share: float
    own_share: float
    other_share: float
    steal_share: float
    load_average_1min: float

    def to_json(self) -> dict[str, float]:
        """Return the fields, rounded."""
        return {name: round(value, 3) for name, value in vars(self).items()}


class LoadWatch:
    """Counts from its construction on."""

    def __init__(self, root: Path = Path("/proc")) -> None:
        self._root = root
        self._before = self._ticks()
        self._own_before = own_cpu_s()

    def _ticks(self) -> dict[str, int]:
        first = (self._root / "stat").read_text(encoding="utf-8").split("\n", 1)[0].split()
        return dict(zip(_FIELDS, map(int, first[1 : 1 + len(_FIELDS)]), strict=True))

    def finish(self) -> MachineLoad:
        """Return what the processors did since construction."""
        own_ticks = (own_cpu_s() - self._own_before) * os.sysconf("SC_CLK_TCK")
        after = self._ticks()
        spent = {name: after[name] - self._before[name] for name in _FIELDS}
        total = max(1, sum(spent.values()))
        idle, steal = spent["idle"] + spent["iowait"], spent["steal"]
        own = min(own_ticks, total - idle - steal)
        average = float((self._root / "loadavg").read_text(encoding="utf-8").split()[0])
        return MachineLoad(
            idle_share=idle / total,
            own_share=max(0.0, own) / total,
            other_share=max(0.0, total - idle - steal - own) / total,
            steal_share=steal / total,
            load_average_1min=average,
        )


def own_cpu_s() -> float:
    """Return the CPU time of this process and of its children that have ended, in seconds."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
