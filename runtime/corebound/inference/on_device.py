"""`OnDevice`: build a model on another device, above all on `meta`, where it takes no memory."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType
from typing import Self

import torch

from corebound.inference import values


class OnDevice:
    """A context in which modules are made on `device`, with parameters in `dtype`.

    `with torch.device("meta")` does the same; this is the form of scripts written for DeepSpeed.

    Raises: ConfigError for a dtype that is no type of floats.
    """

    def __init__(self, dtype: torch.dtype | str, device: str | torch.device = "meta", enabled: bool = True) -> None:
        read = values.dtype("OnDevice: dtype", dtype)
        # Parameters that will be quantized are made as floats first.
        self._dtype = read if isinstance(read, torch.dtype) else torch.bfloat16
        self._device = torch.device(device)
        self._enabled = enabled
        self._open = ExitStack()

    def __enter__(self) -> Self:
        if self._enabled:
            before = torch.get_default_dtype()
            self._open.callback(torch.set_default_dtype, before)
            torch.set_default_dtype(self._dtype)
            self._open.enter_context(self._device)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()
