"""The last step before a rank's own program: tie it to its agent, its cores and its memory, then become it.

Run by path with `python -I -S`, so it uses the standard library only and nothing of the user's environment. Its one
argument is JSON: parent (pid), status (file descriptor), cpus, policy, nodes; the command follows. It reports on the
status descriptor, which closes when the command takes over: `{"cpus", "policy_error"}`, or `{"error"}` and an exit.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from typing import NoReturn

_PR_SET_PDEATHSIG = 1
_SYS_SET_MEMPOLICY = 238  # x86-64
_MODES = {"preferred": 1, "bind": 2, "interleave": 3}
_NODES_PER_WORD = 64
_MAX_NODES = 1024


def set_death_signal(parent_pid: int, number: int) -> None:
    """Have the kernel send signal `number` to this process when its parent dies, or at once if it is dead already."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), number)


def set_memory_policy(policy: str, nodes: list[int]) -> None:
    """Set the memory policy that this process and what it executes allocate by. Raises: OSError when refused."""
    words = (ctypes.c_ulong * (_MAX_NODES // _NODES_PER_WORD))()
    for node in nodes:
        words[node // _NODES_PER_WORD] |= 1 << (node % _NODES_PER_WORD)
    libc = ctypes.CDLL(None, use_errno=True)
    # The kernel reads one bit less than it is told.
    if libc.syscall(_SYS_SET_MEMPOLICY, _MODES[policy], words, _MAX_NODES + 1) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def main(argv: list[str]) -> NoReturn:
    """Become the command of `argv`."""
    task = json.loads(argv[1])
    status = task["status"]
    os.set_inheritable(status, False)
    step = "prctl(PR_SET_PDEATHSIG)"
    try:
        set_death_signal(task["parent"], signal.SIGKILL)
        step = f"sched_setaffinity to CPUs {','.join(map(str, task['cpus']))}"
        if task["cpus"]:
            os.sched_setaffinity(0, task["cpus"])
        policy_error = None
        if task["policy"] in _MODES and task["nodes"]:
            try:
                set_memory_policy(task["policy"], task["nodes"])
            except OSError as error:
                policy_error = error.strerror
        report = {"cpus": sorted(os.sched_getaffinity(0)), "policy_error": policy_error}
        os.write(status, json.dumps(report).encode() + b"\n")
        step = argv[2]
        os.execvp(argv[2], argv[2:])  # noqa: S606  no shell is wanted
    except OSError as error:
        os.write(status, json.dumps({"error": f"{step}: {error.strerror}"}).encode() + b"\n")
        os._exit(127)


if __name__ == "__main__":
    main(sys.argv)
