"""What shard_module did, for people and programs."""

from __future__ import annotations

from dataclasses import dataclass

from corebound.sharding.modules.layouts import Layout


@dataclass(frozen=True)
class Split:
    """One matrix: its name, what was done with it, by which layout, who said so, its whole shape and the rank's."""

    name: str
    action: str
    layout: Layout | None
    origin: str
    whole_shape: tuple[int, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ShardReport:
    """What one rank holds of a model."""

    family: str
    rank: int
    num_ranks: int
    query_heads: range
    kv_heads: tuple[int, ...]
    splits: tuple[Split, ...]
    num_elements: int
    whole_num_elements: int

    def __str__(self) -> str:
        kv = ", ".join(str(head) for head in self.kv_heads)
        lines = [
            f"{self.family}: rank {self.rank} of {self.num_ranks}: query heads {self.query_heads.start} to "
            f"{self.query_heads.stop - 1}, kv heads {kv}; {self.num_elements:,} of {self.whole_num_elements:,} weights"
        ]
        for split in self.splits:
            layout = "" if split.layout is None else f" {split.layout}"
            shapes = f"{list(split.whole_shape)} to {list(split.shape)}"
            lines.append(f"  {split.name}: {split.action}{layout} ({split.origin}), {shapes}")
        return "\n".join(lines)
