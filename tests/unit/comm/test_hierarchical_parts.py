"""The parts of the hierarchical provider that need no other process: hosts from sight, and one account of a failure."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from corebound.comm import bench_hosts, fake_hosts, host_link, link_transport
from corebound.comm.faults import FaultBoard, Note, conclude, link_note, shm_note
from corebound.comm.hierarchical_setup import host_names
from corebound.comm.hosts import partition
from corebound.comm.link_transport import LinkError
from corebound.comm.shm_handshake import SharedMemoryUnavailableError
from corebound.comm.shm_ops import ELSEWHERE, MISUSE, PEER_LOST, TIMED_OUT, AbandonedError
from corebound.config import env
from corebound.errors import CommError, CommTimeoutError, HostError, PeerLostError

HOST_OF = {0: "0", 1: "0", 2: "1", 3: "1", 4: "node-c"}


class BrokenStore:
    """A store whose server is gone."""

    def set(self, key: str, value: str) -> None:
        raise RuntimeError("Broken pipe")


def lost(rank: int, *suspects: int, call: str = "barrier") -> Note:
    return Note(rank=rank, code=PEER_LOST, text=f"lost {suspects}", call=call, suspects=suspects)


def test_members_that_see_each_other_are_a_host_in_the_order_of_the_group() -> None:
    assert partition([{0, 2}, {1, 3}, {0, 2}, {1, 3}], (0, 1, 2, 3)) == ((0, 2), (1, 3))
    assert partition([{0}, {1}], (5, 7)) == ((0,), (1,))
    assert partition([{0, 1, 2}] * 3, (0, 1, 2)) == ((0, 1, 2),)


@pytest.mark.parametrize("rows", [[{0, 1}, {1}], [{0, 1}, {0, 1, 2}, {1, 2}]])
def test_sight_that_is_one_sided_or_differs_is_refused(rows: list[set[int]]) -> None:
    with pytest.raises(SharedMemoryUnavailableError, match="ranks 4 and 5 do not share memory with the same ranks"):
        partition(rows, (4, 5, 6)[: len(rows)])


def test_who_saw_the_culprit_is_believed_before_who_lost_a_connection() -> None:
    witness = Note(rank=3, code=PEER_LOST, text="rank 2 died", call="barrier", certain=True)
    assert conclude(lost(0, 2), {0: lost(0, 2), 1: lost(1, 3), 3: witness}, HOST_OF) is witness


def test_without_a_witness_the_blame_falls_on_whoever_is_missed_and_silent() -> None:
    notes = {0: lost(0, 2), 2: lost(2, 4)}
    assert conclude(notes[0], notes, HOST_OF) is notes[2]
    assert conclude(notes[2], notes, HOST_OF) is notes[2]
    account = conclude(notes[0], {0: lost(0, 2), 1: lost(1, 3)}, HOST_OF)
    assert account.text == "lost (2,); no sign of life from rank 2 (host 1), rank 3 (host 1)"


def test_hosts_that_called_different_things_are_told_both() -> None:
    own = Note(rank=0, code=TIMED_OUT, text="waited", call="all_reduce of 8 bytes of float32", suspects=(2,))
    account = conclude(own, {0: own, 2: lost(2, 0, call="all_reduce of 4 bytes of float32")}, HOST_OF)
    assert account.code == MISUSE
    assert "rank 0 calls all_reduce of 8 bytes" in account.text
    assert "rank 2 calls all_reduce of 4 bytes" in account.text


def test_a_store_that_is_gone_is_a_sign_of_its_own() -> None:
    store: Any = BrokenStore()
    own = lost(3, 1)
    account = FaultBoard(store, HOST_OF).settle(own, 0.1)
    assert account.text == "lost (1,); rank 0 (host 0), which keeps the launch's store, is gone too"
    own = lost(2, 0)
    assert FaultBoard(store, HOST_OF).settle(own, 0.1) is own


def test_failures_of_a_host_name_it() -> None:
    note = shm_note(PeerLostError("shm barrier on rank 2: rank 3 (pid 7) died"), 2, "barrier", HOST_OF)
    assert (note.code, note.text, note.certain) == (PEER_LOST, "rank 3 (host 1, pid 7) died", True)
    told = AbandonedError("shm barrier on rank 1: rank 0 (pid 9) has no answer from rank 2 on another host")
    note = shm_note(told, 1, "barrier", HOST_OF)
    assert (note.code, note.suspects, note.certain) == (ELSEWHERE, (2,), False)
    assert note.text == "rank 0 (host 0, pid 9) has no answer from rank 2 (host 1)"


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (CommTimeoutError("x"), TIMED_OUT, "waited 2 s for rank 4 (host node-c)"),
        (CommError("x"), PEER_LOST, "lost the connection to rank 4 (host node-c)"),
    ],
)
def test_failures_between_hosts_name_the_counterpart(error: CommError, code: int, text: str) -> None:
    note = link_note(LinkError(2, error), 0, 4, "barrier", 2.0, HOST_OF)
    assert (note.code, note.text, note.suspects, note.certain) == (code, text, (4,), False)


def test_hosts_are_called_by_their_names_unless_two_have_the_same() -> None:
    assert host_names(((0, 2), (1,)), ["node-a", "node-b", "node-a"]) == ("node-a", "node-b")
    assert host_names(((0,), (1,)), ["localhost", "localhost"]) == ("0", "1")


def test_calls_that_differ_have_different_tags() -> None:
    tags = {
        link_transport.number_of(host_link.label_of(operation, torch.empty(size, dtype=dtype)))
        for operation in ("all_reduce", "all_gather", "broadcast")
        for size in (1, 2, 4096)
        for dtype in (torch.float32, torch.int32)
    }
    assert len(tags) == 18
    assert all(0 <= tag < 2**31 for tag in tags)


def test_connections_of_this_process_are_counted() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        accepted, _ = server.accept()
        with accepted:
            client.sendall(bytes(5000))
            while len(accepted.recv(5000, socket.MSG_PEEK)) < 5000:
                pass
            assert bench_hosts.tcp_received()[accepted.getsockname(), accepted.getpeername()] == 5000


def test_without_the_right_to_mount_pretending_is_a_clear_error(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        # A child, because it gives its rights away.
        code = 1
        try:
            if os.geteuid() == 0:
                os.setuid(65534)
            fake_hosts.enter(tmp_path)
        except HostError as error:
            code = 0 if "a /dev/shm of its own" in error.message and "needs root" in (error.hint or "") else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize(("provider", "fabric"), [(None, ""), ("tcp", ""), ("sockets", ""), ("verbs", "verbs")])
def test_only_a_provider_of_libfabric_that_is_not_tcp_names_another_network(provider: str | None, fabric: str) -> None:
    assert env.fabric({} if provider is None else {"FI_PROVIDER": provider}) == fabric
