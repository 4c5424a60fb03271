"""How ranks find each other: a store on the master, a roll call, then a gloo process group."""

from __future__ import annotations

import itertools
import json
import socket
import time

import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore
from torch.distributed.distributed_c10d import PrefixStore, Store

from corebound.comm.base import as_timedelta, from_torch_error
from corebound.comm.quiet import gloo_greeting_on_stderr
from corebound.config import env
from corebound.config.env import RankEnvironment
from corebound.errors import CommError, CommTimeoutError

_PREFIX = "corebound"
_VERDICT = "verdict"
_joins = itertools.count()
# Rank 0 holds the store. When the roll call fails it stays this long, so that the others can read why.
_FAREWELL_S = 2.0
_LOOPBACK = ("localhost", "localhost.localdomain", "::1")


def join(place: RankEnvironment, timeout_s: float) -> dist.ProcessGroup:
    """Return torch's default process group after every rank of the launch has joined it.

    Raises: CommTimeoutError that lists who is present and who is missing; CommError for a busy port.
    """
    deadline = time.monotonic() + timeout_s
    attempt = env.torch_store_attempt()
    store = _open_store(place, timeout_s, listens=place.rank == 0 and attempt is None)
    # torchrun's store outlives the ranks: those that it starts anew must not find what the first ones wrote.
    prefix = _PREFIX if attempt is None else f"{_PREFIX}/{attempt}.{next(_joins)}"
    _roll_call(PrefixStore(prefix, store), place, timeout_s, deadline)
    if _is_loopback(place.master_addr):
        # Without this gloo looks up the host's own name, which fails or stalls on machines without working DNS.
        env.set_default("GLOO_SOCKET_IFNAME", loopback_interface())
    try:
        with gloo_greeting_on_stderr():
            dist.init_process_group(
                "gloo",
                store=PrefixStore(f"{prefix}/gloo", store),
                rank=place.rank,
                world_size=place.world_size,
                timeout=as_timedelta(timeout_s),
            )
    except (RuntimeError, ValueError) as error:
        raise from_torch_error(error, operation="connecting all ranks", rank=place.rank) from error
    group = dist.group.WORLD
    if group is None:
        raise CommError(f"rank {place.rank}: torch.distributed made no default process group")
    return group


def _open_store(place: RankEnvironment, timeout_s: float, *, listens: bool) -> TCPStore:
    address = f"{place.master_addr}:{place.master_port}"
    host = "127.0.0.1" if place.master_addr in _LOOPBACK[:2] else place.master_addr
    try:
        return TCPStore(
            host,
            place.master_port,
            place.world_size,
            is_master=listens,
            timeout=as_timedelta(timeout_s),
            wait_for_workers=False,
        )
    except (RuntimeError, ValueError) as error:
        if listens:
            raise CommError(
                f"rank 0 cannot listen on {address}: {str(error).splitlines()[0]}",
                hint="another program holds the port; choose one with --master_port, or MASTER_PORT under mpirun",
            ) from error
        raise CommTimeoutError(
            f"rank {place.rank} on {socket.gethostname()}: rank 0 at {address} did not answer within {timeout_s:g} s",
            hint="see whether rank 0 started, and whether that address and port are reachable from this host",
        ) from error


def _roll_call(store: Store, place: RankEnvironment, timeout_s: float, deadline: float) -> None:
    """Register, and return when rank 0 has seen everyone. Rank 0 decides, so that all ranks report the same thing."""
    store.set(f"present/{place.rank}", socket.gethostname())
    if place.rank == 0:
        missing = _wait_for_all(store, place.world_size, deadline)
        hosts = {rank: store.get(f"present/{rank}").decode() for rank in range(place.world_size) if rank not in missing}
        store.set(_VERDICT, json.dumps({"missing": missing, "hosts": hosts, "timeout_s": timeout_s}))
        if missing:
            _wait_for_readers(store, num_readers=len(hosts) - 1)
            raise _missing_ranks(missing, hosts, timeout_s)
        return
    try:
        # Rank 0 may have started later than this rank; its verdict comes at the latest one timeout after its start.
        store.wait([_VERDICT], as_timedelta(max(deadline - time.monotonic(), 0) + timeout_s + _FAREWELL_S))
        verdict = json.loads(store.get(_VERDICT))
        store.add("readers", 1)
    except RuntimeError as error:
        raise CommError(
            f"rank {place.rank} on {socket.gethostname()}: rank 0 went away before all ranks had joined: "
            f"{str(error).splitlines()[0]}",
            hint="the first rank that failed says why",
        ) from error
    if verdict["missing"]:
        hosts = {int(rank): host for rank, host in verdict["hosts"].items()}
        raise _missing_ranks(verdict["missing"], hosts, verdict["timeout_s"])


def _wait_for_all(store: Store, world_size: int, deadline: float) -> list[int]:
    """Return the ranks that have not registered by the deadline."""
    missing = list(range(world_size))
    pause_s = 0.001
    while True:
        missing = [rank for rank in missing if not store.check([f"present/{rank}"])]
        if not missing or time.monotonic() >= deadline:
            return missing
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, 0.05)


def _wait_for_readers(store: Store, num_readers: int) -> None:
    end = time.monotonic() + _FAREWELL_S
    while time.monotonic() < end and store.add("readers", 0) < num_readers:
        time.sleep(0.02)


def _missing_ranks(missing: list[int], hosts: dict[int, str], timeout_s: float) -> CommTimeoutError:
    what = f"rank {missing[0]}" if len(missing) == 1 else f"ranks {', '.join(map(str, missing))}"
    present = ", ".join(f"{rank} on {host}" for rank, host in sorted(hosts.items()))
    return CommTimeoutError(
        f"{what} did not join within {timeout_s:g} s (present: {present})",
        hint="look at the log of the missing rank; COREBOUND_COMM_TIMEOUT_S gives slow starts more time",
    )


def _is_loopback(address: str) -> bool:
    return address in _LOOPBACK or address.startswith("127.")


def loopback_interface() -> str:
    """Return the name of the network interface that leads back to this host."""
    names = [name for _, name in socket.if_nameindex()]
    return "lo" if "lo" in names or not names else names[0]
