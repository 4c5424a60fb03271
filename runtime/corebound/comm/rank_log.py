"""The log of a process that is a rank: lines name rank and host."""

from __future__ import annotations

import logging
import socket

from corebound import logs
from corebound.config import env


def set_up_log() -> None:
    """Send the log to standard error at COREBOUND_LOG_LEVEL; a rank's lines begin with its number and host.

    Raises: ConfigError for an environment that `config.env` cannot read.
    """
    place = env.rank_environment()
    logs.setup(
        env.settings().log_level,
        rank=place.rank if place else None,
        world_size=place.world_size if place else None,
        host=socket.gethostname(),
    )


def set_up_log_of_script() -> None:
    """Do the same for a script that is not ours, unless it has decided for itself where logs go.

    Raises: ConfigError as `set_up_log`.
    """
    if not logging.getLogger(logs.ROOT).handlers and not logging.getLogger().handlers:
        set_up_log()
