"""What `optimize` was asked for, as its backends read it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from corebound.quantization.scheme import Scheme


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `optimize` was asked for. `scheme` None does not quantize; `packs` None packs where it pays."""

    dtype: torch.dtype
    scheme: Scheme | None = None
    packs: bool | None = None
    fuses: bool = True

    @property
    def name(self) -> str:
        """Return the type of the weights as a user names it."""
        return str(self.dtype).removeprefix("torch.") if self.scheme is None else self.scheme.name
