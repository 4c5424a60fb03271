"""Keeps standard output for data while torch makes a gloo group."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

from corebound.native import torch_abi


@contextlib.contextmanager
def gloo_greeting_on_stderr() -> Iterator[None]:
    """Send what gloo of torch 2.8, the IPEX flavour's, prints about its peers to standard error; else do nothing.

    It writes "[Gloo] Rank 0 is connected to ..." from C++, so the descriptor itself is turned for that long.
    """
    if torch_abi().is_stable:
        yield
        return
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
