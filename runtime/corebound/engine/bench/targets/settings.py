"""What the lines measure: their names, the lengths of prompts, and the cases that ranks are given."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from corebound.engine.bench.cases import make_cases
from corebound.engine.bench.targets.turn_files import TurnCase

# Line -> what it says, in the order of the report.
LINES = {
    "decode": "share of the read bandwidth that a step of batch 1 reaches",
    "ranks": "two ranks against one, on all cores, and on a model that fits the caches",
    "prefill": "share of the bfloat16 GEMM peak that a prompt reaches",
    "allreduce": "the 8 KiB all-reduce against the floor",
    "context": "share of the read bandwidth after a long prompt",
    "beams": "beam 4 against batch 4",
    "batches": "tokens a second of batches up to 64",
    "memory": "resident size against the bytes of the checkpoint and the cache",
    "load": "time to load against `cat` of the files",
    "plan": "what `corebound plan` predicts against what is measured",
    "busy": "a step while another process takes one core",
    "quality": "perplexity and logits of the demo model with quantized weights",
}
BATCHES = (1, 2, 4, 8, 16, 32, 64)
NUM_BEAMS = 4


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Shapes and lengths. The first shape is measured by all lines, others by `decode`, `memory` and `plan`."""

    shapes: tuple[str, ...] = ("llama-1.1b", "bloom-560m")
    cached_shapes: tuple[str, ...] = ("llama-110m", "llama-tiny", "llama-9m")
    prompt_tokens: int = 512
    short_prompt_tokens: int = 32
    context: int = 8000
    new_tokens: int = 48
    few_tokens: int = 16
    num_rounds: int = 5
    num_pairs: int = 5

    def one(self, name: str, num_prompt_tokens: int, num_new_tokens: int, vocab_size: int, batch: int = 1) -> TurnCase:
        """Return the case of prompts of one length."""
        (case,) = make_cases([num_prompt_tokens], [batch], num_new_tokens, vocab_size)
        return TurnCase(name=name, case=case)

    def decode(self, vocab_size: int) -> TurnCase:
        """Return a short prompt that is continued for long."""
        return self.one("decode", self.short_prompt_tokens, self.new_tokens, vocab_size)

    def prompt(self, vocab_size: int, num_times: int = 3) -> TurnCase:
        """Return a long prompt that is continued a little, `num_times` times."""
        case = self.one("prompt", self.prompt_tokens, self.few_tokens, vocab_size)
        return dataclasses.replace(case, num_times=num_times)

    def ranks(self, vocab_size: int) -> dict[str, TurnCase]:
        """Return what two ranks and one do in pairs, by the name of the pair: some steps, short prompts, a long one."""
        length = self.short_prompt_tokens
        short = self.one("short", length, 2, vocab_size)
        return {
            "ranks: decode": self.one("steps", length, self.few_tokens, vocab_size),
            # So short that one which is disturbed should not be all.
            "ranks: short": dataclasses.replace(short, num_times=3),
            "ranks: prompt": self.one("long", self.prompt_tokens, 2, vocab_size),
        }

    def cached_ranks(self, vocab_size: int) -> TurnCase:
        """Return a short prompt that is continued, some times: steps in the caches are short."""
        case = self.one("cached", self.short_prompt_tokens, self.new_tokens, vocab_size)
        return dataclasses.replace(case, num_times=3)

    def long_context(self, vocab_size: int) -> TurnCase:
        """Return a very long prompt, which every round computes anew."""
        return self.one("context", self.context, 2 * self.few_tokens, vocab_size)

    def batches(self, vocab_size: int) -> list[TurnCase]:
        """Return short prompts together, more and more of them."""
        return [
            self.one(f"batch {batch}", self.short_prompt_tokens, self.few_tokens, vocab_size, batch)
            for batch in BATCHES
        ]

    def beams(self, vocab_size: int) -> tuple[TurnCase, TurnCase]:
        """Return as many short prompts as beams, and the beams of one."""
        batch = self.one("batch", self.short_prompt_tokens, self.few_tokens, vocab_size, NUM_BEAMS)
        single = self.one("beams", self.short_prompt_tokens, self.few_tokens, vocab_size)
        return batch, dataclasses.replace(single, num_beams=NUM_BEAMS)

    def busy(self, vocab_size: int, *, is_taken: bool) -> TurnCase:
        """Return a short prompt, continued with and without another process on one core."""
        name = "busy: taken" if is_taken else "busy: free"
        return self.one(name, self.short_prompt_tokens, self.new_tokens // 2, vocab_size)
