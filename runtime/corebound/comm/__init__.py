"""Collective communication: one object per group of ranks, several providers, a choice that explains itself.

Beside its own functions the package has those of torch.distributed that scripts call through `deepspeed.comm`, such as
`get_rank` and `barrier`; they are torch's, on torch's default group, which init_distributed() makes.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from corebound.comm import select
from corebound.comm.base import Collectives, as_timedelta, check_timeout
from corebound.comm.launch_group import create, ensure_torch_group, job_id, join_launch
from corebound.comm.quiet import gloo_greeting_on_stderr
from corebound.comm.rank_log import set_up_log_of_script
from corebound.config import env
from corebound.errors import CommError, ConfigError
from corebound.logs import get_logger

__all__ = ["Collectives", "create", "get_local_rank", "init_distributed", "join_launch", "new_group"]

_LOGGER = get_logger(__name__)

_OF_TORCH = frozenset(
    [
        "ReduceOp",
        "all_gather",
        "all_reduce",
        "barrier",
        "broadcast",
        "broadcast_object_list",
        "destroy_process_group",
        "gather",
        "get_rank",
        "get_world_size",
        "is_available",
        "is_initialized",
        "reduce",
        "scatter",
    ]
)
# What scripts pass as a backend: all of them mean the one of the machine, which is chosen here.
_BACKENDS = ("ccl", "corebound", "gloo", "hccl", "mpi", "nccl")


def __getattr__(name: str) -> Any:
    if name in _OF_TORCH:
        return getattr(dist, name)
    raise AttributeError(f"module 'corebound.comm' has no attribute {name!r}")


def init_distributed(
    dist_backend: str | float | None = None,
    auto_mpi_discovery: bool = True,
    distributed_port: int | None = None,
    verbose: bool = True,
    timeout: timedelta | None = None,
    init_method: str | None = None,
    dist_init_required: bool | None = None,
    config: object = None,
    rank: int = -1,
    world_size: int = -1,
    *,
    timeout_s: float | None = None,
    provider: str | None = None,
) -> Collectives:
    """Return the collectives of the whole launch after every rank has joined; torch's default group exists then too.

    A process that was not launched as a rank gets a group of one. A default process group that exists already is used
    as it is. `timeout_s` limits joining and is the default of every operation; None takes COREBOUND_COMM_TIMEOUT_S, as
    `provider` None takes COREBOUND_COMM.

    The positional arguments are DeepSpeed's. A number as the first is `timeout_s`, a `timeout` is that as a timedelta.
    A backend is not binding, because a script names that of the hardware it was written for. Where ranks meet comes
    from the launcher: `rank` and `world_size` must agree with it, and the rest has no effect.

    Raises: ConfigError for arguments that contradict each other or the launch; CommTimeoutError that lists the ranks
    present and missing; CommError when the provider cannot work.
    """
    set_up_log_of_script()
    if isinstance(dist_backend, int | float):
        timeout_s, dist_backend = _one(timeout_s, float(dist_backend)), None
    if timeout is not None:
        timeout_s = _one(timeout_s, timeout.total_seconds())
    _check_place(rank, world_size)
    _tell_ignored(dist_backend, distributed_port=distributed_port, init_method=init_method, config=config)
    collectives = join_launch(timeout_s, provider=provider)
    ensure_torch_group(env.settings().comm_timeout_s if timeout_s is None else timeout_s)
    return collectives


def get_local_rank() -> int:
    """Return this rank's number on its host, 0 outside of a launch."""
    place = env.rank_environment()
    return place.local_rank if place else 0


def new_group(
    ranks: Sequence[int], timeout_s: float | None = None, *, provider: str | None = None
) -> Collectives | None:
    """Return the collectives of some ranks of the launch, or None on a rank that is not among them.

    Every rank of the launch calls it, with the same ranks, after init_distributed(). Members are ordered by rank.

    Raises: CommError for ranks that do not exist or repeat, or when init_distributed() was not called.
    """
    settings = env.settings()
    timeout_s = check_timeout(settings.comm_timeout_s if timeout_s is None else timeout_s)
    world_size = dist.get_world_size() if dist.is_initialized() else 1
    if sorted(set(ranks)) != sorted(ranks) or not ranks or not all(0 <= rank < world_size for rank in ranks):
        raise CommError(f"new_group: expected distinct ranks from 0 to {world_size - 1}, found {list(ranks)}")
    if not dist.is_initialized():
        return select.single()
    with gloo_greeting_on_stderr():
        group = dist.new_group(sorted(ranks), timeout=as_timedelta(timeout_s), backend="gloo")
    if not isinstance(group, dist.ProcessGroup):
        return None
    return select.create(group, provider or settings.comm, timeout_s, job_id=job_id(), owns_group=True)


def _one(first: float | None, second: float) -> float:
    if first is not None and first != second:
        raise ConfigError(f"init_distributed: two timeouts: {first:g} s and {second:g} s")
    return second


def _check_place(rank: int, world_size: int) -> None:
    """Raise ConfigError for a place in the launch that is not this process's."""
    place = env.rank_environment()
    found = (place.rank, place.world_size) if place else (0, 1)
    for name, asked, given in zip(("rank", "world_size"), (rank, world_size), found, strict=True):
        if asked not in (-1, given):
            raise ConfigError(
                f"init_distributed: {name} is {asked}, but this process was started with {given}",
                hint=f"leave it out, and start the script as corebound run --num_accelerators {max(world_size, 1)}",
            )


def _tell_ignored(dist_backend: str | float | None, **others: object) -> None:
    if isinstance(dist_backend, str) and dist_backend not in _BACKENDS:
        _LOGGER.warning(
            "init_distributed: backend %r is unknown and has no effect; COREBOUND_COMM chooses", dist_backend
        )
    for name, value in others.items():
        if value is not None and not (name == "init_method" and value == "env://"):
            _LOGGER.warning("init_distributed: %s has no effect: the launcher says where ranks meet", name)
