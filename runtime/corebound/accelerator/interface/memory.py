"""Memory of a device: what it has, what is in use and what the most was; and memory of the host pinned for it."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class MemoryInterface(abc.ABC):
    """Bytes everywhere. An index of None means the current device."""

    @abc.abstractmethod
    def total_memory(self, device_index: int | None = None) -> int:
        """Return the bytes that this process could have at most."""

    @abc.abstractmethod
    def available_memory(self, device_index: int | None = None) -> int:
        """Return the bytes that this process can still take."""

    @abc.abstractmethod
    def memory_allocated(self, device_index: int | None = None) -> int:
        """Return the bytes in use by this process."""

    @abc.abstractmethod
    def max_memory_allocated(self, device_index: int | None = None) -> int:
        """Return the most bytes that were in use since the last reset, or the start."""

    @abc.abstractmethod
    def reset_peak_memory_stats(self, device_index: int | None = None) -> None:
        """Let the peak begin anew at what is in use now."""

    @abc.abstractmethod
    def empty_cache(self) -> None:
        """Give memory that is held but not in use back to the system."""

    def memory_reserved(self, device_index: int | None = None) -> int:
        """Return the bytes held by this process, in use or not."""
        return self.memory_allocated(device_index)

    def max_memory_reserved(self, device_index: int | None = None) -> int:
        """Return the most bytes that were held since the last reset."""
        return self.max_memory_allocated(device_index)

    def memory_cached(self, device_index: int | None = None) -> int:
        """Return the same bytes as `memory_reserved`, by its older name."""
        return self.memory_reserved(device_index)

    def max_memory_cached(self, device_index: int | None = None) -> int:
        """Return the same bytes as `max_memory_reserved`, by its older name."""
        return self.max_memory_reserved(device_index)

    def reset_max_memory_allocated(self, device_index: int | None = None) -> None:
        """Let the peak of memory in use begin anew."""
        self.reset_peak_memory_stats(device_index)

    def reset_max_memory_cached(self, device_index: int | None = None) -> None:
        """Let the peak of memory held begin anew."""
        self.reset_peak_memory_stats(device_index)

    def memory_stats(self, device_index: int | None = None) -> dict[str, int]:
        """Return current and peak bytes by torch's names for them."""
        return {
            "allocated_bytes.all.current": self.memory_allocated(device_index),
            "allocated_bytes.all.peak": self.max_memory_allocated(device_index),
            "reserved_bytes.all.current": self.memory_reserved(device_index),
            "reserved_bytes.all.peak": self.max_memory_reserved(device_index),
        }

    @abc.abstractmethod
    def pin_memory(self, tensor: Tensor, make_copy: bool = True, match_shape: bool = True) -> Tensor:
        """Return a tensor of the host with the same values in memory that the device reads directly.

        With `make_copy` False the values need not be copied; with `match_shape` False the result may be longer than the
        tensor, rounded up to whole pages.

        Shapes: tensor any; result the same, or [elements] where it may be longer.
        """

    @abc.abstractmethod
    def is_pinned(self, tensor: Tensor) -> bool:
        """Return whether the device reads a tensor of the host, of any shape, directly."""

    @abc.abstractmethod
    def unpin_memory(self, tensor: Tensor) -> None:
        """Give up the pin that `pin_memory` made, of a tensor of any shape."""
