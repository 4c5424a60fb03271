"""Sharding: family tables, the plan of a split, and weights read slice by slice. Importing it imports no torch."""

from corebound.sharding.axes import RankShare
from corebound.sharding.geometry import Geometry
from corebound.sharding.plan import ShardPlan, alibi_slopes, shard_plan

__all__ = ["Geometry", "RankShare", "ShardPlan", "alibi_slopes", "shard_plan"]
