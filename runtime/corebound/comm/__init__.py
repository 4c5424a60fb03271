"""Collective communication: one object per group of ranks, several providers, a choice that explains itself."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import torch.distributed as dist

from corebound.comm import rendezvous, select
from corebound.comm.base import Collectives, as_timedelta, check_timeout
from corebound.comm.gloo import GlooCollectives
from corebound.comm.quiet import gloo_greeting_on_stderr
from corebound.comm.rank_binding import bind_this_rank
from corebound.config import env
from corebound.errors import CommError, ConfigError
from corebound.logs import get_logger

_log = get_logger(__name__)

__all__ = ["Collectives", "create", "init_distributed", "new_group"]


def init_distributed(
    timeout_s: float | str | None = None,
    *,
    provider: str | None = None,
    bind_cores: bool | None = None,
    dist_backend: str | None = None,
    timeout: timedelta | None = None,
) -> Collectives:
    """Return the collectives of the whole launch after every rank has joined.

    Ranks may come from `corebound run`, torchrun, accelerate or an mpirun; for those of MPI it also sets RANK,
    LOCAL_RANK and the like. A process that was not launched as a rank gets a group of one. A default process group that
    exists already is used as it is. `timeout_s` limits joining and is the default of every operation; None takes
    COREBOUND_COMM_TIMEOUT_S. `bind_cores` gives this rank cores and memory of its own, as `corebound run
    --bind_cores_to_rank` would; None takes COREBOUND_BIND_CORES. `dist_backend` and `timeout` are
    DeepSpeed's words for `provider` and `timeout_s`; a name in the first place is a `dist_backend`, as there.

    Raises: CommTimeoutError that lists the ranks present and missing; CommError when the provider cannot work;
    ConfigError when cores are too few to bind to, or for a backend of other devices.
    """
    settings = env.settings()
    if isinstance(timeout_s, str):
        timeout_s, dist_backend = None, timeout_s
    if timeout_s is None and timeout is not None:
        timeout_s = timeout.total_seconds()
    provider = provider or _provider_of(dist_backend) or settings.comm
    timeout_s = check_timeout(settings.comm_timeout_s if timeout_s is None else timeout_s)
    binds = settings.bind_cores if bind_cores is None else bind_cores
    env.publish_place()
    place = env.rank_environment()
    if dist.is_initialized():
        if binds:
            bind_this_rank(_gloo_of_all(timeout_s), place)
        return create(None, timeout_s, provider=provider)
    if place is None or place.world_size == 1:
        if binds:
            bind_this_rank(None, place)
        return select.single()
    group = rendezvous.join(place, timeout_s)
    if binds:
        bind_this_rank(GlooCollectives(group, timeout_s), place)
    return select.create(group, provider, timeout_s, job_id=place.job_id, owns_group=True)


def create(
    group: dist.ProcessGroup | None = None, timeout_s: float | None = None, *, provider: str | None = None
) -> Collectives:
    """Return the collectives of a torch process group that exists (None: the default one). Every member calls it.

    Raises: CommError when the provider asked for cannot work, or this process is not a member.
    """
    settings = env.settings()
    group = group if group is not None else dist.group.WORLD
    if not isinstance(group, dist.ProcessGroup):
        raise CommError("collectives: this process is not a member of the process group")
    timeout_s = check_timeout(settings.comm_timeout_s if timeout_s is None else timeout_s)
    return select.create(group, provider or settings.comm, timeout_s, job_id=_job_id())


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
    return select.create(group, provider or settings.comm, timeout_s, job_id=_job_id(), owns_group=True)


def _provider_of(dist_backend: str | None) -> str | None:
    """Return the provider for the name of a backend as DeepSpeed has it, None for none.

    Raises: ConfigError for a backend that is not for CPUs.
    """
    if dist_backend in (None, "ccl", "gloo"):
        return None  # what an accelerator for CPUs calls its backend: whatever is fastest between them
    if dist_backend in env.COMM_CHOICES:
        return dist_backend
    if dist_backend == "nccl":
        _log.warning("init_distributed: nccl is for GPUs; between CPUs Corebound chooses what works best")
        return None
    raise ConfigError(
        f"init_distributed: dist_backend is {dist_backend!r}, expected one of {', '.join(env.COMM_CHOICES)}",
        hint="leave it out: Corebound chooses what works best between CPUs",
    )


def _gloo_of_all(timeout_s: float) -> GlooCollectives | None:
    return GlooCollectives(dist.group.WORLD, timeout_s) if dist.get_world_size() > 1 else None


def _job_id() -> str:
    place = env.rank_environment()
    return place.job_id if place else "alone"
