"""Devices: which there are, which one this process has, and how they behave."""

from __future__ import annotations

import abc
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

Result = TypeVar("Result")


class DeviceInterface(abc.ABC):
    """Devices of one accelerator. An index counts them on this machine; a name is what torch takes, such as `cpu`."""

    @abc.abstractmethod
    def is_available(self) -> bool:
        """Return whether at least one device can be used now. It must not raise where there is none."""

    @abc.abstractmethod
    def device_name(self, device_index: int | None = None) -> str:
        """Return what torch calls a device, to write in `tensor.to(...)`; without an index the kind of device."""

    @abc.abstractmethod
    def device(self, device_index: int | None = None) -> AbstractContextManager[Any]:
        """Return a context in which a device is the current one."""

    @abc.abstractmethod
    def set_device(self, device_index: int) -> None:
        """Make a device the current one of this process."""

    @abc.abstractmethod
    def current_device(self) -> int:
        """Return the index of the device that this process uses."""

    @abc.abstractmethod
    def current_device_name(self) -> str:
        """Return what torch calls the device that this process uses."""

    @abc.abstractmethod
    def device_count(self) -> int:
        """Return how many devices this machine has, or how many ranks share it where a launcher said so."""

    @abc.abstractmethod
    def synchronize(self, device_index: int | None = None) -> None:
        """Wait until everything that was given to a device is done."""

    @abc.abstractmethod
    def on_accelerator(self, tensor: Tensor) -> bool:
        """Return whether a tensor of any shape is in memory that this accelerator computes in."""

    def is_synchronized_device(self) -> bool:
        """Return whether an operation is done when its call returns."""
        return False

    def use_host_timers(self) -> bool:
        """Return whether the host's clock measures operations without events."""
        return self.is_synchronized_device()

    def resolves_data_dependency(self) -> bool:
        """Return whether operations wait for each other's results without being told to."""
        return self.is_synchronized_device()

    def handles_memory_backpressure(self) -> bool:
        """Return whether an allocation waits for memory in place of failing."""
        return self.is_synchronized_device()

    def lazy_call(self, callback: Callable[[], Result]) -> Result | None:
        """Return what a callback returns, called as soon as the device is set up."""
        return callback()
