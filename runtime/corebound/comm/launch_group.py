"""The group of a whole launch, and torch's own group beside it for scripts that ask torch for their rank."""

from __future__ import annotations

import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from corebound.comm import rendezvous, select
from corebound.comm.base import Collectives, as_timedelta, check_timeout
from corebound.comm.gloo import GlooCollectives
from corebound.comm.quiet import gloo_greeting_on_stderr
from corebound.comm.rank_binding import bind_this_rank
from corebound.config import env
from corebound.errors import CommError


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
    return select.create(group, provider or settings.comm, timeout_s, job_id=job_id())


def join_launch(
    timeout_s: float | None = None, *, provider: str | None = None, bind_cores: bool | None = None
) -> Collectives:
    """Return the collectives of the whole launch after every rank has joined.

    As init_distributed, which scripts call, but a process alone gets no process group of torch's.

    Raises: CommTimeoutError that lists the ranks present and missing; CommError when the provider cannot work;
    ConfigError when cores are too few to bind to.
    """
    settings = env.settings()
    provider = provider or settings.comm
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


def ensure_torch_group(timeout_s: float) -> None:
    """Make torch's default process group of this process alone, unless it has one.

    After joining a launch of several ranks there is one; a rank alone needs none itself, but scripts ask
    torch.distributed.get_rank().

    Raises: ConfigError for a time that is not above 0 seconds.
    """
    if dist.is_initialized():
        return
    env.set_default("GLOO_SOCKET_IFNAME", rendezvous.loopback_interface())
    with gloo_greeting_on_stderr():
        dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1, timeout=as_timedelta(timeout_s))


def job_id() -> str:
    """Return the id of the launch, or a word for a process that was not launched.

    Raises: ConfigError for an environment of a rank that is not whole.
    """
    place = env.rank_environment()
    return place.job_id if place else "alone"


def _gloo_of_all(timeout_s: float) -> GlooCollectives | None:
    return GlooCollectives(dist.group.WORLD, timeout_s) if dist.get_world_size() > 1 else None
