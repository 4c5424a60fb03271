"""The loop of rank 0: schedule, run on all ranks, append the new tokens, give out text."""

from __future__ import annotations

import itertools
import secrets
import sys
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from corebound.engine.beams import BeamSearch, blocks_for_beams
from corebound.engine.kv_cache import BlockCopy
from corebound.engine.request import FinishReason, Request, RequestOutput
from corebound.engine.sampling import Answer, are_greedy
from corebound.engine.scheduler import Chunk, Scheduler
from corebound.engine.sequence import Sequence
from corebound.engine.step import NO_TOKENS, SamplingRow, StepInput, input_of
from corebound.engine.text import TextStream, Tokenizer
from corebound.errors import ModelError, RequestError


class StepRunner(Protocol):
    """What the engine needs of an executor; tests give it a model of a few lines."""

    @property
    def vocab_size(self) -> int:
        """How many tokens the model knows."""

    @property
    def max_greedy_steps(self) -> int:
        """How many steps to ask `run_greedily` for at most; 0 where it is not to be called."""

    def run(self, inputs: list[StepInput], copies: list[BlockCopy]) -> list[Answer]:
        """Compute one step and return the answers of the inputs that have a sampling row."""

    def run_greedily(self, inputs: list[StepInput], num_steps: int) -> list[list[Answer]]:
        """Compute steps whose answers are the tokens of the next, and return the answers of each."""


@dataclass(frozen=True, kw_only=True)
class Update:
    """News of one request after a step: text that is certain now, and at its end the whole output, or the failure."""

    request_id: int
    new_text: str = ""
    output: RequestOutput | None = None
    failure: ModelError | None = None

    def raise_failure(self) -> None:
        """Return when the request has not failed. Raises: ModelError that names its prompt."""
        if self.failure is not None:
            raise ModelError(f"prompt {self.request_id}: {self.failure.message}", hint=self.failure.hint)


@dataclass(eq=False)
class _Active:
    sequence: Sequence
    stream: TextStream
    seed: int


class Engine:
    """Continues any number of requests together. `submit` at any time; call `step` while `has_work`."""

    def __init__(
        self,
        runner: StepRunner,
        scheduler: Scheduler,
        tokenizer: Tokenizer,
        *,
        eos_token_ids: frozenset[int] = frozenset(),
        max_context: int | None = None,
    ) -> None:
        self._runner = runner
        self._scheduler = scheduler
        self._tokenizer = tokenizer
        self._eos_token_ids = eos_token_ids
        self._max_context = max_context
        self._active: dict[Sequence, _Active] = {}
        self._beam_requests: deque[Sequence] = deque()
        self._search: BeamSearch | None = None

    @property
    def has_work(self) -> bool:
        """Whether any request is unfinished."""
        return self._scheduler.has_work or bool(self._beam_requests)

    def submit(self, request: Request) -> None:
        """Queue a request. Raises: RequestError as `check` does."""
        params = request.params
        max_length = self.check(request)
        sequence = Sequence(request, max_length)
        if params.num_beams > 1:
            self._beam_requests.append(sequence)
            return
        stream = TextStream(self._tokenizer, request.prompt_token_ids, params.stop)
        seed = secrets.randbits(64) if params.seed is None else params.seed
        self._scheduler.add(sequence)
        self._active[sequence] = _Active(sequence, stream, seed)

    def check(self, request: Request, where: str = "") -> int:
        """Return the most tokens that prompt and continuation together can come to; errors name `where`.

        Raises: RequestError when the request could never run: no prompt, unknown token ids, longer than the model's
        context or than the whole KV cache.
        """
        prompt, params = request.prompt_token_ids, request.params
        where = where or f"prompt {request.id}"
        if not prompt:
            raise RequestError(f"{where} is empty: at least one token is needed")
        self.check_token_ids(where, prompt)
        limit = self._max_context
        if limit is not None and len(prompt) >= limit:
            raise RequestError(
                f"{where} has {len(prompt)} tokens: the model's context is {limit}, with at least one to generate",
                hint="shorten the prompt",
            )
        max_length = min(len(prompt) + params.max_new_tokens, limit or sys.maxsize)
        if params.num_beams > 1:
            scheduler = self._scheduler
            needed = blocks_for_beams(len(prompt), max_length - 1, params.num_beams, scheduler.block_size)
            scheduler.check_blocks(max_length, needed)
        else:
            self._scheduler.check_fits(max_length)
        return max_length

    def check_token_ids(self, where: str, token_ids: Iterable[int]) -> None:
        """Raise RequestError, which names `where`, for a token id that the model does not know."""
        last = self._runner.vocab_size - 1
        for token in token_ids:
            if not 0 <= token <= last:
                raise RequestError(f"{where}: token id {token} is not in the vocabulary, 0 to {last}")

    def cancel(self, request_id: int) -> None:
        """End a request between two steps, wherever it is, and release its blocks; one that has ended is no matter."""
        for sequence in [sequence for sequence in self._active if sequence.request.id == request_id]:
            self._scheduler.finish(sequence)
            del self._active[sequence]
        for index, sequence in enumerate(self._beam_requests):
            if sequence.request.id == request_id:
                if index == 0 and self._search is not None:
                    self._end_search()
                else:
                    del self._beam_requests[index]
                return

    def step(self) -> list[Update]:
        """Run one step on all ranks and return what became known by it; short ones of greedy requests, some together.

        Beam searches run one at a time, when nothing else does: the blocks that one may need are then all free.
        """
        return self._decode_step() if self._scheduler.has_work and self._search is None else self._beam_step()

    def _decode_step(self) -> list[Update]:
        chunks = self._scheduler.schedule()
        rows = [self._row(chunk) for chunk in chunks]
        num_steps = self._num_greedy_steps(chunks, rows)
        inputs = [input_of(chunk, row) for chunk, row in zip(chunks, rows, strict=True)]
        steps = self._runner.run_greedily(inputs, num_steps) if num_steps else [self._runner.run(inputs, [])]
        now_s = time.perf_counter()
        updates = []
        for number, answers in enumerate(steps):
            updates += self._advance(chunks, answers, now_s, len(steps) - number)
        return updates

    def _num_greedy_steps(self, chunks: list[Chunk], rows: list[SamplingRow | None]) -> int:
        """Return how many steps of these chunks to do together, with blocks for them taken; 0 for `run`."""
        most = self._runner.max_greedy_steps
        greedy = [row for row in rows if row is not None]
        if not most or len(greedy) < len(rows) or not are_greedy(greedy):
            return 0
        if any(chunk.num_tokens > 1 for chunk in chunks):
            return 0
        if not all(chunk.sequence.num_generated for chunk in chunks):
            return 1  # somebody waits for a first token
        # What is generated after a request's end is lost, but its places in the cache have an end.
        left = min([chunk.sequence.max_length - len(chunk.sequence.token_ids) for chunk in chunks])
        return self._scheduler.reserve(chunks, min(most, left))

    def _advance(self, chunks: list[Chunk], answers: list[Answer], now_s: float, num_left: int) -> list[Update]:
        """Take in one step's answers. The `num_left` steps that end now share the time since the last token alike."""
        of_rows = iter(answers)
        updates = []
        for chunk in chunks:
            wants_logits = chunk.wants_logits
            answer = next(of_rows) if wants_logits else None
            active = self._active.get(chunk.sequence)
            if active is None:  # ended by an earlier one of these steps
                continue
            self._scheduler.complete(chunk)
            if answer is not None and answer.token_ids:
                times = chunk.sequence.token_times_s
                times.append(now_s if num_left == 1 else times[-1] + (now_s - times[-1]) / num_left)
                updates.append(self._append(active, answer.token_ids[0]))
            elif answer is not None:
                updates.append(self._fail(active))
        return updates

    def _beam_step(self) -> list[Update]:
        sequence = self._beam_requests[0]
        params = sequence.request.params
        if self._search is None:
            self._search = BeamSearch(
                sequence.request,
                self._scheduler.allocator,
                block_size=self._scheduler.block_size,
                max_length=sequence.max_length,
                end_token_ids=frozenset(params.stop_token_ids)
                | (frozenset() if params.ignore_eos else self._eos_token_ids),
                vocab_size=self._runner.vocab_size,
                max_step_tokens=self._scheduler.max_step_tokens,
            )
        search = self._search
        answers = self._runner.run(*search.inputs())
        if not all(answer.token_ids for answer in answers):
            position = sequence.num_prompt_tokens + search.num_generated - 1
            self._end_search()
            return [Update(request_id=sequence.request.id, failure=_not_numbers(sequence, position))]
        search.advance(answers)
        if answers:
            sequence.token_times_s.append(time.perf_counter())
        if not search.is_done:
            return []
        self._end_search()
        sequence.token_ids += search.best.token_ids
        stream = TextStream(self._tokenizer, sequence.request.prompt_token_ids)
        for token_id in search.best.token_ids:
            stream.add(token_id)
        text = stream.take(is_last=True)
        output = _output(_Active(sequence, stream, 0), search.best.reason)
        return [Update(request_id=sequence.request.id, new_text=text, output=output)]

    def _end_search(self) -> None:
        """Release what the search that runs holds, and take its request from the queue."""
        if self._search is not None:
            self._search.close()
        self._search = None
        self._beam_requests.popleft()

    def _row(self, chunk: Chunk) -> SamplingRow | None:
        if not chunk.wants_logits:
            return None
        active = self._active[chunk.sequence]
        params = chunk.sequence.request.params
        penalty = params.repetition_penalty
        seen = NO_TOKENS if penalty == 1.0 else np.unique(np.array(chunk.sequence.token_ids, np.int32))
        return SamplingRow(
            temperature=params.temperature,
            top_k=min(params.top_k or 0, self._runner.vocab_size) if not params.is_greedy else 0,
            top_p=params.top_p,
            repetition_penalty=penalty,
            seed=active.seed,
            position=chunk.sequence.num_generated,
            seen=seen,
        )

    def _append(self, active: _Active, token_id: int) -> Update:
        sequence = active.sequence
        sequence.token_ids.append(token_id)
        active.stream.add(token_id)
        reason = self._finish_reason(active, token_id)
        new_text = active.stream.take(is_last=reason is not None)
        if reason is None:
            return Update(request_id=sequence.request.id, new_text=new_text)
        self._scheduler.finish(sequence)
        del self._active[sequence]
        output = _output(active, reason)
        return Update(request_id=sequence.request.id, new_text=new_text, output=output)

    def _fail(self, active: _Active) -> Update:
        """End a request whose logits are not numbers; what others have in the cache is untouched by it."""
        sequence = active.sequence
        self._scheduler.finish(sequence)
        del self._active[sequence]
        failure = _not_numbers(sequence, len(sequence.token_ids) - 1)
        return Update(request_id=sequence.request.id, new_text=active.stream.take(is_last=True), failure=failure)

    def _finish_reason(self, active: _Active, token_id: int) -> FinishReason | None:
        params = active.sequence.request.params
        is_end = token_id in params.stop_token_ids or (token_id in self._eos_token_ids and not params.ignore_eos)
        if is_end or active.stream.is_stopped:
            return "stop"
        return "length" if len(active.sequence.token_ids) >= active.sequence.max_length else None


def _not_numbers(sequence: Sequence, position: int) -> ModelError:
    num_prompt = sequence.num_prompt_tokens
    return ModelError(
        f"the model's logits at position {position} are not numbers (NaN), after {num_prompt} tokens of the prompt and "
        f"{position + 1 - num_prompt} generated ones",
        hint="the weights may be damaged, or float16 too narrow for this model: try --dtype bfloat16",
    )


def _output(active: _Active, reason: FinishReason) -> RequestOutput:
    sequence = active.sequence
    times = sequence.token_times_s
    return RequestOutput(
        prompt=sequence.request.prompt,
        text=active.stream.text,
        token_ids=tuple(sequence.generated_token_ids),
        num_prompt_tokens=sequence.num_prompt_tokens,
        finish_reason=reason,
        first_token_s=times[0] - sequence.submitted_s,
        token_gaps_s=tuple(later - earlier for earlier, later in itertools.pairwise(times)),
    )
