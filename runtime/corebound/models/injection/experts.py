"""The experts of an injected block, on the weights that transformers keeps of all of them in two tensors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from corebound.errors import KernelError
from corebound.models.experts import ExpertWeights, mix_experts
from corebound.models.injection.description import BlockDescription
from corebound.models.injection.taking import BlockTaker


class InjectedExperts(nn.Module):
    """Takes the place of a router, its experts, and the expert that all tokens share, where there is one.

    Shapes: router [E, H], with a shared expert [E + 1, H]; gate_up [E, 2 I, H]; down [E, H, I].
    """

    shared_in: nn.Parameter | None
    shared_out: nn.Parameter | None

    def __init__(
        self, taker: BlockTaker, description: BlockDescription, activation: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__()
        path = str(description.experts)
        experts, router = taker.module(f"{path}.experts"), taker.module(f"{path}.gate").weight
        self._activation = activation
        self._num_chosen, self._renormalised = description.num_chosen_experts, description.renormalised_experts
        shared: tuple[nn.Parameter | None, nn.Parameter | None] = (None, None)
        if description.shared_expert:
            gate = taker.module(f"{path}.shared_expert_gate").weight
            router = torch.cat((router.detach(), gate.detach()))
            names = [f"{path}.shared_expert.{name}_proj" for name in ("gate", "up")]
            shared = (
                _parameter(taker.columns(tuple(names)).weight),
                _parameter(taker.rows(f"{path}.shared_expert.down_proj").weight),
            )
        self.router = _parameter(router)
        self.gate_up, self.down = _parameter(experts.gate_up_proj), _parameter(experts.down_proj)
        for name, weight in zip(("shared_in", "shared_out"), shared, strict=True):
            self.register_parameter(name, weight)
        if self.gate_up.shape[1] != 2 * self.down.shape[2] or self.gate_up.shape[0] != self.down.shape[0]:
            raise KernelError(
                f"{description.family}: expected gate_up_proj and down_proj of equal experts, found "
                f"{list(self.gate_up.shape)} and {list(self.down.shape)}"
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return this rank's part of the experts.

        Shapes: [T, H] -> [T, H].
        """
        shared = None
        if self.shared_in is not None and self.shared_out is not None:
            shared = (self.shared_in, self.shared_out)
        pairs = tuple(zip(self.gate_up.unbind(), self.down.unbind(), strict=True))
        weights = ExpertWeights(router=self.router, experts=pairs, shared=shared)
        return mix_experts(x, weights, self._activation, self._num_chosen, renormalised=self._renormalised)


def _parameter(weight: Tensor) -> nn.Parameter:
    return nn.Parameter(weight.detach(), requires_grad=False)
