"""What `init_inference` was asked for: object, file and keywords merged, every key known, every value checked."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from corebound.config.env import rank_environment
from corebound.config.suggest import unknown_name
from corebound.errors import ConfigError
from corebound.inference.keys import BLOCKS, Key, blocks, by_name
from corebound.inference.values import wrong
from corebound.logs import get_logger
from corebound.quantization.scheme import DEFAULTS, Scheme
from corebound.topology import read_topology

_log = get_logger(__name__)

DEFAULT_MAX_OUT_TOKENS = 1024
DEFAULT_GRAIN = 64
# The instruction sets whose products of bfloat16 are as fast as, or faster than, those of float32.
_BFLOAT16_ISAS = ("amx", "avx512_bf16")


@dataclass(frozen=True, kw_only=True)
class InferenceConfig:
    """A checked configuration. docs/inference.md has what each field means.

    `tp_size` None means that it was not given, 0 all ranks of the launch. `scheme` is how weights are quantized, None
    for floats; `dtype` is what is computed in.
    """

    dtype: torch.dtype
    scheme: Scheme | None = None
    tp_size: int | None = None
    tp_grain_size: int = DEFAULT_GRAIN
    tp_group: Any = None
    replace_with_kernel_inject: bool = False
    injection_policy: Any = None
    checkpoint: str | Mapping[str, Any] | None = None
    base_dir: Path | None = None
    save_mp_checkpoint_path: Path | None = None
    allow_pickled_weights: bool = False
    max_out_tokens: int = DEFAULT_MAX_OUT_TOKENS
    min_out_tokens: int = 1

    @classmethod
    def read(cls, config: object = None, keywords: Mapping[str, Any] | None = None) -> InferenceConfig:
        """Return the configuration that an object or JSON file and keywords together ask for.

        Raises: ConfigError for an unknown key, with the nearest one; a wrong value; two values of one key; keys that
        exclude each other.
        """
        given = _Given()
        given.add_all(_load(config), "config")
        given.add_all(dict(keywords or {}), "keyword")
        given.warn_of_ignored()
        return _build(given.values)


@dataclass(frozen=True)
class _Written:
    """A value as the user wrote it: under which name, and in which of the two places."""

    name: str
    origin: str
    raw: Any

    def __str__(self) -> str:
        return f"{self.name}={self.raw!r:.60} ({self.origin})"


class _Given:
    """The values by full name, collected from several places that must agree."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self._written: dict[str, _Written] = {}
        self._keys, self._blocks = by_name(), blocks()

    def add_all(self, content: Mapping[str, Any], origin: str) -> None:
        """Add every key of an object.

        Raises: ConfigError.
        """
        for name, raw in self._flatten(content, ""):
            key = self._keys.get(name)
            if key is None:
                raise self._unknown(name)
            # None is how callers write "not given".
            if raw is not None:
                self._add(key, _Written(name, origin, raw))

    def warn_of_ignored(self) -> None:
        """Say once, on rank 0, for each key without effect that was given a value which asks for something."""
        place = rank_environment()
        if place is not None and place.rank != 0:
            return
        for name, written in self._written.items():
            key = self._keys[name]
            if key.ignored and written.raw not in (False, 0, "", {}):
                _log.warning("init_inference: %s has no effect: %s", written.name, key.ignored)

    def _flatten(self, content: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for part, raw in content.items():
            if not isinstance(part, str):
                raise wrong(prefix.rstrip(".") or "config", "names as keys", part)
            name = prefix + (part if prefix else BLOCKS.get(part, part))
            if name in self._blocks:
                if raw is None:
                    continue
                if not isinstance(raw, Mapping):
                    raise wrong(name, "an object", raw)
                yield from self._flatten(raw, f"{name}.")
            else:
                yield name, raw

    def _add(self, key: Key, written: _Written) -> None:
        value = key.read(written.name, written.raw)
        before = self._written.get(key.name)
        if before is not None and not _same(self.values[key.name], value):
            raise ConfigError(
                f"init_inference: two values of {key.name}: {before} and {written}", hint="leave one of them out"
            )
        self.values[key.name], self._written[key.name] = value, written

    def _unknown(self, name: str) -> ConfigError:
        block, _, last = name.rpartition(".")
        valid = {other.rpartition(".")[2] for other in self._keys if other.rpartition(".")[0] == block}
        valid |= {inner.removeprefix(f"{block}.").partition(".")[0] for inner in self._blocks if not block} - {""}
        valid |= {inner.rpartition(".")[2] for inner in self._blocks if block and inner.rpartition(".")[0] == block}
        return unknown_name("key", last, valid | (set(BLOCKS) if not block else set()), where=_place(block))


def _place(block: str) -> str:
    return f"init_inference: {block}" if block else "init_inference"


def _same(first: Any, second: Any) -> bool:
    return first is second or bool(first == second)


def _load(config: object) -> Mapping[str, Any]:
    if config is None:
        return {}
    if isinstance(config, Mapping):
        return config
    if not isinstance(config, str | Path):
        raise wrong("config", "an object, or the path of a JSON file", config)
    try:
        content = json.loads(Path(config).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"init_inference: {config}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"init_inference: {config}: not UTF-8 text: {error.reason}") from error
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"init_inference: {config}, line {error.lineno}, column {error.colno}: not JSON: {error.msg}"
        ) from error
    if not isinstance(content, dict):
        raise ConfigError(f"init_inference: {config}: expected a JSON object, found {type(content).__name__}")
    return content


def _build(values: Mapping[str, Any]) -> InferenceConfig:
    dtype, scheme = _types(values)
    policy = values.get("injection_policy")
    if "injection_policy_tuple" in values:
        if policy is not None:
            raise ConfigError("init_inference: injection_policy and injection_policy_tuple: only one of them counts")
        policy = values["injection_policy_tuple"]
    inject = values.get("replace_with_kernel_inject", False)
    if inject and policy is not None:
        raise ConfigError(
            "init_inference: injection_policy with replace_with_kernel_inject: the one keeps the model's blocks, the "
            "other replaces them",
            hint="leave one of them out",
        )
    optional = (
        "checkpoint",
        "base_dir",
        "save_mp_checkpoint_path",
        "allow_pickled_weights",
        "max_out_tokens",
        "min_out_tokens",
    )
    full = {"tp_grain_size": "tensor_parallel.tp_grain_size", **{name: name for name in optional}}
    return InferenceConfig(
        dtype=dtype,
        scheme=scheme,
        tp_size=_tp_size(values),
        tp_group=_tp_group(values),
        replace_with_kernel_inject=inject,
        injection_policy=policy,
        **{name: values[key] for name, key in full.items() if key in values},
    )


def _tp_size(values: Mapping[str, Any]) -> int | None:
    size: int | None = values.get("tensor_parallel.tp_size")
    if values.get("tensor_parallel.enabled", True):
        return size
    if size is not None and size > 1:
        raise ConfigError(f"init_inference: tensor_parallel.enabled is false, but tp_size is {size}")
    return 1


def _tp_group(values: Mapping[str, Any]) -> Any:
    group, mpu = values.get("tensor_parallel.tp_group"), values.get("tensor_parallel.mpu")
    if group is not None and mpu is not None:
        raise ConfigError("init_inference: tp_group and mpu: only one of them can name the group")
    return mpu.get_model_parallel_group() if mpu is not None else group


def _types(values: Mapping[str, Any]) -> tuple[torch.dtype, Scheme | None]:
    """Return what is computed in, and how weights are quantized."""
    asked = values.get("dtype")
    block = {name.removeprefix("quant."): value for name, value in values.items() if name.startswith("quant.")}
    is_on = block.pop("enabled", True) and block.pop("weight.enabled", True)
    # Codes are multiplied as bfloat16 by the kernels, whatever the CPU.
    dtype = asked if isinstance(asked, torch.dtype) else torch.bfloat16 if isinstance(asked, Scheme) else None
    if isinstance(asked, Scheme):
        if not is_on:
            raise ConfigError(f"init_inference: dtype {asked.name}, but quant says that weights are not quantized")
        weight = {name: value for name, value in block.items() if name.startswith("weight.")}
        if weight and (scheme := _scheme(weight, asked)) != asked:
            raise ConfigError(f"init_inference: two ways to quantize: dtype {asked.name}, quant {scheme.name}")
        return torch.bfloat16, asked
    wants = is_on and any(name in values for name in ("quant.enabled", *(f"quant.{name}" for name in block)))
    return dtype or default_dtype(), _scheme(block, None) if wants else None


def _scheme(block: Mapping[str, Any], asked: Scheme | None) -> Scheme:
    bits = block.get("weight.num_bits", asked.bits if asked else 8)
    default = asked if asked and asked.bits == bits else DEFAULTS[f"int{bits}"]
    group_size = block.get("weight.group_size", default.group_size)
    if "weight.q_groups" in block:
        if "weight.group_size" in block:
            raise ConfigError("init_inference: quant.weight: q_groups and group_size: only one of them counts")
        group_size = None
    return Scheme(bits, group_size, block.get("weight.q_type", default.symmetric))


def default_dtype() -> torch.dtype:
    """Return bfloat16 where the CPU multiplies it, else float32.

    Raises: HostError as `read_topology`.
    """
    return torch.bfloat16 if read_topology().isa.best in _BFLOAT16_ISAS else torch.float32
