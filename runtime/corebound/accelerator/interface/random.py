"""Random numbers: one generator for each device."""

from __future__ import annotations

import abc
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Generator, Tensor


class RandomInterface(abc.ABC):
    """The state of a device's random numbers. An index of None means the current device."""

    @abc.abstractmethod
    def random(self) -> ModuleType:
        """Return torch's module of random functions for this device, such as `torch.random`."""

    @abc.abstractmethod
    def set_rng_state(self, new_state: Tensor, device_index: int | None = None) -> None:
        """Put back a state that `get_rng_state` returned. Shapes: new_state [bytes] uint8."""

    @abc.abstractmethod
    def get_rng_state(self, device_index: int | None = None) -> Tensor:
        """Return the state of the generator, on the host. Shapes: result [bytes] uint8."""

    @abc.abstractmethod
    def manual_seed(self, seed: int) -> None:
        """Seed the current device's generator."""

    @abc.abstractmethod
    def manual_seed_all(self, seed: int) -> None:
        """Seed the generators of all devices of this process."""

    @abc.abstractmethod
    def initial_seed(self) -> int:
        """Return the seed that the current device's generator began with."""

    @abc.abstractmethod
    def default_generator(self, device_index: int | None = None) -> Generator:
        """Return a device's generator."""
