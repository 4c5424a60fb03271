"""Linear layers of which each rank holds a part. All sizes are frozen in the layer; nothing is kept elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from corebound import kernels
from corebound.comm import Collectives


class ShardedLinear(nn.Module):
    """What both kinds share: a rank's part of weight and bias, for inference."""

    bias: nn.Parameter | None

    def __init__(self, weight: Tensor, bias: Tensor | None, *, whole: tuple[int, int]) -> None:
        super().__init__()
        # A parameter is taken as it is, so that a tied head and embedding hold the same one.
        self.weight = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight, requires_grad=False)
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias, requires_grad=False))
        self.whole_out_features, self.whole_in_features = whole

    @property
    def out_features(self) -> int:
        """Return the number of outputs on this rank."""
        return self.weight.shape[0]

    @property
    def in_features(self) -> int:
        """Return the number of inputs on this rank."""
        return self.weight.shape[1]

    def extra_repr(self) -> str:
        """Return the rank's sizes and the whole ones."""
        return (
            f"in_features={self.in_features} of {self.whole_in_features}, "
            f"out_features={self.out_features} of {self.whole_out_features}, bias={self.bias is not None}"
        )


class ColumnLinear(ShardedLinear):
    """A linear layer of which this rank holds some of the outputs."""

    def forward(self, input: Tensor) -> Tensor:
        """Return this rank's outputs.

        Shapes: input [..., K]; result [..., part of N].
        """
        return product(input, self.weight, self.bias)


class GatheredLinear(ShardedLinear):
    """A linear layer, such as a head, of which this rank holds some of the outputs; those of all ranks are gathered."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        *,
        parts: Sequence[range],
        collectives: Collectives,
    ) -> None:
        super().__init__(weight, bias, whole=(parts[-1].stop, weight.shape[1]))
        self.parts = tuple(parts)
        self.collectives = collectives

    def forward(self, input: Tensor) -> Tensor:
        """Return all outputs, identical on every rank.

        Shapes: input [..., K]; result [..., N].
        """
        local = product(input, self.weight, self.bias)
        if self.collectives.size == 1:
            return local
        widest = max(len(part) for part in self.parts)
        gathered = self.collectives.all_gather(nn.functional.pad(local, (0, widest - local.shape[-1])))
        return torch.cat([gathered[rank, ..., : len(part)] for rank, part in enumerate(self.parts)], dim=-1)


class RowLinear(ShardedLinear):
    """A linear layer of which this rank holds some of the inputs; the ranks' products are summed.

    The bias is added once, after the sum. With a `pair` the sum waits for the second layer of the pair, or is made
    there for both. Without collectives the product stays partial, and has no bias. `inputs` is the part of an input
    that is whole on every rank; without it the input is this rank's part.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        *,
        whole: tuple[int, int],
        collectives: Collectives | None,
        inputs: range | None = None,
    ) -> None:
        super().__init__(weight, bias, whole=whole)
        self.collectives = collectives
        self.inputs = inputs
        self.pair: PairedSum | None = None
        self.first_of_pair = False

    def multiply(self, input: Tensor) -> Tensor:
        """Return this rank's part of the product, without bias; a layer with other weights overrides it.

        Shapes: input [..., part of K]; result [..., N].
        """
        return product(input, self.weight, None)

    def forward(self, input: Tensor) -> Tensor:
        """Return the whole product, identical on every rank.

        Shapes: input [..., part of K]; result [..., N].
        """
        if self.inputs is not None:
            input = input[..., self.inputs.start : self.inputs.stop]
        partial = self.multiply(input)
        if self.collectives is None:
            return partial
        if self.pair is not None and self.first_of_pair:
            return self.pair.put(partial, self.bias)
        if self.pair is not None:
            partial = self.pair.add_to(partial)
        total = self.collectives.all_reduce(partial.contiguous())
        return total if self.bias is None else total.add_(self.bias)


class PairedSum:
    """The product of a block's first row-parallel layer, kept until the second is summed.

    For blocks that add the outputs of both and do nothing else with the first: what that one returns in the meantime is
    its bias, so that the sum of both outputs is right.
    """

    def __init__(self) -> None:
        self._kept: Tensor | None = None

    def put(self, partial: Tensor, bias: Tensor | None) -> Tensor:
        """Keep the product and return what stands for it. Shapes: partial and result [..., N]; bias [N]."""
        self._kept = partial
        return (partial.new_zeros(1) if bias is None else bias).expand_as(partial)

    def add_to(self, partial: Tensor) -> Tensor:
        """Return the sum of the kept product and the second, of one shape."""
        kept, self._kept = self._kept, None
        return partial if kept is None else kept.add_(partial)


def product(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return input times weight transposed, plus bias, by Corebound's operator where it computes the same.

    Shapes: input [..., K]; weight [N, K]; bias [N]; result [..., N].
    """
    # The operator has no backward, mixes no types, and autocast does not know it.
    needs_gradient = torch.is_grad_enabled() and (input.requires_grad or weight.requires_grad)
    if needs_gradient or input.dtype != weight.dtype or torch.is_autocast_enabled("cpu"):
        return nn.functional.linear(input, weight, bias)
    rows = input.reshape(-1, weight.shape[1])
    return kernels.linear(rows, weight, bias).view(*input.shape[:-1], weight.shape[0])
