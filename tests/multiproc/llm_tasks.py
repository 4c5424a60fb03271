"""What the ranks of the LLM tests do. The LLM lives as long as the process."""

from __future__ import annotations

import time
from typing import Any

from corebound import LLM, init_distributed, models
from corebound.engine import SamplingParams

LLMS: list[LLM] = []


def make(slow_rank: int = -1, loading_s: float = 0.0) -> int:
    """Load the demo model, on one rank with a pause; return the rank."""
    group = init_distributed()
    load = models.load_model

    def load_slowly(*arguments: Any, **options: Any) -> Any:
        if group.rank == slow_rank:
            time.sleep(loading_s)
        return load(*arguments, **options)

    models.load_model = load_slowly
    LLMS.append(LLM("demo", kv_cache_gib=0.02, show_progress=False, collectives=group))
    return group.rank


def generate(prompts: Any, params: Any = None) -> list[list[int]]:
    """Return the token ids of every output; `params` None asks for a few tokens."""
    params = SamplingParams(max_new_tokens=4, ignore_eos=True) if params is None else params
    outputs = LLMS[0].generate(prompts, params)
    return [list(output.token_ids) for output in outputs]


def catch_mistakes(mistakes: list[Any]) -> list[str]:
    """Make every mistake, then a good call; return what was caught, and the good call's tokens as text."""
    caught = []
    for prompts in mistakes:
        try:
            generate(prompts)
        except Exception as error:
            caught.append(f"{type(error).__name__}: {error}")
    return [*caught, repr(generate([[5, 6]]))]


def generate_with_a_callback_that_fails() -> None:
    def fail(index: int, text: str) -> None:
        raise ValueError("the reader went away")

    LLMS[0].generate([[5, 6], [7]], SamplingParams(max_new_tokens=8, ignore_eos=True), on_text=fail)


def fail_within_a_step(rank: int, together: bool) -> list[list[int]]:
    """Generate while the model of one rank fails before its part of a step, or of steps that are done together."""
    llm = LLMS[0]
    if llm.collectives.rank == rank:

        def fail(*_: object) -> None:
            raise MemoryError("no room for activations")

        if together:
            assert llm._executor._greedy_steps is not None
            llm._executor._greedy_steps = fail
        else:
            llm._decoder.forward = fail
    return generate([[5, 6]])
