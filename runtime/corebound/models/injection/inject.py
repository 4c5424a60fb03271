"""Replaces the decoder blocks of a transformers model by ours."""

from __future__ import annotations

from typing import Any

import transformers
from torch import nn

from corebound import kernels
from corebound.comm import Collectives
from corebound.errors import KernelError
from corebound.models.injection.attention import StepNotes
from corebound.models.injection.description import BlockDescription
from corebound.models.injection.families import describe_block
from corebound.models.injection.report import InjectionReport
from corebound.models.injection.shares import head_share
from corebound.models.injection.taking import BlockTaker

# What single parts of some families run on where no operator of ours does.
_PLAIN_TORCH = {
    "activation": {"relu": "relu", "gelu_tanh_gated": "the gate's product", "gelu_erf_gated": "the gate's product"},
    "qk_norm": {"layer_per_head": "the weights of the norm of each head", "rms_full": "the norm over all heads"},
}


def inject_kernels(model: nn.Module, collectives: Collectives) -> InjectionReport:
    """Replace every decoder block of a transformers model by one that runs on corebound.kernels, in place.

    The model may be whole, or split by `shard_module` over the ranks of `collectives`. Each block's weights are taken
    over and the original freed before the next, so that at most one block's joined matrices exist twice. The model is
    put in evaluation mode; its `generate` works as before. All that blocks share belongs to this model alone.

    Raises: KernelError naming what a family's block has that ours has not, or a module that is not what it should be.
    """
    description, names = _blocks(model)
    model.requires_grad_(False).eval()
    notes = StepNotes(
        description.family,
        alibi_counts_slots=description.alibi == "slots",
        mask_marks_hidden=description.mask_marks_hidden,
    )
    for index, name in enumerate(names):
        _replace(model, name, description, collectives, notes, first=index == 0)
    return InjectionReport(
        family=description.family,
        block_class=description.block_class.rpartition(".")[2],
        num_blocks=len(names),
        ops=tuple(row for row in kernels.running_table() if row["op"] in description.ops),
        plain_torch=_plain_torch(description),
        kept=_kept(model, names),
    )


def require_injectable(model: nn.Module) -> None:
    """Raise KernelError for a model that inject_kernels would refuse by its family or blocks; nothing is changed."""
    _blocks(model)


def _blocks(model: nn.Module) -> tuple[BlockDescription, list[str]]:
    config: Any = getattr(model, "config", None)
    if config is None:
        raise KernelError(f"kernel injection: expected a model of transformers, found {type(model).__name__}")
    _check_transformers()
    description = describe_block(config)
    return description, _block_names(model, description)


def _check_transformers() -> None:
    # The IPEX flavour has an older one, whose caches and blocks are other classes.
    if int(transformers.__version__.partition(".")[0]) < 5:
        raise KernelError(
            f"kernel injection: expected transformers 5, found {transformers.__version__}",
            hint="leave replace_with_kernel_inject off in this environment",
        )


def _block_names(model: nn.Module, description: BlockDescription) -> list[str]:
    expected = f"transformers.models.{description.block_class}"
    names = [
        name
        for name, module in model.named_modules()
        if f"{type(module).__module__}.{type(module).__qualname__}" == expected
    ]
    if names:
        return names
    from corebound.models.injection.block import InjectedBlock

    if any(isinstance(module, InjectedBlock) for module in model.modules()):
        raise KernelError(f"{description.family}: the blocks of this model have been replaced already")
    raise KernelError(
        f"{description.family}: found no block of class {expected}", hint="models with code of their own are not known"
    )


def _replace(
    model: nn.Module,
    name: str,
    description: BlockDescription,
    collectives: Collectives,
    notes: StepNotes,
    *,
    first: bool,
) -> None:
    from corebound.models.injection.block import InjectedBlock

    original = model.get_submodule(name)
    taker = BlockTaker(original, name, description)
    share = head_share(description, collectives, sharded=taker.sharded(description.attention_out))
    block = InjectedBlock(taker, description, share, collectives, notes, first=first).eval()
    _record_hidden_states(model, block, original)
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, block)


def _record_hidden_states(model: nn.Module, block: nn.Module, original: nn.Module) -> None:
    """Let `output_hidden_states` see the block: some models record the outputs of blocks by their class."""
    from transformers.utils.output_capturing import install_output_capuring_hook

    for module in model.modules():
        recorded = (getattr(module, "_can_record_outputs", None) or {}).get("hidden_states")
        if isinstance(recorded, type) and isinstance(original, recorded):
            install_output_capuring_hook(block, "hidden_states", 0)
            return


def _plain_torch(description: BlockDescription) -> tuple[str, ...]:
    parts = [names.get(getattr(description, field), "") for field, names in _PLAIN_TORCH.items()]
    if description.clip_qkv is not None:
        parts.append("the clipping of q, k and v")
    if description.experts is not None:
        parts.append("the choice of experts and the sum over them")
    return tuple(part for part in parts if part)


def _kept(model: nn.Module, blocks: list[str]) -> tuple[str, ...]:
    """Return the names and classes of the modules with weights that are not in a block."""
    return tuple(
        f"{name} ({type(module).__name__})"
        for name, module in model.named_modules()
        if list(module.parameters(recurse=False)) and not f"{name}.".startswith(tuple(f"{block}." for block in blocks))
    )
