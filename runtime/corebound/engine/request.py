"""What is asked of the engine and what it answers, without torch: the command line validates before it launches."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from corebound.config.suggest import require_choice, unknown_name
from corebound.errors import RequestError
from corebound.quantization.scheme import DEFAULTS, is_scheme, parse_scheme

FinishReason = Literal["stop", "length"]
DTYPES = ("float32", "bfloat16", "float16")
# How the command line shows what --dtype takes; schemes have longer forms, see docs/quantization.md.
DTYPE_CHOICES = (*DTYPES, *DEFAULTS)
MAX_SEED = 2**64 - 1


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How to continue a prompt. The default is greedy; a temperature above 0 samples.

    Processing order is that of transformers: repetition penalty, temperature, top-k, top-p. `seed` None draws a new
    one per request. `stop` strings end the text before their first occurrence; `stop_token_ids` end it after
    themselves, like the model's own end-of-sequence tokens, which `ignore_eos` disables.

    Raises: RequestError for a value out of its range, naming the field.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    num_beams: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", (self.stop,) if isinstance(self.stop, str) else tuple(self.stop))
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        self._require(_is_int(self.max_new_tokens) and self.max_new_tokens >= 1, "max_new_tokens", "1 or more")
        self._require(_is_number(self.temperature) and 0 <= self.temperature < 1e6, "temperature", "0 (greedy) or more")
        self._require(
            self.top_k is None or (_is_int(self.top_k) and self.top_k >= 1),
            "top_k",
            "1 or more, or nothing for no limit",
        )
        self._require(_is_number(self.top_p) and 0 < self.top_p <= 1, "top_p", "above 0 and at most 1")
        self._require(
            _is_number(self.repetition_penalty) and 0 < self.repetition_penalty < 1e6, "repetition_penalty", "above 0"
        )
        self._require(
            self.seed is None or (_is_int(self.seed) and 0 <= self.seed <= MAX_SEED),
            "seed",
            "0 to 2**64 - 1, or nothing for a random one",
        )
        self._require(all(isinstance(text, str) and text for text in self.stop), "stop", "strings that are not empty")
        self._require(
            all(_is_int(token) and token >= 0 for token in self.stop_token_ids), "stop_token_ids", "token ids"
        )
        self._require(_is_int(self.num_beams) and self.num_beams >= 1, "num_beams", "1 or more")
        if self.num_beams > 1 and not self.is_greedy:
            raise RequestError(
                f"num_beams {self.num_beams} with temperature {self.temperature}: beam search does not sample",
                hint="leave temperature at 0, or num_beams at 1",
            )
        if self.num_beams > 1 and (self.stop or self.repetition_penalty != 1.0):
            raise RequestError(
                f"num_beams {self.num_beams} with stop strings or a repetition penalty: beam search has neither yet",
                hint="leave them out, or num_beams at 1",
            )

    def _require(self, holds: bool, name: str, expected: str) -> None:
        if not holds:
            raise RequestError(f"{name}: expected {expected}, found {getattr(self, name)!r}")

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature == 0

    def without_effect(self) -> tuple[str, ...]:
        """Return the fields that were set but change nothing, because nothing is sampled."""
        if not self.is_greedy:
            return ()
        given = {"top_k": self.top_k is not None, "top_p": self.top_p != 1.0, "seed": self.seed is not None}
        return tuple(name for name, is_set in given.items() if is_set)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON values; `from_json` reads them back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> SamplingParams:
        """Return the parameters that `to_json` wrote.

        Raises: RequestError for an unknown key, with the nearest valid one.
        """
        names = [item.name for item in dataclasses.fields(cls)]
        for key in values:
            if key not in names:
                raise unknown_name("sampling parameter", key, names)
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class Request:
    """One prompt to continue: its text where there is one, its token ids, and how to continue it."""

    id: int
    prompt: str
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams


@dataclass(frozen=True, kw_only=True)
class RequestOutput:
    """The continuation of one prompt. `token_ids` are the new tokens only, with the one that ended them.

    Units: `first_token_s` counts from submission; `token_gaps_s` are the waits between later tokens, of
    which those that came together share theirs alike.
    """

    prompt: str
    text: str
    token_ids: tuple[int, ...]
    num_prompt_tokens: int
    finish_reason: FinishReason
    first_token_s: float = field(default=0.0, compare=False)
    token_gaps_s: tuple[float, ...] = field(default=(), compare=False, repr=False)

    def to_json(self) -> dict[str, Any]:
        """Return the fields that `corebound generate --json` prints."""
        return {
            "prompt": self.prompt,
            "text": self.text,
            "token_ids": list(self.token_ids),
            "num_prompt_tokens": self.num_prompt_tokens,
            "finish_reason": self.finish_reason,
        }

    def to_message(self) -> dict[str, Any]:
        """Return all fields as JSON values; `from_message` reads them back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> RequestOutput:
        """Return the output that `to_message` wrote, also after JSON has turned its tuples into lists."""
        fields: dict[str, Any] = dict(message)
        for name in ("token_ids", "token_gaps_s"):
            fields[name] = tuple(fields[name])
        return cls(**fields)


def require_dtype(name: str) -> str:
    """Return `name` if it is a dtype that models can run in: a type of floats, or a quantization scheme.

    Raises: ConfigError that lists what can be given.
    """
    if is_scheme(name):
        parse_scheme(name)
        return name
    return require_choice("dtype", name, DTYPE_CHOICES)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
