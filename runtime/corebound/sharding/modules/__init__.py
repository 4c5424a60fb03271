"""Tensor parallelism for transformers' own decoders: their modules are replaced by parts, one rank each."""

from corebound.sharding.modules.apply import shard_module
from corebound.sharding.modules.report import ShardReport, Split
from corebound.sharding.modules.sources import CheckpointSource, ModelSource, WeightSource
from corebound.sharding.modules.spec import LinearSpec, Policy

__all__ = [
    "CheckpointSource",
    "LinearSpec",
    "ModelSource",
    "Policy",
    "ShardReport",
    "Split",
    "WeightSource",
    "shard_module",
]
