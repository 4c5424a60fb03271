"""The accelerator interface: what a device must answer so that everything above it runs on it."""

from __future__ import annotations

from typing import ClassVar

from corebound.accelerator.interface.device import DeviceInterface
from corebound.accelerator.interface.dtypes import DtypeInterface
from corebound.accelerator.interface.environment import EnvironmentInterface
from corebound.accelerator.interface.memory import MemoryInterface
from corebound.accelerator.interface.random import RandomInterface
from corebound.accelerator.interface.streams import StreamInterface


class AbstractAccelerator(
    DeviceInterface, RandomInterface, StreamInterface, MemoryInterface, DtypeInterface, EnvironmentInterface
):
    """One kind of device. Subclasses set `name`, and answer what is abstract; docs/accelerators.md is the guide.

    `priority` decides between installed accelerators whose devices are available: the highest wins.
    """

    name: ClassVar[str]
    priority: ClassVar[int] = 0
    # Ranges may be put in domains of their own, as NVTX does; False where `domain` is ignored.
    supports_nvtx_domain: ClassVar[bool] = False

    def __repr__(self) -> str:
        return f"<accelerator {self.name}: {type(self).__module__}.{type(self).__qualname__}>"
