"""Runs the parts of a rank's loading on all of its threads, each part started in order."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator

from corebound.sharding.reading import Scratch

# What one part does, with a buffer of the thread that it runs on.
Part = Callable[[Scratch], None]


def run_parts(parts: Iterable[Part], num_threads: int) -> None:
    """Run all parts on `num_threads` threads, the caller's among them, and return when they are done.

    Threads take the next part in turn, so that files are read from their beginning to their end. With several threads
    a part should spend its time in calls that let others run: reads, and native calls. After an error no part is
    started any more.

    Raises: the error of a part; the first one of several.
    """
    shared = _Shared(iter(parts))
    others = [threading.Thread(target=shared.work, name=f"loading-{index}") for index in range(1, num_threads)]
    started: list[threading.Thread] = []
    try:
        for thread in others:
            thread.start()
            started.append(thread)
        shared.work()
    finally:
        shared.stop()  # an interrupt of the caller's thread ends the others too
        for thread in started:
            thread.join()
    if shared.errors:
        raise shared.errors[0]


class _Shared:
    """What the threads have in common: the parts that are left, and the errors so far."""

    def __init__(self, parts: Iterator[Part]) -> None:
        self.errors: list[BaseException] = []
        self._parts = parts
        self._stopped = False
        self._lock = threading.Lock()

    def stop(self) -> None:
        self._stopped = True

    def work(self) -> None:
        scratch = Scratch()
        try:
            while (part := self._next()) is not None:
                part(scratch)
        except Exception as error:
            self.stop()
            self.errors.append(error)

    def _next(self) -> Part | None:
        with self._lock:
            return None if self._stopped else next(self._parts, None)
