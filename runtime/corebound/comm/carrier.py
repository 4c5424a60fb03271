"""Chooses and connects what carries hierarchical's data between hosts: sockets, oneCCL for other networks, or gloo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch.distributed.distributed_c10d import PrefixStore, Store

from corebound.comm import ccl, shm_handshake
from corebound.comm.gloo import GlooCollectives
from corebound.comm.link_transport import CclTransport, GlooTransport, LinkTransport, TcpTransport
from corebound.config import env
from corebound.errors import CommError
from corebound.logs import get_logger

_LOGGER = get_logger(__name__)
# oneCCL connects in a second where it works. Nobody who did not ask for it should wait long where it does not.
_UNASKED_S = 20.0
_ASKED = "asked for by COREBOUND_HOST_LINK"


@dataclass(frozen=True)
class Carrier:
    """What was chosen, why, and the own member's end of it: None for an owner of no slice."""

    name: str
    reason: str
    transport: LinkTransport | None


def connect(
    gloo: GlooCollectives,
    store: Store | None,
    host: int,
    names: Sequence[str],
    timeout_s: float,
    wanted: str | None = None,
) -> Carrier:
    """Return the connections of this member to its counterparts on the other hosts, with which it shares `store`.

    Every member of `gloo` calls it, with `store` None if it has no counterparts; `names` are those of its counterparts
    and itself, by host. `wanted` None takes COREBOUND_HOST_LINK of member 0.

    Raises: CommError, on all members alike, when what was asked for cannot work.
    """
    wanted, fabric = gloo.broadcast_object([wanted or env.settings().host_link, env.fabric()])
    reasons: list[str] = []
    kinds: list[type[CclTransport] | type[TcpTransport]] = [TcpTransport, CclTransport]
    if wanted == "auto" and fabric:
        # Sockets reach such a network by way of the kernel, if at all.
        kinds = [CclTransport, TcpTransport]
        reasons.append(f"FI_PROVIDER is {fabric}")
    for kind in kinds:
        if wanted not in ("auto", kind.name):
            continue
        own_store = PrefixStore(kind.name, store) if store else None
        limit_s = timeout_s if wanted == kind.name else min(timeout_s, _UNASKED_S)
        unavailable: CommError | None = ccl.why_not(gloo) if kind is CclTransport else None
        transport: LinkTransport | None = None
        if unavailable is None:
            transport, unavailable = _connect_all(gloo, own_store, kind, host, names, limit_s)
        if unavailable is None:
            return Carrier(kind.name, _ASKED if wanted == kind.name else "; ".join(reasons) or "TCP", transport)
        if wanted == kind.name:
            raise CommError(f"COREBOUND_HOST_LINK={kind.name}: {unavailable.message}", hint=unavailable.hint)
        reasons.append(f"no {kind.name}: {unavailable.message}")
        if gloo.rank == 0:
            _LOGGER.warning("between hosts something else takes the place of %s: %s", kind.name, unavailable.message)
    own_store = PrefixStore("gloo", store) if store else None
    gloo_transport = GlooTransport(own_store, host, len(names), timeout_s) if own_store else None
    return Carrier("gloo", _ASKED if wanted == "gloo" else "; ".join(reasons), gloo_transport)


def _connect_all(
    gloo: GlooCollectives,
    store: Store | None,
    kind: type[CclTransport] | type[TcpTransport],
    host: int,
    names: Sequence[str],
    timeout_s: float,
) -> tuple[LinkTransport | None, CommError | None]:
    """Return the own end, and why it does not work, on which all members agree."""
    transport: LinkTransport | None = None
    own: CommError | None = None
    if store is not None:
        try:
            transport = kind(store, host, names, timeout_s)
        except CommError as failure:
            own = failure
    try:
        cards = shm_handshake.exchange(gloo, {"error": own.message if own else ""})
    except CommError:
        if transport is not None:
            transport.close()
        if own is not None:
            raise own from None  # it names who is gone, which gloo does not
        raise
    errors = {rank: card["error"] for rank, card in zip(gloo.ranks, cards, strict=True)}
    first = next((f"rank {rank}: {text}" for rank, text in errors.items() if text), "")
    if not first:
        return transport, None
    if transport is not None:
        transport.close()
    return None, CommError(first, hint="CCL_LOG_LEVEL=info shows what oneCCL does" if kind is CclTransport else None)
