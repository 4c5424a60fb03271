"""Number formats: which can be computed with or stored, and constructors of tensors on the device."""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class DtypeInterface(abc.ABC):
    """What a device can compute with. The constructors make tensors from values, on the current device."""

    @abc.abstractmethod
    def current_device_name(self) -> str:
        """Return what torch calls the device that this process uses."""

    @abc.abstractmethod
    def is_bf16_supported(self) -> bool:
        """Return whether models run in bfloat16."""

    @abc.abstractmethod
    def is_fp16_supported(self) -> bool:
        """Return whether the device multiplies matrices of float16, not just converts them."""

    @abc.abstractmethod
    def supported_dtypes(self) -> list[torch.dtype]:
        """Return what a model may be loaded in. `torch.int8` means weights only: activations stay floating point."""

    def is_triton_supported(self) -> bool:
        """Return whether Triton compiles for this device."""
        return False

    def prefer_triton_grouped_mm(self) -> bool:
        """Return whether Triton's products of grouped matrices are faster than torch's here."""
        return False

    def _constructor(self, dtype: str) -> Callable[..., torch.Tensor]:
        import torch

        return functools.partial(torch.tensor, dtype=getattr(torch, dtype), device=self.current_device_name())

    @property
    def BFloat16Tensor(self) -> Callable[..., torch.Tensor]:  # noqa: N802 - the name that torch has
        """A constructor of bfloat16 tensors."""
        return self._constructor("bfloat16")

    @property
    def ByteTensor(self) -> Callable[..., torch.Tensor]:  # noqa: N802 - the name that torch has
        """A constructor of uint8 tensors."""
        return self._constructor("uint8")

    @property
    def DoubleTensor(self) -> Callable[..., torch.Tensor]:  # noqa: N802 - the name that torch has
        """A constructor of float64 tensors."""
        return self._constructor("float64")

    @property
    def FloatTensor(self) -> Callable[..., torch.Tensor]:  # noqa: N802 - the name that torch has
        """A constructor of float32 tensors."""
        return self._constructor("float32")

    @property
    def HalfTensor(self) -> Callable[..., torch.Tensor]:  # noqa: N802 - the name that torch has
        """A constructor of float16 tensors."""
        return self._constructor("float16")

    @property
    def IntTensor(self) -> Callable[..., torch.Tensor]:  # noqa: N802 - the name that torch has
        """A constructor of int32 tensors."""
        return self._constructor("int32")

    @property
    def LongTensor(self) -> Callable[..., torch.Tensor]:  # noqa: N802 - the name that torch has
        """A constructor of int64 tensors."""
        return self._constructor("int64")
