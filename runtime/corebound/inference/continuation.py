"""Continues prompts with Corebound's own decoder and engine: made when first asked for, with a cache that grows."""

from __future__ import annotations

from collections.abc import Callable

from corebound.comm.base import Collectives
from corebound.engine import LLM
from corebound.engine import kv_cache as kv
from corebound.engine.beams import blocks_for_beams
from corebound.engine.cache_size import cache_block_bytes
from corebound.errors import HostError
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

    def run(self, request: Translation) -> list[tuple[int, ...]]:
        """Return the new tokens of each prompt. All ranks call it with equal requests.

        Raises: RequestError for a prompt that cannot run; HostError when its cache does not fit into memory;
        CannotExpressError when it goes beyond the positions that the decoder has.
        """
        longest = max(len(prompt) for prompt in request.prompts) + request.params.max_new_tokens
        limit = self.decoder.description.max_positions
        if limit is not None and longest > limit:
            raise CannotExpressError(f"{longest} tokens, more than the {limit} positions of the model's configuration")
        llm = self._prepare(request, longest)
        return [output.token_ids for output in llm.generate(request.prompts, request.seeded())]

    def close(self) -> None:
        """Free the cache and the decoder's copy of the weights with this object."""
        if self._llm is not None:
            self._llm.close()
            self._llm = None

    def _prepare(self, request: Translation, longest: int) -> LLM:
        if longest > self._num_tokens:
            if self._collectives.rank == 0:
                _log.warning(
                    "max_out_tokens %d is too small for %d tokens of prompt and continuation: it is raised",
                    self._num_tokens,
                    longest,
                )
            self._num_tokens = longest
        needed = self._blocks(request)
        if self._llm is None or needed > self._num_blocks:
            self._check_memory(needed)
            self.close()
            self._num_blocks = needed
            self._llm = LLM.of_decoder(
                self.decoder, self._collectives, num_blocks=needed, max_num_sequences=_MAX_SEQUENCES
            )
        return self._llm

    def _blocks(self, request: Translation) -> int:
        """Return the blocks that hold `max_out_tokens` of every prompt that runs at a time."""
        num_beams = request.params.num_beams
        if num_beams == 1:
            return kv.blocks_for(self._num_tokens, kv.BLOCK_SIZE) * min(len(request.prompts), _MAX_SEQUENCES)
        shortest = min(len(prompt) for prompt in request.prompts)
        return blocks_for_beams(shortest, self._num_tokens, num_beams, kv.BLOCK_SIZE)

    def _check_memory(self, num_blocks: int) -> None:
        bytes_needed = num_blocks * cache_block_bytes(self.decoder)
        bytes_free = free_bytes(self._collectives)
        if bytes_needed > bytes_free:
            raise HostError(
                f"KV cache: {num_blocks * kv.BLOCK_SIZE} tokens need {bytes_needed / kv.GIB:.2f} GiB on each rank, "
                f"{bytes_free / kv.GIB:.2f} GiB are free for it",
                hint="lower max_out_tokens or max_new_tokens, send fewer prompts at a time, or use more ranks",
            )
