"""Proves that the ranks of a group share memory, by sharing it: each maps every other's segment and reads its token."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import secrets
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from corebound.comm import shm_ops
from corebound.comm.gloo import GlooCollectives
from corebound.comm.shm_stale import remove_stale_segments
from corebound.errors import CommError
from corebound.topology import format_cpu_list, parse_cpu_list

MIB = 1024 * 1024
_DESCRIPTION_BYTES = 4096
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, kw_only=True)
class SegmentOptions:
    """Where segments live and how large they are. Longer messages go in chunks of `chunk_bytes`."""

    directory: Path = Path("/dev/shm")  # noqa: S108 - the shared memory file system, not a temporary directory
    chunk_bytes: int = 1024 * 1024
    probe_budget_s: float = 0.04


class SharedMemoryUnavailableError(CommError):
    """These ranks cannot share memory; the message says why, and is the same on every rank."""


def connect(gloo: GlooCollectives, job_id: str, timeout_s: float, options: SegmentOptions) -> int:
    """Return the handle of a native group whose members all mapped each other's segments. Every member calls it.

    Raises: SharedMemoryUnavailableError, on all members alike.
    """
    library = shm_ops.library()
    remove_stale_segments(options.directory)
    nonce = gloo.broadcast_object(secrets.token_hex(4))
    path = options.directory / f"corebound.{job_id}.{'-'.join(map(str, gloo.ranks))[:64]}.{nonce}.{gloo.rank}"
    handle, cards = 0, []
    try:
        own, handle = _open(gloo, path, timeout_s, options)
        cards = exchange(gloo, own)
        _require_same_machine(gloo, cards)
        verdicts = exchange(gloo, {"error": _attach_all(gloo, handle, cards)})
        raise_first_error(gloo, verdicts)
        library.corebound_comm_unlink(handle)
        code = library.corebound_comm_probe(handle, options.probe_budget_s)
        if code:
            raise shm_ops.failure(code)
    except BaseException:
        # Closing removes the own name, whatever step failed. A peer that died cannot remove its name any more.
        library.corebound_comm_close(handle)
        for card in cards:
            # Where names cannot be removed, none could be made; the first error is the one that counts.
            with contextlib.suppress(OSError):
                Path(card["path"]).unlink(missing_ok=True)
        raise
    return handle


def describe(handle: int) -> dict[str, Any]:
    """Return what the group measured and chose: variant, segment_bytes, chunk_bytes, probe_ms, rules.

    Raises: CommError when the group is closed.
    """
    text = ctypes.create_string_buffer(_DESCRIPTION_BYTES)
    code = shm_ops.library().corebound_comm_describe(handle, text, len(text))
    if code:
        raise shm_ops.failure(code)
    result: dict[str, Any] = json.loads(text.value)
    return result


def _open(gloo: GlooCollectives, path: Path, timeout_s: float, options: SegmentOptions) -> tuple[dict[str, Any], int]:
    """Create the own segment; return what the others need to know about it, and the handle (0 on failure)."""
    library = shm_ops.library()
    handle = ctypes.c_int64(0)
    token = ctypes.create_string_buffer(shm_ops.TOKEN_BYTES)
    ranks = (ctypes.c_int * gloo.size)(*gloo.ranks)
    affinities = exchange(gloo, {"boot_id": boot_id(), "cpus": format_cpu_list(os.sched_getaffinity(0))})
    num_cpus = len({cpu for card in affinities for cpu in parse_cpu_list(card["cpus"])})
    crowded = num_cpus < gloo.size
    code = library.corebound_comm_open(
        os.fsencode(path),
        gloo.rank,
        gloo.size,
        ranks,
        options.chunk_bytes,
        timeout_s,
        crowded,
        ctypes.byref(handle),
        token,
    )
    card = {
        "error": _explain(gloo, code, options) if code else "",
        "boot_id": affinities[gloo.rank]["boot_id"],
        "path": str(path),
        "token": token.raw.hex(),
        "variant": library.corebound_comm_variant().decode(),
        "chunk_bytes": options.chunk_bytes,
    }
    return card, handle.value


def _attach_all(gloo: GlooCollectives, handle: int, cards: list[dict[str, Any]]) -> str:
    """Map every peer's segment; return what failed, or nothing."""
    library = shm_ops.library()
    for peer, card in enumerate(cards):
        if peer == gloo.rank:
            continue
        token = bytes.fromhex(card["token"])
        code = library.corebound_comm_attach(handle, peer, os.fsencode(card["path"]), token)
        if code:
            return str(shm_ops.failure(code))
    return ""


def _require_same_machine(gloo: GlooCollectives, cards: list[dict[str, Any]]) -> None:
    machines: dict[str, list[str]] = {}
    for rank, card in zip(gloo.ranks, cards, strict=True):
        machines.setdefault(card["boot_id"], []).append(str(rank))
    if len(machines) > 1:
        groups = "; ".join(",".join(ranks) for ranks in machines.values())
        raise SharedMemoryUnavailableError(f"the ranks are on {len(machines)} machines (ranks {groups})")
    raise_first_error(gloo, cards)
    for what in ("variant", "chunk_bytes"):
        if len({card[what] for card in cards}) > 1:
            values = ", ".join(f"rank {rank} {card[what]}" for rank, card in zip(gloo.ranks, cards, strict=True))
            raise SharedMemoryUnavailableError(f"the ranks differ in {what}, so their sums would differ: {values}")


def raise_first_error(gloo: GlooCollectives, cards: list[dict[str, Any]]) -> None:
    """Raise SharedMemoryUnavailableError when some member's card holds an error, naming that rank and its host."""
    for rank, card in zip(gloo.ranks, cards, strict=True):
        if card["error"]:
            where = f"rank {rank} on {card['host']}"
            raise SharedMemoryUnavailableError(f"{where}: {card['error']}", hint=card.get("hint"))


def _explain(gloo: GlooCollectives, code: int, options: SegmentOptions) -> str:
    text = str(shm_ops.failure(code))
    if code != shm_ops.NO_SPACE:
        return text
    per_rank = shm_ops.library().corebound_comm_segment_bytes(options.chunk_bytes)
    total_mib = per_rank * gloo.size / MIB
    needed = f"{gloo.size} ranks need {total_mib:.1f} MiB ({per_rank / MIB:.1f} MiB each)"
    return too_small(options.directory, needed, text)


def too_small(directory: Path, needed: str, text: str) -> str:
    """Return the explanation for shared memory that could not be reserved; `text` is the system's own."""
    free_mib = shutil.disk_usage(directory).free / MIB
    return (
        f"{directory} is too small: {needed}, {free_mib:.1f} MiB are free ({text}); "
        f"give a container --shm-size=1g, a pod an emptyDir with medium Memory on /dev/shm, "
        f"or a host `mount -o remount,size=1g {directory}`"
    )


def exchange(gloo: GlooCollectives, card: dict[str, Any]) -> list[dict[str, Any]]:
    """Return every member's card, in group order; `host` in it is the name of the member's host."""
    data = json.dumps({"host": socket.gethostname(), **card}).encode()
    # All need the same size, and no rank may fail alone here: the others would wait for it.
    longest = int(gloo.all_gather(torch.tensor([len(data)])).max())
    message = torch.zeros(longest, dtype=torch.uint8)
    message[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return [json.loads(row.numpy().tobytes().rstrip(b"\0")) for row in gloo.all_gather(message)]


def boot_id() -> str:
    """Return what the running kernel is told apart by."""
    return _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else "unknown"
