"""What a decoder block is made of, as a table: enough for one block of ours to take the place of every family's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from corebound.errors import KernelError

Norm = Literal["layer", "rms", "rms_plus_one"]
NormPlace = Literal["before", "after_branch", "after_residual"]
Activation = Literal["gelu_tanh", "gelu_erf", "relu", "silu_gated", "gelu_tanh_gated", "gelu_erf_gated"]
QkvLayout = Literal["stacked", "per_head", "grouped", "quarters"]
QkNorm = Literal["none", "rms", "layer", "layer_per_head", "rms_full"]
Rotary = Literal["none", "halves", "pairs"]
Alibi = Literal["none", "tokens", "slots"]

# The names that configurations use for what our operators compute.
_ACTIVATIONS: dict[str, Literal["gelu_tanh", "gelu_erf", "relu", "silu"]] = {
    "gelu": "gelu_erf",
    "gelu_python": "gelu_erf",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


@dataclass(frozen=True, kw_only=True)
class BlockDescription:
    """A family's block. Names of linears and norms are paths of modules within the block.

    `qkv` and `mlp_in` with several names are joined, in this order, into one product. `qkv_layout` says how the outputs
    lie: all q, k, v (`stacked`), q, k, v of each head (`per_head`), the q heads, k and v of each kv head (`grouped`),
    or q, v, k of each quarter of the heads (`quarters`). Without `mlp_norm` a parallel MLP reads the attention's norm.

    Where the module at `experts` has some, they take the place of `mlp_in` and `mlp_out`: a token goes through
    `num_chosen_experts`, whose weights add up to one if `renormalised_experts`, and through the `shared_expert`.

    `alibi` counts distances in unmasked tokens (`tokens`) or in places of the cache (`slots`).
    """

    family: str
    block_class: str  # with its module below transformers.models
    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    attention_norm: str | None
    mlp_norm: str | None
    qkv: tuple[str, ...]
    attention_out: str
    mlp_in: tuple[str, ...]
    mlp_out: str
    activation: Activation
    norm: Norm = "layer"
    norm_place: NormPlace = "before"
    norm_as_residual: bool = False
    parallel: bool = False
    qkv_layout: QkvLayout = "stacked"
    qk_norm: QkNorm = "none"
    q_norm: str | None = None
    k_norm: str | None = None
    rotary: Rotary = "none"
    rotary_buffer: str | None = None  # sines and cosines by position, where the model hands none to its blocks
    alibi: Alibi = "none"
    clip_qkv: float | None = None
    residual_factor: float = 1.0
    mask_marks_hidden: bool = False  # a boolean mask that is true where a key may not be seen
    returns_tuple: bool = False
    experts: str | None = None
    num_chosen_experts: int = 0
    renormalised_experts: bool = False
    shared_expert: bool = False

    @property
    def attention(self) -> str:
        """Return the path of the attention module."""
        return self.attention_out.rpartition(".")[0]

    @property
    def ops(self) -> tuple[str, ...]:
        """Return the operators of `corebound.kernels` that the block runs on."""
        norm = "layer" if self.norm == "layer" else "rms"
        names = ["linear", "store_kv", "attention"]
        if self.norm_place != "after_residual" or self.qk_norm in ("layer", "layer_per_head", "rms", "rms_full"):
            names.append(f"{norm}_norm")
        if not self.parallel and self.norm_place != "after_branch":
            names.append(f"add_{norm}_norm")
        if self.qkv_layout in ("stacked", "per_head", "grouped", "quarters"):
            names.append("split_qkv")
        if self.rotary != "none":
            names.append("rotary")
        if self.activation.startswith("gelu"):
            names.append("gelu")
        if self.activation == "silu_gated":
            names.append("silu_mul")
        return tuple(names)


def activation(family: str, name: object, *, gated: bool = False) -> Activation:
    """Return our name of a configuration's activation.

    Raises: KernelError when no operator computes it.
    """
    known = _ACTIVATIONS.get(str(name))
    if known == "silu" and gated:
        return "silu_gated"
    if known == "gelu_tanh":
        return "gelu_tanh_gated" if gated else "gelu_tanh"
    if known == "gelu_erf":
        return "gelu_erf_gated" if gated else "gelu_erf"
    if known == "relu" and not gated:
        return "relu"
    raise missing(family, f"the activation {name!s}{' with a gate' if gated else ''}")


def missing(family: str, what: str) -> KernelError:
    """Return the error for a block that ours cannot express."""
    return KernelError(
        f"{family}: kernel injection cannot express {what}",
        hint="leave replace_with_kernel_inject off: the model then runs on its own blocks",
    )
