"""Binds the calling rank to cores and memory as `corebound run --bind_cores_to_rank` would, whoever started it.

For ranks that torchrun, mpirun or accelerate started: they bind not at all, or to one core, or near a GPU. The ranks of
a host tell each other which CPUs they and the program that started them may use, and divide all of these by the
launcher's own rules.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from corebound.comm import shm_handshake
from corebound.comm.gloo import GlooCollectives
from corebound.config import env
from corebound.config.env import RankEnvironment
from corebound.errors import CommError, HostError
from corebound.launcher.binding import Binding, arrange
from corebound.launcher.corelist import render_core_list
from corebound.launcher.shim import set_memory_policy
from corebound.logs import get_logger
from corebound.topology import read_topology

_log = get_logger(__name__)
_FOREIGN_BINDING = ("KMP_AFFINITY", "GOMP_CPU_AFFINITY")


def bind_this_rank(group: GlooCollectives | None, place: RankEnvironment | None) -> None:
    """Bind this process, all its threads, the memory that it takes from now on, and torch's number of threads.

    Every rank of `group` calls it; None is a process on its own. A rank that Corebound's launcher has bound stays as it
    is. The first rank of a host speaks for all of them when something is replaced or refused.

    Raises: ConfigError when there are more ranks than cores; CommError when ranks of a host have the same LOCAL_RANK.
    """
    own = sorted(os.sched_getaffinity(0))
    starter = own if place is None else sorted(os.sched_getaffinity(os.getppid()))
    card: dict[str, Any] = {
        "node": _node(),
        "local_rank": place.local_rank if place else 0,
        "cpus": sorted({*own, *starter}),
        "bound": env.job_id() is not None and own != starter,
    }
    cards = [card] if group is None else shm_handshake.exchange(group, card)
    rank = 0 if group is None else group.rank
    mates = [number for number, other in enumerate(cards) if other["node"] == card["node"]]
    # All ranks of a host judge alike, so that none divides what another keeps.
    if any(cards[mate]["bound"] for mate in mates):
        _log.info("this rank is bound to CPUs %s already, by Corebound's launcher", render_core_list(own))
        return
    index = _index(cards, mates, rank)
    topology = replace(
        read_topology(), allowed_cpus=tuple(sorted({cpu for mate in mates for cpu in cards[mate]["cpus"]}))
    )
    arrangement = arrange(topology, len(mates), bind_cores=True)
    _apply(arrangement.bindings[index], speaks=index == 0, warnings=arrangement.warnings)


def _node() -> list[str]:
    """Return what processes have in common that share CPUs, their numbers and a host name."""
    return [shm_handshake.boot_id(), socket.gethostname(), str(Path("/proc/self/ns/pid").readlink())]


def _index(cards: Sequence[dict[str, Any]], mates: Sequence[int], rank: int) -> int:
    """Return this rank's place among those of its host, by LOCAL_RANK."""
    locals_of = {mate: cards[mate]["local_rank"] for mate in mates}
    if len(set(locals_of.values())) < len(mates):
        told = ", ".join(f"rank {mate} has {local}" for mate, local in locals_of.items())
        raise CommError(
            f"bind_cores: ranks on {socket.gethostname()} have the same LOCAL_RANK: {told}",
            hint="the program that starts ranks has to set LOCAL_RANK, as torchrun and `corebound run` do",
        )
    return sorted(mates, key=lambda mate: locals_of[mate]).index(rank)


def _apply(binding: Binding, *, speaks: bool, warnings: Sequence[str]) -> None:
    host = socket.gethostname()
    unset, threads = env.unset(_FOREIGN_BINDING), str(binding.num_threads)
    before = env.put("OMP_NUM_THREADS", threads)
    _set_affinity(binding.cpus)
    refused = _set_memory(binding)
    torch.set_num_threads(binding.num_threads)
    _log.info(
        "bound to CPUs %s, %s threads%s, memory %s %s",
        render_core_list(binding.cpus),
        threads,
        "" if before in (None, threads) else f" (OMP_NUM_THREADS was {before})",
        binding.memory_policy,
        render_core_list(binding.memory_nodes),
    )
    if not speaks:
        return
    for text in warnings:
        _log.warning("%s: %s", host, text)
    for name in unset:
        _log.warning("%s: %s is unset: it would fight the binding to cores", host, name)
    if refused is not None:
        _log.warning("%s: memory policy refused (%s): ranks' memory is where they first touch it", host, refused)


def _set_affinity(cpus: Sequence[int]) -> None:
    """Bind every thread of this process: those that torch has started keep an affinity of their own otherwise."""
    for task in Path("/proc/self/task").iterdir():
        try:
            # A thread may end while we look.
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(int(task.name), cpus)
        except OSError as error:
            raise HostError(
                f"bind_cores: sched_setaffinity to CPUs {render_core_list(cpus)}: {error.strerror}",
                hint="`corebound topology` shows the CPUs that this process may use",
            ) from error


def _set_memory(binding: Binding) -> str | None:
    """Set the memory policy and return why the kernel refuses it, None when it does not."""
    if binding.memory_policy == "default" or not binding.memory_nodes:
        return None
    try:
        set_memory_policy(binding.memory_policy, list(binding.memory_nodes))
    except OSError as error:
        return str(error.strerror)
    return None
