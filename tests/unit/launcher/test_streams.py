from __future__ import annotations

import io
import os
import threading
import time
from pathlib import Path

import pytest

from corebound.launcher.streams import TAIL_LINES, Pump


def pumped(data: bytes) -> tuple[bytes, list[str], bytes]:
    source_read, source_write = os.pipe()
    sink_read, sink_write = os.pipe()
    log = io.BytesIO()
    pump = Pump(source_read, sink_write, log)
    os.write(source_write, data)
    os.close(source_write)
    pump.join(5)
    os.close(sink_write)
    with os.fdopen(sink_read, "rb") as sink:
        return sink.read(), pump.tail(), log.getvalue()


def test_output_is_passed_on_unchanged_and_copied_to_the_log() -> None:
    data = b"one\ntwo \xff\nno end"
    assert pumped(data) == (data, ["one", "two \ufffd", "no end"], data)


def test_a_full_disk_under_the_log_is_said_once_and_the_output_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    source_read, source_write = os.pipe()
    sink_read, sink_write = os.pipe()
    with Path("/dev/full").open("wb", buffering=0) as log, caplog.at_level("WARNING"):
        pump = Pump(source_read, sink_write, log)
        for line in (b"one\n", b"two\n"):
            os.write(source_write, line)
        os.close(source_write)
        pump.join(5)
    os.close(sink_write)
    with os.fdopen(sink_read, "rb") as sink:
        assert sink.read() == b"one\ntwo\n"
    assert pump.tail() == ["one", "two"]
    assert caplog.text.count("/dev/full: No space left on device; the log is incomplete") == 1


def test_only_the_last_lines_are_kept_and_they_are_cut() -> None:
    lines = [f"line {number}" for number in range(TAIL_LINES + 5)]
    assert pumped("\n".join(lines).encode())[1] == lines[5:]
    assert len(pumped(b"x" * 5000 + b"\n")[1][0]) == 2000


def test_a_line_without_an_end_is_not_held_back() -> None:
    source_read, source_write = os.pipe()
    sink_read, sink_write = os.pipe()
    pump = Pump(source_read, sink_write, None)
    os.write(source_write, b"password: ")
    start_s = time.monotonic()
    assert os.read(sink_read, 100) == b"password: "
    assert time.monotonic() - start_s < 5
    os.close(source_write)
    pump.join(5)
    os.close(sink_write)
    os.close(sink_read)


def test_a_reader_that_went_away_does_not_stop_the_tail() -> None:
    source_read, source_write = os.pipe()
    sink_read, sink_write = os.pipe()
    os.close(sink_read)
    pump = Pump(source_read, sink_write, None)
    os.write(source_write, b"a\nb\n")
    os.close(source_write)
    pump.join(5)
    os.close(sink_write)
    assert pump.tail() == ["a", "b"]


def test_long_lines_of_two_streams_do_not_tear_each_other() -> None:
    sink_read, sink_write = os.pipe()
    num_bytes = 300_000
    lines = {letter * num_bytes + b"\n" for letter in (b"a", b"b")}
    sources, pumps = [], []
    for _ in lines:
        source_read, source_write = os.pipe()
        sources.append(source_write)
        pumps.append(Pump(source_read, sink_write, None))
    written = bytearray()

    def collect() -> None:
        while data := os.read(sink_read, 1 << 16):
            written.extend(data)

    reader = threading.Thread(target=collect)
    reader.start()
    for start in range(0, num_bytes + 1, 50_000):  # in turns, so that both lines are under way at once
        for source, line in zip(sources, sorted(lines), strict=True):
            view = memoryview(line)[start : start + 50_000]
            while view:
                view = view[os.write(source, view) :]
    for source, pump in zip(sources, pumps, strict=True):
        os.close(source)
        pump.join(10)
    os.close(sink_write)
    reader.join(10)
    os.close(sink_read)
    assert set(bytes(written).splitlines(keepends=True)) == lines
