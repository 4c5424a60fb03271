from __future__ import annotations

import inspect
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from corebound.accelerator import AbstractAccelerator, cpu, cpu_streams, cpu_visibility
from corebound.accelerator.cpu import CpuAccelerator
from corebound.errors import ConfigError
from corebound.topology import read_topology
from fixtures.topology_trees import shared_machine

# The methods of the interface in use today, by name; scripts written for it call these.
IN_USE = [
    "is_synchronized_device",
    "use_host_timers",
    "resolves_data_dependency",
    "handles_memory_backpressure",
    "device_name",
    "device",
    "set_device",
    "current_device",
    "current_device_name",
    "device_count",
    "synchronize",
    "random",
    "set_rng_state",
    "get_rng_state",
    "manual_seed",
    "manual_seed_all",
    "initial_seed",
    "default_generator",
    "Stream",
    "Event",
    "stream",
    "current_stream",
    "default_stream",
    "empty_cache",
    "memory_allocated",
    "memory_cached",
    "memory_reserved",
    "max_memory_allocated",
    "max_memory_cached",
    "max_memory_reserved",
    "reset_max_memory_allocated",
    "reset_max_memory_cached",
    "reset_peak_memory_stats",
    "memory_stats",
    "total_memory",
    "available_memory",
    "is_bf16_supported",
    "is_fp16_supported",
    "supported_dtypes",
    "is_available",
    "range_push",
    "range_pop",
    "lazy_call",
    "communication_backend_name",
    "is_triton_supported",
    "prefer_triton_grouped_mm",
    "create_graph",
    "capture_to_graph",
    "replay_graph",
    "BFloat16Tensor",
    "ByteTensor",
    "DoubleTensor",
    "FloatTensor",
    "HalfTensor",
    "IntTensor",
    "LongTensor",
    "pin_memory",
    "is_pinned",
    "unpin_memory",
    "on_accelerator",
    "op_builder_dir",
    "create_op_builder",
    "get_op_builder",
    "build_extension",
    "export_envs",
    "visible_devices_envs",
    "set_visible_devices_envs",
    "get_compile_backend",
    "set_compile_backend",
]


@pytest.fixture
def accelerator() -> CpuAccelerator:
    return CpuAccelerator()


def test_the_interface_is_the_one_in_use_no_more_and_no_less() -> None:
    public = {name for name, _ in inspect.getmembers(AbstractAccelerator) if not name.startswith("_")}
    assert public - {"priority", "supports_nvtx_domain"} == set(IN_USE)


def test_flags_say_that_a_call_is_done_when_it_returns(accelerator: CpuAccelerator) -> None:
    assert accelerator.is_synchronized_device() is True
    assert accelerator.use_host_timers() is True
    assert accelerator.resolves_data_dependency() is True
    assert accelerator.handles_memory_backpressure() is True


def test_the_current_device_is_an_int_with_a_launcher_and_without(
    accelerator: CpuAccelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeepSpeed's CPU accelerator: current_device() is "a *str* when the env var exists, int 0 when not (type bug)"."""
    assert (accelerator.current_device(), type(accelerator.current_device())) == (0, int)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert (accelerator.current_device(), type(accelerator.current_device())) == (3, int)
    monkeypatch.setenv("LOCAL_RANK", "three")
    with pytest.raises(ConfigError, match="LOCAL_RANK: expected a whole number"):
        accelerator.current_device()


def test_setting_another_device_than_the_own_warns(
    accelerator: CpuAccelerator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("corebound"), "propagate", True)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with caplog.at_level(logging.WARNING, logger="corebound"):
        accelerator.set_device(1)
        assert not caplog.records
        accelerator.set_device(0)
    assert "set_device(0) has no effect: this process is local rank 1" in caplog.text


@pytest.mark.parametrize(
    ("machine", "num_devices"),
    [("xeon-2s-ht", 2), ("snc4", 8), ("container-6-of-128", 1), ("fake-numa", 2), ("flat-hbm", 2), ("vm", 1)],
)
def test_devices_are_the_nodes_with_cpus_of_this_process_without_numactl(
    accelerator: CpuAccelerator, monkeypatch: pytest.MonkeyPatch, machine: str, num_devices: int
) -> None:
    monkeypatch.setattr(cpu, "read_topology", lambda: read_topology(shared_machine(machine)))
    monkeypatch.setenv("PATH", "")
    assert accelerator.device_count() == num_devices


@pytest.mark.parametrize("name", ["LOCAL_SIZE", "LOCAL_WORLD_SIZE"])
def test_devices_are_the_ranks_of_the_launch_on_this_machine(
    accelerator: CpuAccelerator, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv(name, "5")
    assert accelerator.device_count() == 5


def test_random_states_come_back_whatever_the_index(accelerator: CpuAccelerator) -> None:
    """DeepSpeed: "set_rng_state with an index passes it to a torch function that does not accept it (bug)"."""
    state = accelerator.get_rng_state(1)
    first = torch.rand(3)
    accelerator.set_rng_state(state, 1)
    assert torch.equal(torch.rand(3), first)
    accelerator.manual_seed_all(7)
    seeded = torch.rand(2)
    accelerator.manual_seed(7)
    assert torch.equal(torch.rand(2), seeded)
    assert accelerator.initial_seed() == 7


def test_number_formats_are_answered_in_the_types_that_were_promised(
    accelerator: CpuAccelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeepSpeed: is_fp16_supported "falls through to None"; "no int8 -> init_inference(dtype=int8) raises"."""
    for answer in (True, False):
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", lambda answer=answer: answer, raising=False)
        assert accelerator.is_fp16_supported() is answer
        assert (torch.float16 in accelerator.supported_dtypes()) is answer
        assert {torch.float32, torch.bfloat16, torch.int8} <= set(accelerator.supported_dtypes())
    assert accelerator.is_bf16_supported() is True


def test_events_measure_and_streams_are_always_done(accelerator: CpuAccelerator) -> None:
    start, end = accelerator.Event(enable_timing=True), accelerator.Event(enable_timing=True)
    with accelerator.stream(accelerator.Stream(0)) as stream:
        start.record(stream)
        torch.ones(1000).sum()
        stream.record_event(end)
    assert 0 < start.elapsed_time(end) < 60_000
    assert end.elapsed_time(start) == -start.elapsed_time(end)
    with pytest.raises(ConfigError, match="record"):
        start.elapsed_time(accelerator.Event())


def test_a_graph_cannot_be_replayed_in_silence(accelerator: CpuAccelerator) -> None:
    graph = accelerator.create_graph()
    total = torch.zeros(1)
    with accelerator.capture_to_graph(graph):
        total += 1
    with pytest.raises(ConfigError, match="no graphs"):
        accelerator.replay_graph(graph)
    assert total.item() == 1


def test_ranges_show_in_the_profiler(accelerator: CpuAccelerator) -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        accelerator.range_push("corebound-outer", domain="d", category="c")
        accelerator.range_push("corebound-inner")
        accelerator.range_pop()
        accelerator.range_pop("d")
    assert {"corebound-outer", "corebound-inner"} <= {event.key for event in profile.key_averages()}
    with pytest.raises(ConfigError, match="no range"):
        accelerator.range_pop()
    assert isinstance(cpu_streams.DEFAULT_STREAM, accelerator.Stream)


def test_the_compile_backend_is_one_that_torch_knows(accelerator: CpuAccelerator) -> None:
    assert accelerator.get_compile_backend() == "inductor"
    accelerator.set_compile_backend("eager")
    assert accelerator.get_compile_backend() == "eager"
    assert CpuAccelerator().get_compile_backend() == "inductor"
    with pytest.raises(ConfigError, match="unknown compile backend: 'nonsense'") as caught:
        accelerator.set_compile_backend("nonsense")
    assert "inductor" in str(caught.value.hint)
    assert "eager" in str(caught.value.hint)


def test_what_is_exported_has_no_token(accelerator: CpuAccelerator, monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed forwards by prefix: "an HF_ prefix would expose HF_TOKEN"."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HF_HOME", "/models")
    monkeypatch.setenv("KMP_BLOCKTIME", "1")
    monkeypatch.setenv("LOCAL_SIZE", "2")
    names = accelerator.export_envs()
    assert {"HF_HOME", "KMP_BLOCKTIME"} <= set(names)
    # Read as prefixes, as DeepSpeed's launcher does, they reach it no more than as names.
    assert not any("HF_TOKEN".startswith(name) or "LOCAL_SIZE".startswith(name) for name in names)


def test_the_communication_backend_is_one_that_torch_has_here(accelerator: CpuAccelerator) -> None:
    assert torch.distributed.is_backend_available(accelerator.communication_backend_name())


def test_visible_devices_become_the_cpus_of_their_nodes() -> None:
    topology = read_topology(shared_machine("xeon-2s-ht"))
    environ: dict[str, str] = {}
    cpu_visibility.write_places(environ, [1], topology)
    expected = [*range(56, 112), *range(168, 224)]
    assert environ == {"OMP_PLACES": "{" + ",".join(map(str, expected)) + "}", "OMP_NUM_THREADS": "56"}
    kept = {"OMP_NUM_THREADS": "3"}
    cpu_visibility.write_places(kept, [0, 1], topology)
    assert kept["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize("devices", [[], [2], [-1], [0, 9]])
def test_visible_devices_that_are_none_or_not_there_are_refused(devices: list[int]) -> None:
    """DeepSpeed #2601: an empty VISIBLE_DEVICES."""
    with pytest.raises(ConfigError, match=r"expected some of \[0, 1\]"):
        cpu_visibility.write_places({}, devices, read_topology(shared_machine("xeon-2s-ht")))


@pytest.fixture
def rank_3_of_4(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")


@pytest.mark.usefixtures("rank_3_of_4")
def test_under_a_launch_the_current_device_is_the_cpus_of_this_rank(accelerator: CpuAccelerator) -> None:
    environ: dict[str, str] = {}
    assert accelerator.device_count() == 4
    accelerator.set_visible_devices_envs(environ, [accelerator.current_device()])
    assert environ["OMP_PLACES"] == "{" + ",".join(map(str, sorted(os.sched_getaffinity(0)))) + "}"
    assert environ["OMP_NUM_THREADS"] == str(len(read_topology().physical_cores()))


@pytest.mark.usefixtures("rank_3_of_4")
@pytest.mark.parametrize(
    ("devices", "problem"),
    [
        ([], r"expected some of \[0, 1, 2, 3\], found \[\]"),
        ([4], r"expected some of \[0, 1, 2, 3\], found \[4\]"),
        ([-1], r"expected some of"),
        ([0], r"expected \[3\], the local rank of this process, found \[0\]"),
        ([3, 1], r"which CPUs local rank 1 may use is not known here"),
    ],
)
def test_under_a_launch_devices_of_other_ranks_are_refused(
    accelerator: CpuAccelerator, devices: list[int], problem: str
) -> None:
    environ: dict[str, str] = {}
    with pytest.raises(ConfigError, match=problem):
        accelerator.set_visible_devices_envs(environ, devices)
    assert environ == {}


def test_the_threads_of_a_process_stay_on_its_visible_devices(accelerator: CpuAccelerator) -> None:
    own = sorted(os.sched_getaffinity(0))
    environ = dict(os.environ)
    environ.pop("OMP_NUM_THREADS", None)
    accelerator.set_visible_devices_envs(environ, [0])
    # The process's own list, narrowed to the first of its CPUs, so that one node is enough to see the effect.
    environ["OMP_PLACES"] = "{" + str(own[0]) + "}"
    script = (
        "import os, torch; torch.ones(1 << 20).add(1).sum();"
        "tasks = {c for t in os.listdir('/proc/self/task') for c in os.sched_getaffinity(int(t))};"
        "print(sorted(tasks), torch.get_num_threads(), os.environ['OMP_NUM_THREADS'])"
    )
    done = subprocess.run([sys.executable, "-c", script], env=environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    num_threads = environ["OMP_NUM_THREADS"]
    assert done.stdout.split() == [f"[{own[0]}]", num_threads, num_threads]


def test_every_method_of_the_interface_is_explained_in_the_guide() -> None:
    guide = (Path(__file__).parents[3] / "docs/accelerators.md").read_text(encoding="utf-8")
    assert [name for name in IN_USE if name not in guide] == []
