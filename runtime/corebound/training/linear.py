"""A linear layer that calls Corebound's operator and is otherwise torch's own: same class, names and parameters."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from corebound import kernels


class NativeLinear(nn.Linear):
    """A `torch.nn.Linear` for inference. Calls that need gradients, or mix types, are torch's."""

    @classmethod
    def adopt(cls, linear: nn.Linear) -> Self:
        """Return a layer with the very parameters of `linear`, so that nothing is copied and tied weights stay tied."""
        adopted = cls.__new__(cls)
        nn.Module.__init__(adopted)
        adopted.in_features, adopted.out_features = linear.in_features, linear.out_features
        # Assigned, a parameter registers itself; a bias that is None must be registered by name.
        adopted.register_parameter("bias", None)
        adopted.weight, adopted.bias = linear.weight, linear.bias
        return adopted.train(linear.training)

    def forward(self, input: Tensor) -> Tensor:
        """Return input times weight transposed, plus bias.

        Shapes: input [..., K]; result [..., N].
        """
        weight = self.weight
        if torch.is_autocast_enabled("cpu"):
            # What autocast does to torch's own linear, which it knows by name.
            input = input.to(torch.get_autocast_dtype("cpu"))
        # The operator has no backward.
        needs_gradient = torch.is_grad_enabled() and (input.requires_grad or weight.requires_grad)
        if needs_gradient or input.dtype != weight.dtype:
            return super().forward(input)
        rows = input.reshape(-1, self.in_features)
        return kernels.linear(rows, weight, self.bias).view(*input.shape[:-1], self.out_features)
