"""What is done with each matrix of a model: ordered specs, of a family's table or of the user's policy."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from corebound.errors import ConfigError
from corebound.sharding.modules.layouts import LAYOUTS, Layout, layout_names

Partition = Literal["column", "row", "skip"]
_PARTITIONS = ("column", "row", "skip")


def named(name: str, end: str) -> bool:
    """Return whether a dotted name is `end` or ends in it after a dot."""
    return name == end or name.endswith("." + end)


@dataclass(frozen=True)
class LinearSpec:
    """What is done with the matrices whose dotted names end in `pattern`, a regular expression.

    `column` splits the outputs; `row` splits the inputs and sums the products of all ranks; `skip` keeps the matrix
    whole on every rank. `layout` says how the split dimension is laid out (corebound.sharding.modules.layouts); None
    takes heads for a projection of an attention that has exactly their width, and equal columns outside of attention.
    With `summed_later` a row-parallel product stays partial, because a module around it sums. With `whole_activation`
    the outputs of a column-parallel layer are gathered, and a row-parallel layer takes its part of a whole input; its
    layout is `even`, stated or not.

    Raises: ConfigError for another partition, an unknown layout, or a pattern that is no regular expression.
    """

    pattern: str
    partition: Partition
    layout: Layout | None = None
    summed_later: bool = False
    whole_activation: bool = False

    def __post_init__(self) -> None:
        if self.partition not in _PARTITIONS:
            raise ConfigError(
                f"LinearSpec {self.pattern!r}: partition must be one of {', '.join(_PARTITIONS)}; "
                f"found {self.partition!r}"
            )
        names = () if self.layout is None else layout_names(self.layout)
        unknown = [name for name in names if name not in LAYOUTS]
        if unknown:
            raise ConfigError(
                f"LinearSpec {self.pattern!r}: unknown layout {unknown[0]!r}",
                hint=f"layouts: {', '.join(LAYOUTS)}, or a tuple of them",
            )
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ConfigError(f"LinearSpec {self.pattern!r}: no regular expression: {error}") from error

    def matches(self, name: str) -> bool:
        """Return whether the dotted name, or its end after a dot, is the pattern."""
        return re.fullmatch(rf"(?:.*\.)?(?:{self.pattern})", name) is not None


@dataclass(frozen=True)
class Policy:
    """The user's own rules, above a family's table: ordered specs, and row-parallel layers by class of block.

    Of `specs` the first that matches counts. `blocks` has DeepSpeed's form: inside a block of that class the named
    linear layers are row-parallel and all others column-parallel.
    """

    specs: tuple[LinearSpec, ...] = ()
    blocks: Mapping[type, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, given: Any) -> Policy:
        """Return the policy of any form that users write: a policy, specs, or a dictionary by class of block.

        Raises: ConfigError.
        """
        if given is None:
            return cls()
        if isinstance(given, Policy):
            return given
        if isinstance(given, LinearSpec):
            return cls(specs=(given,))
        if isinstance(given, Mapping):
            return cls(blocks={_block_class(key): _names(key, value) for key, value in given.items()})
        if isinstance(given, Sequence) and all(isinstance(spec, LinearSpec) for spec in given):
            return cls(specs=tuple(given))
        raise ConfigError(
            f"policy: expected a Policy, LinearSpec objects or {{BlockClass: (names, …)}}; found {given!r}"
        )


def _block_class(key: Any) -> type:
    if not isinstance(key, type):
        raise ConfigError(f"policy: expected the class of a block as key, found {key!r}")
    return key


def _names(key: type, value: Any) -> tuple[str, ...]:
    names = (value,) if isinstance(value, str) else value
    if not isinstance(names, Sequence) or not names or not all(isinstance(name, str) and name for name in names):
        raise ConfigError(f"policy: {key.__name__}: expected names of row-parallel layers, found {value!r}")
    return tuple(names)
