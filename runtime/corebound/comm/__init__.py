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
    bind_cores: bool | None = None,
) -> Collectives:
    """Return the collectives of the whole launch after every rank has joined; torch's default group exists then too.

    Ranks may come from `corebound run`, torchrun, accelerate or an mpirun; for those of MPI it also sets RANK,
    LOCAL_RANK and the like. A process that was not launched as a rank gets a group of one. A default process group that
    exists already is used as it is. `timeout_s` limits joining and is the default of every operation; None takes
    COREBOUND_COMM_TIMEOUT_S. `bind_cores` gives this rank cores and memory of its own, as `corebound run
    --bind_cores_to_rank` would; None takes COREBOUND_BIND_CORES.

    The positional arguments are DeepSpeed's: its words for `provider` and, as a timedelta, for `timeout_s`, which may
    also stand first. `rank` and `world_size` must agree with the launcher, and the rest has no effect.

    Raises: CommTimeoutError that lists the ranks present and missing; CommError when the provider cannot work;
    ConfigError for arguments that contradict each other or the launch, when cores are too few to bind to, or for a
    backend of other devices.
    """
    set_up_log_of_script()
    if not isinstance(dist_backend, str | None):
        timeout_s, dist_backend = _one(timeout_s, float(dist_backend)), None
    if timeout is not None:
        timeout_s = _one(timeout_s, timeout.total_seconds())
    _check_place(rank, world_size)
    _tell_ignored(distributed_port=distributed_port, init_method=init_method, config=config)
    provider = provider or _provider_of(dist_backend)
    collectives = join_launch(timeout_s, provider=provider, bind_cores=bind_cores)
    ensure_torch_group(env.settings().comm_timeout_s if timeout_s is None else timeout_s)
    return collectives


def get_local_rank() -> int:
    """Return this rank's number on its host, 0 outside of a launch.

    Raises: ConfigError for an environment of a rank that is not whole.
    """
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


def _tell_ignored(**given: object) -> None:
    for name, value in given.items():
        if value is not None and not (name == "init_method" and value == "env://"):
            _LOGGER.warning("init_distributed: %s has no effect: the launcher says where ranks meet", name)


def _provider_of(dist_backend: str | None) -> str | None:
    """Return the provider for the name of a backend as DeepSpeed has it, None for none.

    Raises: ConfigError for a backend that is not for CPUs.
    """
    if dist_backend in (None, "ccl", "gloo"):
        return None  # what an accelerator for CPUs calls its backend: whatever is fastest between them
    if dist_backend in env.COMM_CHOICES:
        return dist_backend
    if dist_backend == "nccl":
        _LOGGER.warning("init_distributed: nccl is for GPUs; between CPUs Corebound chooses what works best")
        return None
    raise ConfigError(
        f"init_distributed: dist_backend is {dist_backend!r}, expected one of {', '.join(env.COMM_CHOICES)}",
        hint="leave it out: Corebound chooses what works best between CPUs",
    )
