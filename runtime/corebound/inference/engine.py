"""`init_inference` and the engine it returns: a transformers model on the ranks of a launch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from corebound.accelerator import get_accelerator
from corebound.comm.base import Collectives
from corebound.comm.rank_log import set_up_log_of_script
from corebound.errors import ConfigError
from corebound.inference.agreement import keep_together, require_same_inputs, share_random_state
from corebound.inference.capacity import require_capacity, require_room_for_copy
from corebound.inference.configuration import InferenceConfig
from corebound.inference.continuation import Continuation
from corebound.inference.groups import model_group
from corebound.inference.model_times import ModelTimes
from corebound.inference.own_decoder import CannotExpressError, own_decoder
from corebound.inference.prepare import Prepared, prepare_module
from corebound.inference.requests import Translation, joined, translate
from corebound.logs import get_logger

_log = get_logger(__name__)


def init_inference(
    model: nn.Module, config: dict[str, Any] | str | Path | None = None, **kwargs: Any
) -> InferenceEngine:
    """Return an engine for `model` on the ranks that share it; the model is changed in place. All of them call it.

    `config` is an object or the path of a JSON file, and keywords are more keys of it; docs/inference.md has them all.
    The type is that of `dtype`, or bfloat16 where the CPU multiplies it, else float32. With `mp_size` above 1 every
    rank keeps its part of each matrix. A model that was made on the meta device is filled from `checkpoint`, of which
    each rank reads its part.

    Raises: ConfigError for keys or values that are wrong or contradict each other, or more ranks than were launched;
    ShardingError for a model that cannot be split so; ModelLoadError for weights that are missing or damaged;
    KernelError for blocks that cannot be replaced; CommError.
    """
    set_up_log_of_script()
    read = InferenceConfig.read(config, kwargs)
    if not isinstance(model, nn.Module):
        raise ConfigError(f"init_inference: model: expected a torch.nn.Module, found {type(model).__name__}")
    collectives = model_group(read)
    if read.dtype == torch.float16 and collectives.rank == 0 and not get_accelerator().is_fp16_supported():
        _log.warning("init_inference: this processor has no products of float16, which makes them slow; use bfloat16")
    return InferenceEngine(prepare_module(model, read, collectives), read, collectives)


class InferenceEngine(nn.Module):
    """A model that was made ready for inference: `module` is the model itself, `generate` the fast way to use it.

    Attributes that the engine has not are the module's, so that it stands for the model in a pipeline of transformers.
    """

    def __init__(self, prepared: Prepared, config: InferenceConfig, collectives: Collectives) -> None:
        super().__init__()
        self.module = prepared.module
        self.inference_config = config
        # What callers of a model look for, such as the pipelines of transformers, is the model's.
        self.config = getattr(self.module, "config", None)
        self.collectives = collectives
        self.shard_report = prepared.shard_report
        self.injection_report = prepared.injection_report
        self._prepared = prepared
        self._times = ModelTimes(self.module)
        self._continuation: Continuation | None = None
        self._why_not_own = prepared.why_not_own
        self._said: set[str] = set()
        require_capacity(self.module, config, collectives)
        keep_together(self.module, collectives)
        self.eval()

    @property
    def dtype(self) -> torch.dtype:
        """The type that is computed in."""
        return self.inference_config.dtype

    @property
    def mp_world_size(self) -> int:
        """How many ranks share the model."""
        return self.collectives.size

    def __getattr__(self, name: str) -> Any:
        """Return a part of the engine, or else an attribute of the module."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "module":
                raise
            return getattr(self.module, name)

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        """Return what the module returns. On several ranks all call it with the same inputs.

        Raises: RequestError for inputs that differ between ranks; past_key_values are each rank's own.
        """
        self._require_in_step()
        shared = {name: value for name, value in kwargs.items() if name != "past_key_values"}
        require_same_inputs("forward", self.collectives, inputs, shared)
        return self.module(*inputs, **kwargs)

    @torch.no_grad()
    def generate(self, inputs: torch.Tensor | None = None, **kwargs: Any) -> Any:
        """Return prompts with their continuations, in the form that transformers has for them. All ranks call it alike.

        Arguments are those of transformers: input_ids, attention_mask, max_new_tokens, do_sample, num_beams and so on.
        Corebound's decoder serves the call where it has the model's family and what is asked for, from a copy of the
        weights that it makes when it is first used; else the module's generate() does. The log says once which and why.

        Shapes: input_ids [B, S]; result [B, S + new tokens], rows that end early filled with pad_token_id.

        Raises: RequestError for prompts that cannot run or differ between ranks; HostError where memory is short.
        """
        given = dict(kwargs)
        if inputs is not None:
            if given.get("input_ids") is not None:
                raise ConfigError("generate: inputs and input_ids: only one of them can be given")
            given["input_ids"] = inputs
        self._require_in_step()
        own = getattr(self.module, "generation_config", None)
        require_same_inputs("generate", self.collectives, given, own)
        share_random_state(self.collectives)
        answer = self._own_answer(given)
        if answer is not None:
            return answer
        return self.module.generate(**given)  # type: ignore[operator]  # a Module's attributes count as tensors

    def profile_model_time(self, use_cuda_events: bool = True) -> None:
        """Measure every forward pass from now on. `use_cuda_events` has no effect: there is no GPU."""
        self._times.start()
        # Passes of the own decoder are not the module's.
        self._why_not_own = self._why_not_own or "profile_model_time() measures the module"

    def model_times(self) -> list[float]:
        """Return the milliseconds of each forward pass since the last call.

        Raises: ConfigError before profile_model_time().
        """
        return self._times.take()

    def _require_in_step(self) -> None:
        if self._continuation is not None:
            self._continuation.require_in_step()

    def _own_answer(self, given: dict[str, Any]) -> torch.Tensor | None:
        """Return the answer of Corebound's decoder, None when it cannot serve the call."""
        rest = {name: value for name, value in given.items() if name not in ("input_ids", "attention_mask")}
        request = translate(self.module, given.get("input_ids"), given.get("attention_mask"), rest)
        if isinstance(request, str):
            self._say(f"generate: the module's own, because Corebound's engine lacks: {request}")
            return None
        if self._why_not_own:
            self._say(f"generate: the module's own: {self._why_not_own}")
            return None
        try:
            found = self._own(request)
        except CannotExpressError as error:
            self._say(f"generate: the module's own, because Corebound's decoder cannot: {error.message}")
            return None
        return joined(given["input_ids"], found, request.pad_token_id)

    def _own(self, request: Translation) -> list[tuple[int, ...]]:
        if self._continuation is None:
            prepared = self._prepared
            try:
                require_room_for_copy(self.module, self.collectives)
                self._continuation = Continuation(
                    lambda: own_decoder(self.module, self.inference_config.dtype, prepared.taken, self.collectives),
                    self.collectives,
                    self.inference_config.max_out_tokens,
                )
            except CannotExpressError as error:
                self._why_not_own = error.message
                raise
            self._say(f"generate: Corebound's {type(self._continuation.decoder).__name__}, with weights of its own")
        return self._continuation.run(request)

    def _say(self, text: str) -> None:
        """Log a line once for each engine, on its first rank."""
        if self.collectives.rank == 0 and text not in self._said:
            self._said.add(text)
            _log.info("%s", text)
