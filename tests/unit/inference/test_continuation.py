"""The engine that continues prompts, when memory is short or a call is interrupted: all ranks see the same."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch

from corebound.errors import CommError, HostError, RequestError
from corebound.inference import InferenceEngine, continuation
from fixtures.engines import on_ranks

PROMPT = torch.tensor([[5, 6, 7, 8]])


def answer(engine: InferenceEngine, max_new_tokens: int = 4) -> Any:
    return engine.generate(PROMPT, max_new_tokens=max_new_tokens).tolist()


def running(engine: InferenceEngine) -> continuation.Continuation:
    found = engine._continuation
    assert found is not None
    return found


def test_a_cache_that_fits_on_one_rank_only_is_an_error_on_both(monkeypatch: pytest.MonkeyPatch) -> None:
    original = continuation.cache_block_bytes
    shortage = {"on": True}

    def bytes_of(decoder: Any) -> int:
        return 10**15 if shortage["on"] and decoder.vocab_start else original(decoder)

    monkeypatch.setattr(continuation, "cache_block_bytes", bytes_of)

    def use(engine: InferenceEngine) -> Any:
        with pytest.raises(HostError, match="GiB on a rank"):
            answer(engine)
        engine.collectives.barrier()
        shortage["on"] = False
        engine.collectives.barrier()
        return answer(engine)

    first, second = on_ranks(2, use)
    assert first == second


def test_the_old_cache_is_freed_before_the_room_for_a_larger_one_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    old: list[weakref.ref[Any]] = []
    alive: list[bool] = []
    original = continuation.free_bytes

    def looking(collectives: Any) -> int:
        alive.extend(cache() is not None for cache in old)
        return original(collectives)

    def use(engine: InferenceEngine) -> None:
        answer(engine)
        llm = running(engine)._llm
        assert llm is not None
        old.append(weakref.ref(llm._executor._kv_cache[0][0]))
        del llm
        monkeypatch.setattr(continuation, "free_bytes", looking)
        answer(engine, max_new_tokens=40)

    on_ranks(1, use, max_out_tokens=8)
    assert alive == [False]


def test_a_request_without_room_leaves_room_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(continuation, "free_bytes", lambda collectives: 10_000)

    def use(engine: InferenceEngine) -> None:
        expected = answer(engine)
        with pytest.raises(HostError, match="KV cache"):
            answer(engine, max_new_tokens=50)  # two blocks of cache
        assert answer(engine) == expected

    on_ranks(1, use, max_out_tokens=8)


def test_one_rank_goes_on_after_an_interrupted_call(monkeypatch: pytest.MonkeyPatch) -> None:
    def use(engine: InferenceEngine) -> None:
        expected = answer(engine)
        with monkeypatch.context() as patch:
            patch.setattr(running(engine).decoder, "forward", interrupted)
            with pytest.raises(KeyboardInterrupt):
                answer(engine)
        assert answer(engine) == expected

    on_ranks(1, use)


def test_several_ranks_say_after_an_interrupted_call_that_the_engine_is_lost_and_keep_the_group() -> None:
    def use(engine: InferenceEngine) -> Any:
        answer(engine)
        closed: list[bool] = []
        group: Any = engine.collectives
        group.close = lambda: closed.append(True)
        failure = KeyboardInterrupt if group.rank == 0 else CommError
        decoder: Any = running(engine).decoder
        decoder.forward = interrupted if group.rank == 0 else lost
        with pytest.raises(failure):
            answer(engine)
        said = []
        for call in (lambda: answer(engine), lambda: engine(PROMPT)):
            with pytest.raises(RequestError, match=f"ended with {failure.__name__}: the ranks") as caught:
                call()
            said.append(str(caught.value.hint))
        # The script's group is not the engine's to close.
        group.barrier()
        return closed, said

    for closed, said in on_ranks(2, use):
        assert closed == [] and all("made anew" in hint for hint in said)


def interrupted(*_: Any) -> Any:
    raise KeyboardInterrupt


def lost(*_: Any) -> Any:
    raise CommError("the other rank is gone")
