"""Progress: a line on a terminal, lines in the log elsewhere, and nothing for what is quick."""

import io
import logging
from types import SimpleNamespace

import pytest

from corebound.engine import progress
from corebound.engine.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(s=100.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now.s))
    return now


def show(clock, stream, step_s=4.0, **options):
    with Progress("loading m", stream=stream, **options) as shown:
        for done in (1, 2, 4):
            clock.s += step_s
            shown.update(done * 10**9, 4 * 10**9)
    return stream.getvalue()


def test_a_terminal_sees_bytes_rate_what_is_left_and_a_clean_line_at_the_end(clock):
    text = show(clock, Terminal())
    assert "\r\x1b[Kloading m  25%, 1.0 of 4.0 GB, 0.25 GB/s, 12 s left" in text
    assert "\r\x1b[Kloading m 100%, 4.0 of 4.0 GB, 0.33 GB/s, 0 s left" in text
    assert text.endswith("\r\x1b[K")


def test_long_waits_are_told_in_minutes(clock):
    assert "25%, 1.0 of 4.0 GB, 0.01 GB/s, 5 min 0 s left" in show(clock, Terminal(), step_s=100.0)


def test_what_is_quick_shows_nothing(clock):
    assert show(clock, Terminal(), step_s=0.3) == ""


def test_calls_that_come_too_fast_are_skipped(clock):
    with Progress("loading m", stream=(stream := Terminal())) as shown:
        clock.s += 2.0
        for done in range(1000):
            shown.update(done, 1000)
    assert stream.getvalue().count("loading m") == 1


def test_without_a_terminal_the_log_gets_a_line_now_and_then(clock, caplog):
    with caplog.at_level(logging.INFO, logger="corebound"):
        assert show(clock, io.StringIO(), step_s=10.0) == ""
    assert [record.message for record in caplog.records] == ["loading m  50%, 2.0 of 4.0 GB, 0.10 GB/s, 20 s left"]


def test_without_a_terminal_what_is_quick_logs_nothing(clock, caplog):
    with caplog.at_level(logging.INFO, logger="corebound"):
        show(clock, io.StringIO())
    assert not caplog.records


def test_a_launcher_that_has_a_terminal_can_ask_for_it(clock):
    assert "100%" in show(clock, io.StringIO(), terminal=True)


def test_it_can_be_switched_off(clock, caplog):
    with caplog.at_level(logging.INFO, logger="corebound"):
        assert show(clock, Terminal(), enabled=False) == ""
        assert show(clock, io.StringIO(), step_s=100.0, enabled=False) == ""
    assert not caplog.records
