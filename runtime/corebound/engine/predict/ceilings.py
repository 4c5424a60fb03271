"""The measured limits of one machine that a prediction stands on, and the JSON file that carries them elsewhere."""

from __future__ import annotations

import dataclasses
import json
import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from corebound.errors import ConfigError
from corebound.kernels.panel_format import KINDS, Kind
from corebound.kernels.panel_probe import ProductRate

FORMAT = 2
_HINT = "write it on the target machine by `corebound plan --measure FILE`"


@dataclass(frozen=True, kw_only=True)
class SumTime:
    """How long ranks of one host take to swap and add `num_bytes`, each on a core of its own."""

    num_ranks: int
    num_bytes: int
    time_us: float


@dataclass(frozen=True, kw_only=True)
class InputTime:
    """What a product with one row costs for each input beside its weights: the row made ready, and the last panel."""

    kind: Kind
    time_ns: float


@dataclass(frozen=True, kw_only=True)
class AttentionRate:
    """How fast attention is on all cores where `group_heads` queries read the same keys.

    `cache_gb_per_s` is of one token that goes through its context, `prompt_gflop_per_s` of a prompt.
    """

    group_heads: int
    cache_gb_per_s: float
    prompt_gflop_per_s: float


@dataclass(frozen=True, kw_only=True)
class Ceilings:
    """What all cores of one host reach together.

    `products`, `read_gb_per_s` and `attention` are of all cores at once; `layer_us` is what a layer of a step costs
    beside all that grows with the model: barriers, the bookkeeping of attention. The network counts only between hosts:
    None where nobody has measured it.
    """

    host: str
    isa: str
    num_cores: int
    num_numa_nodes: int
    memory_bytes: int
    read_gb_per_s: float
    products: tuple[ProductRate, ...]
    inputs: tuple[InputTime, ...]
    attention: tuple[AttentionRate, ...]
    sums: tuple[SumTime, ...]
    layer_us: float
    network_latency_us: float | None = None
    network_gb_per_s: float | None = None

    def product_seconds(self, kind: str, num_weights: int, num_rows: int, set_bytes: int) -> float:
        """Return how long all cores need for products of `num_rows` rows with as many weights.

        `set_bytes` are all weights of the host, which decide how much of them a cache still holds from the last step.
        """
        rates = [rate for rate in self.products if rate.kind == kind]
        single = sorted((rate.matrix_bytes, rate.weights_per_s) for rate in rates if rate.num_rows == 1)
        from_memory_s = 1 / _between([(math.log(size), rate) for size, rate in single], math.log(max(1, set_bytes)))
        smallest = single[0][0]
        by_rows = {rate.num_rows: rate for rate in rates if rate.num_rows > 1 or rate.matrix_bytes == smallest}
        computed_s = _between([(rows, 1 / rate.weights_per_s) for rows, rate in sorted(by_rows.items())], num_rows)
        return num_weights * max(from_memory_s, computed_s)

    def input_seconds(self, kind: str, num_inputs: int) -> float:
        """Return what a product with one row costs beside its weights."""
        return num_inputs * next(row.time_ns for row in self.inputs if row.kind == kind) * 1e-9

    def cache_seconds(self, num_bytes: float, group_heads: float) -> float:
        """Return how long a token needs for its context where so many queries read the same keys."""
        # Reading takes as long however many queries there are, computing grows with them.
        times = sorted((float(row.group_heads), 1 / row.cache_gb_per_s) for row in self.attention)
        return num_bytes * _between(times, group_heads) * 1e-9

    def prompt_attention_seconds(self, num_flop: float, group_heads: float) -> float:
        """Return how long a prompt's attention takes where so many queries read the same keys."""
        # Keys and values are laid out once for all queries that read them.
        times = sorted((1 / row.group_heads, 1 / row.prompt_gflop_per_s) for row in self.attention)
        return num_flop * _between(times, 1 / group_heads) * 1e-9

    def sum_seconds(self, num_ranks: int, num_bytes: int) -> float:
        """Return how long an all-reduce takes between ranks of this host."""
        if num_ranks < 2 or not self.sums:
            return 0.0
        near = min({row.num_ranks for row in self.sums}, key=lambda number: abs(number - num_ranks))
        times = sorted((row.num_bytes, row.time_us * 1e-6) for row in self.sums if row.num_ranks == near)
        # One-shot: a member reads what every other has written.
        beyond = max(1.0, num_bytes / times[-1][0])
        return _between(times, num_bytes) * beyond * max(1.0, (num_ranks - 1) / (near - 1))

    def to_json(self) -> dict[str, Any]:
        """Return the content of the file."""
        return {"format": FORMAT, **dataclasses.asdict(self)}


_LISTS: dict[str, type] = {"products": ProductRate, "inputs": InputTime, "attention": AttentionRate, "sums": SumTime}


def _between(points: Sequence[tuple[float, float]], x: float) -> float:
    """Return the value at `x` on the lines between points in rising order; constant before and after them."""
    index = bisect_left([at for at, _ in points], x)
    if index == 0:
        return points[0][1]
    if index == len(points):
        return points[-1][1]
    (x0, y0), (x1, y1) = points[index - 1], points[index]
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)


def write_ceilings(path: Path, ceilings: Ceilings) -> None:
    """Write the file. Raises: ConfigError when that is not possible."""
    try:
        path.write_text(json.dumps(ceilings.to_json(), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--measure {path}: {error.strerror}", hint="name a file that can be written") from error


def read_ceilings(path: Path) -> Ceilings:
    """Return the ceilings in a file. Raises: ConfigError that names the file and the field that is wrong."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--ceilings {path}: {error.strerror}", hint=_HINT) from error
    except ValueError as error:
        raise ConfigError(f"--ceilings {path}: not JSON: {error}", hint=_HINT) from error
    if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
        raise ConfigError(f"--ceilings {path}: expected an object with format {FORMAT}", hint=_HINT)
    fields = {item.name for item in dataclasses.fields(Ceilings)}
    if extra := sorted(values.keys() - fields):
        raise ConfigError(f"--ceilings {path}: unknown field {extra[0]}", hint=_HINT)
    for name in ("host", "isa"):
        if not isinstance(values.get(name), str):
            raise ConfigError(f"--ceilings {path}: {name}: expected text, found {values.get(name)!r}", hint=_HINT)
    for name in sorted(fields - {"host", "isa", *_LISTS}):
        optional = name.startswith("network_")
        values[name] = _positive(path, name, values.get(name), optional=optional)
    for name, row in _LISTS.items():
        values[name] = tuple(_rows(path, name, values.get(name), row))
    for kind in KINDS:
        if not any(rate.kind == kind and rate.num_rows == 1 for rate in values["products"]):
            raise ConfigError(f"--ceilings {path}: products: none of {kind} with one row", hint=_HINT)
        if not any(row.kind == kind for row in values["inputs"]):
            raise ConfigError(f"--ceilings {path}: inputs: none of {kind}", hint=_HINT)
    if not values["attention"]:
        raise ConfigError(f"--ceilings {path}: attention: expected some, found none", hint=_HINT)
    return Ceilings(**values)


def _positive(path: Path, name: str, value: Any, *, optional: bool = False) -> Any:
    if optional and value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise ConfigError(f"--ceilings {path}: {name}: expected a number above 0, found {value!r}", hint=_HINT)
    return value


def _rows(path: Path, name: str, rows: Any, kind: type) -> list[Any]:
    if not isinstance(rows, list):
        raise ConfigError(f"--ceilings {path}: {name}: expected a list, found {type(rows).__name__}", hint=_HINT)
    wanted = [item.name for item in dataclasses.fields(kind)]
    made = []
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or sorted(row) != sorted(wanted):
            raise ConfigError(f"--ceilings {path}: {name}[{number}]: expected {', '.join(wanted)}", hint=_HINT)
        for field in wanted:
            where = f"{name}[{number}].{field}"
            if field != "kind":
                _positive(path, where, row[field])
            elif row[field] not in KINDS:
                raise ConfigError(f"--ceilings {path}: {where}: expected {', '.join(KINDS)}", hint=_HINT)
        made.append(kind(**row))
    return made
