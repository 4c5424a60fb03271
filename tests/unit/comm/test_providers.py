"""The parts of corebound.comm that need no other process."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from corebound import comm
from corebound.comm import rendezvous
from corebound.comm.base import Collectives, as_timedelta, check_root, check_timeout, from_torch_error
from corebound.comm.objects import broadcast_object
from corebound.comm.shm_ops import from_operator
from corebound.comm.shm_stale import floor_name, remove_stale_segments
from corebound.comm.single import SingleCollectives
from corebound.errors import CommError, CommTimeoutError, ConfigError, PeerLostError


@pytest.fixture(autouse=True)
def not_a_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "COREBOUND_COMM", "COREBOUND_COMM_TIMEOUT_S"):
        monkeypatch.delenv(name, raising=False)


class Replay:
    """A group in which this process is one member and the messages of the root are recorded or replayed."""

    def __init__(self, rank: int, messages: list[torch.Tensor]) -> None:
        self.rank, self.size, self.messages = rank, 2, messages

    def broadcast(self, tensor: torch.Tensor, root: int = 0, timeout_s: float | None = None) -> torch.Tensor:
        if self.rank == root:
            self.messages.append(tensor.clone())
            return tensor
        return tensor.copy_(self.messages.pop(0))


def carried(obj: Any) -> Any:
    """Return `obj` as member 1 receives it from member 0."""
    messages: list[torch.Tensor] = []
    broadcast_object(Replay(0, messages), obj, 0, None)
    return broadcast_object(Replay(1, messages), None, 0, None)


def test_a_process_that_is_no_rank_gets_a_group_of_one() -> None:
    group = comm.join_launch()
    assert isinstance(group, Collectives)
    assert (group.name, group.rank, group.size, group.ranks) == ("single", 0, 1, (0,))
    tensor = torch.arange(3.0)
    assert group.all_reduce(tensor) is tensor
    assert group.broadcast(tensor) is tensor
    gathered = group.all_gather(tensor)
    assert gathered.shape == (1, 3)
    assert gathered.data_ptr() != tensor.data_ptr()
    assert group.broadcast_object({"a": (1, 2)}) == {"a": [1, 2]}
    group.barrier()
    group.close()


def test_a_world_of_one_rank_needs_no_rendezvous(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "nowhere", "MASTER_PORT": "1"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert comm.join_launch().name == "single"


def test_groups_of_ranks_that_do_not_exist_are_refused() -> None:
    for ranks in ([], [0, 0], [1], [-1]):
        with pytest.raises(CommError, match="distinct ranks from 0 to 0"):
            comm.new_group(ranks)
    alone = comm.new_group([0])
    assert alone is not None
    assert alone.size == 1
    with pytest.raises(CommError, match="not a member"):
        comm.create()


@pytest.mark.parametrize("length", [0, 1, 4076, 4077, 4078, 4079, 4080, 4081, 20_000])
def test_objects_arrive_whole_at_every_length(length: int) -> None:
    assert carried({"text": "x" * length}) == {"text": "x" * length}


@pytest.mark.parametrize("obj", [None, True, 3.5, "", [], [1, [2]], {"ä": {"b": None}}])
def test_json_values_arrive_unchanged(obj: Any) -> None:
    assert carried(obj) == obj


def test_an_object_that_json_cannot_carry_fails_on_both_sides() -> None:
    messages: list[torch.Tensor] = []
    with pytest.raises(CommError, match="rank 0 holds an object that JSON cannot carry"):
        broadcast_object(Replay(0, messages), object(), 0, None)
    with pytest.raises(CommError, match="rank 0 could not encode"):
        broadcast_object(Replay(1, messages), None, 0, None)
    with pytest.raises(CommError, match="JSON cannot carry"):
        SingleCollectives().broadcast_object({1, 2})


def test_timeouts_and_roots_are_checked() -> None:
    assert as_timedelta(1.5).total_seconds() == 1.5
    assert as_timedelta(math.inf).days >= 365
    for wrong in (0, -1, math.nan):
        with pytest.raises(ConfigError, match="above 0"):
            check_timeout(wrong)
    assert check_root(1, 2) == 1
    for root in (-1, 2):
        with pytest.raises(CommError, match="0 to 1"):
            check_root(root, 2)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("[/x/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:1", PeerLostError),
        ("[/x/gloo/transport/tcp/pair.cc:547] Read error [127.0.0.1]:1: Connection reset by peer", PeerLostError),
        ("Gloo failed: [/x/gloo/transport/tcp/pair.cc:1] writev [::1]:1: Broken pipe", PeerLostError),
        ("[/x/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 300ms for recv operation", CommTimeoutError),
        ("Invalid scalar type", CommError),
        ("the option timeout must be a number", CommError),
        ("callback failed: Connection closed by peer", CommError),
        ("[enforce fail at /x/gloo/transport/tcp/pair.cc:456] op.preamble.length <= op.nbytes. 8 vs 4", CommError),
    ],
)
def test_errors_of_torch_become_ours_and_name_operation_and_rank(text: str, kind: type[CommError]) -> None:
    error = from_torch_error(RuntimeError(text), operation="gloo all_reduce", rank=3)
    assert type(error) is kind
    assert str(error).startswith("gloo all_reduce on rank 3: ")


def test_errors_of_operators_become_ours_and_others_pass() -> None:
    code, error = from_operator(RuntimeError("corebound-comm 1: shm barrier on rank 0: rank 1 (pid 7) died"))
    assert (code, type(error), str(error)) == (1, PeerLostError, "shm barrier on rank 0: rank 1 (pid 7) died")
    assert type(from_operator(RuntimeError("corebound-comm 2: late"))[1]) is CommTimeoutError
    other = RuntimeError("out of memory")
    assert from_operator(other) == (0, other)


def test_missing_ranks_are_listed_beside_those_present() -> None:
    error = rendezvous._missing_ranks([5], {0: "a", 7: "b"}, 60)
    assert str(error) == "rank 5 did not join within 60 s (present: 0 on a, 7 on b)"
    assert str(rendezvous._missing_ranks([1, 5], {0: "a"}, 2)).startswith("ranks 1, 5 did not join within 2 s")


def test_only_old_unlocked_segments_of_ours_are_removed(tmp_path: Path) -> None:
    def file(name: str, content: bytes, age_s: float) -> Path:
        path = tmp_path / name
        path.write_bytes(content)
        os.utime(path, (time.time() - age_s,) * 2)
        return path

    crashed = file("corebound.job.0-1.abcd.0", b"cebound1" + bytes(64), age_s=120)
    young = file("corebound.job.0-1.abcd.1", b"cebound1" + bytes(64), age_s=1)
    foreign = file("corebound.job.floor", bytes(64), age_s=120)
    unrelated = file("other", b"cebound1", age_s=120)
    floor = file(floor_name("job", "abcd"), bytes(64), age_s=120)
    young_floor = file(floor_name("job", "bcde"), bytes(64), age_s=1)
    assert sorted(remove_stale_segments(tmp_path)) == [crashed, floor]
    assert sorted(tmp_path.iterdir()) == sorted([young, young_floor, foreign, unrelated])


def test_a_segment_that_a_living_process_has_locked_stays(tmp_path: Path) -> None:
    path = tmp_path / "corebound.job.0-1.abcd.0"
    path.write_bytes(b"cebound1" + bytes(64))
    os.utime(path, (time.time() - 120,) * 2)
    ready, go = os.pipe(), os.pipe()
    child = os.posix_spawn(
        "/usr/bin/env",
        [
            "env",
            "python3",
            "-c",
            f"import fcntl, os; f = open({str(path)!r}, 'r+b'); fcntl.lockf(f, fcntl.LOCK_EX);"
            f"os.write({ready[1]}, b'x'); os.read({go[0]}, 1)",
        ],
        os.environ,
        file_actions=[(os.POSIX_SPAWN_DUP2, fd, fd) for fd in (ready[1], go[0])],
    )
    os.read(ready[0], 1)
    assert remove_stale_segments(tmp_path) == []
    os.write(go[1], b"x")
    os.waitpid(child, 0)
    assert remove_stale_segments(tmp_path) == [path]
