"""Chooses and connects what carries hierarchical's data between hosts: oneCCL where every rank has it, else gloo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch.distributed.distributed_c10d import PrefixStore, Store

from corebound.comm import ccl, shm_handshake
from corebound.comm.gloo import GlooCollectives
from corebound.comm.link_transport import CclTransport, GlooTransport, LinkTransport
from corebound.config import env
from corebound.errors import CommError
from corebound.logs import get_logger

_LOGGER = get_logger(__name__)
# oneCCL connects in a second where it works. Nobody who did not ask for it should wait long where it does not.
_UNASKED_S = 20.0


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

    Raises: CommError, on all members alike, when ccl was asked for and cannot work.
    """
    wanted = gloo.broadcast_object(wanted or env.settings().host_link)
    reason, hint = "asked for by COREBOUND_HOST_LINK", None
    if wanted != "gloo":
        unavailable: CommError | None = ccl.why_not(gloo)
        if unavailable is None:
            limit_s = timeout_s if wanted == "ccl" else min(timeout_s, _UNASKED_S)
            transport, unavailable = _connect_ccl(gloo, store, host, names, limit_s)
            if unavailable is None:
                return Carrier("ccl", reason if wanted == "ccl" else "every rank has oneCCL", transport)
            _tell(gloo, f"between hosts gloo takes the place of oneCCL: {unavailable.message}")
        reason, hint = f"no oneCCL: {unavailable.message}", unavailable.hint
        if wanted == "ccl":
            raise CommError(f"COREBOUND_HOST_LINK=ccl: {reason}", hint=hint)
    gloo_transport = GlooTransport(PrefixStore("gloo", store), host, len(names), timeout_s) if store else None
    return Carrier("gloo", reason, gloo_transport)


def _connect_ccl(
    gloo: GlooCollectives, store: Store | None, host: int, names: Sequence[str], timeout_s: float
) -> tuple[LinkTransport | None, CommError | None]:
    """Return the own end, and why it does not work, on which all members agree."""
    transport: LinkTransport | None = None
    own: CommError | None = None
    if store is not None:
        try:
            transport = CclTransport(PrefixStore("ccl", store), host, names, timeout_s)
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
    return None, CommError(first, hint="CCL_LOG_LEVEL=info shows what oneCCL does")


def _tell(gloo: GlooCollectives, text: str) -> None:
    if gloo.rank == 0:
        _LOGGER.warning("%s", text)
