"""`python -m k8s up|down|kubectl`: the test cluster's one entry point, which make calls."""

from __future__ import annotations

import argparse
import os
import sys

from k8s import cluster
from k8s.access import Access
from k8s.layout import ClusterError, layout, nodes


def main() -> int:
    """Returns the exit code: 0 done, 2 when something keeps the cluster from running."""
    parser = argparse.ArgumentParser(prog="k8s", description=(__doc__ or "").splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    up = verbs.add_parser("up", help="put the cluster up, building its programs the first time")
    up.add_argument("--image", default="", help="an image that podman has, for both nodes")
    verbs.add_parser("down", help="leave nothing but the built programs and the images")
    verbs.add_parser("kubectl", help="run kubectl as the administrator of the cluster")
    # Everything after `kubectl` is kubectl's own, options included.
    num_own = 1 if sys.argv[1:2] == ["kubectl"] else None
    options = parser.parse_args(sys.argv[1:][:num_own])
    place = layout()
    try:
        if options.verb == "up":
            seconds = cluster.up(place, options.image)
            names = ", ".join(f"{node.name} {node.address}" for node in nodes(place))
            print(f"k8s: {names} ready in {seconds:.0f} s", file=sys.stderr)
            print(f"k8s: export KUBECONFIG={place.kubeconfig}", file=sys.stderr)
        elif options.verb == "down":
            cluster.down(place)
        else:
            program = str(place.package_file("usr/bin/kubectl"))
            os.execve(program, [program, *sys.argv[2:]], Access(place).environ())
    except ClusterError as error:
        print(f"error: {error}" + (f"\n\nhint: {error.hint}" if error.hint else ""), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
