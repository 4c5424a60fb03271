"""Which accelerator this process uses: decided at the first use, for this process alone, and said once.

In order: set_accelerator(), COREBOUND_ACCELERATOR, installed extensions by priority, what torch itself finds, the CPU.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from corebound.accelerator.extensions import BUILT_IN, Extension, choices, extensions
from corebound.config import env
from corebound.config.suggest import unknown_name
from corebound.errors import ConfigError, HostError
from corebound.logs import get_logger

if TYPE_CHECKING:
    from corebound.accelerator.base import AbstractAccelerator

_LOGGER = get_logger(__name__)


class _Choice:
    """What was decided, None before. The lock belongs to the thread that decides."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.accelerator: AbstractAccelerator | None = None
        self.is_deciding = False


_choice = _Choice()


def get_accelerator() -> AbstractAccelerator:
    """Return the accelerator of this process; the first call decides which.

    Raises: ConfigError when COREBOUND_ACCELERATOR names none that is installed, listing those that are, or extensions
    of equal priority both have devices; HostError naming the extension that does not load, or has no device though
    asked for.
    """
    if _choice.accelerator is not None:
        return _choice.accelerator
    with _choice.lock:
        if _choice.accelerator is not None:
            return _choice.accelerator
        if _choice.is_deciding:
            raise ConfigError(
                "get_accelerator() was called by an accelerator extension that is being loaded to decide that",
                hint="extensions call it when they are used, not when they are imported or made",
            )
        _choice.is_deciding = True
        try:
            accelerator, reason = _decide()
        finally:
            _choice.is_deciding = False
        _choice.accelerator = accelerator
    _LOGGER.debug("accelerator: %s (%s)", accelerator.name, reason)
    return accelerator


def set_accelerator(accelerator: AbstractAccelerator) -> None:
    """Make this the accelerator of the process, before or after the first use; None of what was made before moves.

    Raises: ConfigError when it is no accelerator.
    """
    from corebound.accelerator.base import AbstractAccelerator

    if not isinstance(accelerator, AbstractAccelerator):
        hint = "give an instance, as in set_accelerator(MyAccelerator())" if isinstance(accelerator, type) else None
        raise ConfigError(f"set_accelerator: expected an AbstractAccelerator, found {accelerator!r}", hint=hint)
    with _choice.lock:
        before, _choice.accelerator = _choice.accelerator, accelerator
    if before is not None and before is not accelerator:
        _LOGGER.info("accelerator: %s in place of %s (set_accelerator)", accelerator.name, before.name)


def _decide() -> tuple[AbstractAccelerator, str]:
    asked = env.settings().accelerator
    if asked is not None:
        return _named(asked), f"COREBOUND_ACCELERATOR={asked}"
    found = _by_priority()
    if found is not None:
        return found, "an extension with a device"
    _warn_of_unused_device()
    return _cpu(), "nothing else"


def _named(name: str) -> AbstractAccelerator:
    # The CPU needs nothing of the extensions, so that a broken one does not stand in its way.
    if name == BUILT_IN:
        return _cpu()
    extension = next((extension for extension in extensions() if extension.name == name), None)
    if extension is None:
        raise unknown_name("accelerator", name, choices(), where="COREBOUND_ACCELERATOR")
    accelerator = extension.is_available(extension.load())
    if accelerator is None:
        raise HostError(
            f"COREBOUND_ACCELERATOR={name}: {extension.origin} has no device that can be used here",
            hint=f"choices: {', '.join(choices())}; unset it to take the best one that has a device",
        )
    return accelerator


def _by_priority() -> AbstractAccelerator | None:
    """Return the accelerator of the highest priority among the extensions with a device, None without one."""
    loaded: list[tuple[Extension, type[AbstractAccelerator]]] = [(found, found.load()) for found in extensions()]
    with_device: list[tuple[Extension, AbstractAccelerator]] = []
    for extension, kind in sorted(loaded, key=lambda pair: -pair[1].priority):
        if with_device and kind.priority < with_device[0][1].priority:
            break
        accelerator = extension.is_available(kind)
        if accelerator is None:
            _LOGGER.info("accelerator %s (%s) has no device here", extension.name, extension.origin)
        else:
            with_device.append((extension, accelerator))
    if len(with_device) > 1:
        names = " and ".join(f"{extension.name!r} ({extension.origin})" for extension, _ in with_device)
        raise ConfigError(
            f"accelerator: {names} have devices and the same priority",
            hint=f"set COREBOUND_ACCELERATOR; choices: {', '.join(choices())}",
        )
    return with_device[0][1] if with_device else None


def _warn_of_unused_device() -> None:
    import torch

    device = torch.accelerator.current_accelerator(check_available=True)
    if device is not None:
        _LOGGER.warning(
            "accelerator: cpu, though this torch drives %s: no extension for it is installed (docs/accelerators.md); "
            "COREBOUND_ACCELERATOR=cpu says that this is meant",
            device.type,
        )


def _cpu() -> AbstractAccelerator:
    from corebound.accelerator.cpu import CpuAccelerator

    return CpuAccelerator()
