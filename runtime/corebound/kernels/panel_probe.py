"""Measures how fast the decoder's products run, few rows and many, from memory and from caches. Needs no torch."""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from random import Random
from typing import TypeVar

from corebound import native
from corebound.config import env
from corebound.errors import KernelError
from corebound.kernels.panel_format import PANEL_OUTPUTS, READINGS, Kind, OutputStruct, PanelFormat, matrix_struct
from corebound.topology.native_report import native_active_isa

_Result = TypeVar("_Result")
_INPUTS = 2048
# Bytes of 0x39 are weights from 1e-4 to 1e-2 in every format, as bfloat16 and by scales: sums of thousands stay small,
# and nothing meets denormals or NaN, which take processors many times as long.
FILL = 0x39
_WAIT_S = 120.0  # for the other threads, on a machine with other work
# The defaults of `--dtype int8` and `--dtype int4`.
FORMATS: dict[Kind, PanelFormat] = {
    "bfloat16": PanelFormat(),
    "int8": PanelFormat(kind="int8"),
    "int4": PanelFormat(kind="int4", group_size=128, asymmetric=True),
}


@dataclass(frozen=True, kw_only=True)
class ProductRate:
    """How many weights the threads multiply together in a second, where each weight meets `num_rows` rows.

    `matrix_bytes` is what they read in one repetition, over all threads.
    """

    kind: Kind
    num_rows: int
    matrix_bytes: int
    weights_per_s: float


class PanelProbe:
    """Memory on the node of each of `cpus`, written once, over which products are timed; `memory` is all of it.

    Raises: KernelError when a CPU may not be used, or the memory is not there.
    """

    def __init__(self, cpus: Sequence[int], bytes_per_thread: int) -> None:
        self._cpus = tuple(cpus)
        self._library = native.core_library()
        native_active_isa(env.settings().isa)
        self.bytes_per_thread = bytes_per_thread
        try:
            self.memory = AlignedMemory(bytes_per_thread * len(self._cpus))
        except OSError as error:
            raise KernelError(f"product probe: {bytes_per_thread} bytes for each core: {error.strerror}") from error
        on_each(self._cpus, lambda thread: ctypes.memset(self._address(thread), FILL, bytes_per_thread))

    @property
    def cpus(self) -> tuple[int, ...]:
        """Return the CPU of each thread."""
        return self._cpus

    def measure(self, kind: Kind, num_rows: int, bytes_per_thread: int, num_repetitions: int) -> ProductRate:
        """Return the rate of products with weights of `kind` that take about `bytes_per_thread` on each thread.

        It is that of the fastest way to read (csrc/kernels/pace.h), as the decoder chooses it.

        Raises: KernelError where not even one panel fits into `bytes_per_thread`.
        """
        form = FORMATS[kind]
        panel_bytes = form.matrix_bytes(PANEL_OUTPUTS, _INPUTS)
        num_panels = min(bytes_per_thread, self.bytes_per_thread) // panel_bytes
        if num_panels < 1:
            raise KernelError(
                f"product probe: expected at least {panel_bytes} bytes a thread, found {bytes_per_thread}"
            )
        outputs = num_panels * PANEL_OUTPUTS
        barrier = threading.Barrier(len(self._cpus))

        def run(thread: int, reading: int) -> list[float]:
            matrix = matrix_struct(outputs, _INPUTS, form)
            matrix.data = self._address(thread)
            x = AlignedMemory(num_rows * _INPUTS * 2)
            y = AlignedMemory(num_rows * outputs * 2)
            ctypes.memset(x.address, FILL, num_rows * _INPUTS * 2)
            how = OutputStruct(y=y.address, logits=None, bias=None, stride=outputs, activation=0)
            times = []
            for _ in range(num_repetitions + 1):
                barrier.wait(_WAIT_S)
                started_s = time.perf_counter()
                self._library.corebound_panel_multiply(
                    ctypes.byref(matrix),
                    ctypes.c_void_p(x.address),
                    ctypes.c_int64(num_rows),
                    ctypes.c_int64(_INPUTS),
                    ctypes.byref(how),
                    ctypes.c_int(reading),
                )
                times.append(time.perf_counter() - started_s)
            return times[1:]  # the first touches the result

        # The team hands out panels as they are finished, so that what its members do in a second adds up.
        weights = outputs * _INPUTS
        best = 0.0
        for reading in range(len(READINGS)):
            times = on_each(self._cpus, functools.partial(run, reading=reading))
            rates = [sum(weights / time_s for time_s in round_s) for round_s in zip(*times, strict=True)]
            best = max(best, statistics.median(rates))
        return ProductRate(
            kind=kind,
            num_rows=num_rows,
            matrix_bytes=num_panels * panel_bytes * len(self._cpus),
            weights_per_s=best,
        )

    def _address(self, thread: int) -> int:
        return self.memory.address + thread * self.bytes_per_thread


class AlignedMemory:
    """Zeroed memory at the beginning of a page; in huge pages where it is large, as weights are."""

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes
        self._memory = mmap.mmap(-1, max(1, num_bytes), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._memory.madvise(mmap.MADV_HUGEPAGE)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))


def random_panel(form: PanelFormat, inputs: int) -> bytes:
    """Return a panel of random weights of about 0.01, the same ones at every call.

    Raises: KernelError where codes have scales that are no bfloat16.
    """
    if form.kind != "bfloat16" and form.scale_kind != "bfloat16":
        raise KernelError(f"product probe: expected scales in bfloat16, found {form.scale_kind}")
    random = Random(0)  # noqa: S311  no secret: the same weights at every call
    padded = form.padded_inputs(inputs)
    if form.kind == "bfloat16":
        panel = bytearray(form.matrix_bytes(PANEL_OUTPUTS, inputs))
        panel[0::2] = random.randbytes(len(panel) // 2).translate(bytes(byte & 0x7F for byte in range(256)))
        panel[1::2] = random.randbytes(len(panel) // 2).translate(bytes(byte & 0x80 | 0x3C for byte in range(256)))
        return bytes(panel)
    group = form.group_inputs(inputs)
    code_bytes = group * PANEL_OUTPUTS * (4 if form.kind == "int4" else 8) // 8
    # Scales of 2^-13 and 2^-9 as bfloat16, and the zero point of codes of four bits.
    scales = (b"\x00\x39" if form.kind == "int8" else b"\x00\x3b") * PANEL_OUTPUTS
    zeros = (b"\x80" if form.kind == "int8" else b"\x08") * PANEL_OUTPUTS if form.asymmetric else b""
    return b"".join(random.randbytes(code_bytes) + scales + zeros for _ in range(padded // group))


def on_each(cpus: Sequence[int], job: Callable[[int], _Result]) -> list[_Result]:
    """Return what `job(index)` returns on a thread of each CPU, all at once.

    Raises: KernelError when a CPU may not be used.
    """
    together = threading.Barrier(len(cpus))

    def pinned(index: int) -> _Result:
        try:
            os.sched_setaffinity(0, {cpus[index]})  # of this thread alone
        except OSError as error:
            together.abort()  # or the others would wait for this one in their jobs
            raise KernelError(f"cannot pin a thread to CPU {cpus[index]}: {error.strerror}") from error
        together.wait(_WAIT_S)
        return job(index)

    with ThreadPoolExecutor(len(cpus)) as pool:
        futures = [pool.submit(pinned, index) for index in range(len(cpus))]
        errors = [error for future in futures if (error := future.exception()) is not None]
    # A thread that gave up waiting says less than the one that it waited for.
    for error in sorted(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
        raise error
    return [future.result() for future in futures]
