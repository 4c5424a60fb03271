"""The body of POST /v1/completions, and its answers. Source: OpenAI's API reference, "Legacy: Completions"."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from corebound.config.suggest import unknown_name
from corebound.engine.request import RequestOutput, SamplingParams
from corebound.errors import RequestError

MAX_PROMPTS = 64
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256
# Requests of all clients run together: what one of them asks for must not slow down or end the others.
_RANGES = {"temperature": (0, 2), "top_k": (1, 1024), "repetition_penalty": (0.01, 100)}
_OURS = {"max_tokens": "max_new_tokens"}
_SAMPLING = ("max_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "seed", "stop", "ignore_eos")
# Accepted with the one value that this server can do, so that clients which always send them work.
_ONLY: dict[str, tuple[Any, ...]] = {
    "n": (1, None),
    "best_of": (1, None),
    "echo": (False, None),
    "logprobs": (None,),
    "suffix": (None, ""),
    "presence_penalty": (0, None),
    "frequency_penalty": (0, None),
    "logit_bias": (None, {}),
}
_FIELDS = ("model", "prompt", "stream", "user", *_SAMPLING, *_ONLY)
# As the API has them; the command line's are other ones.
_DEFAULTS = {"max_new_tokens": 16, "temperature": 1.0}


@dataclass(frozen=True, kw_only=True)
class CompletionRequest:
    """A checked body: the prompts, texts or token ids, how to continue them, and whether to stream."""

    prompts: tuple[str | tuple[int, ...], ...]
    params: SamplingParams
    stream: bool


def parse_completion(body: Any, model: str) -> CompletionRequest:
    """Return the request that a decoded JSON body makes of the model of that name.

    Raises: RequestError naming the field, what was expected and what was found.
    """
    if not isinstance(body, Mapping):
        raise RequestError(f"body: expected a JSON object, found {type(body).__name__}")
    for key in body:
        if key not in _FIELDS:
            unknown = unknown_name("field", str(key)[:60], _FIELDS)
            raise RequestError(unknown.message, hint=unknown.hint)
    for key, allowed in _ONLY.items():
        if key in body and body[key] not in allowed:
            raise RequestError(f"{key}: expected {allowed[0]!r}, the only value so far; found {body[key]!r:.60}")
    if body.get("model", model) != model:
        raise RequestError(f"model: expected {model!r}, which this server has; found {body['model']!r:.60}")
    stream = body.get("stream") or False
    if not isinstance(stream, bool):
        raise RequestError(f"stream: expected true or false, found {stream!r:.60}")
    given = {_OURS.get(key, key): body[key] for key in _SAMPLING if body.get(key) is not None}
    for key in ("temperature", "top_p", "repetition_penalty"):
        if isinstance(given.get(key), int) and not isinstance(given[key], bool):
            given[key] = float(min(given[key], 1 << 62))
    if not isinstance(given.get("stop", ""), str | list):
        raise RequestError(f"stop: expected a text or a list of texts, found {given['stop']!r:.60}")
    for key, (least, most) in _RANGES.items():
        if isinstance(given.get(key), int | float) and not least <= given[key] <= most:
            raise RequestError(f"{key}: expected {least} to {most}, found {given[key]!r:.60}")
    stops = given.get("stop", ())
    if len(stops) > MAX_STOPS and not isinstance(stops, str):
        raise RequestError(f"stop: expected at most {MAX_STOPS} texts, found {len(stops)}")
    if any(isinstance(stop, str) and len(stop) > MAX_STOP_CHARACTERS for stop in (stops, *stops)):
        raise RequestError(f"stop: expected at most {MAX_STOP_CHARACTERS} characters in each text")
    return CompletionRequest(
        prompts=_prompts(body.get("prompt")), params=SamplingParams.from_json(_DEFAULTS | given), stream=stream
    )


def _prompts(prompt: Any) -> tuple[str | tuple[int, ...], ...]:
    if isinstance(prompt, str):
        return (prompt,)
    if isinstance(prompt, list) and prompt:
        if _are_token_ids(prompt):
            return (tuple(prompt),)
        if len(prompt) > MAX_PROMPTS:
            raise RequestError(f"prompt: expected at most {MAX_PROMPTS} of them, found {len(prompt)}")
        if all(isinstance(item, str) or _are_token_ids(item) for item in prompt):
            return tuple(item if isinstance(item, str) else tuple(item) for item in prompt)
    raise RequestError(f"prompt: expected a text, a list of texts, or token ids; found {prompt!r:.60}")


def _are_token_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is int for item in value)


class Answer:
    """The answers to one request: pieces while it runs, or the whole."""

    def __init__(self, name: str, model: str) -> None:
        self._head = {"id": name, "object": "text_completion", "created": int(time.time()), "model": model}

    def piece(self, index: int, text: str, finish_reason: str | None = None) -> dict[str, Any]:
        """Return one piece of a stream."""
        return self._head | {"choices": [_choice(index, text, finish_reason)]}

    def whole(self, outputs: Sequence[RequestOutput]) -> dict[str, Any]:
        """Return the answer with every output."""
        num_prompt = sum(output.num_prompt_tokens for output in outputs)
        num_new = sum(len(output.token_ids) for output in outputs)
        return self._head | {
            "choices": [_choice(index, output.text, output.finish_reason) for index, output in enumerate(outputs)],
            "usage": {
                "prompt_tokens": num_prompt,
                "completion_tokens": num_new,
                "total_tokens": num_prompt + num_new,
            },
        }


def _choice(index: int, text: str, finish_reason: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "finish_reason": finish_reason, "logprobs": None}
