"""Which members of a group share memory, found by sharing it: who can read whose file in /dev/shm."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any

from corebound.comm import shm_handshake, shm_ops
from corebound.comm.gloo import GlooCollectives
from corebound.comm.shm_handshake import SharedMemoryUnavailableError
from corebound.comm.shm_stale import MAGIC
from corebound.topology import format_cpu_list, parse_cpu_list

Hosts = tuple[tuple[int, ...], ...]


def find_hosts(gloo: GlooCollectives, job_id: str, directory: Path) -> tuple[Hosts, bool]:
    """Return the members of each host as places in the group, and whether all hosts do arithmetic alike.

    Hosts are ordered by their first member. Every member of the group calls it and gets the same answer.

    Raises: SharedMemoryUnavailableError, on all members alike, when a file cannot be made or sight is one-sided.
    """
    nonce = gloo.broadcast_object(secrets.token_hex(4))
    path = directory / f"corebound.{job_id}.host.{nonce}.{gloo.rank}"
    token = secrets.token_hex(16)
    cards: list[dict[str, Any]] = []
    try:
        card = {"error": _write(path, token), "path": str(path), "token": token}
        card |= {"boot_id": shm_handshake.boot_id(), "variant": shm_ops.library().corebound_comm_variant().decode()}
        cards = shm_handshake.exchange(gloo, card)
        shm_handshake.raise_first_error(gloo, cards)
        seen = [place for place, other in enumerate(cards) if _can_read(other, card)]
        rows = shm_handshake.exchange(gloo, {"seen": format_cpu_list(seen)})
    except BaseException:
        # A peer that died cannot remove its name any more.
        for other in cards:
            Path(other["path"]).unlink(missing_ok=True)
        raise
    finally:
        path.unlink(missing_ok=True)
    hosts = partition([set(parse_cpu_list(row["seen"])) for row in rows], gloo.ranks)
    return hosts, len({card["variant"] for card in cards}) == 1


def partition(rows: list[set[int]], ranks: tuple[int, ...]) -> Hosts:
    """Return the groups of members that see each other, given whom each member sees.

    Raises: SharedMemoryUnavailableError when members that see each other do not see the same others.
    """
    for place, row in enumerate(rows):
        for other in row:
            if rows[other] != row:
                raise SharedMemoryUnavailableError(
                    f"ranks {ranks[place]} and {ranks[other]} do not share memory with the same ranks",
                    hint="give the containers of one host one common /dev/shm, or each its own",
                )
    return tuple(dict.fromkeys(tuple(sorted(row)) for row in rows))


def _write(path: Path, token: str) -> str:
    """Create the own file; return what failed, or nothing."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            # The mark of a segment: should this process be killed now, the next group made here removes the file.
            file.write(MAGIC + token.encode())
    except OSError as error:
        return f"{path}: {error.strerror}"
    return ""


def _can_read(theirs: dict[str, Any], own: dict[str, Any]) -> bool:
    if theirs["boot_id"] != own["boot_id"]:
        return False  # one kernel is needed too: record locks are the proof of life
    try:
        content = Path(theirs["path"]).read_bytes()
    except OSError:
        return False
    return content == MAGIC + str(theirs["token"]).encode()
