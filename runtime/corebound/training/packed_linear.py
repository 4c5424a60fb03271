"""Layers whose weights are in panels: a linear layer, and the two products of a gated MLP as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from corebound.errors import KernelError
from corebound.kernels.packed import pack, pack_codes, packed_bias, packed_linear, unpack
from corebound.quantization.rtn import quantize
from corebound.quantization.scheme import Scheme

GATE_UP = "gate_up."  # the name of the joint layer within a GatedMlp, which no state_dict shows


class PackedLinear(nn.Module):
    """One or several linear layers of the same input in panels, for inference in bfloat16.

    `state_dict` has the weights that it computes with, under the names of the layers whose place it takes; to load
    others, load them before the model is optimized. `weight` reads them back each time.
    """

    panels: Tensor
    panel_bias: Tensor | None
    bias: Tensor | None

    def __init__(
        self, layers: Sequence[nn.Linear], scheme: Scheme | None, names: Sequence[str] = ("",), *, gated: bool = False
    ) -> None:
        super().__init__()
        weight, bias = _joined(layers)
        self.in_features, self.out_features = layers[0].in_features, layers[0].out_features
        self._names, self._scheme = tuple(names), scheme
        self.rows = [layer.out_features for layer in layers]
        if scheme is None:
            self.shape, panels = pack(weight, gated=gated)
        else:
            self.shape, panels = pack_codes(quantize(weight, scheme), scheme.group_size, gated=gated)
        self._numbers = self.shape.numbers("silu_gated" if gated else "none")
        self.register_buffer("panels", panels, persistent=False)
        self.register_buffer("panel_bias", packed_bias(self.shape, bias), persistent=False)
        self.register_buffer("bias", bias, persistent=False)
        for layer in layers:
            # Whoever walks over the model still holds the layer; its weight is not needed twice.
            layer.register_parameter("weight", None)

    @classmethod
    def adopt(cls, linear: nn.Linear, scheme: Scheme | None) -> Self:
        """Return a layer with the weights of `linear`, rounded by `scheme` if there is one."""
        return cls([linear], scheme).train(linear.training)

    @property
    def weight(self) -> Tensor:
        """The weights that the layer computes with, bfloat16 [N, K]; unpacked anew each time."""
        return unpack(self.panels, self.shape).to(torch.bfloat16)

    def forward(self, input: Tensor) -> Tensor:
        """Return input times weight transposed, plus bias; of a gated pair, silu of the first times the second.

        Shapes: input [..., K] bfloat16; result [..., N]. Under autocast, results have autocast's type.

        Raises: KernelError for an input that needs gradients, or of another type than bfloat16 without autocast.
        """
        if torch.is_grad_enabled() and input.requires_grad:
            raise KernelError(
                "a layer with packed weights computes no gradients, and its input needs some",
                hint="call the model within torch.no_grad() or torch.inference_mode()",
            )
        result_dtype = torch.bfloat16
        if torch.is_autocast_enabled("cpu"):
            result_dtype = torch.get_autocast_dtype("cpu")
        elif input.dtype != torch.bfloat16:
            raise KernelError(
                f"a layer with packed weights computes in bfloat16, found an input of {input.dtype}",
                hint="convert the input, or use torch.autocast",
            )
        rows = input.reshape(-1, self.in_features).to(torch.bfloat16)
        result = packed_linear(rows, self.panels, self.panel_bias, self._numbers)
        return result.view(*input.shape[:-1], result.shape[1]).to(result_dtype)

    def extra_repr(self) -> str:
        """Return sizes and what the weights are stored as."""
        kind = "bfloat16" if self._scheme is None else self._scheme.name
        bias = self.panel_bias is not None
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={bias}, weights={kind}"

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        prefix = prefix.removesuffix(GATE_UP) if len(self._names) > 1 else prefix
        for name, weight in zip(self._names, torch.split(self.weight, self.rows), strict=True):
            destination[f"{prefix}{name}weight"] = weight
        if self.bias is not None:
            for name, bias in zip(self._names, torch.split(self.bias, self.rows), strict=True):
                destination[f"{prefix}{name}bias"] = bias

    def _load_from_state_dict(self, *ignored: Any) -> None:
        raise KernelError(
            "load_state_dict: the weights of this layer are packed and cannot be replaced",
            hint="load the weights into the model first, then call corebound.optimize",
        )


class GatedMlp(nn.Module):
    """down(silu(gate(x)) * up(x)), gate and up as one product; names are those of the module whose place it takes."""

    def __init__(self, mlp: nn.Module, names: Sequence[str], down: str, scheme: Scheme | None) -> None:
        super().__init__()
        gate, up = (mlp.get_submodule(name) for name in names)
        assert isinstance(gate, nn.Linear) and isinstance(up, nn.Linear)
        self.gate_up = PackedLinear([gate, up], scheme, [f"{name}." for name in names], gated=True)
        self._down = down
        self.add_module(down, mlp.get_submodule(down))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return the MLP's result. Shapes: hidden_states [..., H]; result [..., H]."""
        result: Tensor = self.get_submodule(self._down)(self.gate_up(hidden_states))
        return result


def _joined(layers: Sequence[nn.Linear]) -> tuple[Tensor, Tensor | None]:
    weight = torch.cat([layer.weight.detach() for layer in layers]).to(torch.bfloat16)
    if all(layer.bias is None for layer in layers):
        return weight, None
    parts = [weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias for layer in layers]
    return weight, torch.cat([part.detach().to(torch.bfloat16) for part in parts])
