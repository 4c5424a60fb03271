"""The state of one request while it runs."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from corebound.engine.request import Request


@dataclass(eq=False)
class Sequence:
    """Tokens of a request, how many of them are in the KV cache, and the blocks that hold those.

    `token_ids` is the prompt followed by what was generated; the last one is not yet computed while running.
    `max_length` limits both together.
    """

    request: Request
    max_length: int
    token_ids: list[int] = field(default_factory=list)
    num_computed: int = 0
    blocks: list[int] = field(default_factory=list)
    submitted_s: float = field(default_factory=time.perf_counter)
    token_times_s: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.token_ids:
            self.token_ids = list(self.request.prompt_token_ids)

    @property
    def num_prompt_tokens(self) -> int:
        """How many tokens the prompt has."""
        return len(self.request.prompt_token_ids)

    @property
    def num_generated(self) -> int:
        """How many tokens were generated so far."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_pending(self) -> int:
        """How many known tokens are not in the KV cache yet: 1 while decoding, more during prefill."""
        return len(self.token_ids) - self.num_computed

    @property
    def generated_token_ids(self) -> list[int]:
        """The tokens after the prompt."""
        return self.token_ids[self.num_prompt_tokens :]
