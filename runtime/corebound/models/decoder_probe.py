"""Measures what a step costs beside its products: barriers and norms, and the attention of a prompt. Needs no torch."""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Sequence
from typing import Any

from corebound import native
from corebound.errors import KernelError
from corebound.kernels.panel_format import INPUT_UNIT, PanelFormat, matrix_struct
from corebound.kernels.panel_probe import FILL, AlignedMemory
from corebound.models.native_structs import (
    ALL_REDUCE,
    HeadGroupStruct,
    LayerStruct,
    ModelStruct,
    NormStruct,
    StepStruct,
)

_BLOCK_SIZE = 32
_HIDDEN = 64
_HEAD_DIM = 64
_GROUP = 8


class DecoderProbe:
    """A decoder of small matrices, so that its steps consist of all else. Every layer shares one set of weights.

    Raises: KernelError when the library cannot make the team.
    """

    def __init__(self, cpus: Sequence[int], *, num_layers: int, num_kv_heads: int, num_heads: int, tokens: int) -> None:
        assert num_heads <= _GROUP * num_kv_heads and num_heads % num_kv_heads == 0
        self._library: Any = native.core_library()
        self._library.corebound_decoder_create.restype = ctypes.c_void_p
        self._library.corebound_decoder_create.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int]
        self._library.corebound_decoder_error.restype = ctypes.c_char_p
        self._tokens, self._layers = tokens, num_layers
        num_blocks = -(-tokens // _BLOCK_SIZE)
        cache_bytes = num_blocks * _BLOCK_SIZE * num_kv_heads * _HEAD_DIM * 2
        self._caches = [AlignedMemory(cache_bytes) for _ in range(2)]
        for cache in self._caches:
            ctypes.memset(cache.address, FILL, cache_bytes)
        wide = (num_heads + 2 * num_kv_heads) * _HEAD_DIM
        self._weights = AlignedMemory(2 * _HIDDEN * max(wide, INPUT_UNIT))
        ctypes.memset(self._weights.address, FILL, 2 * _HIDDEN * wide)
        self._model = self._make_model(num_kv_heads, num_heads, wide)
        threads = (ctypes.c_int * len(cpus))(*cpus)
        self._handle = self._library.corebound_decoder_create(ctypes.byref(self._model), threads, len(cpus))
        if not self._handle:
            raise KernelError(f"decoder probe: {self._library.corebound_decoder_error().decode()}")

    def layer_seconds(self, num_repetitions: int, *, whole: bool) -> float:
        """Return the time of a layer: of all tokens as one prompt if `whole`, else of the last alone."""
        first = 0 if whole else self._tokens - 1
        step, kept = self._make_step(first)
        times = []
        for _ in range(num_repetitions + 1):
            started_s = time.perf_counter()
            code = self._library.corebound_decoder_run(ctypes.c_void_p(self._handle), ctypes.byref(step))
            times.append(time.perf_counter() - started_s)
            if code:
                raise KernelError(f"decoder probe: a step ended with code {code}")
        kept.clear()
        return statistics.median(times[1:]) / self._layers

    def close(self) -> None:
        """End the team."""
        self._library.corebound_decoder_destroy(ctypes.c_void_p(self._handle))

    def _make_model(self, num_kv_heads: int, num_heads: int, wide: int) -> ModelStruct:
        def matrix(outputs: int, inputs: int) -> Any:
            made = matrix_struct(outputs, inputs, PanelFormat())
            made.data = self._weights.address
            return made

        norm = NormStruct(self._weights.address, None)
        columns = num_heads * _HEAD_DIM
        layer = LayerStruct(attention_norm=norm, mlp_norm=norm)
        layer.qkv, layer.attention_out = matrix(wide, _HIDDEN), matrix(_HIDDEN, columns)
        layer.mlp_in, layer.mlp_out = matrix(_HIDDEN, _HIDDEN), matrix(_HIDDEN, _HIDDEN)
        self._kept_layers = (LayerStruct * self._layers)(*([layer] * self._layers))
        group = num_heads // num_kv_heads
        self._groups = (HeadGroupStruct * num_kv_heads)(
            *(HeadGroupStruct(kv * group, group, kv) for kv in range(num_kv_heads))
        )
        self._first_head = (ctypes.c_int32 * (num_kv_heads + 1))(*(kv * group for kv in range(num_kv_heads + 1)))
        return ModelStruct(
            num_layers=self._layers,
            hidden=_HIDDEN,
            heads=num_heads,
            kv_heads=num_kv_heads,
            head_dim=_HEAD_DIM,
            vocab_start=0,
            layers=ctypes.addressof(self._kept_layers),
            embedding=self._weights.address,
            num_words=1,
            embedding_norm=NormStruct(None, None),
            final_norm=norm,
            head=matrix(1, _HIDDEN),
            groups=ctypes.addressof(self._groups),
            num_groups=num_kv_heads,
            first_head=ctypes.addressof(self._first_head),
            alibi_slopes=None,
            scale=_HEAD_DIM**-0.5,
            norm_eps=1e-5,
            activation=1,
            rms_norm=True,
            norm_as_residual=False,
            per_head_qkv=False,
            comm_group=0,
            all_reduce=ALL_REDUCE(),
        )

    def _make_step(self, first: int) -> tuple[StepStruct, list[Any]]:
        positions = list(range(first, self._tokens))
        num_blocks = -(-self._tokens // _BLOCK_SIZE)
        of_int64 = [
            (ctypes.c_int64 * len(row))(*row)
            for row in ([0] * len(positions), positions, positions, [len(positions) - 1])
        ]
        of_int32 = [
            (ctypes.c_int32 * len(row))(*row) for row in (list(range(num_blocks)), [0, len(positions)], [self._tokens])
        ]
        caches = [(ctypes.c_void_p * self._layers)(*([cache.address] * self._layers)) for cache in self._caches]
        logits = (ctypes.c_float * 1)()
        token_ids, where, slots, rows = (ctypes.addressof(array) for array in of_int64)
        step = StepStruct(
            len(positions),
            1,
            num_blocks,
            1,
            token_ids,
            where,
            slots,
            *(ctypes.addressof(array) for array in of_int32),
            rows,
            *(ctypes.addressof(array) for array in caches),
            _BLOCK_SIZE,
            None,
            None,
            ctypes.addressof(logits),
        )
        return step, [*of_int64, *of_int32, *caches, logits]
