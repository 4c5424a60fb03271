"""`import corebound as deepspeed`: the names that scripts touch, and hints for those that are not here."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist

import corebound as deepspeed
from corebound import comm
from corebound.errors import ConfigError
from corebound.inference import OnDevice
from corebound.runtime.utils import see_memory_usage


@pytest.fixture(autouse=True)
def no_group_afterwards() -> Iterator[None]:
    existed = dist.is_initialized()
    yield
    if dist.is_initialized() and not existed:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    "call",
    [
        lambda: deepspeed.init_distributed(),
        lambda: deepspeed.init_distributed("nccl"),
        lambda: deepspeed.init_distributed(dist_backend="ccl", auto_mpi_discovery=True, timeout=timedelta(seconds=30)),
        lambda: deepspeed.init_distributed(deepspeed.get_accelerator().communication_backend_name()),
        lambda: deepspeed.init_distributed("gloo", init_method="env://", rank=0, world_size=1),
        lambda: comm.init_distributed(30),
    ],
)
def test_after_init_distributed_a_rank_alone_can_ask_torch_and_comm_for_its_place(call: Any) -> None:
    group = call()
    assert (group.rank, group.size) == (0, 1)
    assert dist.get_rank() == comm.get_rank() == comm.get_local_rank() == 0
    assert dist.get_world_size() == comm.get_world_size() == 1
    dist.barrier()
    comm.barrier()
    total = torch.ones(3)
    comm.all_reduce(total, op=comm.ReduceOp.SUM)
    assert total.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"rank": 1, "world_size": 2}, "rank is 1, but this process was started with 0"),
        ({"world_size": 4}, "world_size is 4, but this process was started with 1"),
        ({"timeout": timedelta(seconds=3), "timeout_s": 4.0}, "two timeouts"),
    ],
)
def test_a_place_that_is_not_this_process_is_an_error(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        deepspeed.init_distributed(**arguments)


def test_what_has_no_effect_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="corebound"):
        deepspeed.init_distributed("nccl", distributed_port=29501, init_method="file:///tmp/x")
    for name in ("nccl is for GPUs", "distributed_port", "init_method"):
        assert sum(name in record.getMessage() for record in caplog.records) == 1


@pytest.mark.parametrize(
    "name", ["zero", "initialize", "add_config_arguments", "ops", "module_inject", "moe", "prepare"]
)
def test_a_name_that_is_not_here_says_what_to_do_instead(name: str) -> None:
    with pytest.raises(AttributeError, match=f"no attribute '{name}': .{{20}}"):
        getattr(deepspeed, name)


def test_an_unknown_name_is_a_plain_attribute_error() -> None:
    assert not hasattr(deepspeed, "no_such_name")
    assert not hasattr(comm, "no_such_name")


def test_on_device_makes_modules_without_memory_and_leaves_nothing_behind() -> None:
    before = torch.get_default_dtype()
    with OnDevice(dtype=torch.float16, device="meta"):
        made = torch.nn.Linear(1 << 20, 1 << 20)
    assert made.weight.is_meta and made.weight.dtype == torch.float16
    assert torch.get_default_dtype() == before and torch.empty(1).device.type == "cpu"
    with pytest.raises(ZeroDivisionError), OnDevice(dtype="int8"):
        assert torch.get_default_dtype() == torch.bfloat16
        raise ZeroDivisionError
    assert torch.get_default_dtype() == before
    with OnDevice(dtype=torch.float16, enabled=False):
        assert not torch.empty(1).is_meta


def test_memory_is_shown_when_forced(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="corebound"):
        see_memory_usage("quiet")
        see_memory_usage("after loading", force=True)
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["after loading"]
