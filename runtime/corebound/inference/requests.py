"""What transformers' `generate` was asked for, as prompts and parameters of Corebound's engine where it has them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from corebound.engine.request import SamplingParams
from corebound.errors import RequestError

# transformers' own defaults where neither the call nor the model says anything.
_DEFAULT_NEW_TOKENS = 20
_DEFAULT_TOP_K = 50
# For each setting the values that ask for nothing beyond what the engine does.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "num_return_sequences": (None, 1),
    "num_beam_groups": (None, 1),
    "length_penalty": (None, 1.0),
    "early_stopping": (None, False),
    "diversity_penalty": (None, 0.0),
    "no_repeat_ngram_size": (None, 0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "encoder_repetition_penalty": (None, 1.0),
    "min_length": (None, 0),
    "typical_p": (None, 1.0),
    "epsilon_cutoff": (None, 0.0),
    "eta_cutoff": (None, 0.0),
    "use_cache": (None, True),
}
# Settings that change no token, or that only other settings make count.
_READ = frozenset(
    [
        "max_length",
        "max_new_tokens",
        "do_sample",
        "num_beams",
        "temperature",
        "top_k",
        "top_p",
        "repetition_penalty",
        "pad_token_id",
        "bos_token_id",
        "eos_token_id",
        "transformers_version",
        "disable_compile",
        "compile_config",
        "is_assistant",
        "num_assistant_tokens",
        "num_assistant_tokens_schedule",
        "assistant_confidence_threshold",
        "assistant_lookbehind",
        "target_lookbehind",
        "remove_invalid_values",
        "cache_config",
        "max_matching_ngram_size",
        "continuous_batching_config",
    ]
)


@dataclass(frozen=True, kw_only=True)
class Translation:
    """A call that the engine can serve: one prompt for each row, and what fills the rows that end early.

    `params` has no seed yet: drawing one moves torch's generator, which is due only when the engine really answers.
    """

    prompts: list[list[int]]
    params: SamplingParams
    pad_token_id: int

    def seeded(self) -> SamplingParams:
        """Return the parameters, with a seed from torch's default generator when they sample."""
        if self.params.temperature == 0:
            return self.params
        return replace(self.params, seed=int(torch.randint(2**63 - 1, (1,))))


def translate(module: nn.Module, input_ids: Any, attention_mask: Any, given: Mapping[str, Any]) -> Translation | str:
    """Return the call in the engine's terms, or what it asks for that the engine does not do.

    Raises: RequestError for tensors that are no prompts.
    """
    config = _config(module, given.get("generation_config"))
    if config is None:
        return "a model without generation_config"
    extra = config.update(**{name: value for name, value in given.items() if name != "generation_config"})
    asked = [name for name, value in extra.items() if value is not None]
    asked += [name for name, value in vars(config).items() if not _is_neutral(name, value)]
    if input_ids is None:
        asked.append("no input_ids")
    if asked:
        return ", ".join(sorted(asked))
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    ends = [int(end) for end in ends if end is not None]
    pad = config.pad_token_id if config.pad_token_id is not None else (ends or [0])[0]
    prompts = _prompts(input_ids, attention_mask, config.pad_token_id, ends)
    samples = bool(config.do_sample)
    if samples and (config.num_beams or 1) > 1:
        return "do_sample with num_beams"
    num_new = _num_new_tokens(module, config, given, input_ids.shape[1])
    if num_new < 1:
        return "a length that leaves nothing to generate"
    top_k = _DEFAULT_TOP_K if config.top_k is None else config.top_k
    temperature = 1.0 if config.temperature is None else config.temperature
    params = SamplingParams(
        max_new_tokens=num_new,
        temperature=float(temperature) if samples else 0.0,
        top_k=(top_k or None) if samples else None,
        top_p=(1.0 if config.top_p is None else float(config.top_p)) if samples else 1.0,
        repetition_penalty=float(config.repetition_penalty or 1.0),
        stop_token_ids=tuple(ends),
        num_beams=config.num_beams or 1,
    )
    return Translation(prompts=prompts, params=params, pad_token_id=int(pad))


def joined(input_ids: Tensor, continuations: list[tuple[int, ...]], pad_token_id: int) -> Tensor:
    """Return each row of the input with its continuation after it, filled up to the longest.

    Shapes: input_ids [B, S]; result [B, S + longest].
    """
    longest = max(len(tokens) for tokens in continuations)
    new = torch.full((len(continuations), longest), pad_token_id, dtype=input_ids.dtype)
    for row, tokens in enumerate(continuations):
        new[row, : len(tokens)] = torch.tensor(tokens, dtype=input_ids.dtype)
    return torch.cat([input_ids, new], dim=1)


def _config(module: nn.Module, given: Any) -> Any:
    """Return the settings of a call, None without any: what a given object leaves open is the model's."""
    own: Any = getattr(module, "generation_config", None)
    config = copy.deepcopy(given if given is not None else own)
    if given is not None and own is not None:
        # transformers 4 has defaults where 5 has None; neither means that the caller asked for them.
        defaults = vars(type(config)())
        for name, value in own.to_dict().items():
            if not hasattr(config, name) or getattr(config, name) == defaults.get(name):
                setattr(config, name, value)
    return config


def _num_new_tokens(module: nn.Module, config: Any, given: Mapping[str, Any], prompt_length: int) -> int:
    """Return how many tokens are asked for. The prompt's length is that of all rows: it counts the padding."""
    if config.max_new_tokens is not None:
        return int(config.max_new_tokens)
    if given.get("max_length") is not None or config.max_length not in (None, type(config)().max_length):
        return int(config.max_length) - prompt_length
    limit = getattr(getattr(module, "config", None), "max_position_embeddings", None)
    return _DEFAULT_NEW_TOKENS if limit is None else min(_DEFAULT_NEW_TOKENS, int(limit) - prompt_length)


def _is_neutral(name: str, value: Any) -> bool:
    if name in _READ or name.startswith("_") or value is None or value is False:
        return True
    return name in _NEUTRAL and value in _NEUTRAL[name]


def _prompts(input_ids: Any, attention_mask: Any, pad_token_id: int | None, ends: list[int]) -> list[list[int]]:
    if not isinstance(input_ids, Tensor) or input_ids.dim() != 2 or input_ids.is_floating_point():
        raise RequestError(f"generate: input_ids: expected token ids [B, S], found {_described(input_ids)}")
    if attention_mask is None and pad_token_id is not None and pad_token_id not in ends:
        attention_mask = input_ids != pad_token_id
    if attention_mask is None:
        return [list(map(int, row)) for row in input_ids.tolist()]
    if not isinstance(attention_mask, Tensor) or attention_mask.shape != input_ids.shape:
        raise RequestError(
            f"generate: attention_mask: expected the shape of input_ids, {list(input_ids.shape)}, found "
            f"{_described(attention_mask)}"
        )
    return [row[mask.bool()].tolist() for row, mask in zip(input_ids, attention_mask, strict=True)]


def _described(value: Any) -> str:
    return f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
