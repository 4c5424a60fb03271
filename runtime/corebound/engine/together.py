"""How many short steps are done in one native call. Needs no torch."""

from __future__ import annotations

# Steps that are done together give out their tokens together. Streamed text that comes a hundred times a second still
# flows, and a new request waits no longer for the ranks.
_TOGETHER_S = 0.01
_MOST_TOGETHER = 32


def steps_together(step_s: float) -> int:
    """Return how many steps to do together where one takes so long: at least one.

    Units: seconds.
    """
    return min(_MOST_TOGETHER, max(1, int(_TOGETHER_S / step_s)))
