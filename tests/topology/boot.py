"""Boots a machine in QEMU, has it run cases and returns what it reports."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from topology.image import Image, add_our_code
from topology.machine import Machine

BOOT_TIMEOUT_S = 300


@dataclass(frozen=True)
class Report:
    """What a machine said of itself, and of each case by its name."""

    topology: dict[str, Any]
    tree: dict[str, str]
    cases: dict[str, dict[str, Any]]
    seconds: float


def run_machine(machine: Machine, cases: list[dict[str, Any]], image: Image) -> Report:
    """Returns the report of a machine that was booted, ran the cases and turned itself off.

    Raises: RuntimeError with the machine's console when it does not get so far in time.
    """
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f"corebound-{machine.name}-") as folder:
        work = Path(folder)
        add_our_code(image.root, json.dumps(cases), work / "root.cpio")
        ended = _run_qemu(machine, image.kernel, work)
        lines = (work / "report").read_text(encoding="utf-8", errors="replace").splitlines()
        console = (work / "console").read_text(encoding="utf-8", errors="replace")
        if not ended or len(lines) != 1 + len(cases):
            state = "ended" if ended else f"was stopped after {BOOT_TIMEOUT_S} s"
            raise RuntimeError(
                f"machine {machine.name} {state} with {len(lines)} of {1 + len(cases)} reports; its console:\n"
                + "\n".join(console.splitlines()[-60:])
            )
    first, *others = (json.loads(line) for line in lines)
    seconds = time.monotonic() - started
    return Report(first["topology"], first["tree"], {case["name"]: case for case in others}, seconds)


def _run_qemu(machine: Machine, kernel: Path, work: Path) -> bool:
    """Returns whether the machine turned itself off in time; no process of it is left either way."""
    command = [
        # Should the test run be killed, the machine ends with it.
        *("setpriv", "--pdeathsig", "KILL"),
        *("qemu-system-x86_64", "-accel", "tcg,thread=multi", "-nodefaults", "-display", "none", "-no-reboot"),
        *machine.qemu_arguments(),
        *("-kernel", str(kernel), "-initrd", str(work / "root.cpio")),
        *("-append", f"console=ttyS0 quiet panic=-1 {machine.kernel_arguments}".rstrip()),
        *("-serial", f"file:{work / 'console'}", "-serial", f"file:{work / 'report'}"),
    ]
    for name in ("console", "report"):
        (work / name).touch()
    with (work / "console").open("ab") as console:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=console, stderr=console, start_new_session=True
        )
        try:
            process.wait(timeout=BOOT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return False
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return True
