"""Norm layers that call Corebound's operators, with the very parameters of the layers whose place they take."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Self

import torch
from torch import Tensor, nn

from corebound import kernels

# Classes of transformers that compute weight * x / rms(x), with `weight` and `variance_epsilon`. Others of that name
# (Gemma's add 1 to the weight) do not, so that the class counts and not a part of its name.
RMS_NORMS = frozenset(
    f"{family}RMSNorm"
    for family in ("Cohere2", "Granite", "Llama", "Mistral", "Mixtral", "Olmo2", "Phi3", "Qwen2", "Qwen2Moe", "Qwen3",
                   "Qwen3Moe")
)  # fmt: skip


class _Norm(nn.Module, ABC):
    weight: Tensor
    bias: Tensor | None
    eps: float

    @classmethod
    def adopt(cls, norm: nn.Module, eps: Any) -> Self:
        """Return a layer with the parameters of `norm`."""
        adopted = cls()
        adopted.eps = float(eps)
        for name, parameter in norm.named_parameters(recurse=False):
            adopted.register_parameter(name, parameter)
        return adopted.train(norm.training)

    def forward(self, input: Tensor) -> Tensor:
        """Return the norm over the last dimension. Shapes: input and result [..., H]."""
        needs_gradient = torch.is_grad_enabled() and (input.requires_grad or self.weight.requires_grad)
        if needs_gradient or input.dtype != self.weight.dtype or torch.is_autocast_enabled("cpu"):
            return self._plain(input)
        return self._native(input.reshape(-1, input.shape[-1])).view(input.shape)

    def extra_repr(self) -> str:
        """Return the size and epsilon."""
        return f"{tuple(self.weight.shape)}, eps={self.eps}"

    @abstractmethod
    def _plain(self, input: Tensor) -> Tensor:
        """Return the norm by torch. Shapes: input and result [..., H]."""

    @abstractmethod
    def _native(self, rows: Tensor) -> Tensor:
        """Return the norm by Corebound's operator. Shapes: rows and result [N, H]."""


class NativeRmsNorm(_Norm):
    """An RMS norm; calls that need gradients, mix types or run under autocast are plain torch."""

    def _plain(self, input: Tensor) -> Tensor:
        wide = input.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * normed.to(input.dtype)

    def _native(self, rows: Tensor) -> Tensor:
        return kernels.rms_norm(rows, self.weight, self.eps)


class NativeLayerNorm(_Norm):
    """A layer norm with weight and bias; calls that need gradients, mix types or run under autocast are torch's."""

    def _plain(self, input: Tensor) -> Tensor:
        return nn.functional.layer_norm(input, self.weight.shape, self.weight, self.bias, self.eps)

    def _native(self, rows: Tensor) -> Tensor:
        assert self.bias is not None
        return kernels.layer_norm(rows, self.weight, self.bias, self.eps)


def native_norm(module: nn.Module) -> _Norm | None:
    """Return the layer that takes the place of a norm, None for what is none that the operators can compute."""
    if type(module) is nn.LayerNorm:
        fits = len(module.normalized_shape) == 1 and module.weight is not None and module.bias is not None
        return NativeLayerNorm.adopt(module, module.eps) if fits else None
    if type(module) is nn.RMSNorm:
        fits = len(module.normalized_shape) == 1 and module.weight is not None and module.eps is not None
        return NativeRmsNorm.adopt(module, module.eps) if fits else None
    if type(module).__name__ in RMS_NORMS and type(module).__module__.startswith("transformers."):
        return NativeRmsNorm.adopt(module, module.variance_epsilon)
    return None
