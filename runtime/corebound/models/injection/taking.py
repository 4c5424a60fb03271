"""Taking the weights of a transformers block, whole or already a rank's part, without keeping a second copy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from corebound.errors import KernelError
from corebound.models.injection.description import BlockDescription
from corebound.sharding.modules.finish import SUMMED
from corebound.sharding.modules.layers import ColumnLinear, RowLinear

# What a family may call a plain linear layer.
_PLAIN = ("torch.nn.modules.linear.Linear", "transformers.models.falcon.modeling_falcon.FalconLinear")


@dataclass(frozen=True)
class Product:
    """The weight and bias of a linear layer.

    Shapes: weight [N, K]; bias [N].
    """

    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True)
class NormWeights:
    """What a norm multiplies by and adds, and its epsilon.

    Shapes: weight and bias [H], or for a norm of each head [heads, D].
    """

    weight: Tensor
    bias: Tensor | None
    eps: float


class BlockTaker:
    """Reads one block's modules by the paths of its description.

    Raises: KernelError from every method, naming the module that is not what the family's description says.
    """

    def __init__(self, block: nn.Module, name: str, description: BlockDescription) -> None:
        self._block, self._name, self._description = block, name, description

    def module(self, path: str) -> Any:
        """Return the module at a path within the block."""
        try:
            return self._block.get_submodule(path)
        except AttributeError as error:
            raise KernelError(f"{self._name}: expected a module {path}, found none") from error

    def columns(self, paths: tuple[str, ...]) -> Product:
        """Return the layers at these paths joined to one that has their outputs in turn."""
        parts = [self._linear(path, ColumnLinear) for path in paths]
        if len(parts) == 1:
            return parts[0]
        weight = torch.cat([part.weight for part in parts])
        if all(part.bias is None for part in parts):
            return Product(weight, None)
        zeros = [part.weight.new_zeros(part.weight.shape[0]) for part in parts]
        biases = [zero if part.bias is None else part.bias for part, zero in zip(parts, zeros, strict=True)]
        return Product(weight, torch.cat(biases))

    def rows(self, path: str) -> Product:
        """Return the layer at a path, whose bias belongs after the sum over the ranks."""
        return self._linear(path, RowLinear)

    def sharded(self, path: str) -> bool:
        """Return whether the layer at a path, the last of its branch, holds a rank's part of the inputs."""
        module = self.module(path)
        if not isinstance(module, RowLinear):
            return False
        if module.collectives is None or getattr(module, "inputs", None) is not None:
            raise KernelError(
                f"{self._name}.{path}: cannot take over a layer that is summed elsewhere or cuts its own inputs",
                hint="leave replace_with_kernel_inject off, or split the whole branch",
            )
        return True

    def has_experts(self) -> bool:
        """Return whether this block has experts; of some families only some have."""
        path = self._description.experts
        return path is not None and hasattr(self.module(path), "experts")

    def experts_sharded(self) -> bool:
        """Return whether the experts hold a rank's part, which a module around them sums."""
        path = self._description.experts
        return any(hasattr(self.module(name), SUMMED) for name in (f"{path}", f"{path}.experts"))

    def qkv(self, num_heads: int, num_kv_heads: int) -> Product:
        """Return the joined q, k and v in an order that the operator splits: `per_head`, all others as `stacked`."""
        description = self._description
        joined = self.columns(description.qkv)
        expected = (num_heads + 2 * num_kv_heads) * description.head_dim
        if joined.weight.shape[0] != expected:
            raise KernelError(
                f"{self._name}: expected {expected} outputs of {', '.join(description.qkv)} for {num_heads} heads and "
                f"{num_kv_heads} kv heads of {description.head_dim}, found {joined.weight.shape[0]}"
            )
        bias = joined.bias
        stack = _TO_STACKED.get(description.qkv_layout)
        if stack is None:
            return joined
        sizes = (num_heads, num_kv_heads, description.head_dim)
        return Product(stack(joined.weight, *sizes), None if bias is None else stack(bias, *sizes))

    def mlp(self, num_gates: int) -> tuple[Product, Product]:
        """Return the layers before and after the activation, which halves its input when it has a gate."""
        inner, outer = self.columns(self._description.mlp_in), self.rows(self._description.mlp_out)
        if inner.weight.shape[0] != (1 + num_gates) * outer.weight.shape[1]:
            raise KernelError(
                f"{self._name}: expected {(1 + num_gates) * outer.weight.shape[1]} outputs of "
                f"{', '.join(self._description.mlp_in)}, found {inner.weight.shape[0]}"
            )
        return inner, outer

    def norm(self, path: str | None) -> NormWeights | None:
        """Return the norm at a path; a weight that it leaves out is one."""
        if path is None:
            return None
        module, kind = self.module(path), self._description.norm
        eps = getattr(module, "variance_epsilon", None) or getattr(module, "eps", None)
        if eps is None:
            raise KernelError(f"{self._name}.{path}: expected a norm with an epsilon, found {type(module).__name__}")
        like = next(self._block.parameters())
        weight = getattr(module, "weight", None)
        if weight is None:
            weight = like.new_ones(module.normalized_shape)
        if kind == "rms_plus_one":
            weight = weight.float() + 1.0  # and stays so: rounded to 16 bits it would be another weight
        return NormWeights(weight, getattr(module, "bias", None) if kind == "layer" else None, float(eps))

    def head_norm(self, path: str | None, num_heads: int) -> NormWeights | None:
        """Return the norm of q or k at a path, for `num_heads` of them."""
        kind = self._description.qk_norm
        if path is None or kind == "none":
            return None
        module = self.module(path)
        if kind == "layer_per_head" and hasattr(module, "norms"):
            weight = torch.stack([norm.weight for norm in module.norms])
            eps = module.norms[0].eps
        else:
            weight = module.weight
            eps = getattr(module, "variance_epsilon", None) or module.eps
        head_dim = self._description.head_dim
        shapes = {"layer_per_head": (num_heads, head_dim), "rms_full": (num_heads * head_dim,)}
        if tuple(weight.shape) != (expected := shapes.get(kind, (head_dim,))):
            raise KernelError(f"{self._name}.{path}: expected a norm of {list(expected)}, found {list(weight.shape)}")
        return NormWeights(weight, module.bias if kind == "layer" else None, float(eps))

    def _linear(self, path: str, sharded: type[nn.Module]) -> Product:
        module = self.module(path)
        kind = f"{type(module).__module__}.{type(module).__qualname__}"
        if kind not in _PLAIN and not isinstance(module, sharded):
            raise KernelError(
                f"{self._name}.{path}: expected a plain linear layer, found a {type(module).__name__}",
                hint="inject kernels before a model is quantised or wrapped, or leave replace_with_kernel_inject off",
            )
        weight, bias = module.weight, module.bias
        if weight.device.type != "cpu":
            raise KernelError(f"{self._name}.{path}: expected weights on the CPU, found them on {weight.device}")
        return Product(weight.detach(), None if bias is None else bias.detach())


def _from_groups(fused: Tensor, num_heads: int, num_kv_heads: int, head_dim: int) -> Tensor:
    """Return all q, k, v of a projection that has, for each kv head, its q heads, k and v."""
    group = num_heads // num_kv_heads
    parts = fused.unflatten(0, (num_kv_heads, group + 2, head_dim)).split([group, 1, 1], dim=1)
    return torch.cat([part.flatten(0, 2) for part in parts])


def _from_quarters(fused: Tensor, num_heads: int, num_kv_heads: int, head_dim: int) -> Tensor:
    """Return all q, k, v of a projection that has q, v, k of each quarter of the channels."""
    quarters = fused.unflatten(0, (4, 3, num_heads * head_dim // 4))
    return torch.cat([quarters[:, kind].flatten(0, 1) for kind in (0, 2, 1)])


_TO_STACKED = {"grouped": _from_groups, "quarters": _from_quarters}
