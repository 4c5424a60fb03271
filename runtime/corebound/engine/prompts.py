"""Prompts as callers pass them: checked before any rank hears of them."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from corebound.engine.request import SamplingParams
from corebound.errors import RequestError

Prompts = str | Sequence[str] | Sequence[Sequence[int]]

# More characters than one token stands for on average, in any language.
_MOST_CHARACTERS = 64
_EXPECTED = "a text, a list of texts, or a list of lists of token ids"


def prompt_list(prompts: Any) -> list[Any]:
    """Return the prompts one by one, where a text alone is one prompt.

    Raises: RequestError for anything that is no list of prompts.
    """
    if isinstance(prompts, str):
        return [prompts]
    if isinstance(prompts, bytes | bytearray | Mapping) or not isinstance(prompts, Iterable):
        raise RequestError(f"prompts: expected {_EXPECTED}, found {_describe(prompts)}")
    return list(prompts)


def token_tuple(where: str, prompt: Any) -> tuple[int, ...]:
    """Return the token ids of a prompt as whole numbers, whatever integer type they had.

    Raises: RequestError, which names `where`, for anything that is no list of whole numbers.
    """
    if isinstance(prompt, int):
        raise RequestError(
            f"prompts: expected {_EXPECTED}, found the number {prompt} as {where}",
            hint="put the token ids of a single prompt in a list of their own: [[1, 2, 3]]",
        )
    if isinstance(prompt, bytes | bytearray | Mapping) or not isinstance(prompt, Iterable):
        raise RequestError(f"{where}: expected a text or a list of token ids, found {_describe(prompt)}")
    return tuple(_token_id(where, token) for token in prompt)


def require_near(prompt: str | Sequence[int], context: int) -> None:
    """Raise RequestError for a prompt that no tokenizer brings into a context of so many tokens; it is not read."""
    length = len(prompt)
    if length > context * (_MOST_CHARACTERS if isinstance(prompt, str) else 1):
        unit = "characters" if isinstance(prompt, str) else "tokens"
        raise RequestError(f"prompt has {length} {unit}: the model's context is {context} tokens")


def require_text(where: str, prompt: str) -> str:
    """Return `prompt` if it is text that UTF-8 can hold, which is what tokenizers read.

    Raises: RequestError.
    """
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise RequestError(f"{where}: not valid text: {error.reason} at character {error.start}") from error
    return prompt


def require_params(params: Any) -> SamplingParams:
    """Return the parameters; None takes the defaults.

    Raises: RequestError for anything that is not SamplingParams.
    """
    if params is None:
        return SamplingParams()
    if not isinstance(params, SamplingParams):
        raise RequestError(f"params: expected SamplingParams, found {_describe(params)}")
    return params


def _token_id(where: str, token: Any) -> int:
    try:
        if not isinstance(token, bool):
            return operator.index(token)
        problem = None
    except TypeError as error:
        problem = error
    raise RequestError(f"{where}: token ids are whole numbers, found {_describe(token)}") from problem


def _describe(value: Any) -> str:
    return f"{type(value).__name__} {value!r:.60}"
