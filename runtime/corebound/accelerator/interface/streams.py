"""Streams, events, graphs and named ranges: how work is queued, timed, replayed and found again in a profile."""

from __future__ import annotations

import abc
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any


class StreamInterface(abc.ABC):
    """Queues of work. A device without them still has one stream, on which everything is done at once."""

    @property
    @abc.abstractmethod
    def Stream(self) -> Callable[..., Any]:  # noqa: N802 - the name that torch has
        """The class of streams."""

    @property
    @abc.abstractmethod
    def Event(self) -> Callable[..., Any]:  # noqa: N802 - the name that torch has
        """The class of events: record(), query(), wait(), synchronize() and elapsed_time(later) in milliseconds."""

    @abc.abstractmethod
    def stream(self, stream: Any) -> AbstractContextManager[Any]:
        """Return a context in which operations go to a stream; None leaves the current one."""

    @abc.abstractmethod
    def current_stream(self, device_index: int | None = None) -> Any:
        """Return the stream that operations go to."""

    @abc.abstractmethod
    def default_stream(self, device_index: int | None = None) -> Any:
        """Return the stream that a device begins with."""

    @abc.abstractmethod
    def create_graph(self) -> Any:
        """Return an empty graph for `capture_to_graph`, None where the device has no graphs."""

    @abc.abstractmethod
    def capture_to_graph(self, graph: Any, pool: Any = None, stream: Any = None) -> AbstractContextManager[Any]:
        """Return a context whose operations become the graph."""

    @abc.abstractmethod
    def replay_graph(self, graph: Any) -> None:
        """Run the operations of a graph again."""

    @abc.abstractmethod
    def range_push(self, msg: str, domain: str | None = None, category: str | None = None) -> None:
        """Begin a range that profilers show under a name, inside of those that were begun before."""

    @abc.abstractmethod
    def range_pop(self, domain: str | None = None) -> None:
        """End the range that was begun last."""
