"""What an agent hears of its launcher."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest

from corebound.launcher.channel import Channel


@pytest.fixture
def launcher_fd() -> Iterator[int]:
    """Where the launcher writes; descriptor 0 is the other end."""
    kept = os.dup(0)
    read_fd, write_fd = os.pipe()
    os.dup2(read_fd, 0)
    os.close(read_fd)
    yield write_fd
    os.close(write_fd)
    os.dup2(kept, 0)
    os.close(kept)


def channel() -> Channel:
    made = Channel.__new__(Channel)  # without pipes in place of this process's output
    made._pending = b""
    return made


def test_an_agent_waits_for_its_part_as_long_as_the_launcher_gives_signs_of_life(launcher_fd: int) -> None:
    def speak() -> None:
        for _ in range(8):
            time.sleep(0.1)
            os.write(launcher_fd, b"{}\n")
        os.write(launcher_fd, b"the part\n")

    thread = threading.Thread(target=speak)
    thread.start()
    # Signs of life for 0.8 s, and 0.5 s of patience.
    assert channel().word(0.5) == "the part"
    thread.join()


def test_a_launcher_that_says_nothing_is_gone(launcher_fd: int) -> None:
    assert channel().word(0.1) is None
