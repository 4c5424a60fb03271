"""Continues prompts with Corebound's own decoder and engine: made when first asked for, with a cache that grows."""

from __future__ import annotations

from collections.abc import Callable

import torch

from corebound.comm.base import Collectives
from corebound.engine import LLM
from corebound.engine import kv_cache as kv
from corebound.engine.beams import blocks_for_beams
from corebound.engine.cache_size import cache_block_bytes
from corebound.errors import HostError, RequestError
from corebound.inference.capacity import free_bytes
from corebound.inference.own_decoder import CannotExpressError
from corebound.inference.requests import Translation
from corebound.logs import get_logger
from corebound.models.decoder import Decoder
from corebound.models.native_decoder import NativeDecoder

_log = get_logger(__name__)

_MAX_SEQUENCES = 64


class Continuation:
    """One model's own decoder with a cache for `max_out_tokens` of each prompt; longer requests make it larger.

    Raises: CannotExpressError from `make_decoder`.
    """

    def __init__(
        self, make_decoder: Callable[[], Decoder | NativeDecoder], collectives: Collectives, max_out_tokens: int
    ) -> None:
        self.decoder = make_decoder()
        self._collectives = collectives
        self._num_tokens = max_out_tokens
        self._num_blocks = 0
        self._llm: LLM | None = None
        self._broken_by = ""

    def run(self, request: Translation) -> list[tuple[int, ...]]:
        """Return the new tokens of each prompt. All ranks call it with equal requests.

        Raises: RequestError for a prompt that cannot run; HostError when its cache does not fit into memory;
        CannotExpressError when it goes beyond the positions that the decoder has. After any other error the next call
        starts anew on one rank; on several it is an error, see require_in_step.
        """
        longest = max(len(prompt) for prompt in request.prompts) + request.params.max_new_tokens
        limit = self.decoder.description.max_positions
        if limit is not None and longest > limit:
            raise CannotExpressError(f"{longest} tokens, more than the {limit} positions of the model's configuration")
        llm = self._prepare(request, longest)
        try:
            outputs = llm.generate(request.prompts, request.seeded())
        except RequestError:
            raise
        except BaseException as error:
            self.close()
            if self._collectives.size > 1:
                self._broken_by = type(error).__name__
            raise
        return [output.token_ids for output in outputs]

    def require_in_step(self) -> None:
        """Raise RequestError when a call ended in the middle on several ranks: each may wait for another's message."""
        if self._broken_by:
            raise RequestError(
                f"an earlier generate ended with {self._broken_by}: the ranks of this engine may be out of step",
                hint="start the script again: model and engine must be made anew",
            )

    def close(self) -> None:
        """Free the cache and the decoder's copy of the weights with this object."""
        if self._llm is not None:
            self._llm.close()
            self._llm = None

    def _prepare(self, request: Translation, longest: int) -> LLM:
        num_tokens = max(longest, self._num_tokens)
        needed = self._blocks(request, num_tokens)
        if self._llm is None or needed > self._num_blocks:
            # First, so that the memory of the old cache counts as free.
            self.close()
            self._check_memory(needed)
            self._num_blocks = needed
            self._llm = LLM.of_decoder(
                self.decoder, self._collectives, num_blocks=needed, max_num_sequences=_MAX_SEQUENCES
            )
        if num_tokens > self._num_tokens:
            if self._collectives.rank == 0:
                _log.warning(
                    "max_out_tokens %d is too small for %d tokens of prompt and continuation: it is raised",
                    self._num_tokens,
                    longest,
                )
            # Only now: a request that had no room must not make the next ones ask for as much.
            self._num_tokens = num_tokens
        return self._llm

    def _blocks(self, request: Translation, num_tokens: int) -> int:
        """Return the blocks that hold so many tokens of every prompt that runs at a time."""
        num_beams = request.params.num_beams
        if num_beams == 1:
            return kv.blocks_for(num_tokens, kv.BLOCK_SIZE) * min(len(request.prompts), _MAX_SEQUENCES)
        shortest = min(len(prompt) for prompt in request.prompts)
        return blocks_for_beams(shortest, num_tokens, num_beams, kv.BLOCK_SIZE)

    def _check_memory(self, num_blocks: int) -> None:
        """Raise HostError, on every rank, when the cache of any of them does not fit."""
        mine = torch.tensor([num_blocks * cache_block_bytes(self.decoder)], dtype=torch.int64)
        # Ranks may have different numbers of heads.
        bytes_needed = int(self._collectives.all_gather(mine).max())
        bytes_free = free_bytes(self._collectives)
        if bytes_needed > bytes_free:
            raise HostError(
                f"KV cache: {num_blocks * kv.BLOCK_SIZE} tokens need {bytes_needed / kv.GIB:.2f} GiB on a rank, "
                f"{bytes_free / kv.GIB:.2f} GiB are free for it",
                hint="lower max_out_tokens or max_new_tokens, send fewer prompts at a time, or use more ranks",
            )
