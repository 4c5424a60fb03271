"""Times steps of made-up decoders: of small matrices for what costs beside products, of large ones for the rest."""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from corebound import native
from corebound.errors import KernelError
from corebound.kernels.panel_format import PANEL_OUTPUTS, PanelFormat, matrix_struct
from corebound.kernels.panel_probe import FILL, AlignedMemory, random_panel
from corebound.models.decoder_reading import tune
from corebound.models.native_structs import (
    HeadGroupStruct,
    LayerStruct,
    ModelStruct,
    NormStruct,
    StepStruct,
)

_BLOCK_SIZE = 32
HEAD_DIM = 64
_ELEMENT_BYTES = 2
_GELU = 1  # kernels::Activation
_MATRICES = ("qkv", "attention_out", "mlp_in", "mlp_out")


@dataclass(frozen=True, kw_only=True)
class ProbeShape:
    """Sizes of the decoder that is timed. Small matrices cost next to nothing: what is left is all else."""

    num_layers: int
    num_kv_heads: int = 4
    num_heads: int = 32
    hidden: int = 64
    inner: int = 64
    form: PanelFormat = field(default_factory=PanelFormat)

    @property
    def matrices(self) -> tuple[tuple[int, int], ...]:
        """Return outputs and inputs of the matrices of a layer, in the order of a step."""
        attended = self.num_heads * HEAD_DIM
        wide = attended + 2 * self.num_kv_heads * HEAD_DIM
        return ((wide, self.hidden), (self.hidden, attended), (self.inner, self.hidden), (self.hidden, self.inner))

    @property
    def layer_bytes(self) -> int:
        """Return the bytes of the matrices of a layer."""
        return sum(self.form.matrix_bytes(*size) for size in self.matrices)

    @property
    def layer_inputs(self) -> int:
        """Return the inputs of all matrices of a layer."""
        return sum(inputs for _, inputs in self.matrices)

    @property
    def cached_bytes(self) -> int:
        """Return the bytes that a position takes in the cache of a layer."""
        return 2 * _ELEMENT_BYTES * self.num_kv_heads * HEAD_DIM

    @property
    def layer_weights(self) -> int:
        """Return how many weights the matrices of a layer have."""
        return sum(outputs * inputs for outputs, inputs in self.matrices)


class DecoderProbe:
    """A decoder of up to `tokens` positions; the cache of its layers is one memory, block by block.

    Its layers have weights of their own in `memory`, as `PanelProbe` fills it, so that a step reads them from where
    memory of that size is; without it they share one set of random ones, as what products by tiles take depends on
    the values.

    Raises: KernelError when the library cannot make the team, or `memory` is smaller than the layers.
    """

    def __init__(
        self, cpus: Sequence[int], shape: ProbeShape, *, tokens: int, memory: AlignedMemory | None = None
    ) -> None:
        if memory is not None and shape.num_layers * shape.layer_bytes > memory.num_bytes:
            raise KernelError(
                f"decoder probe: {shape.num_layers} layers take {shape.num_layers * shape.layer_bytes} bytes, "
                f"expected up to {memory.num_bytes}"
            )
        self._library: Any = native.core_library()
        self._library.corebound_decoder_create.restype = ctypes.c_void_p
        self._library.corebound_decoder_create.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int]
        self._library.corebound_decoder_error.restype = ctypes.c_char_p
        self._tokens, self._shape = tokens, shape
        self._layer_positions = -(-tokens // _BLOCK_SIZE) * _BLOCK_SIZE
        # As the engine lays it out: [blocks, layers, 2, kv heads, block size, head size].
        self._cache = _filled(shape.num_layers * self._layer_positions * shape.cached_bytes)
        self._memory = memory
        self._shared = [] if memory else [_random(size, shape.form) for size in shape.matrices]
        self._norm = _filled(_ELEMENT_BYTES * shape.hidden)
        self._head = _filled(PanelFormat().matrix_bytes(1, shape.hidden))
        self._model = self._make_model()
        threads = (ctypes.c_int * len(cpus))(*cpus)
        self._handle = self._library.corebound_decoder_create(ctypes.byref(self._model), threads, len(cpus))
        if not self._handle:
            raise KernelError(f"decoder probe: {self._error()}")
        try:
            tune(self._library, self._handle)
        except KernelError:
            self.close()
            raise

    def prompt_seconds(self, num_repetitions: int) -> float:
        """Return the time of a step of all tokens, as one prompt.

        Raises: KernelError when the library ends a step with an error.
        """
        return self._seconds(0, self._tokens, num_repetitions)

    def next_seconds(self, context: int, num_repetitions: int) -> float:
        """Return the time of a step of the last token of `context`, which are up to `tokens`.

        Raises: KernelError when the library ends a step with an error.
        """
        return self._seconds(context - 1, context, num_repetitions)

    def _seconds(self, first: int, context: int, num_repetitions: int) -> float:
        step, kept = self._make_step(first, context)
        times = []
        for _ in range(num_repetitions + 1):
            started_s = time.perf_counter()
            code = self._library.corebound_decoder_run(ctypes.c_void_p(self._handle), ctypes.byref(step))
            times.append(time.perf_counter() - started_s)
            if code:
                raise KernelError(f"decoder probe: a step ended with code {code}")
        kept.clear()
        return statistics.median(times[1:])

    def _error(self) -> str:
        found: bytes = self._library.corebound_decoder_error()
        return found.decode()

    def close(self) -> None:
        """End the team."""
        self._library.corebound_decoder_destroy(ctypes.c_void_p(self._handle))

    def _make_model(self) -> ModelStruct:
        shape = self._shape
        norm = NormStruct(self._norm.address, None)
        head = matrix_struct(1, shape.hidden, PanelFormat())
        head.data = self._head.address
        self._layers = (LayerStruct * shape.num_layers)(
            *(self._layer(norm, index) for index in range(shape.num_layers))
        )
        group = shape.num_heads // shape.num_kv_heads
        self._groups = (HeadGroupStruct * shape.num_kv_heads)(
            *(HeadGroupStruct(kv * group, group, kv) for kv in range(shape.num_kv_heads))
        )
        self._first_head = (ctypes.c_int32 * (shape.num_kv_heads + 1))(
            *(kv * group for kv in range(shape.num_kv_heads + 1))
        )
        return ModelStruct(
            num_layers=shape.num_layers,
            hidden=shape.hidden,
            heads=shape.num_heads,
            kv_heads=shape.num_kv_heads,
            head_dim=HEAD_DIM,
            layers=ctypes.addressof(self._layers),
            embedding=self._norm.address,
            num_words=1,
            final_norm=norm,
            head=head,
            groups=ctypes.addressof(self._groups),
            num_groups=shape.num_kv_heads,
            first_head=ctypes.addressof(self._first_head),
            scale=HEAD_DIM**-0.5,
            norm_eps=1e-5,
            activation=_GELU,
            rms_norm=True,
            residual_multiplier=1.0,
            embedding_multiplier=1.0,
        )

    def _layer(self, norm: NormStruct, index: int) -> LayerStruct:
        layer = LayerStruct(attention_norm=norm, mlp_norm=norm)
        at = self._memory.address + index * self._shape.layer_bytes if self._memory else 0
        for number, (name, size) in enumerate(zip(_MATRICES, self._shape.matrices, strict=True)):
            matrix = matrix_struct(*size, self._shape.form)
            matrix.data = at if self._memory else self._shared[number].address
            at += self._shape.form.matrix_bytes(*size)
            setattr(layer, name, matrix)
        return layer

    def _make_step(self, first: int, context: int) -> tuple[StepStruct, list[Any]]:
        positions = list(range(first, context))
        num_blocks = -(-context // _BLOCK_SIZE)
        of_int64 = [
            (ctypes.c_int64 * len(row))(*row)
            for row in ([0] * len(positions), positions, positions, [len(positions) - 1])
        ]
        of_int32 = [
            (ctypes.c_int32 * len(row))(*row) for row in (list(range(num_blocks)), [0, len(positions)], [context])
        ]
        layers = range(self._shape.num_layers)
        block = _BLOCK_SIZE * self._shape.num_kv_heads * HEAD_DIM
        caches = [
            (ctypes.c_void_p * len(layers))(
                *(self._cache.address + (2 * layer + which) * block * _ELEMENT_BYTES for layer in layers)
            )
            for which in range(2)
        ]
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
            2 * len(layers) * block,
            None,
            None,
            ctypes.addressof(logits),
        )
        return step, [*of_int64, *of_int32, *caches, logits]


def _filled(num_bytes: int) -> AlignedMemory:
    memory = AlignedMemory(num_bytes)
    ctypes.memset(memory.address, FILL, num_bytes)
    return memory


def _random(size: tuple[int, int], form: PanelFormat) -> AlignedMemory:
    """Return a matrix whose panels are all the same random one."""
    memory = AlignedMemory(form.matrix_bytes(*size))
    panel = random_panel(form, size[1])
    for number in range(-(-size[0] // PANEL_OUTPUTS)):
        ctypes.memmove(memory.address + number * len(panel), panel, len(panel))
    return memory
