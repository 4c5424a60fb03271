"""What members of a group on several hosts tell each other when one of them fails: who is to blame.

The member that sees a rank die in its own host's memory knows the culprit; the others only see a connection break. Each
leaves a note in the launch's store, reads the others' for a moment, and all come to the same answer.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch.distributed.distributed_c10d import Store

from corebound.comm import shm_ops
from corebound.comm.link_transport import LinkError
from corebound.errors import CommError
from corebound.logs import get_logger

_LOGGER = get_logger(__name__)
# A witness on the culprit's host reports within milliseconds of its next wait.
GRACE_S = 1.0
# Those who were told by a member of their own host wait until that one has made up its mind.
SECOND_HAND_GRACE_S = 2.0
_PAUSE_S = 0.02
_STORE_RANK = 0
_PREFIX = re.compile(r"^shm \w+ on rank \d+: ")
_FAR = re.compile(r"from rank (\d+) on another host")
_NAMED = re.compile(r"rank (\d+) \(pid")


@dataclass(frozen=True, kw_only=True)
class Note:
    """One member's account. `certain` when it saw the culprit itself; `call` is the operation it was in."""

    rank: int
    code: int
    text: str
    call: str
    suspects: tuple[int, ...] = ()
    certain: bool = False


def conclude(own: Note, notes: dict[int, Note], host_of: Mapping[int, str]) -> Note:
    """Return the account to believe, given the notes found so far (the own one among them)."""
    for note in sorted(notes.values(), key=lambda note: note.rank):
        if note.certain:
            return note
    # Whoever has left a note lives: to blame is the one that others miss and that says nothing.
    silent = tuple(sorted({rank for note in notes.values() for rank in note.suspects} - set(notes)))
    if silent:
        accounts = [own, *(notes[rank] for rank in sorted(notes))]
        account = next(note for note in accounts if silent[0] in note.suspects)
        if silent == account.suspects:
            return account
        names = ", ".join(f"rank {rank} (host {host_of[rank]})" for rank in silent)
        return replace(account, text=f"{account.text}; no sign of life from {names}")
    # All live. Then those who waited in vain waited for another call than the one that was made.
    other = next((note for note in notes.values() if note.call != own.call), None)
    if other and any(note.code == shm_ops.TIMED_OUT for note in notes.values()):
        text = f"members disagree: rank {own.rank} calls {own.call}, rank {other.rank} calls {other.call}"
        return replace(own, code=shm_ops.MISUSE, text=text)
    return own


class FaultBoard:
    """The notes of one group, under a prefix of the launch's store. `host_of` gives each rank the name of its host."""

    def __init__(self, store: Store, host_of: Mapping[int, str]) -> None:
        self._store = store
        self._host_of = host_of
        self._store_gone = False

    def settle(self, own: Note, grace_s: float) -> Note:
        """Leave the own note and return the account to believe, after at most about `grace_s`.

        The store may be gone with its host, or behind a cable that was cut, so a thread asks it.
        """
        found: dict[int, Note] = {own.rank: own}
        thread = threading.Thread(target=self._ask, args=(own, found, grace_s), daemon=True)
        thread.start()
        thread.join(grace_s + 0.5)
        account = conclude(own, dict(found), self._host_of)
        if self._store_gone and account is own and _STORE_RANK in self._host_of and _STORE_RANK not in own.suspects:
            keeper = f"rank {_STORE_RANK} (host {self._host_of[_STORE_RANK]})"
            account = replace(own, text=f"{own.text}; {keeper}, which keeps the launch's store, is gone too")
        return account

    def publish(self, rank: int, note: Note) -> None:
        """Leave the account that member `rank` believes, without waiting long for the store."""
        if self._store_gone:
            return
        thread = threading.Thread(target=self._put, args=(rank, note), daemon=True)
        thread.start()
        thread.join(0.5)

    def _ask(self, own: Note, found: dict[int, Note], grace_s: float) -> None:
        end = time.monotonic() + grace_s
        if not self._put(own.rank, own):
            return
        try:
            while time.monotonic() < end and not any(note.certain for note in found.values()):
                for rank in self._host_of:
                    if rank != own.rank and self._store.check([str(rank)]):
                        found[rank] = _parse(self._store.get(str(rank)))
                time.sleep(_PAUSE_S)
        except RuntimeError as error:
            self._store_gone = True
            _LOGGER.debug("asking the store who failed: %s", error)

    def _put(self, rank: int, note: Note) -> bool:
        try:
            self._store.set(str(rank), json.dumps(asdict(note)))
        except RuntimeError as error:
            self._store_gone = True
            _LOGGER.debug("telling the store who failed: %s", error)
            return False
        return True


def shm_note(error: CommError, rank: int, call: str, host_of: Mapping[int, str]) -> Note:
    """Return the account of a member whose own host's group failed: it saw the culprit unless it was told."""
    code = shm_ops.code_of(error)
    text = _PREFIX.sub("", error.message)
    text = _NAMED.sub(lambda match: f"rank {match[1]} (host {host_of[int(match[1])]}, pid", text)
    if code != shm_ops.ELSEWHERE:
        return Note(rank=rank, code=code, text=text, call=call, certain=True)
    far = _FAR.search(text)
    suspects = (int(far[1]),) if far else ()
    text = _FAR.sub(lambda match: f"from rank {match[1]} (host {host_of[int(match[1])]})", text)
    return Note(rank=rank, code=code, text=text, call=call, suspects=suspects)


def link_note(error: LinkError, rank: int, peer: int, call: str, limit_s: float, host_of: Mapping[int, str]) -> Note:
    """Return the account of a member whose exchange with rank `peer`, on host `error.host`, failed."""
    where = f"rank {peer} (host {host_of[peer]})"
    text = f"waited {limit_s:g} s for {where}" if error.timed_out else f"lost the connection to {where}"
    code = shm_ops.TIMED_OUT if error.timed_out else shm_ops.PEER_LOST
    return Note(rank=rank, code=code, text=text, call=call, suspects=(peer,))


def _parse(data: bytes) -> Note:
    fields: dict[str, Any] = json.loads(data)
    return Note(**{**fields, "suspects": tuple(fields["suspects"])})
