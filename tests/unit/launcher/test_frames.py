from __future__ import annotations

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corebound.launcher.events import Failure, failure_from_event
from corebound.launcher.frames import MARKER, FrameReader, FrameWriter, Kind, frame

KINDS: tuple[Kind, ...] = ("event", "stdout", "stderr", "beat")


@given(
    st.lists(st.tuples(st.sampled_from(KINDS), st.binary(max_size=40)), max_size=8),
    st.binary(max_size=30).filter(lambda noise: MARKER not in noise + MARKER[:-1]),
    st.integers(1, 17),
)
def test_frames_come_back_however_the_stream_is_cut(frames: list[tuple[Kind, bytes]], noise: bytes, piece: int) -> None:
    stream = noise + MARKER + b"".join(frame(kind, content) for kind, content in frames)
    reader = FrameReader()
    found = [one for at in range(0, len(stream), piece) for one in reader.feed(stream[at : at + piece])]
    assert found == frames


def test_what_a_login_shell_says_first_is_kept_until_the_agent_speaks() -> None:
    reader = FrameReader()
    assert list(reader.feed(b"Welcome!\n")) == []
    assert reader.noise == b"Welcome!\n"
    assert list(reader.feed(MARKER + frame("beat"))) == [("beat", b"")]
    assert reader.noise == b""


@pytest.mark.parametrize("stream", [MARKER + b"HTTP/1.1 400", b"x" * 100_000])
def test_a_stream_that_is_not_an_agents_is_refused(stream: bytes) -> None:
    with pytest.raises(ValueError, match=r"unreadable frame|no agent answered"):
        list(FrameReader().feed(stream))


def test_a_writer_sends_events_and_output_in_order() -> None:
    read_fd, write_fd = os.pipe()
    writer = FrameWriter(write_fd)
    writer.stdout(b"text\n")
    failure = Failure(host="h", exit_code=3, reason="ended", rank=1, tail=("a", "b"))
    writer.failed(failure)
    writer.done(3)
    writer.close(5.0)
    os.close(write_fd)
    with os.fdopen(read_fd, "rb") as stream:
        found = list(FrameReader().feed(stream.read()))
    assert found[0] == ("stdout", b"text\n")
    assert failure_from_event(json.loads(found[1][1])) == failure
    assert json.loads(found[2][1]) == {"event": "done", "exit_code": 3}


def test_a_launcher_that_reads_no_more_never_holds_up_an_event() -> None:
    read_fd, write_fd = os.pipe()
    writer = FrameWriter(write_fd)
    for _ in range(200):
        writer.warning("x" * 10_000)  # far more than a pipe holds
    os.close(read_fd)
    writer.close(5.0)
    os.close(write_fd)
