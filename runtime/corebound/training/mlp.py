"""Which gated MLPs of foreign models are known well enough to compute gate, up and activation as one product."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from corebound.quantization.scheme import Scheme
from corebound.training.packed_linear import GatedMlp


@dataclass(frozen=True)
class GatedNames:
    """The names of the layers of down(act(gate(x)) * up(x)), and of its activation."""

    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    activation: str = "act_fn"


# Classes of transformers whose forward is exactly that. A class that is not here stays as it is.
GATED_MLPS: dict[str, GatedNames] = {
    f"{family}MLP": GatedNames()
    for family in ("Cohere", "Granite", "Llama", "Mistral", "Olmo2", "Qwen2", "Qwen3", "StableLm")
}


def gated_mlp(module: nn.Module, scheme: Scheme | None) -> GatedMlp | str | None:
    """Return what takes the place of a gated MLP, why one must stay, or None for a module that is none."""
    names = GATED_MLPS.get(type(module).__name__)
    if names is None or not type(module).__module__.startswith("transformers."):
        return None
    activation = type(getattr(module, names.activation, None)).__name__
    if activation not in ("SiLU", "SiLUActivation"):
        return f"its activation is {activation}, and only SiLU is fused"
    parts = [getattr(module, name, None) for name in (names.gate, names.up)]
    for part in parts:
        if type(part) is not nn.Linear or part._forward_hooks or part._forward_pre_hooks:
            return "gate and up are no plain torch.nn.Linear"
    gate, up = (part for part in parts if isinstance(part, nn.Linear))
    if gate.weight.shape != up.weight.shape or (gate.bias is None) != (up.bias is None):
        return "gate and up differ"
    return GatedMlp(module, (names.gate, names.up), names.down, scheme).train(module.training)
