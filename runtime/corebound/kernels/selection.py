"""Which implementation each operator has: decided once, from what was asked for and what can run, and reported."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypedDict

from corebound import logs
from corebound.config import env
from corebound.errors import KernelError

if TYPE_CHECKING:
    from torch import Tensor

OPS = (
    "layer_norm",
    "add_layer_norm",
    "rms_norm",
    "add_rms_norm",
    "split_qkv",
    "rotary",
    "store_kv",
    "attention",
    "gelu",
    "silu_mul",
    "linear",
)

_log = logs.get_logger(__name__)


class Row(TypedDict):
    """What one operator runs on, and why."""

    op: str
    implementation: str
    variant: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class NativeSupport:
    """What the native libraries offer: operator -> active variant, and why that one; or why they offer nothing."""

    variants: Mapping[str, str] = field(default_factory=dict)
    reason: str = "best variant that runs here"
    problem: str = ""


class Implementations:
    """The implementation of every operator, filled in at the first use of any of them."""

    layer_norm: Callable[[Tensor, Tensor, Tensor, float], Tensor]
    add_layer_norm: Callable[[Tensor, Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]
    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    add_rms_norm: Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]
    split_qkv: Callable[[Tensor, str, int, int, int], tuple[Tensor, Tensor, Tensor]]
    rotary: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, bool], tuple[Tensor, Tensor]]
    store_kv: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], None]
    attention: Callable[
        [Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, float, Tensor | None, Tensor | None, int],
        Tensor,
    ]
    gelu: Callable[[Tensor, str], Tensor]
    silu_mul: Callable[[Tensor], Tensor]
    linear: Callable[[Tensor, Tensor, Tensor | None], Tensor]

    def __getattr__(self, name: str) -> Callable[..., object]:
        # Reached only while the attribute is not set, so a chosen implementation costs one plain attribute read.
        if name not in OPS:
            raise AttributeError(name)
        self.install(_selected())
        implementation: Callable[..., object] = self.__dict__[name]
        return implementation

    def install(self, rows: Collection[Row]) -> None:
        """Point every operator at the implementation its row names."""
        from corebound.kernels import native, reference

        modules = {"native": native, "reference": reference}
        self.__dict__["rows"] = tuple(rows)
        for row in rows:
            setattr(self, row["op"], getattr(modules[row["implementation"]], row["op"]))

    def clear(self) -> None:
        """Forget the implementations; the next use chooses again."""
        self.__dict__.clear()


active = Implementations()


def all_native() -> bool:
    """Return whether every operator runs natively now, within `forced` too.

    Raises: KernelError as `table` does.
    """
    return all(row["implementation"] == "native" for row in running_table())


def table() -> list[Row]:
    """Return for every operator the implementation and variant that run, and the reason.

    Raises: KernelError when `COREBOUND_ISA` names a variant that cannot run, or `COREBOUND_KERNELS=native` and an
    operator has no native implementation.
    """
    return list(_selected())


def running_table() -> list[Row]:
    """Return what operators run on now, within `forced` too.

    Raises: KernelError as `table` does.
    """
    rows: tuple[Row, ...] | None = active.__dict__.get("rows")
    return list(_selected() if rows is None else rows)


def active_isa() -> str:
    """Return the variant that native operators use, or `reference` when none is native.

    Raises: KernelError as `table` does.
    """
    return next((row["variant"] for row in _selected() if row["implementation"] == "native"), "reference")


def select(mode: str, support: NativeSupport, missing: Collection[str] = ()) -> list[Row]:
    """Return the choice for every operator from the mode asked for and what the native libraries offer.

    Operators in `missing` are treated as if they had no native implementation.

    Raises: KernelError in mode `native` when an operator has none.
    """
    return [_choose(op, mode, support, missing) for op in OPS]


@contextlib.contextmanager
def forced(*, mode: str | None = None, isa: str | None = None, missing: Collection[str] = ()) -> Iterator[list[Row]]:
    """Choose as if `COREBOUND_KERNELS` were `mode` and the native operators `missing` did not exist; for tests.

    `isa` becomes and stays the variant of this process, as `COREBOUND_ISA` would make it.

    Yields the resulting rows. The earlier choice comes back at the end.

    Raises: KernelError as `table` does.
    """
    settings = env.settings()
    chosen = mode or settings.kernels
    rows = select(chosen, _native_support(chosen, isa or settings.isa), missing)
    active.install(rows)
    try:
        yield rows
    finally:
        active.clear()


def _choose(op: str, mode: str, support: NativeSupport, missing: Collection[str]) -> Row:
    if mode == "reference":
        return Row(op=op, implementation="reference", variant="reference", reason="COREBOUND_KERNELS=reference")
    if op in support.variants and op not in missing:
        return Row(op=op, implementation="native", variant=support.variants[op], reason=support.reason)
    reason = support.problem or "no native implementation"
    if mode == "native":
        raise KernelError(
            f"kernel {op}: COREBOUND_KERNELS=native, but {reason}",
            hint="unset COREBOUND_KERNELS to fall back to plain torch, or build with `make native`",
        )
    return Row(op=op, implementation="reference", variant="reference", reason=reason)


def _native_support(mode: str, isa: str | None) -> NativeSupport:
    if mode == "reference":
        return NativeSupport()
    from corebound.kernels import native

    return native.support(isa)


@functools.cache
def _selected() -> tuple[Row, ...]:
    settings = env.settings()
    mode = settings.kernels
    rows = select(mode, _native_support(mode, settings.isa))
    if mode != "reference":
        fallbacks: dict[str, list[str]] = {}
        for row in rows:
            if row["implementation"] == "reference":
                fallbacks.setdefault(row["reason"], []).append(row["op"])
        for reason, names in fallbacks.items():
            _log.warning("kernels: plain torch in place of native %s: %s", ", ".join(names), reason)
    return tuple(rows)
