"""The decoder whose steps run in one native call: a team of threads over weights in panels.

It computes what `Decoder` computes; `Decoder` remains for float32 and float16, and where native kernels are off.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import weakref
from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from corebound.comm import Collectives
from corebound.comm.shm import ShmCollectives
from corebound.comm.shm_ops import failure
from corebound.errors import KernelError
from corebound.kernels import active_isa
from corebound.kernels.panels import ACTIVATIONS, PanelMatrix, library
from corebound.logs import get_logger
from corebound.models.batch import BestWords, GreedySteps, LogitsRoom, StepBatch
from corebound.models.decoder_reading import SumOverRanks, tune
from corebound.models.description import ModelDescription
from corebound.models.experts import require_one_variant
from corebound.models.native_structs import (
    ALL_REDUCE,
    ExpertStruct,
    LayerStruct,
    ModelStruct,
    NormStruct,
    StepStruct,
    head_groups,
)
from corebound.models.native_weights import NativeWeights
from corebound.models.rope import RotaryTable
from corebound.sharding import ShardPlan, alibi_slopes

_log = get_logger(__name__)
KvCache = Sequence[tuple[Tensor, Tensor]]
_FAILED_ITSELF = 100  # csrc/decoder/decoder_api.cpp


class NativeDecoder:
    """A rank's part of a model. All ranks call forward with equal batches; two all-reduces a layer join their parts.

    Layers with a parallel residual need one.

    `cpus` are the CPUs of the team, one thread each; the first is the caller's for as long as a step takes.

    Raises: KernelError when the native library cannot make the team; ModelError for a model with experts on ranks that
    do not compute with the same variant.
    """

    def __init__(
        self,
        description: ModelDescription,
        plan: ShardPlan,
        weights: NativeWeights,
        collectives: Collectives,
        cpus: Sequence[int],
    ) -> None:
        if description.num_experts and collectives.size > 1:
            require_one_variant(description.name, f"native decoder of {active_isa()}", collectives)
        self.description = description
        self.weights = weights
        self.dtype = torch.bfloat16
        share = plan.shares[collectives.rank]
        self.num_layers = description.num_layers
        self.num_heads, self.num_kv_heads = len(share.query_heads), len(share.kv_heads)
        self.head_dim = description.head_dim
        self.vocab_start, self.vocab_stop = share.vocab.start, share.vocab.stop
        self._collectives = collectives
        self._failure: BaseException | None = None
        self._rotary = RotaryTable(description.rope, description.head_dim) if description.rope else None
        self._caches: tuple[KvCache, list[ctypes.Array[ctypes.c_void_p]], tuple[int, ...]] | None = None
        self._angles: tuple[Tensor, Tensor] | None = None
        self._num_angles, self._angle_pointers = 0, (0, 0)
        self._kept: list[object] = []  # what the native side points to
        # Of the last step; None where its logits were changed after they were found.
        self.best_words: BestWords | None = None
        self._room = LogitsRoom(0, self.vocab_stop - self.vocab_start)
        self._per_head_qkv = plan.table.qkv_layout == "per_head"
        self._slopes: Tensor | None = None
        if description.alibi:
            slopes = alibi_slopes(description.num_heads)
            self._slopes = torch.tensor(slopes[share.query_heads.start : share.query_heads.stop], dtype=torch.float32)
        model = self._model(share.kv_head_map)
        threads = (ctypes.c_int * len(cpus))(*cpus)
        handle = library().corebound_decoder_create(ctypes.byref(model), threads, len(cpus))
        if not handle:
            raise KernelError(f"native decoder: {library().corebound_decoder_error().decode()}")
        self._handle = handle
        weakref.finalize(self, library().corebound_decoder_destroy, handle)

    def tune(self, sum_over_ranks: SumOverRanks = list) -> None:
        """Read weights in the way that is fastest here, or for all ranks whose times `sum_over_ranks` adds up.

        Raises: KernelError when the library ends with an error.
        """
        reading = tune(library(), self._handle, sum_over_ranks)
        _log.debug("a row of weights is read: %s", reading.replace("_", " "))

    @property
    def weight_bytes_per_token(self) -> int:
        """Return the bytes of weights that this rank reads to compute one token of one sequence."""
        weights = self.weights
        total = weights.head.num_bytes
        total += sum(tensor.nbytes for tensor in (*weights.embedding_norm, *weights.final_norm))
        for layer in weights.layers:
            total += sum(tensor.nbytes for tensor in layer.norms())
            total += sum(matrix.num_bytes for matrix in layer.matrices())
            total += sum(bias.nbytes for bias in layer.biases() if bias is not None)
            total += layer.experts.bytes_per_token(self.description.num_chosen_experts) if layer.experts else 0
        return total

    def forward(self, batch: StepBatch, kv_cache: KvCache) -> Tensor:
        """Return the logits of this rank's words for the rows that the batch asks for, and store all keys and values.

        The next step with as many rows overwrites them, and `best_words`.

        Shapes: as `Decoder.forward`.

        Raises: CommError when a sum over the ranks fails; KernelError for a failure of the step itself.
        """
        step = self._step(batch, kv_cache, batch.longest_context)
        code = library().corebound_decoder_run(self._handle, ctypes.byref(step))
        if code:
            raise self._error(code)
        if self.description.logits_divisor != 1.0:
            self.best_words = None  # what differs now may be equal then
            return self._room.logits.div_(self.description.logits_divisor)
        self.best_words = self._room.best
        return self._room.logits

    @property
    def greedy_steps(self) -> GreedySteps | None:
        """Several steps in one call, where logits are as they are found, and ranks share memory; else None.

        The call raises as `forward` does.
        """
        is_shared = self._collectives.size == 1 or isinstance(self._collectives, ShmCollectives)
        return self._run_greedily if is_shared and self.description.logits_divisor == 1.0 else None

    def _run_greedily(self, batch: StepBatch, kv_cache: KvCache, num_steps: int) -> list[BestWords]:
        step = self._step(batch, kv_cache, batch.longest_context + num_steps - 1)
        rows = batch.num_rows
        values, words = array("f", bytes(4 * rows * num_steps)), array("i", bytes(4 * rows * num_steps))
        num_done = ctypes.c_int64()
        found = (values.buffer_info()[0], words.buffer_info()[0], ctypes.byref(num_done))
        code = library().corebound_decoder_run_greedily(self._handle, ctypes.byref(step), num_steps, *found)
        if code:
            raise self._error(code)
        ends = range(rows, rows * num_done.value + 1, rows)
        return [BestWords(values[end - rows : end], words[end - rows : end]) for end in ends]

    def _step(self, batch: StepBatch, kv_cache: KvCache, longest: int) -> StepStruct:
        """Return the step as the library reads it, with rotary angles for `longest` positions."""
        # After a step, which reads all weights, none of this is in a cache: so few calls, and of torch hardly any.
        table = self.weights.position_embedding
        if table is not None and longest > table.shape[0] - self.description.position_offset:
            raise KernelError(f"native decoder: {longest} positions, of which {self.description.name} has fewer")
        if self._rotary is not None and longest > self._num_angles:
            self._angles = self._rotary.up_to(longest)
            self._num_angles = self._angles[0].shape[0]
            self._angle_pointers = (self._angles[0].data_ptr(), self._angles[1].data_ptr())
        if batch.num_rows != self._room.num_rows:
            self._room = LogitsRoom(batch.num_rows, self.vocab_stop - self.vocab_start)
        return StepStruct(
            batch.num_tokens,
            batch.num_sequences,
            batch.max_blocks,
            batch.num_rows,
            *batch.addresses(),
            *self._cache_pointers(kv_cache),
            *self._angle_pointers,
            *self._room.addresses,
        )

    def _error(self, code: int) -> BaseException:
        if self._failure is not None:
            error, self._failure = self._failure, None
            return error
        if code == _FAILED_ITSELF:
            return KernelError(f"native decoder: {library().corebound_decoder_error().decode()}")
        return failure(code)

    def _cache_pointers(self, kv_cache: KvCache) -> tuple[int, ...]:
        """Return where the pointers to keys and to values of the layers are, the size of a block and its stride."""
        if self._caches is None or self._caches[0] is not kv_cache:
            pointers_of_layers = ctypes.c_void_p * len(kv_cache)
            for cache in itertools.chain.from_iterable(kv_cache):
                assert cache.dtype == self.dtype and cache[0].is_contiguous()
                assert len(cache) == 1 or cache.stride(0) == kv_cache[0][0].stride(0) >= cache[0].numel()
            pointers = [pointers_of_layers(*(pair[which].data_ptr() for pair in kv_cache)) for which in range(2)]
            first = kv_cache[0][0]
            where = (*map(ctypes.addressof, pointers), first.shape[2], first.stride(0))
            self._caches = (kv_cache, pointers, where)
        return self._caches[2]

    def _model(self, kv_head_map: Sequence[int]) -> ModelStruct:
        description, weights = self.description, self.weights
        layers = (LayerStruct * self.num_layers)(*(self._layer(index) for index in range(self.num_layers)))
        groups = head_groups(kv_head_map)
        first_head = (ctypes.c_int32 * (self.num_kv_heads + 1))(
            *(sum(kv < head for kv in kv_head_map) for head in range(self.num_kv_heads + 1))
        )
        group, all_reduce = self._sum_over_ranks()
        self._kept += [layers, groups, first_head, all_reduce]
        return ModelStruct(
            num_layers=self.num_layers,
            hidden=description.hidden_size,
            heads=self.num_heads,
            kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            vocab_start=self.vocab_start,
            layers=ctypes.addressof(layers),
            embedding=_pointer(weights.embedding),
            num_words=self.vocab_stop - self.vocab_start,
            embedding_norm=_norm(weights.embedding_norm),
            final_norm=_norm(weights.final_norm),
            head=weights.head.struct,
            groups=ctypes.addressof(groups),
            num_groups=len(groups),
            first_head=ctypes.addressof(first_head),
            alibi_slopes=_pointer(self._slopes),
            scale=description.score_scale,
            norm_eps=description.norm_eps,
            activation=ACTIVATIONS.index(description.activation),
            rms_norm=description.norm == "rms",
            norm_as_residual=description.norm_as_residual,
            per_head_qkv=self._per_head_qkv,
            comm_group=group,
            all_reduce=all_reduce,
            position_embedding=self._first_position(),
            head_bias=self._in_panels(weights.head, weights.head_bias),
            rotary_half=description.rotary_dim // 2,
            residual_multiplier=description.residual_multiplier,
            embedding_multiplier=self._embedding_multiplier(),
            norm_offset=description.norm_offset,
            rotary_interleaved=description.rope is not None and description.rope.interleaved,
            parallel_residual=description.parallel_residual,
            num_experts=description.num_experts,
            num_chosen=description.num_chosen_experts,
            shared_expert=description.shared_expert_size > 0,
            renormalised_experts=description.renormalised_experts,
        )

    def _layer(self, index: int) -> LayerStruct:
        layer = self.weights.layers[index]
        struct = LayerStruct(
            attention_norm=_norm(layer.attention_norm),
            mlp_norm=_norm(layer.mlp_norm or layer.attention_norm),
            q_norm=_pointer(layer.q_norm),
            k_norm=_pointer(layer.k_norm),
            window=self.description.window(index),
        )
        for name in ("qkv", "attention_out", "mlp_in", "mlp_out"):
            matrix: PanelMatrix | None = getattr(layer, name)
            if matrix is None:
                continue
            setattr(struct, name, matrix.struct)
            bias: Tensor | None = getattr(layer, f"{name}_bias")
            if name.endswith("_out") and self._collectives.rank > 0:
                bias = None  # a sum over the ranks follows, in which it counts once
            setattr(struct, f"{name}_bias", self._in_panels(matrix, bias))
        if layer.experts is not None:
            struct.router = layer.experts.router.struct
            pairs = (*layer.experts.experts, *layer.experts.shared)
            experts = (ExpertStruct * len(pairs))(*(ExpertStruct(inner.struct, outer.struct) for inner, outer in pairs))
            self._kept.append(experts)
            struct.experts = ctypes.addressof(experts)
        return struct

    def _in_panels(self, matrix: PanelMatrix, bias: Tensor | None) -> int | None:
        in_order = matrix.bias(bias)
        self._kept.append(in_order)
        return _pointer(in_order)

    def _first_position(self) -> int | None:
        table = self.weights.position_embedding
        return None if table is None else table[self.description.position_offset :].data_ptr()

    def _embedding_multiplier(self) -> float:
        multiplier = self.description.embedding_multiplier
        return float(torch.tensor(multiplier, dtype=self.dtype)) if self.description.rounded_multiplier else multiplier

    def _sum_over_ranks(self) -> tuple[int, object]:
        """Return the group in shared memory, or 0 and what else sums over the ranks, if there are several."""
        collectives = self._collectives
        if collectives.size == 1:
            return 0, ALL_REDUCE()
        if isinstance(collectives, ShmCollectives):
            return collectives.handle, ALL_REDUCE()
        me = weakref.proxy(self)

        def all_reduce(data: int, count: int) -> int:
            memory = (ctypes.c_uint16 * count).from_address(data)
            try:
                collectives.all_reduce(torch.frombuffer(memory, dtype=torch.bfloat16))
            except BaseException as error:  # none can pass through the native frames: forward raises it
                with contextlib.suppress(ReferenceError):
                    me._failure = error
                return _FAILED_ITSELF
            return 0

        return 0, ALL_REDUCE(all_reduce)


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _norm(tensors: tuple[Tensor, ...]) -> NormStruct:
    pointers = [tensor.data_ptr() for tensor in tensors]
    return NormStruct(*pointers, *([None] * (2 - len(pointers))))
