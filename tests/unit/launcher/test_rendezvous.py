"""How long agents that MPI or Slurm starts may take to come."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import pytest

from corebound.errors import LaunchError
from corebound.launcher.rendezvous import Rendezvous
from corebound.launcher.signals import SignalPipe
from corebound.launcher.streams import Pump


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (["sleep", "60"], r"the 0\.5 s of COREBOUND_START_TIMEOUT_S are over"),
        (["false"], "its starter ended with 1"),
    ],
)
def test_agents_that_do_not_come_are_missed_and_it_is_told_why(command: list[str], reason: str) -> None:
    starter = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert starter.stdout is not None
    words = Pump(os.dup(starter.stdout.fileno()), None, None)
    starter.stdout.close()
    started_s = time.monotonic()
    try:
        with (
            SignalPipe((signal.SIGTERM,)) as signals,
            Rendezvous("secret", 0.5) as rendezvous,
            pytest.raises(LaunchError, match=rf"no agent arrived from a, b \(2 of 2 hosts\): {reason}"),
        ):
            rendezvous.links({"0": "a", "1": "b"}, starter, words, signals, lambda _: None)
    finally:
        starter.kill()
        starter.wait()
        words.join(5)
    assert time.monotonic() - started_s < 10
