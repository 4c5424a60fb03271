"""How a launch ended."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field

from corebound.launcher.events import Failure


@dataclass
class LaunchOutcome:
    """How a launch ended: `failure` is the first one, None when all went well or a signal stopped it."""

    exit_code: int = 0
    failure: Failure | None = None
    interrupted: signal.Signals | None = None
    pids: dict[int, int] = field(default_factory=dict)
