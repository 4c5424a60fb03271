"""Progress: on a terminal only, unless the launcher knows better."""

import io

from corebound.engine.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def show(stream, **options):
    with Progress("loading m", stream=stream, **options) as progress:
        progress.update(1, 4)
        progress.update(4, 4)
    return stream.getvalue()


def test_nothing_is_written_where_nobody_watches():
    assert show(io.StringIO()) == ""


def test_a_terminal_sees_the_share_and_a_clean_line_at_the_end():
    text = show(Terminal())
    assert "loading m  25%" in text and "loading m 100%" in text
    assert text.endswith("\r\x1b[K")


def test_a_launcher_that_has_a_terminal_can_ask_for_it():
    assert "100%" in show(io.StringIO(), enabled=True)


def test_it_can_be_switched_off():
    assert show(Terminal(), enabled=False) == ""
