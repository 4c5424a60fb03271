"""Looks at how kernel, firmware and network of a machine are set, and prints what it found, as probe.py does.

Runs on the node with nothing but Python, and writes nothing. Its argument is a JSON object of what is expected.
"""

from __future__ import annotations

import errno
import json
import socket
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LISTENING = "0A"


def check(name: str, passes: bool, found: str, expected: str = "", remedy: str = "") -> dict[str, str]:
    """Return one line of the report."""
    if passes:
        return {"name": name, "status": "pass", "detail": found, "hint": ""}
    return {"name": name, "status": "fail", "detail": f"{found}, expected {expected}", "hint": remedy}


def text(path: Path) -> str:
    """Return the text of a file of the kernel; one that this kernel does not have is empty."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def ids(listed: str) -> set[int]:
    """Return the numbers of a kernel list such as `0-3,8`."""
    found: set[int] = set()
    for part in filter(None, listed.split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found


def chosen(options: str) -> str:
    """Return the word in brackets of `always [madvise] never`; a file of one word holds just that."""
    words = options.split()
    return next((word.strip("[]") for word in words if word.startswith("[")), options)


def check_thp(root: Path, accepted: Sequence[str]) -> dict[str, str]:
    """Return whether weights may lie in large pages."""
    mode = chosen(text(root / "sys/kernel/mm/transparent_hugepage/enabled"))
    return check(
        "hugepages",
        not mode or mode in accepted,
        f"transparent_hugepage is {mode or 'not a setting of this kernel'}",
        " or ".join(accepted),
        f"echo {accepted[0]} > /sys/kernel/mm/transparent_hugepage/enabled, or the group host_tuning",
    )


def check_governor(root: Path, expected: str) -> dict[str, str]:
    """Return whether the processors run at full speed; a virtual machine shows no governors."""
    files = (root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_governor")
    names = Counter(text(path) for path in files)
    found = ", ".join(f"{name} on {number} CPUs" for name, number in sorted(names.items()))
    return check(
        "governor",
        set(names) <= {expected},
        f"CPU governor: {found or 'not visible'}",
        f"{expected} on every CPU",
        f"cpupower frequency-set --governor {expected}, or the group host_tuning",
    )


def check_numa(root: Path) -> dict[str, str]:
    """Return whether each NUMA node has both CPUs and memory, and the kernel does not move pages between them."""
    nodes = root / "sys/devices/system/node"
    with_cpus, with_memory = ids(text(nodes / "has_cpu")), ids(text(nodes / "has_memory"))
    found, remedies = [f"{len(with_cpus | with_memory) or 1} NUMA nodes"], []
    if with_memory - with_cpus:
        found.append(f"nodes {sorted(with_memory - with_cpus)} have memory and no CPUs (HBM or CXL)")
        remedies.append("nothing if that is how the machine is built; `corebound topology` shows how they will be used")
    if with_cpus - with_memory:
        found.append(f"nodes {sorted(with_cpus - with_memory)} have CPUs and no memory")
        remedies.append("put memory into every socket: those ranks read all weights from another one")
    if len(with_memory) > 1 and text(root / "proc/sys/kernel/numa_balancing") not in ("", "0"):
        found.append("kernel.numa_balancing is on")
        remedies.append("sysctl kernel.numa_balancing=0, or the group host_tuning")
    expected = "CPUs and memory on each, and no automatic balancing (ranks bind their memory themselves)"
    return check("numa", not remedies, "; ".join(found), expected, "; ".join(remedies))


def check_smt(root: Path) -> dict[str, str]:
    """Return how many hardware threads a core has; that is a fact, never a problem."""
    siblings = text(root / "sys/devices/system/cpu/cpu0/topology/thread_siblings_list")
    num_threads = len(ids(siblings)) or 1
    control = text(root / "sys/devices/system/cpu/smt/control")
    return check("smt", True, f"{num_threads} hardware threads a core" + (f" (SMT {control})" if control else ""))


def listening(root: Path) -> set[int]:
    """Return the TCP ports that something listens on."""
    found = set()
    for name in ("tcp", "tcp6"):
        for line in text(root / "proc/net" / name).splitlines()[1:]:
            words = line.split()
            if words[3] == LISTENING:
                found.add(int(words[1].rpartition(":")[2], 16))
    return found


def can_be_had(port: int) -> str:
    """Return why this port cannot be listened on; empty if it can."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As the ranks' store does: connections of an earlier launch that are still closing are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
            probe.listen(1)
        except OSError as error:
            return "is in use" if error.errno == errno.EADDRINUSE else f"cannot be listened on ({error.strerror})"
    return ""


def check_ports(root: Path, free: Sequence[int], ssh_port: int) -> dict[str, str]:
    """Return whether the ports of a launch are free and, unless it is 0, something listens on that of ssh."""
    busy = {port: reason for port in free if (reason := can_be_had(port))}
    found = [f"port {port} {reason}" for port, reason in busy.items()]
    remedies = [f"see who has it: ss --listening --tcp --processes 'sport = :{port}'" for port in busy]
    if ssh_port and ssh_port not in listening(root):
        found.append(f"nothing listens on the ssh port {ssh_port}")
        remedies.append("start sshd there, or name its port in the variable cluster_ssh_port")
    expected = f"{', '.join(map(str, free))} free" + (f" and sshd on {ssh_port}" if ssh_port else "")
    return check("ports", not found, "; ".join(found) or expected, expected, "; ".join(remedies))


def main() -> None:
    """Print the report."""
    expected: dict[str, Any] = json.loads(sys.argv[1])
    root = Path("/")
    checks = [
        check_ports(root, [int(port) for port in expected["free_ports"]], int(expected["ssh_port"])),
        check_thp(root, expected["thp"]),
        check_governor(root, expected["governor"]),
        check_numa(root),
        check_smt(root),
    ]
    print(json.dumps({"checks": checks}))


if __name__ == "__main__":
    main()
