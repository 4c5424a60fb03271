"""`python -m lab up|down|exec`: the lab's one entry point, which make calls."""

from __future__ import annotations

import argparse
import os
import sys
import time

from lab import cluster
from lab.layout import LabError, layout
from lab.podman import Podman


def main() -> int:
    """Returns the exit code: 0 done, 2 when something keeps the lab from running."""
    parser = argparse.ArgumentParser(prog="lab", description=(__doc__ or "").splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    up = verbs.add_parser("up", help="make the lab have exactly so many nodes")
    up.add_argument("--nodes", type=int, default=3)
    up.add_argument("--bare", action="store_true", help="nodes know no package source of this machine")
    up.add_argument("--base-image", default="", help="an image that can be pulled; default: this machine's packages")
    down = verbs.add_parser("down", help="leave nothing but the built images")
    down.add_argument("--purge", action="store_true", help="remove the images too")
    shell = verbs.add_parser("podman", help="run podman on the lab's own store")
    shell.add_argument("words", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    place = layout()
    started = time.monotonic()
    try:
        if options.verb == "up":
            members, seconds = cluster.up(place, options.nodes, options.base_image, bare=options.bare)
            names = ", ".join(f"{node.name} {node.address}" for node in members)
            print(
                f"lab: {names} in {seconds:.1f} s ({time.monotonic() - started:.1f} s with the image)", file=sys.stderr
            )
            print(f"lab: ssh -F {place.ssh_config} node1; make deploy INVENTORY=lab", file=sys.stderr)
        elif options.verb == "down":
            cluster.down(place, purge=options.purge)
        else:
            os.environ["CONTAINERS_CONF"] = str(place.containers_conf)
            words = [*Podman(place).words, *options.words]
            os.execvp(words[0], words)
    except LabError as error:
        print(f"error: {error}" + (f"\n\nhint: {error.hint}" if error.hint else ""), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
