"""Text that nobody takes: a reader that leaves and a disk that is full end a launch without a traceback."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.native, pytest.mark.multiproc, pytest.mark.timeout(600)]
COMMAND = (sys.executable, "-c", "from corebound.cli.main import entry_point; entry_point()", "generate")
WORDS = (*COMMAND, "--model", "demo", "--no-bind", "--prompt", "The old ship", "--max-new-tokens", "40")


@pytest.mark.parametrize("num_ranks", ["1", "2"])
def test_a_reader_that_leaves_ends_the_launch_quietly(num_ranks: str) -> None:
    words = [*WORDS, "--num_accelerators", num_ranks]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        errors = process.stderr.read()
        assert process.wait(500) == 128 + signal.SIGPIPE
    assert "Traceback" not in errors and "rank 0" not in errors.replace("[r0", ""), errors


def test_a_full_disk_is_named() -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        words = [*WORDS, "--num_accelerators", "1", "--json"]
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, timeout=500, check=False)
    assert done.returncode == 3
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    assert "error: standard output: cannot be written: No space left on device" in done.stderr
