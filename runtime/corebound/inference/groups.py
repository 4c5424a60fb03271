"""Which ranks share a model: all of the launch, runs of neighbouring ranks, or a group that the caller made."""

from __future__ import annotations

import sys
from pathlib import Path

from corebound import comm
from corebound.comm.base import Collectives
from corebound.errors import ConfigError
from corebound.inference.configuration import InferenceConfig
from corebound.logs import get_logger

_log = get_logger(__name__)


def model_group(config: InferenceConfig) -> Collectives:
    """Return the collectives of the ranks that share the model with this one; joins the launch first.

    With fewer ranks to a model than were launched, neighbours share one: ranks 0 and 1, ranks 2 and 3, and so on.
    All ranks call it.

    Raises: ConfigError for more ranks than were launched, or a number that does not divide theirs; CommError.
    """
    if config.tp_group is not None:
        return _given_group(config)
    world = comm.join_launch()
    num_ranks = config.tp_size
    if num_ranks is None:
        if world.size > 1 and world.rank == 0:
            _log.warning(
                "init_inference: tp_size was not given, so each of %d ranks runs the whole model; tp_size=%d shares it",
                world.size,
                world.size,
            )
        num_ranks = 1
    num_ranks = num_ranks or world.size
    if num_ranks > world.size:
        raise _too_many(num_ranks, world.size)
    if world.size % num_ranks:
        raise ConfigError(
            f"init_inference: tp_size {num_ranks} does not divide the {world.size} ranks of this launch",
            hint=f"start {num_ranks} ranks, or a multiple: {_command(num_ranks)}",
        )
    if num_ranks == world.size:
        return world
    return _neighbours(world, num_ranks)


def _given_group(config: InferenceConfig) -> Collectives:
    group = comm.create(config.tp_group)
    if config.tp_size and config.tp_size != group.size:
        raise ConfigError(f"init_inference: tp_size is {config.tp_size}, but tp_group has {group.size} ranks")
    return group


def _neighbours(world: Collectives, num_ranks: int) -> Collectives:
    mine = world
    for first in range(0, world.size, num_ranks):
        # Every rank takes part in the making of every group.
        group = comm.new_group(range(first, first + num_ranks))
        mine = group or mine
    return mine


def _too_many(num_ranks: int, launched: int) -> ConfigError:
    started = "was not started by a launcher" if launched == 1 else f"was started on {launched} ranks"
    return ConfigError(
        f"init_inference: tp_size is {num_ranks}, but this script {started}", hint=f"run it as {_command(num_ranks)}"
    )


def _command(num_ranks: int) -> str:
    script = Path(sys.argv[0]).name if sys.argv and sys.argv[0].endswith(".py") else "script.py"
    return f"corebound run --num_accelerators {num_ranks} {script}"
