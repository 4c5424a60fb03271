"""The CPU accelerator: devices are the NUMA nodes of this machine, and every call is done when it returns."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, MutableMapping, Sequence
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any

import torch

from corebound.accelerator import cpu_memory, cpu_visibility
from corebound.accelerator.base import AbstractAccelerator
from corebound.accelerator.cpu_streams import DEFAULT_STREAM, CpuEvent, CpuStream, Ranges
from corebound.accelerator.op_builder import OpBuilder, prebuilt
from corebound.config import env
from corebound.config.exported import exported
from corebound.errors import ConfigError
from corebound.logs import get_logger
from corebound.topology import read_topology

_LOGGER = get_logger(__name__)
# torch's own types, which also take sizes.
_TENSOR_TYPES: dict[str, Callable[..., torch.Tensor]] = {
    "bfloat16": torch.BFloat16Tensor,
    "uint8": torch.ByteTensor,
    "float64": torch.DoubleTensor,
    "float32": torch.FloatTensor,
    "float16": torch.HalfTensor,
    "int32": torch.IntTensor,
    "int64": torch.LongTensor,
}


class CpuAccelerator(AbstractAccelerator):
    """The processors and the memory of this machine."""

    name = "cpu"

    def __init__(self) -> None:
        self._ranges = Ranges()

    # Devices

    def is_available(self) -> bool:
        """Return True: there is always a CPU."""
        return True

    def is_synchronized_device(self) -> bool:
        """Return True: an operation is done when its call returns."""
        return True

    def device_name(self, device_index: int | None = None) -> str:
        """Return `cpu`: torch has one CPU, whatever the index."""
        return "cpu"

    def device(self, device_index: int | None = None) -> AbstractContextManager[Any]:
        """Return a context that changes nothing: a process stays on the cores that its launcher gave it."""
        return contextlib.nullcontext()

    def set_device(self, device_index: int) -> None:
        """Do nothing for the device that this process has; for another one, say that only a launcher can do that."""
        if device_index != self.current_device():
            _LOGGER.warning(
                "set_device(%s) has no effect: this process is local rank %d, and `corebound run` binds ranks to cores",
                device_index,
                self.current_device(),
            )

    def current_device(self) -> int:
        """Return the local rank of this process, 0 outside of a launch.

        Raises: ConfigError for an environment of a rank that is not whole.
        """
        return env.local_place()[0]

    def current_device_name(self) -> str:
        """Return `cpu`."""
        return "cpu"

    def device_count(self) -> int:
        """Return the ranks that the launcher started here, else the NUMA nodes whose CPUs this process may use.

        Raises: ConfigError for an environment of a rank that is not whole; HostError as `read_topology`.
        """
        return env.local_place()[1] or len(cpu_visibility.visible_nodes(read_topology()))

    def synchronize(self, device_index: int | None = None) -> None:
        """Return at once: everything is done."""

    def on_accelerator(self, tensor: torch.Tensor) -> bool:
        """Return whether a tensor of any shape is in the machine's own memory."""
        return tensor.device.type == "cpu"

    # Random numbers: one generator, whatever the index

    def random(self) -> ModuleType:
        """Return torch.random."""
        return torch.random

    def set_rng_state(self, new_state: torch.Tensor, device_index: int | None = None) -> None:
        """Put back a state that `get_rng_state` returned. Shapes: new_state [bytes] uint8."""
        torch.set_rng_state(new_state)

    def get_rng_state(self, device_index: int | None = None) -> torch.Tensor:
        """Return the state of torch's CPU generator. Shapes: result [bytes] uint8."""
        return torch.get_rng_state()

    def manual_seed(self, seed: int) -> None:
        """Seed torch's CPU generator."""
        torch.default_generator.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        """Seed torch's CPU generator, which is the only one."""
        self.manual_seed(seed)

    def initial_seed(self) -> int:
        """Return the seed that torch's CPU generator began with."""
        return torch.default_generator.initial_seed()

    def default_generator(self, device_index: int | None = None) -> torch.Generator:
        """Return torch's CPU generator."""
        return torch.default_generator

    # Streams, graphs, ranges

    @property
    def Stream(self) -> type[CpuStream]:  # noqa: N802 - the name that torch has
        """The class of streams; all are the same one."""
        return CpuStream

    @property
    def Event(self) -> type[CpuEvent]:  # noqa: N802 - the name that torch has
        """The class of events, which read the host's clock."""
        return CpuEvent

    def stream(self, stream: CpuStream | None) -> AbstractContextManager[Any]:
        """Return a context that changes nothing."""
        return contextlib.nullcontext(stream)

    def current_stream(self, device_index: int | None = None) -> CpuStream:
        """Return the only stream."""
        return DEFAULT_STREAM

    def default_stream(self, device_index: int | None = None) -> CpuStream:
        """Return the only stream."""
        return DEFAULT_STREAM

    def create_graph(self) -> None:
        """Return None: the CPU has no graphs."""

    def capture_to_graph(self, graph: Any, pool: Any = None, stream: Any = None) -> AbstractContextManager[Any]:
        """Return a context that changes nothing: what is in it runs once."""
        return contextlib.nullcontext()

    def replay_graph(self, graph: Any) -> None:
        """Refuse: doing nothing would leave the results of the capture where new ones are expected.

        Raises: ConfigError.
        """
        raise ConfigError(
            "replay_graph: the CPU has no graphs, create_graph() returned None",
            hint="call the function again where there is no graph; torch.compile saves the overhead of calls",
        )

    def range_push(self, msg: str, domain: str | None = None, category: str | None = None) -> None:
        """Begin a range that torch's profiler shows."""
        self._ranges.push(msg)

    def range_pop(self, domain: str | None = None) -> None:
        """End the range begun last on this thread. Raises: ConfigError when there is none."""
        self._ranges.pop()

    # Memory

    def total_memory(self, device_index: int | None = None) -> int:
        """Return the least of what the host, the cgroup and this process's NUMA nodes have, in bytes.

        Raises: HostError where /proc or /sys cannot be read.
        """
        return cpu_memory.limits_here()[0]

    def available_memory(self, device_index: int | None = None) -> int:
        """Return the least of what the host, the cgroup and this process's NUMA nodes can give, in bytes.

        Raises: HostError where /proc or /sys cannot be read.
        """
        return cpu_memory.limits_here()[1]

    def memory_allocated(self, device_index: int | None = None) -> int:
        """Return the bytes of this process that are in memory, those of the program itself included.

        Raises: HostError where the kernel does not say it.
        """
        return cpu_memory.resident_bytes()

    def max_memory_allocated(self, device_index: int | None = None) -> int:
        """Return the kernel's count of the most bytes that were in memory at once.

        Raises: HostError where the kernel does not say it.
        """
        return cpu_memory.peak_bytes()

    def reset_peak_memory_stats(self, device_index: int | None = None) -> None:
        """Let the peak begin anew, or warn once where the kernel refuses that."""
        cpu_memory.reset_peak()

    def empty_cache(self) -> None:
        """Give pages that the C library holds for later back to the system."""
        cpu_memory.give_back()

    def pin_memory(self, tensor: torch.Tensor, make_copy: bool = True, match_shape: bool = True) -> torch.Tensor:
        """Return the tensor itself, of any shape: the CPU reads it where it is."""
        return tensor

    def is_pinned(self, tensor: torch.Tensor) -> bool:
        """Return whether the CPU reads a tensor directly: True for every one in the machine's memory, of any shape."""
        return self.on_accelerator(tensor)

    def unpin_memory(self, tensor: torch.Tensor) -> None:
        """Do nothing with a tensor of any shape: nothing was pinned."""

    # Number formats

    def is_bf16_supported(self) -> bool:
        """Return True: where the processor has no bfloat16 products, they are computed in float32 and rounded."""
        return True

    def is_fp16_supported(self) -> bool:
        """Return whether oneDNN multiplies matrices of float16 on this processor."""
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())

    def supported_dtypes(self) -> list[torch.dtype]:
        """Return what a model may be loaded in.

        `torch.int8` means weights only: weights are stored as whole numbers with a scale for each row, and activations
        and the products' results are floating point. See docs/quantization.md.
        """
        half = [torch.float16] if self.is_fp16_supported() else []
        return [torch.float32, torch.bfloat16, *half, torch.int8]

    def _constructor(self, dtype: str) -> Callable[..., torch.Tensor]:
        return _TENSOR_TYPES[dtype]

    # Surroundings

    def communication_backend_name(self) -> str:
        """Return `gloo`: ranks meet through it, and `corebound.comm` puts shared memory over it."""
        return "gloo"

    def export_envs(self) -> list[str]:
        """Return the variables set here that a launch takes to other hosts."""
        return sorted(exported(env.snapshot()))

    def visible_devices_envs(self) -> list[str]:
        """Return OMP_PLACES, which limits torch's threads to the CPUs that it lists."""
        return [cpu_visibility.PLACES]

    def set_visible_devices_envs(
        self, current_env: MutableMapping[str, str], local_accelerator_ids: Sequence[int]
    ) -> None:
        """Let a process that starts with this environment run on the CPUs of some devices only.

        Devices are what `device_count` counts: NUMA nodes, and under a launch local ranks, of which only this one has
        CPUs that are known here.

        Raises: ConfigError for a node that this process may not use, for another rank, or none.
        """
        local_rank, num_local_ranks = env.local_place()
        if num_local_ranks:
            cpu_visibility.write_own_place(
                current_env, local_accelerator_ids, local_rank, num_local_ranks, read_topology()
            )
        else:
            cpu_visibility.write_places(current_env, local_accelerator_ids, read_topology())

    def op_builder_dir(self) -> str:
        """Return the package of the builders of this accelerator."""
        return prebuilt.__name__

    def get_op_builder(self, class_name: str) -> type[OpBuilder] | None:
        """Return the builder of an operator library that comes with Corebound, None for another name."""
        return prebuilt.BUILDERS.get(class_name)
