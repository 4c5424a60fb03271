"""What the kubelet's static CPU manager asks of a pod before it gives it CPUs of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from corebound.k8s.findings import Finding, error, join, mapping
from corebound.k8s.pods import Container, Pod
from corebound.k8s.quantity import not_a_quantity, parse_quantity

COMPUTE = ("cpu", "memory")


def resource_rules(pod: Pod, *, pinned: bool) -> Iterator[Finding]:
    """Yield where quantities are none or not texts and, in a pod whose CPUs are to be `pinned`, what prevents that."""
    for box in pod.containers:
        yield from _quantities(box)
        if pinned:
            yield from _guaranteed(box)
            yield from _whole(box)


def limit(box: Container, name: str) -> Any:
    """Return what a container may use of a resource at most, None when nothing is said."""
    return mapping(box.data, "resources", "limits").get(name)


def _quantities(box: Container) -> Iterator[Finding]:
    for kind in ("requests", "limits"):
        for name, value in mapping(box.data, "resources", kind).items():
            if isinstance(value, str) and parse_quantity(value) is None:
                # The schemas of Kubernetes allow any text here, the API server does not.
                yield error(join(box.path, "resources", kind, str(name)), not_a_quantity(value), "schema")
            if isinstance(value, int | float) and not isinstance(value, bool):
                path = join(box.path, "resources", kind, str(name))
                reason = f'expected text, found the number {value}: write "{value}", typed clients refuse numbers'
                yield error(path, reason, "resources/quoted")


def _guaranteed(box: Container) -> Iterator[Finding]:
    """Guaranteed quality of service takes limits, and requests that are equal or left out, in every container."""
    for name in COMPUTE:
        most = parse_quantity(limit(box, name))
        path = join(box.path, "resources", "limits", name)
        if limit(box, name) is None:
            yield error(path, "expected, because only Guaranteed pods get CPUs of their own", "resources/guaranteed")
            continue
        asked = mapping(box.data, "resources", "requests").get(name)
        if asked is not None and most is not None and parse_quantity(asked) != most:
            where = join(box.path, "resources", "requests", name)
            reason = f"expected {limit(box, name)}, equal to the limit, found {asked}: not Guaranteed, so not pinned"
            yield error(where, reason, "resources/guaranteed")


def _whole(box: Container) -> Iterator[Finding]:
    number = parse_quantity(limit(box, "cpu"))
    if number is not None and (number.denominator != 1 or number < 1):
        path = join(box.path, "resources", "limits", "cpu")
        reason = f"expected whole CPUs, found {limit(box, 'cpu')}: only those are pinned"
        yield error(path, reason, "resources/whole-cpus")
