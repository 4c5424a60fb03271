"""In which order the outputs (or inputs) of a projection lie, and which of them a rank takes. Pure; imports no torch.

A layout is a name of LAYOUTS, or several names for projections that are stacked one after the other. In a stack the
parts that are `even` or `aligned` share what the heads leave, equally.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from corebound.errors import ShardingError
from corebound.sharding.modules.deal import RankDeal

Layout = str | tuple[str, ...]

_ALIGNED = 8  # elements: torch's grouped product wants rows at multiples of 16 bytes, which are 8 of two bytes
NUM_CODEGEN_BLOCKS = 4  # of the processors that CodeGen was trained on; its checkpoints are laid out by them


@dataclass(frozen=True)
class _Kind:
    """One kind of order: how many outputs it has in the whole model (None: any number), and those of a rank."""

    size: Callable[[RankDeal], int | None]
    ranges: Callable[[RankDeal, int], Iterable[range]]


def _units(heads: Iterable[int], width: int) -> list[range]:
    return [range(head * width, (head + 1) * width) for head in heads]


def _kv_groups(deal: RankDeal, _: int) -> list[range]:
    """Per kv head: its query heads, its key, its value."""
    heads, width = deal.heads, deal.heads.head_dim
    group = heads.num_heads // heads.num_kv_heads
    local_group = deal.num_heads // deal.num_kv_heads
    parts = []
    for slot, kv in enumerate(deal.kv_heads):
        base = kv * (group + 2)
        queries = deal.query_heads[slot * local_group : (slot + 1) * local_group]
        parts += _units([base + head % group for head in queries] + [base + group, base + group + 1], width)
    return parts


def _codegen(deal: RankDeal, size: int) -> list[range]:
    """Blocks of (query, value, key); the rank's channels are spread over as many blocks again."""
    width = size // 3 // NUM_CODEGEN_BLOCKS
    head_dim = deal.heads.head_dim
    local, rest = divmod(deal.num_heads * head_dim, NUM_CODEGEN_BLOCKS)
    if rest:
        raise ShardingError(f"{deal.num_heads} heads of {head_dim} cannot be laid out in {NUM_CODEGEN_BLOCKS} blocks")
    first = deal.query_heads.start * head_dim
    parts = []
    for block in range(NUM_CODEGEN_BLOCKS):
        for kind in range(3):
            start = first + block * local
            while start < first + (block + 1) * local:
                stop = min(first + (block + 1) * local, (start // width + 1) * width)
                offset = (start // width * 3 + kind) * width - start // width * width
                parts.append(range(start + offset, stop + offset))
                start = stop
    return parts


LAYOUTS: dict[str, _Kind] = {
    "even": _Kind(lambda deal: None, lambda deal, size: [deal.columns(size)]),
    "aligned": _Kind(lambda deal: None, lambda deal, size: [deal.columns(size, least_grain=_ALIGNED)]),
    "heads": _Kind(lambda deal: deal.heads.query_width, lambda deal, _: _units(deal.query_heads, deal.heads.head_dim)),
    "kv_heads": _Kind(lambda deal: deal.heads.kv_width, lambda deal, _: _units(deal.kv_heads, deal.heads.head_dim)),
    "head_index": _Kind(lambda deal: deal.heads.num_heads, lambda deal, _: _units(deal.query_heads, 1)),
    "kv_head_index": _Kind(lambda deal: deal.heads.num_kv_heads, lambda deal, _: _units(deal.kv_heads, 1)),
    "per_head": _Kind(
        lambda deal: 3 * deal.heads.query_width, lambda deal, _: _units(deal.query_heads, 3 * deal.heads.head_dim)
    ),
    "kv_groups": _Kind(lambda deal: deal.heads.query_width + 2 * deal.heads.kv_width, _kv_groups),
    "codegen": _Kind(lambda deal: 3 * deal.heads.query_width, _codegen),
}

STACKED_QKV: Layout = ("heads", "kv_heads", "kv_heads")
GATE_UP: Layout = ("even", "even")


def layout_ranges(layout: Layout, deal: RankDeal, size: int, where: str) -> tuple[range, ...]:
    """Return what a rank takes of a dimension of `size`, in the order it keeps it.

    Raises: ShardingError naming `where` when the layout cannot have that size, or is not known.
    """
    names = layout_names(layout)
    unknown = [name for name in names if name not in LAYOUTS]
    if unknown or not names:
        raise ShardingError(
            f"{where}: unknown layout {layout!r}", hint=f"layouts: {', '.join(LAYOUTS)}, or a tuple of them"
        )
    sizes = [LAYOUTS[name].size(deal) for name in names]
    free = sizes.count(None)
    left = size - sum(part for part in sizes if part is not None)
    if left < 0 or (left > 0 and not free) or (free and left % free):
        heads = deal.heads
        raise ShardingError(
            f"{where}: a size of {size} does not fit layout {layout!r} of {heads.num_heads} heads and "
            f"{heads.num_kv_heads} kv heads of {heads.head_dim}",
            hint="give a policy that says how it is laid out: LinearSpec(pattern, 'column', layout)",
        )
    parts: list[range] = []
    offset = 0
    try:
        for name, fixed in zip(names, sizes, strict=True):
            length = left // free if fixed is None else fixed
            parts += [shifted(part, offset) for part in LAYOUTS[name].ranges(deal, length)]
            offset += length
    except ShardingError as error:
        raise ShardingError(f"{where}: {error.message}", hint=error.hint) from error
    return merged(parts)


def layout_names(layout: Layout) -> tuple[str, ...]:
    """Return the names that a layout stacks."""
    return (layout,) if isinstance(layout, str) else tuple(layout)


def shifted(part: range, offset: int) -> range:
    """Return the range moved by `offset`."""
    return range(part.start + offset, part.stop + offset)


def merged(parts: Iterable[range]) -> tuple[range, ...]:
    """Return the ranges with those joined that continue each other; fewer pieces are fewer copies."""
    joined: list[range] = []
    for part in parts:
        if joined and joined[-1].stop == part.start:
            joined[-1] = range(joined[-1].start, part.stop)
        elif part:
            joined.append(part)
    return tuple(joined)
