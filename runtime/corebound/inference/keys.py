"""Every key of `init_inference`, in one place: configurations are read by it, docs/inference.md is checked by it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from corebound.inference import values


@dataclass(frozen=True, kw_only=True)
class Key:
    """One key by its full name, where a dot leads into a block.

    `others` are more names of the same value. `ignored` says why a key that other hardware needs has no effect here.
    """

    name: str
    meaning: str
    read: Callable[[str, Any], Any] = values.anything
    others: tuple[str, ...] = ()
    default: str = "none"
    ignored: str = ""


_NO_GPU = "there is no GPU"
_PLAIN = "the decoders here are causal and decide this themselves"
_NO_EXPERTS = "experts are split as the model's table says"

KEYS: tuple[Key, ...] = (
    Key(
        name="dtype",
        meaning="what weights are kept and computed in; `int8`, `int4` and longer schemes quantize weights only",
        read=values.dtype,
        default="bfloat16 where the CPU multiplies it, else float32",
    ),
    Key(
        name="tensor_parallel.tp_size",
        others=("mp_size", "tp_size"),
        meaning="how many ranks share the model; 0 means all of the launch",
        read=values.count_from(0),
        default="1",
    ),
    Key(
        name="tensor_parallel.enabled",
        meaning="false means one rank for each copy of the model",
        read=values.flag,
        default="true",
    ),
    Key(
        name="tensor_parallel.tp_grain_size",
        meaning="how many neighbouring rows or columns stay on one rank where heads do not decide",
        read=values.count_from(1),
        default="64",
    ),
    Key(name="tensor_parallel.tp_group", meaning="a torch process group that shares the model", read=values.anything),
    Key(
        name="tensor_parallel.mpu",
        others=("mpu",),
        meaning="an object whose get_model_parallel_group() returns the group that shares the model",
        read=values.mpu,
    ),
    Key(
        name="replace_with_kernel_inject",
        others=("kernel_inject",),
        meaning="replace decoder blocks by Corebound's own",
        read=values.flag,
        default="false",
    ),
    Key(
        name="injection_policy",
        others=("injection_dict",),
        meaning="for each block class the names of its layers whose outputs are summed over ranks",
        read=values.policy,
    ),
    Key(
        name="checkpoint",
        others=("checkpoint_config.checkpoint_dir",),
        meaning="where the weights of a model on the meta device are: directory, index, file, or a JSON list of files",
        read=values.checkpoint,
    ),
    Key(
        name="base_dir",
        others=("checkpoint_config.base_dir",),
        meaning="what relative names in a checkpoint list start from",
        read=values.path,
        default="the directory of the list",
    ),
    Key(
        name="save_mp_checkpoint_path",
        others=("checkpoint_config.save_mp_checkpoint_path",),
        meaning="directory to write each rank's weights to, as safetensors with a manifest that `checkpoint` reads",
        read=values.path,
    ),
    Key(
        name="allow_pickled_weights",
        meaning="also read `.bin` and `.pt` files, with torch.load(weights_only=True)",
        read=values.flag,
        default="false",
    ),
    Key(
        name="training_mp_size",
        meaning="only 1: parameters of a checkpoint are whole",
        read=values.only_one,
        default="1",
    ),
    Key(
        name="max_out_tokens",
        others=("max_tokens",),
        meaning="tokens of prompt and continuation that room is made for at first; a longer request makes more",
        read=values.count_from(1),
        default="1024",
    ),
    Key(
        name="min_out_tokens",
        others=("min_tokens",),
        meaning="tokens that must fit into memory, or making the engine is an error",
        read=values.count_from(1),
        default="1",
    ),
    Key(name="quant.enabled", meaning="whether the block `quant` counts", read=values.flag, default="true"),
    Key(name="quant.weight.enabled", meaning="whether weights are quantized", read=values.flag, default="true"),
    Key(name="quant.weight.num_bits", meaning="8 or 4", read=values.bits, default="8"),
    Key(
        name="quant.weight.q_type",
        meaning="`symmetric` or `asymmetric`",
        read=values.symmetry,
        default="that of the width",
    ),
    Key(
        name="quant.weight.q_groups",
        meaning="only 1, a scale for each output; finer groups are asked for by `group_size`",
        read=values.only_one,
        default="1",
    ),
    Key(
        name="quant.weight.group_size",
        meaning="how many inputs of an output share a scale: 32, 64 or 128",
        read=values.group_size,
        default="that of the width",
    ),
    Key(name="quant.activation", meaning="quantized activations", ignored="only weights are quantized"),
    Key(name="quant.qkv", meaning="quantizing q, k and v apart", ignored="all matrices are quantized alike"),
    Key(name="replace_method", meaning="how layers were found", ignored="a table of the model's family says it"),
    Key(
        name="injection_policy_tuple",
        meaning="names of layers whose outputs are summed over ranks, in any block",
        read=values.names,
    ),
    Key(
        name="set_empty_params",
        meaning="that weights come later",
        ignored="a model on the meta device shows it by itself",
    ),
    Key(name="keep_module_on_host", meaning="not moving the module", ignored="the host is where everything runs"),
    Key(name="transposed_mode", meaning="weights stored transposed", ignored=_PLAIN),
    Key(name="triangular_masking", others=("tm",), meaning="a causal mask", ignored=_PLAIN),
    Key(name="return_tuple", meaning="what a block returns", ignored="blocks return what their model expects"),
    Key(name="enable_cuda_graph", meaning="CUDA graphs", ignored=_NO_GPU),
    Key(name="use_triton", meaning="Triton kernels", ignored=_NO_GPU),
    Key(name="triton_autotune", meaning="tuning Triton kernels", ignored=_NO_GPU),
    Key(name="moe", meaning="how experts are spread", ignored=_NO_EXPERTS),
    Key(name="ep_size", meaning="how many ranks share the experts", ignored=_NO_EXPERTS),
    Key(name="moe_experts", meaning="how many experts there are", ignored=_NO_EXPERTS),
    Key(name="moe_type", meaning="the kind of expert layer", ignored=_NO_EXPERTS),
    Key(name="ep_group", others=("expert_group",), meaning="the ranks that share experts", ignored=_NO_EXPERTS),
    Key(
        name="ep_mp_group",
        others=("expert_mp_group",),
        meaning="the ranks that share one expert",
        ignored=_NO_EXPERTS,
    ),
    Key(name="zero", meaning="weights outside of memory", ignored="weights are always in memory"),
)

# Blocks that may be written in two ways.
BLOCKS = {"tp": "tensor_parallel", "ckpt_config": "checkpoint_config"}


def by_name() -> dict[str, Key]:
    """Return the keys by every name that they can be written with."""
    return {name: key for key in KEYS for name in (key.name, *key.others)}


def blocks() -> frozenset[str]:
    """Return the names whose value is an object of further keys."""
    names = by_name()
    return frozenset(
        ".".join(parts[:depth]) for name in names for parts in [name.split(".")] for depth in range(1, len(parts))
    )
