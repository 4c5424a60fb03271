"""The hierarchical all-reduce as a torch operator, so that torch.compile can trace past it."""

from __future__ import annotations

import itertools
import weakref
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from corebound.comm.hierarchical import HierarchicalCollectives

_GROUPS: weakref.WeakValueDictionary[int, HierarchicalCollectives] = weakref.WeakValueDictionary()
_HANDLES = itertools.count(1)


def register(group: HierarchicalCollectives) -> int:
    """Return the handle by which the operator finds `group`."""
    handle = next(_HANDLES)
    _GROUPS[handle] = group
    return handle


@torch.library.custom_op("corebound::hierarchical_all_reduce_", mutates_args=("x",))
def hierarchical_all_reduce_(x: torch.Tensor, group: int, timeout_s: float | None = None) -> None:
    """Replace `x`, of any shape, by the sum over all members of the group with that handle."""
    _GROUPS[group].all_reduce(x, timeout_s)


@hierarchical_all_reduce_.register_fake
def _fake_all_reduce(x: torch.Tensor, group: int, timeout_s: float | None = None) -> None:
    return None
