"""Dealing whole things (heads, columns, words) to ranks: contiguous, uneven where it must be, nothing left over."""

from __future__ import annotations


def deal(total: int, num_parts: int, *, grain: int = 1, surplus_last: bool = False) -> tuple[range, ...]:
    """Return `num_parts` contiguous ranges that cover 0 to `total` once, in multiples of `grain` as even as possible.

    Grains that cannot be dealt evenly go one each to the first parts, or to the last with `surplus_last`; a rest
    smaller than a grain goes to a part that got no extra grain. Parts are empty only when total < num_parts * grain.
    """
    num_grains, rest = divmod(total, grain)
    base, num_surplus = divmod(num_grains, num_parts)
    sizes = [(base + (part < num_surplus)) * grain for part in range(num_parts)]
    sizes[-1] += rest
    if surplus_last:
        sizes.reverse()
    ranges, start = [], 0
    for size in sizes:
        ranges.append(range(start, start + size))
        start += size
    return tuple(ranges)


def balanced_grain(total: int, num_parts: int, *, largest: int = 64, grains_per_part: int = 8) -> int:
    """Return the largest power of two up to `largest` that still gives each part `grains_per_part` grains, at least 1.

    Matrix products like multiples of 64; a coarse grain on a small dimension would leave one rank waiting for another.
    """
    grain = largest
    while grain > 1 and total < grain * grains_per_part * num_parts:
        grain //= 2
    return grain


def deal_heads(num_heads: int, num_kv_heads: int, num_ranks: int) -> tuple[tuple[range, range], ...]:
    """Return for each rank its query heads and the kv heads they read, both contiguous.

    With as many kv heads as ranks, or more, kv heads are dealt and take their query heads along, so that each is held
    once. With fewer, query heads are dealt and every rank holds a copy of each kv head that its query heads read;
    of two ways to deal them, evenly over all ranks or evenly within each kv head's ranks, the one with the smaller
    largest share is taken.
    """
    group = num_heads // num_kv_heads
    if num_ranks <= num_kv_heads:
        return tuple((range(kv.start * group, kv.stop * group), kv) for kv in deal(num_kv_heads, num_ranks))
    even = _with_kv_heads(deal(num_heads, num_ranks), group)
    aligned: list[range] = []
    for kv_head, ranks in enumerate(deal(num_ranks, num_kv_heads)):
        if len(ranks) > group:
            return even
        first = kv_head * group
        aligned += [range(first + part.start, first + part.stop) for part in deal(group, len(ranks))]
    return min(even, _with_kv_heads(tuple(aligned), group), key=_largest_share)


def _with_kv_heads(query_heads: tuple[range, ...], group: int) -> tuple[tuple[range, range], ...]:
    return tuple((q, range(q.start // group, -(-q.stop // group))) for q in query_heads)


def _largest_share(shares: tuple[tuple[range, range], ...]) -> tuple[int, int]:
    return max(len(q) for q, _ in shares), max(len(kv) for _, kv in shares)
