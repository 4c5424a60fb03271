"""A launch that goes on until it is stopped: every rank writes a line now and then, and fails when it is told to.

A rank fails once a file named fail-<rank> lies in its working folder, which goes with it: the next start works.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    rank = os.environ["RANK"]
    order = Path(f"fail-{rank}")
    print(f"rank {rank} of {os.environ['WORLD_SIZE']} runs with {os.environ.get('MOTTO')}", file=sys.stderr, flush=True)
    while not order.exists():
        time.sleep(0.1)
    order.unlink()
    sys.exit(7)
