"""Changes a model as a configuration asks: type, shards, blocks, quantized weights, in this order."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from corebound.comm.base import Collectives
from corebound.engine.progress import Progress
from corebound.errors import ConfigError
from corebound.inference.checkpoint import find_tensors
from corebound.inference.configuration import InferenceConfig
from corebound.inference.fill import convert, fill, on_meta, require_filled, whole_vectors
from corebound.inference.saved import save_ranks
from corebound.inference.sources import CheckpointSource, Taken, TakingSource
from corebound.inference.tally import Tally
from corebound.inference.weight_only import quantize_linears
from corebound.logs import get_logger
from corebound.models.injection import InjectionReport, inject_kernels, require_injectable
from corebound.sharding.modules import ShardReport, shard_module

_log = get_logger(__name__)

_MARK = "_corebound_inference"
_HALFWAY, _READY = "halfway", "ready"


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A model that is ready, what was done to it, and the part of each split tensor that this rank took.

    `why_not_own` says why Corebound's own decoder cannot take the module's weights, empty where that is still open.
    """

    module: nn.Module
    taken: Mapping[str, Taken] = field(default_factory=dict)
    shard_report: ShardReport | None = None
    injection_report: InjectionReport | None = None
    why_not_own: str = ""


def prepare_module(module: nn.Module, config: InferenceConfig, collectives: Collectives) -> Prepared:
    """Return the module, changed in place: evaluated, split, converted, and as the configuration asks.

    Raises: as init_inference.
    """
    _require_untouched(module)
    if config.replace_with_kernel_inject and config.scheme is None:
        # Before anything is changed: a model that is split already cannot be given back.
        require_injectable(module)
    before = _forms(module)
    try:
        prepared = _changed(module, config, collectives)
    except BaseException:
        if _forms(module) != before:
            setattr(module, _MARK, _HALFWAY)
        raise
    setattr(module, _MARK, _READY)
    return prepared


def _require_untouched(module: nn.Module) -> None:
    mark = getattr(module, _MARK, "")
    name = type(module).__name__
    if mark == _HALFWAY:
        raise ConfigError(
            f"init_inference: this {name} was changed halfway by a call that failed",
            hint="make the model again, from its files",
        )
    if mark:
        raise ConfigError(f"init_inference: this {name} is ready already", hint="make one engine of each model")


def _forms(module: nn.Module) -> list[tuple[Any, ...]]:
    """Return what each step of making ready changes of a model: names, shapes, types and devices of its tensors."""
    tensors = (*module.named_parameters(), *module.named_buffers())
    return [(name, tuple(tensor.shape), tensor.dtype, tensor.device) for name, tensor in tensors]


def _changed(module: nn.Module, config: InferenceConfig, collectives: Collectives) -> Prepared:
    module.eval().requires_grad_(False)
    saves = config.save_mp_checkpoint_path is not None
    with _progress(config, collectives) as progress:
        source = _source(module, config, collectives, progress.update)
        taking = TakingSource(module, source, config.dtype)
        vectors = whole_vectors(module, source, config.dtype) if saves and collectives.size > 1 else {}
        report = _split(module, config, collectives, taking)
        if source is not None:
            fill(module, source, config.dtype)
    require_filled(module)
    convert(module, config.dtype)
    if config.save_mp_checkpoint_path is not None and collectives.ranks[0] == 0:
        save_ranks(config.save_mp_checkpoint_path, module, taking.taken, vectors, collectives)
    injected, why_not_own = None, ""
    if config.scheme is not None:
        _quantize(module, config, collectives)
    elif config.replace_with_kernel_inject:
        injected = inject_kernels(module, collectives)
        why_not_own = "its blocks were replaced by Corebound's"
    return Prepared(
        module=module, taken=taking.taken, shard_report=report, injection_report=injected, why_not_own=why_not_own
    )


def _progress(config: InferenceConfig, collectives: Collectives) -> Progress:
    """Return what tells of the reading of a checkpoint: on the first rank, and where the log says what goes on."""
    name = config.checkpoint if isinstance(config.checkpoint, str | Path) else "the checkpoint"
    enabled = config.checkpoint is not None and collectives.ranks[collectives.rank] == 0
    return Progress(f"init_inference: loading {name}", enabled=enabled and _log.isEnabledFor(logging.INFO))


def _source(
    module: nn.Module, config: InferenceConfig, collectives: Collectives, progress: Callable[[int, int], None]
) -> CheckpointSource | None:
    """Return where the weights come from, None for those that the model has."""
    if config.checkpoint is None:
        require_filled(module)
        return None
    if not on_meta(module):
        raise ConfigError(
            "init_inference: checkpoint is given, but the model has weights already",
            hint='make the model with `with torch.device("meta"):`, or leave checkpoint out',
        )
    tensors = find_tensors(config)
    return CheckpointSource(module, tensors, config.dtype, Tally(tensors, collectives.size, progress))


def _split(
    module: nn.Module, config: InferenceConfig, collectives: Collectives, source: TakingSource
) -> ShardReport | None:
    if collectives.size == 1:
        return None
    if not hasattr(module, "config") or not hasattr(module, "get_input_embeddings"):
        raise ConfigError(
            f"init_inference: {type(module).__name__} cannot be split over {collectives.size} ranks: it is no model of "
            "transformers",
            hint="tp_size=1 runs the whole model on each rank",
        )
    policy = _policy(module, config.injection_policy)
    report = shard_module(module, collectives, policy=policy, grain=config.tp_grain_size, source=source)
    if collectives.rank == 0:
        _log.info("%s", str(report).splitlines()[0])
    return report


def _policy(module: nn.Module, given: Any) -> Any:
    """Return a policy with classes in place of their names; names alone count in the model's decoder blocks."""
    if isinstance(given, tuple) and all(isinstance(name, str) for name in given):
        return {type(_blocks(module)[0]): given}
    if not isinstance(given, Mapping):
        return given
    classes = {type(part).__name__: type(part) for part in module.modules()}
    for block in given:
        if (block if isinstance(block, str) else block.__name__) not in classes:
            name = block if isinstance(block, str) else block.__name__
            raise ConfigError(
                f"init_inference: injection_policy: {type(module).__name__} has no block of class {name}",
                hint=f"its decoder blocks are {type(_blocks(module)[0]).__name__}",
            )
    return {classes[block] if isinstance(block, str) else block: names for block, names in given.items()}


def _blocks(module: nn.Module) -> nn.ModuleList:
    """Return the longest list of modules: the decoder blocks."""
    lists = [part for part in module.modules() if isinstance(part, nn.ModuleList) and len(part)]
    if not lists:
        raise ConfigError(f"init_inference: injection_policy: {type(module).__name__} has no list of decoder blocks")
    return max(lists, key=len)


def _quantize(module: nn.Module, config: InferenceConfig, collectives: Collectives) -> None:
    assert config.scheme is not None
    number = quantize_linears(module, config.scheme)
    if collectives.rank:
        return
    _log.info("init_inference: %d matrices quantized by %s", number, config.scheme.name)
    if not number:
        _log.warning("init_inference: %s has no linear layer that can be quantized", type(module).__name__)
    if config.replace_with_kernel_inject:
        _log.warning(
            "init_inference: replace_with_kernel_inject has no effect with quantized weights: Corebound's blocks have "
            "floats only, so the model's own stay"
        )
