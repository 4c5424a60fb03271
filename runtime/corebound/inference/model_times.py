"""How long each forward pass of a module takes."""

from __future__ import annotations

import time
from typing import Any

from torch import nn

from corebound.errors import ConfigError


class ModelTimes:
    """Measures the forward passes of a module from `start` on."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._is_on = False
        self._started_s = 0.0
        self._times_ms: list[float] = []

    def start(self) -> None:
        """Measure every pass from now on. Calling it again does nothing."""
        if not self._is_on:
            self._is_on = True
            self._module.register_forward_pre_hook(self._before)
            self._module.register_forward_hook(self._after)

    def take(self) -> list[float]:
        """Return the milliseconds of the passes since the last call.

        Raises: ConfigError when nothing is measured.
        """
        if not self._is_on:
            raise ConfigError("model_times(): nothing is measured", hint="call profile_model_time() first")
        taken, self._times_ms = self._times_ms, []
        return taken

    def _before(self, module: nn.Module, inputs: Any) -> None:
        self._started_s = time.perf_counter()

    def _after(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._times_ms.append((time.perf_counter() - self._started_s) * 1e3)
