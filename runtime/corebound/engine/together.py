"""How many short steps are done in one native call. Needs no torch."""

from __future__ import annotations

# Steps that are done together give out their tokens together, and a new request, or one that is cancelled, waits for
# all of them. Streamed text that comes a hundred times a second still flows.
_TOGETHER_S = 0.01
_MOST_TOGETHER = 32


def steps_together(step_s: float) -> int:
    """Return how many steps to do together where one takes so long: at least one.

    Units: seconds.
    """
    return min(_MOST_TOGETHER, max(1, int(_TOGETHER_S / step_s)))
