"""What one rank holds of a model: its heads and its part of every other dimension. Pure; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from corebound.errors import ShardingError
from corebound.sharding.partition import balanced_grain, deal, deal_heads


@dataclass(frozen=True)
class Heads:
    """The attention heads of the whole model."""

    num_heads: int
    num_kv_heads: int
    head_dim: int

    @property
    def query_width(self) -> int:
        """Return the outputs of the query projection."""
        return self.num_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Return the outputs of the key projection, which are also those of the value projection."""
        return self.num_kv_heads * self.head_dim


@dataclass(frozen=True, kw_only=True)
class RankDeal:
    """The part of one rank: contiguous query heads and the kv heads they read, both as numbers of the whole model.

    `kv_heads` has a head several times where query heads would otherwise share kv heads in groups of unequal size,
    which no attention of transformers can express.
    """

    heads: Heads
    rank: int
    num_ranks: int
    grain: int
    query_heads: range
    kv_heads: tuple[int, ...]
    owned_kv_heads: frozenset[int]
    """The kv heads that no rank before this one holds."""

    @property
    def num_heads(self) -> int:
        """Return the number of query heads of this rank."""
        return len(self.query_heads)

    @property
    def num_kv_heads(self) -> int:
        """Return the number of kv heads of this rank, repeated ones included."""
        return len(self.kv_heads)

    def columns(self, size: int, least_grain: int = 1) -> range:
        """Return this rank's part of a dimension that is no heads, such as the inner one of an MLP.

        Cuts are at multiples of `least_grain`, and of more where the dimension is large.

        Raises: ShardingError when it is too small to give every rank a part.
        """
        return self.all_columns(size, least_grain)[self.rank]

    def all_columns(self, size: int, least_grain: int = 1) -> tuple[range, ...]:
        """Return every rank's part of such a dimension.

        Raises: ShardingError when it is too small to give every rank a part.
        """
        if size < self.num_ranks * least_grain:
            grains = f" at multiples of {least_grain}" if least_grain > 1 else ""
            raise ShardingError(
                f"a dimension of {size} cannot be split over {self.num_ranks} ranks{grains}",
                hint=f"use 1 to {max(1, size // least_grain)} ranks",
            )
        grain = max(balanced_grain(size, self.num_ranks, largest=self.grain), least_grain)
        # The first ranks have the surplus heads, so the surplus of the others goes to the last.
        return deal(size, self.num_ranks, grain=grain, surplus_last=True)

    def vocab(self, num_words: int) -> tuple[range, ...]:
        """Return every rank's part of the vocabulary.

        Raises: ShardingError for more ranks than words.
        """
        if num_words < self.num_ranks:
            raise ShardingError(f"cannot split a vocabulary of {num_words} words over {self.num_ranks} ranks")
        return deal(num_words, self.num_ranks, surplus_last=True)


def rank_deal(heads: Heads, rank: int, num_ranks: int, *, grain: int = 64) -> RankDeal:
    """Return the part of `rank`.

    Raises: ShardingError for more ranks than heads, naming the numbers that work.
    """
    if num_ranks > heads.num_heads:
        raise ShardingError(
            f"cannot split {heads.num_heads} attention heads over {num_ranks} ranks",
            hint=f"use 1 to {heads.num_heads} ranks",
        )
    shares = deal_heads(heads.num_heads, heads.num_kv_heads, num_ranks)
    query, kv = shares[rank]
    group = heads.num_heads // heads.num_kv_heads
    reads = tuple(head // group for head in query)
    local_group, rest = divmod(len(query), len(kv))
    even = rest == 0 and all(reads[i] == kv[i // local_group] for i in range(len(reads)))
    before = {head for _, others in shares[:rank] for head in others}
    return RankDeal(
        heads=heads,
        rank=rank,
        num_ranks=num_ranks,
        grain=grain,
        query_heads=query,
        kv_heads=tuple(kv) if even else reads,
        owned_kv_heads=frozenset(kv) - before,
    )
