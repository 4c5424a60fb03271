"""Standard output of the rank that speaks for a launch, and what happens when it does not take any more."""

from __future__ import annotations

import os
import signal
import sys

from corebound.errors import HostError


def write_output(text: str) -> None:
    """Write text to standard output at once.

    A reader that is gone, as behind `| head`, ends this process by SIGPIPE, as it ends other programs.

    Raises: HostError when the text cannot be written, such as on a full disk.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGPIPE)
    except OSError as error:
        # What is left in the buffer would fail again when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise HostError(
            f"standard output: cannot be written: {error.strerror}", hint="make room, or redirect it elsewhere"
        ) from error
