"""A model of a few lines for the engine: it checks every step as a real one would depend on it."""

from __future__ import annotations

from corebound.engine.kv_cache import BlockAllocator
from corebound.engine.request import Request, SamplingParams
from corebound.engine.sampling import Answer, are_greedy
from corebound.engine.scheduler import Scheduler
from corebound.engine.sequence import Sequence
from corebound.engine.step import StepInput

VOCAB_SIZE = 97


def next_token(token_ids):
    """The fake language: the next token depends on all tokens before it."""
    return (sum((index + 1) * token for index, token in enumerate(token_ids)) * 7 + 3) % VOCAB_SIZE


def continuation(prompt, count):
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]


class FakeRunner:
    """Keeps tokens where a model keeps keys and values, so a wrong block or position gives a wrong token."""

    vocab_size = VOCAB_SIZE

    def __init__(self, block_size, broken=lambda seen: False, max_greedy_steps=0):
        """Where `broken` of the tokens is true, the logits after them are not numbers."""
        self.block_size = block_size
        self.max_greedy_steps = max_greedy_steps
        self.broken = broken
        self.slots = {}
        self.steps = []

    def run(self, inputs, copies):
        assert inputs, "an empty step"
        self.steps.append([len(part.token_ids) for part in inputs])
        answers = []
        for copy in copies:
            for place in [place for block, place in self.slots if block == copy.source]:
                self.slots[copy.target, place] = self.slots[copy.source, place]
        for part in inputs:
            for offset, token in enumerate(part.token_ids):
                self.slots[self._slot(part, part.first_position + offset)] = token
            length = part.first_position + len(part.token_ids)
            if part.row is not None:
                seen = [self.slots[self._slot(part, position)] for position in range(length)]
                best = [(next_token(seen) + place) % VOCAB_SIZE for place in range(max(1, part.row.num_best))]
                logprobs = [-1.0 - place for place in range(part.row.num_best)]
                answers.append(Answer([], []) if self.broken(seen) else Answer(best, logprobs))
        return answers

    def run_greedily(self, inputs, num_steps):
        assert 1 <= num_steps <= self.max_greedy_steps
        steps = []
        for _ in range(num_steps):
            assert all(len(part.token_ids) == 1 and are_greedy([part.row]) for part in inputs)
            steps.append(self.run(inputs, []))
            if not all(answer.token_ids for answer in steps[-1]):
                break
            inputs = [
                StepInput(answer.token_ids, part.first_position + 1, part.blocks, part.row)
                for part, answer in zip(inputs, steps[-1], strict=True)
            ]
        return steps

    def _slot(self, part, position):
        return part.blocks[position // self.block_size], position % self.block_size


class LetterTokenizer:
    """One letter per token."""

    def encode(self, text):
        return [ord(letter) % VOCAB_SIZE for letter in text]

    def decode(self, token_ids):
        return "".join(chr(ord("A") + token % 26) for token in token_ids)


def make_request(index, prompt, **params):
    return Request(id=index, prompt="", prompt_token_ids=tuple(prompt), params=SamplingParams(**params))


def make_sequence(num_prompt, max_new_tokens=4, index=0):
    request = make_request(index, range(1, num_prompt + 1), max_new_tokens=max_new_tokens)
    return Sequence(request, num_prompt + max_new_tokens)


def make_scheduler(num_blocks=8, block_size=4, **options):
    return Scheduler(BlockAllocator(num_blocks), block_size=block_size, **options)
