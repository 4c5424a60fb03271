"""Linear layers whose weights are whole numbers: they take a half or a quarter of the memory of bfloat16."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from corebound.quantization.matrix import QuantizedMatrix
from corebound.quantization.reference import dequantize
from corebound.quantization.rtn import quantize
from corebound.quantization.scheme import Scheme
from corebound.sharding.modules.layers import ColumnLinear, RowLinear

# torch's product with int8 reads beyond its inputs where they are no multiple of this.
_INT8_INPUTS = 16
# 1 MiB of float32: the values of these rows are still in the second-level cache when they are multiplied.
_CHUNK_ELEMENTS = 1 << 18


class QuantizedWeight(nn.Module):
    """A matrix of codes and what multiplies with it."""

    codes: Tensor
    scales: Tensor
    zeros: Tensor

    def __init__(self, weight: Tensor, scheme: Scheme) -> None:
        super().__init__()
        matrix = quantize(weight, scheme)
        self.scheme, self.group_size = scheme, matrix.group_size
        self.num_outputs, self.num_inputs = matrix.shape
        self._is_plain = scheme.bits == 8 and scheme.group_size is None and scheme.symmetric
        self._is_plain = self._is_plain and self.num_inputs % _INT8_INPUTS == 0
        codes = matrix.codes
        if self._is_plain:
            codes = (codes.to(torch.int16) - scheme.middle_code).to(torch.int8)
        elif scheme.bits == 4:
            codes = _packed(codes)
        for name, tensor in (("codes", codes), ("scales", matrix.scales), ("zeros", matrix.zeros)):
            self.register_buffer(name, tensor)

    @property
    def shape(self) -> tuple[int, int]:
        """Return the numbers of outputs and inputs."""
        return self.num_outputs, self.num_inputs

    def multiply(self, input: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return input times the weights transposed, plus bias, in the type of the input.

        Shapes: input [..., K]; bias [N]; result [..., N].
        """
        rows = input.reshape(-1, self.num_inputs)
        # The scales of `quantize` are bfloat16 numbers; float16 has no room for small ones.
        if self._is_plain and rows.dtype in (torch.bfloat16, torch.float32):
            product = torch._weight_int8pack_mm(rows.contiguous(), self.codes, self.scales[:, 0].to(rows.dtype))
        else:
            step = max(1, _CHUNK_ELEMENTS // self.num_inputs)
            parts = [
                nn.functional.linear(rows, self._values(start, step, rows.dtype))
                for start in range(0, self.num_outputs, step)
            ]
            product = torch.cat(parts, dim=1)
        product = product if bias is None else product + bias
        return product.view(*input.shape[:-1], self.num_outputs)

    def values(self, dtype: torch.dtype) -> Tensor:
        """Return what the codes stand for.

        Shapes: result [N, K].
        """
        return self._values(0, self.num_outputs, dtype)

    def matrix(self) -> QuantizedMatrix:
        """Return the whole matrix in plain order."""
        return self._matrix(0, self.num_outputs)

    def _values(self, start: int, count: int, dtype: torch.dtype) -> Tensor:
        return dequantize(self._matrix(start, count), dtype)

    def _matrix(self, start: int, count: int) -> QuantizedMatrix:
        codes = self.codes[start : start + count]
        if self._is_plain:
            codes = (codes.to(torch.int16) + self.scheme.middle_code).to(torch.uint8)
        elif self.scheme.bits == 4:
            codes = _unpacked(codes, self.num_inputs)
        return QuantizedMatrix(
            bits=self.scheme.bits,
            group_size=self.group_size,
            codes=codes,
            scales=self.scales[start : start + count],
            zeros=self.zeros[start : start + count],
        )


class QuantizedLinear(nn.Module):
    """A linear layer with quantized weights; on several ranks it holds some of the outputs."""

    bias: nn.Parameter | None
    quantized: QuantizedWeight

    def __init__(self, linear: nn.Linear | ColumnLinear, scheme: Scheme) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.quantized = QuantizedWeight(linear.weight.detach(), scheme)
        self.register_parameter("bias", linear.bias)

    def forward(self, input: Tensor) -> Tensor:
        """Return the product plus bias.

        Shapes: input [..., K]; result [..., N].
        """
        return self.quantized.multiply(input, self.bias)


class QuantizedRowLinear(RowLinear):
    """A linear layer of which this rank holds some of the inputs, with quantized weights."""

    quantized: QuantizedWeight

    def __init__(self, linear: RowLinear, scheme: Scheme) -> None:
        whole = (linear.whole_out_features, linear.whole_in_features)
        super().__init__(
            linear.weight.detach(), linear.bias, whole=whole, collectives=linear.collectives, inputs=linear.inputs
        )
        self.pair, self.first_of_pair = linear.pair, linear.first_of_pair
        self.quantized = QuantizedWeight(self.weight.detach(), scheme)
        # Registered as absent, so that nothing mistakes the floats for what is multiplied.
        self.register_parameter("weight", None)

    @property
    def in_features(self) -> int:
        """Return the number of inputs on this rank."""
        return self.quantized.num_inputs

    @property
    def out_features(self) -> int:
        """Return the number of outputs."""
        return self.quantized.num_outputs

    def multiply(self, input: Tensor) -> Tensor:
        """Return this rank's part of the product, without bias.

        Shapes: input [..., K of this rank]; result [..., N].
        """
        return self.quantized.multiply(input)


def quantize_linears(module: nn.Module, scheme: Scheme) -> int:
    """Replace every linear layer but the head by a quantized one, one after the other; return how many.

    The head stays as it is: its errors reach the logits directly, and it may be the embedding too.
    """
    find_head: Any = getattr(module, "get_output_embeddings", None)
    head = find_head() if find_head is not None else None
    replaced: dict[int, nn.Module] = {}
    for name, layer in list(module.named_modules(remove_duplicate=False)):
        if layer is head or not isinstance(layer, nn.Linear | ColumnLinear | RowLinear) or not name:
            continue
        if isinstance(layer, QuantizedRowLinear) or layer.weight is None:
            continue
        if id(layer) not in replaced:
            replaced[id(layer)] = _quantized(layer, scheme)
        parent, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(parent), leaf, replaced[id(layer)])
    return len(replaced)


def _quantized(layer: nn.Linear | ColumnLinear | RowLinear, scheme: Scheme) -> nn.Module:
    return QuantizedRowLinear(layer, scheme) if isinstance(layer, RowLinear) else QuantizedLinear(layer, scheme)


def _packed(codes: Tensor) -> Tensor:
    """Return codes of 4 bits, two in a byte."""
    if codes.shape[1] % 2:
        codes = nn.functional.pad(codes, (0, 1))
    return codes[:, ::2] | (codes[:, 1::2] << 4)


def _unpacked(packed: Tensor, num_inputs: int) -> Tensor:
    return torch.stack((packed & 15, packed >> 4), dim=2).flatten(1)[:, :num_inputs]
