"""`LLM`: a model on all ranks of a launch, or on one process alone, and the one call that continues prompts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from corebound import models
from corebound.comm.base import Collectives
from corebound.comm.launch_group import join_launch
from corebound.config import env
from corebound.engine import kv_cache as kv
from corebound.engine.cache_size import allocate_cache, common_num_blocks
from corebound.engine.engine import Engine
from corebound.engine.executor import Executor
from corebound.engine.inbox import Inbox, Ticket
from corebound.engine.place import place_of_this_rank
from corebound.engine.progress import Progress
from corebound.engine.prompts import Prompts, prompt_list, require_near, require_params, require_text, token_tuple
from corebound.engine.request import Request, RequestOutput, SamplingParams, require_dtype
from corebound.engine.scheduler import Scheduler
from corebound.engine.service import Service
from corebound.engine.text import HuggingFaceTokenizer, NoTokenizer
from corebound.errors import CommError, RequestError
from corebound.logs import get_logger
from corebound.models.native_decoder import NativeDecoder

_LOGGER = get_logger(__name__)

OnText = Callable[[int, str], None]

# A model without position limit (alibi) still needs a bound on how much cache is useful.
_UNLIMITED_CONTEXT = 4096
# Between requests a rank may be slow, but not for as long as one that has its part of a long prompt to compute.
_ANSWER_LIMIT_S = 30.0


class LLM:
    """A model ready to continue prompts.

    Alone it uses this process; started by `corebound run`, every rank makes one with the same arguments and calls the
    same methods, and the ranks share the work. `kv_cache_gib` is the size of the cache on each rank; by default the
    ranks of a machine share half of its available memory, and take pages of it only as they are needed.
    Without `text` the model needs no tokenizer: prompts are token ids, and outputs have token ids only.
    `show_progress` says whether standard error is a terminal that shows it; elsewhere long loading is logged.
    None looks; `allow_pickled_weights` reads the tensors of PyTorch's own files where a model has no safetensors, and
    nothing else that is in them; `collectives` is for a caller that has a group already.

    Raises: ModelLoadError, ShardingError, HostError, CommError.
    """

    collectives: Collectives
    description: models.ModelDescription
    _decoder: models.Decoder | NativeDecoder
    _is_closed: bool
    _is_broken: bool

    def __init__(
        self,
        model: str | Path,
        *,
        dtype: str = "bfloat16",
        kv_cache_gib: float | None = None,
        max_num_sequences: int = 64,
        max_step_tokens: int = 512,
        text: bool = True,
        show_progress: bool | None = None,
        allow_pickled_weights: bool = False,
        collectives: Collectives | None = None,
    ) -> None:
        require_dtype(dtype)
        self.model_dir = models.resolve_model(str(model))
        self.description = models.describe(self.model_dir, tokenizer=text, allow_pickled_weights=allow_pickled_weights)
        self._owns_collectives, self._ends_group = collectives is None, True
        self.collectives = join_launch() if collectives is None else collectives
        with Progress(f"loading {model}", terminal=show_progress, enabled=self.is_first) as progress:
            self._decoder = models.load_model(
                self.model_dir,
                dtype,
                self.collectives,
                progress.update,
                allow_pickled_weights=allow_pickled_weights,
            )
        num_blocks = common_num_blocks(
            self._decoder,
            self.collectives,
            kv_cache_gib=kv_cache_gib,
            max_useful_tokens=max_num_sequences * (self.description.max_positions or _UNLIMITED_CONTEXT),
        )
        self._start(num_blocks, max_num_sequences, max_step_tokens, text=text)

    @classmethod
    def of_decoder(
        cls,
        decoder: models.Decoder | NativeDecoder,
        collectives: Collectives,
        *,
        num_blocks: int,
        max_num_sequences: int = 64,
        max_step_tokens: int = 512,
    ) -> Self:
        """Return an LLM without tokenizer around a decoder that exists, with so many blocks of cache.

        It takes and gives token ids, and leaves the collectives open, also after an error. All ranks call it.
        """
        made = cls.__new__(cls)
        made.model_dir, made.description = decoder.description.path, decoder.description
        made._owns_collectives, made.collectives, made._decoder = False, collectives, decoder
        made._ends_group = False
        made._start(num_blocks, max_num_sequences, max_step_tokens, text=False)
        return made

    @property
    def weight_bytes_per_token(self) -> int:
        """The bytes of weights that this rank reads for one token of one sequence."""
        return self._decoder.weight_bytes_per_token

    @property
    def is_first(self) -> bool:
        """Whether this process is rank 0: the one whose prompts count."""
        return self.collectives.rank == 0

    def generate(
        self,
        prompts: Prompts,
        params: SamplingParams | None = None,
        *,
        on_text: OnText | None = None,
    ) -> list[RequestOutput]:
        """Return the continuation of every prompt, in order.

        Prompts are texts or lists of token ids and may differ in length. On several ranks all call this together;
        rank 0's arguments count and all get the outputs. `on_text(index, text)` is called on rank 0 as text appears.

        Raises: RequestError for prompts that cannot run, on every rank; nothing was generated then, and the next call
        works. Any other error (from `on_text`, say) leaves the LLM unusable on every rank.
        """
        answer = self._together("generate", lambda: self._answer(prompts, params, on_text))
        if "error" in answer:
            raise RequestError(answer["error"], hint=answer["hint"])
        return [RequestOutput.from_message(message) for message in answer["outputs"]]

    def serve(self, inbox: Inbox, *, heartbeat_s: float = 5.0, answer_limit_s: float | None = None) -> None:
        """Answer the requests of `inbox` until it drains; on several ranks all call this, and rank 0's inbox counts.

        Requests join those that run. When none does, every `heartbeat_s` all ranks must answer within `answer_limit_s`,
        by default 30 s, or the timeout of collectives where that is shorter.

        Raises: CommError when a rank is gone; any error leaves the LLM unusable on every rank.
        """
        limit_s = min(_ANSWER_LIMIT_S, env.settings().comm_timeout_s) if answer_limit_s is None else answer_limit_s
        self._together("serve", lambda: self._serve(inbox, heartbeat_s, limit_s))

    def ranks(self) -> list[dict[str, Any]]:
        """Return where every rank runs and with what: CPUs, memory nodes, ISA, collectives, peak memory.

        All ranks call it. Raises: CommError when a rank is gone.
        """
        here = place_of_this_rank(self.collectives.name)
        return [self.collectives.broadcast_object(here, root=rank) for rank in range(self.collectives.size)]

    def close(self) -> None:
        """Leave the group of ranks, unless the caller brought it. Calling it again does nothing."""
        if not self._is_closed:
            self._is_closed = True
            if self._owns_collectives:
                self.collectives.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _together(self, call: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return rank 0's answer to a call that all ranks make."""
        if self._is_closed:
            raise RequestError(f"{call}() on an LLM that is closed")
        if self._is_broken:
            raise RequestError(f"{call}() on an LLM whose last call failed", hint="close it and make another one")
        try:
            return self._lead(work) if self.is_first else self._follow()
        except BaseException as error:
            self._break(error)
            raise

    def _lead(self, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Do the work, and send the other ranks the answer: its result, or what went wrong here."""
        try:
            answer = work()
        except BaseException as error:
            # Between two steps the others wait for word of rank 0; in a step they wait for its part of a sum.
            if not self._executor.is_in_step:
                self._tell_failure(error)
            raise
        self._send_answer(answer)
        return answer

    def _tell_failure(self, error: BaseException) -> None:
        try:
            self._send_answer({"failure": f"{type(error).__name__}: {error}"})
        except CommError as lost:
            _LOGGER.warning("the other ranks did not hear of this failure: %s", lost)

    def _send_answer(self, answer: dict[str, Any]) -> None:
        self._executor.stop()
        self.collectives.broadcast_object(answer)

    def _answer(self, prompts: Prompts, params: SamplingParams | None, on_text: OnText | None) -> dict[str, Any]:
        try:
            requests = self._requests(prompts, params)
        except RequestError as error:
            return {"error": error.message, "hint": error.hint}
        return {"outputs": [output.to_message() for output in self._run(requests, on_text)]}

    def _serve(self, inbox: Inbox, heartbeat_s: float, answer_limit_s: float) -> dict[str, Any]:
        def check() -> None:
            self._executor.check(answer_limit_s)

        # Twice as many as run together: the engine can start the next one in the step after one has ended.
        most = 2 * self._max_num_sequences
        Service(self._engine, self._request_of, inbox, check, heartbeat_s=heartbeat_s, max_running=most).run()
        return {}

    def _request_of(self, number: int, ticket: Ticket) -> Request:
        # A prompt that is far too long is not even read: reading holds up those that run.
        require_near(ticket.prompt, self.description.max_positions or _UNLIMITED_CONTEXT)
        return self._request(number, "prompt", ticket.prompt, ticket.params)

    def _follow(self) -> dict[str, Any]:
        self._executor.follow()
        answer: dict[str, Any] = self.collectives.broadcast_object(None)
        if "failure" in answer:
            raise CommError(f"rank 0 failed: {answer['failure']}", hint="the log of rank 0 says more")
        return answer

    def _break(self, error: BaseException) -> None:
        """Make every later call an error, here and, if the ranks are out of step, on the others at once."""
        self._is_broken = True
        if self._executor.is_in_step and self.collectives.size > 1 and self._ends_group:
            # They would wait for this rank until their time limit; a member that left ends the wait. The rank that has
            # the cause speaks first.
            if not isinstance(error, CommError):
                _LOGGER.error("leaving the group after %s: %s", type(error).__name__, error)
            self.collectives.close()

    def _start(self, num_blocks: int, max_num_sequences: int, max_step_tokens: int, *, text: bool) -> None:
        cache = allocate_cache(self._decoder, num_blocks)
        self._executor = Executor(self._decoder, cache, self.collectives, kv.BLOCK_SIZE)
        self._max_num_sequences = max_num_sequences
        self._is_closed = False
        self._is_broken = False
        if not self.is_first:
            return
        self._tokenizer = HuggingFaceTokenizer(self.model_dir) if text else NoTokenizer()
        scheduler = Scheduler(
            kv.BlockAllocator(num_blocks),
            block_size=kv.BLOCK_SIZE,
            max_num_sequences=max_num_sequences,
            max_step_tokens=max_step_tokens,
        )
        self._engine = Engine(
            self._executor,
            scheduler,
            self._tokenizer,
            eos_token_ids=frozenset(self.description.eos_token_ids),
            max_context=self.description.max_positions,
        )

    def _requests(self, prompts: Prompts, params: SamplingParams | None) -> list[Request]:
        """Return the requests, all checked: none of them starts unless every one can run."""
        params = require_params(params)
        if ignored := params.without_effect():
            _LOGGER.warning("%s: no effect, because temperature is 0 (greedy)", ", ".join(ignored))
        numbered = enumerate(prompt_list(prompts))
        return [self._request(number, f"prompt {number}", prompt, params) for number, prompt in numbered]

    def _request(self, number: int, where: str, prompt: Any, params: SamplingParams) -> Request:
        """Return one request, checked; errors name `where`."""
        if isinstance(prompt, str):
            text, token_ids = prompt, tuple(self._tokenizer.encode(require_text(where, prompt)))
        else:
            token_ids = token_tuple(where, prompt)
            self._engine.check_token_ids(where, token_ids)
            text = self._tokenizer.decode(token_ids)
        request = Request(id=number, prompt=text, prompt_token_ids=token_ids, params=params)
        self._engine.check(request, where)
        return request

    def _run(self, requests: list[Request], on_text: OnText | None) -> list[RequestOutput]:
        for request in requests:
            self._engine.submit(request)
        outputs: dict[int, RequestOutput] = {}
        while self._engine.has_work:
            for update in self._engine.step():
                update.raise_failure()
                if update.new_text and on_text is not None:
                    on_text(update.request_id, update.new_text)
                if update.output is not None:
                    outputs[update.request_id] = update.output
        return [outputs[request.id] for request in requests]
