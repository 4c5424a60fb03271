"""What the ranks of the communication tests do. The world and its groups live as long as the process."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import logging
import operator
import os
import resource
import signal
import socket
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from corebound import comm, native_ccl
from corebound.comm import ccl_open, host_link, select, shm_handshake, shm_ops
from corebound.comm.base import Collectives
from corebound.comm.hierarchical import HierarchicalCollectives
from corebound.comm.peer_watch import PeerWatch
from corebound.comm.shm import ShmCollectives
from corebound.comm.shm_handshake import SegmentOptions
from corebound.config import env
from corebound.topology.native_report import native_active_isa

GROUPS: dict[str, Collectives] = {}
PAGE = 4096


class LogLines(logging.Handler):
    """Collects the package's log."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def __enter__(self) -> LogLines:
        logger = logging.getLogger("corebound")
        logger.addHandler(self)
        logger.setLevel(logging.INFO)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("corebound").removeHandler(self)


def join(provider: str = "auto", timeout_s: float = 30) -> dict[str, Any]:
    """Join the world; return what was chosen and logged."""
    with LogLines() as log:
        GROUPS["world"] = comm.init_distributed(timeout_s, provider=provider)
    group = GROUPS["world"]
    return {"name": group.name, "rank": group.rank, "size": group.size, "log": log.lines}


def make_group(name: str, ranks: list[int], chunk_bytes: int = 512 * 1024, provider: str = "shm") -> dict[str, Any]:
    """Make a group of some ranks with segments of a chosen size; every rank of the world calls it."""
    process_group = dist.new_group(ranks, backend="gloo")
    if dist.get_rank() not in ranks:
        return {}
    options = SegmentOptions(chunk_bytes=chunk_bytes)
    group = select.create(process_group, provider, 30, job_id=job_id(), options=options)
    GROUPS[name] = group
    return group.details if isinstance(group, ShmCollectives) else {"name": group.name}


def job_id() -> str:
    place = env.rank_environment()
    assert place is not None
    return place.job_id


def inputs(group: Collectives, num_elements: int, dtype: torch.dtype, seed: int) -> list[torch.Tensor]:
    """Every member's input: each rank makes them all, to know the sum."""
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.int32:
        return [torch.randint(-(2**31), 2**31 - 1, (num_elements,), generator=generator).int() for _ in group.ranks]
    return [torch.randn(num_elements, generator=generator).to(dtype) for _ in group.ranks]


def expected_sum(parts: list[torch.Tensor]) -> torch.Tensor:
    """The sum in member order, in fp32 rounded once; int32 wraps."""
    if parts[0].dtype == torch.int32:
        total = functools.reduce(operator.add, [part.long() for part in parts])
        return ((total + 2**31) % 2**32 - 2**31).int()
    return functools.reduce(operator.add, [part.float() for part in parts]).to(parts[0].dtype)


def digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def check_sums(name: str, dtype: str, sizes: list[int], two_shot: bool, streaming: bool) -> list[str]:
    """Sum tensors of all sizes; check each against the reference and return digests, to compare ranks."""
    group = GROUPS.get(name)
    if group is None:
        return []
    assert isinstance(group, ShmCollectives)
    group.set_choice(two_shot=two_shot, streaming=streaming)
    digests = []
    for num_elements in sizes:
        parts = inputs(group, num_elements, getattr(torch, dtype), seed=num_elements)
        own = parts[group.rank].clone()
        assert group.all_reduce(own) is own
        expected = expected_sum(parts)
        assert torch.equal(own, expected), f"{dtype} x {num_elements}: {own} is not {expected}"
        if dtype != "int32":
            exact = functools.reduce(operator.add, [part.double() for part in parts])
            size = functools.reduce(operator.add, [part.double().abs() for part in parts])
            half_ulp = torch.finfo(own.dtype).eps / 2
            bound = exact.abs() * half_ulp * 1.01 + size * group.size * 2.0**-24 + torch.finfo(own.dtype).tiny
            assert bool(((own.double() - exact).abs() <= bound).all()), f"{dtype} x {num_elements}: off from fp64"
        digests.append(digest(own))
    return digests


def check_moves(name: str, sizes: list[int]) -> None:
    """Gather and broadcast tensors of several dtypes and sizes, from every root."""
    group = GROUPS.get(name)
    if group is None:
        return
    for dtype in (torch.bfloat16, torch.int64, torch.uint8, torch.float64):
        for num_elements in sizes:
            parts = [torch.arange(num_elements).add(7 * rank).to(dtype) for rank in range(group.size)]
            gathered = group.all_gather(parts[group.rank])
            assert torch.equal(gathered, torch.stack(parts))
            for root in range(group.size):
                own = parts[group.rank].clone()
                assert group.broadcast(own, root) is own
                assert torch.equal(own, parts[root])


def mix_operations(name: str, num_steps: int, seed: int) -> str:
    """Run a random sequence of operations, sizes and pauses; return a digest of all results."""
    group = GROUPS.get(name)
    if group is None:
        return ""
    common = torch.Generator().manual_seed(seed)
    pauses = torch.Generator().manual_seed(seed + 1 + group.rank)
    all_results = hashlib.sha256()
    for step in range(num_steps):
        kind = int(torch.randint(4, (1,), generator=common))
        num_elements = int(torch.tensor([1, 30, 2047, 2049, 9000])[torch.randint(5, (1,), generator=common)])
        root = int(torch.randint(group.size, (1,), generator=common))
        if int(torch.randint(8, (1,), generator=pauses)) == 0:
            time.sleep(0.0005)
        own = torch.full((num_elements,), float(step + group.rank))
        total = sum(step + rank for rank in range(group.size))
        if kind == 0:
            assert torch.equal(group.all_reduce(own), torch.full((num_elements,), float(total)))
        elif kind == 1:
            gathered = group.all_gather(own)
            assert gathered[:, -1].tolist() == [float(step + rank) for rank in range(group.size)]
            all_results.update(gathered.numpy().tobytes())
        elif kind == 2:
            assert torch.equal(group.broadcast(own, root), torch.full((num_elements,), float(step + root)))
        else:
            group.barrier()
        all_results.update(own.numpy().tobytes() if kind in (0, 2) else b"")
    return all_results.hexdigest()


def check_two_groups(first: str, second: str) -> None:
    """Alternate between two groups that overlap in some ranks."""
    for step in range(50):
        for name in (first, second):
            group = GROUPS.get(name)
            if group is not None:
                total = group.all_reduce(torch.tensor([float(step + dist.get_rank())] * 100))
                assert total[99] == sum(step + rank for rank in group.ranks)


def check_views(name: str) -> None:
    """Sum and broadcast views that are not contiguous: the result must land in the caller's memory."""
    group = GROUPS.get(name)
    if group is None:
        return
    whole = torch.ones(6, 8) * (group.rank + 1)
    total = sum(range(1, group.size + 1))
    column = whole[:, 1:7:2]
    assert group.all_reduce(column).data_ptr() == column.data_ptr()
    assert whole[:, 1:7:2].eq(total).all()
    assert whole[:, 0:8:2].eq(group.rank + 1).all()
    transposed = (torch.arange(6.0).reshape(2, 3) * (group.rank + 1)).t()
    assert torch.equal(group.all_reduce(transposed), (torch.arange(6.0).reshape(2, 3) * total).t())
    row = torch.zeros(4, 4)
    row[:, 2] = group.rank
    group.broadcast(row[:, 2], root=group.size - 1)
    assert row[:, 2].eq(group.size - 1).all()
    assert row[:, 1].eq(0).all()
    assert group.all_gather(whole[:, 1]).shape == (group.size, 6)


def sum_unsupported(name: str) -> dict[str, Any]:
    """Sum float64 twice; return the result and what was logged."""
    group = GROUPS.get(name)
    if group is None:
        return {}
    with LogLines() as log:
        for _ in range(2):
            total = group.all_reduce(torch.full((3,), 0.1, dtype=torch.float64))
    return {"total": total.tolist(), "log": log.lines}


def force_isa(isa: str) -> str:
    """Force a variant for groups made from now on."""
    return native_active_isa(isa)


def objects(name: str) -> list[Any]:
    """Broadcast objects from every root: short, longer than the first message, and one that JSON cannot carry."""
    group = GROUPS.get(name)
    if group is None:
        return []
    results = []
    for root in range(group.size):
        mine = {"from": group.rank, "text": "ä" * 5000 * root, "none": None}
        got = group.broadcast_object(mine if group.rank == root else None, root)
        results.append([got["from"], len(got["text"])])
    try:
        group.broadcast_object({1, 2} if group.rank == 0 else None)
    except Exception as error:
        results.append(type(error).__name__)
    return results


def call(name: str, operation: str, num_elements: int = 100, timeout_s: float | None = None, late_s: float = 0) -> Any:
    """Call one operation with ones after a pause; return how long it took."""
    group = GROUPS.get(name)
    if group is None:
        return None
    time.sleep(late_s)
    start = time.monotonic()
    run_one(group, operation, num_elements, timeout_s)
    return time.monotonic() - start


def run_one(group: Collectives, operation: str, num_elements: int, timeout_s: float | None = None) -> None:
    tensor = torch.ones(num_elements)
    if operation == "all_reduce":
        group.all_reduce(tensor, timeout_s)
    elif operation == "all_gather":
        group.all_gather(tensor, timeout_s)
    elif operation == "broadcast":
        group.broadcast(tensor, 1, timeout_s)
    else:
        group.barrier(timeout_s)


def call_for_ever(name: str, operation: str, num_elements: int) -> None:
    while True:
        run_one(GROUPS[name], operation, num_elements)


def sleep_for_ever() -> None:
    while True:
        time.sleep(1)


def leave(name: str) -> None:
    GROUPS.pop(name).close()


def limit_file_size(num_bytes: int | None) -> None:
    """Let no file grow beyond a size, as a full /dev/shm does; None lifts the limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard if num_bytes is None else num_bytes, hard))


def pretend_many_cpus(rank: int) -> None:
    """Make one rank believe that it may use every other of many CPUs, which no range shortens."""
    if dist.get_rank() == rank:
        os.sched_getaffinity = lambda _: set(range(0, 8192, 2))


def pretend_boot_id(rank: int, boot_id: str) -> None:
    """Make one rank believe it runs on another machine."""
    if dist.get_rank() == rank:
        shm_handshake.boot_id = lambda: boot_id


def operator_checks(name: str) -> list[str]:
    """Run torch's own checks of the operators, and trace one under torch.compile."""
    group = GROUPS.get(name)
    if group is None:
        return []
    assert isinstance(group, ShmCollectives)
    ops, handle, checks = (
        torch.ops.corebound,
        group.handle,
        ["test_schema", "test_faketensor", "test_aot_dispatch_static"],
    )
    torch.library.opcheck(ops.shm_all_reduce_.default, (torch.ones(33), handle), test_utils=checks)
    torch.library.opcheck(ops.shm_all_reduce.default, (torch.ones(3, 11), handle, 5.0), test_utils=checks)
    torch.library.opcheck(ops.shm_all_gather.default, (torch.ones(3, 5), handle, group.size), test_utils=checks)
    torch.library.opcheck(ops.shm_broadcast_.default, (torch.ones(7), handle, 1), test_utils=checks)

    def layer(x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        ops.shm_all_reduce_(y, handle)
        return y + ops.shm_all_reduce(x, handle)

    x = torch.ones(2, 16)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), torch.full((2, 16), 3.0 * group.size))
    # The provider's own method must be traceable too: models call that.
    traced = torch.compile(lambda t: group.all_reduce(t * 2), backend="aot_eager", fullgraph=True)
    assert torch.equal(traced(x), torch.full((2, 16), 2.0 * group.size))
    return ["checked"]


def closed_group_error(name: str) -> str:
    """Use a group after closing it; return the error."""
    group = GROUPS.get(name)
    if not isinstance(group, ShmCollectives):
        return ""
    handle = group.handle
    group.close()
    group.close()
    try:
        torch.ops.corebound.shm_all_reduce_(torch.ones(4), handle)
    except RuntimeError as error:
        return str(error)
    return ""


def join_and_die_in_the_handshake(rank: int) -> None:
    """Join with shared memory; one rank kills itself when all segments exist and none is mapped yet."""

    def die(*_: object) -> str:
        assert len(list(Path("/dev/shm").glob(f"corebound.{job_id()}.*"))) == dist.get_world_size()
        os.kill(os.getpid(), signal.SIGKILL)
        return ""

    if os.environ["RANK"] == str(rank):
        shm_handshake._attach_all = die
    join("shm", 10)


def open_segment(directory: str, chunk_bytes: int = 512 * 1024) -> tuple[int, str]:
    """Create a segment and leave it open; return the code and the text of the failure."""
    library = shm_ops.library()
    handle, token = ctypes.c_int64(0), ctypes.create_string_buffer(shm_ops.TOKEN_BYTES)
    path, ranks = f"{directory}/corebound.test.segment".encode(), (ctypes.c_int * 2)(0, 1)
    code = library.corebound_comm_open(path, 0, 2, ranks, chunk_bytes, 1.0, 0, ctypes.byref(handle), token)
    return code, str(shm_ops.failure(code))


def open_segment_twice(directory: str) -> list[tuple[int, str]]:
    return [open_segment(directory, PAGE), open_segment(directory, PAGE)]


def hosts_of(name: str) -> list[list[int]]:
    """Return the members of each host of a hierarchical group."""
    group = GROUPS[name]
    assert isinstance(group, HierarchicalCollectives)
    return [list(members) for members in group.hosts]


def carrier_of(name: str) -> str:
    """Return what carries a hierarchical group's data between hosts."""
    group = GROUPS[name]
    assert isinstance(group, HierarchicalCollectives)
    return group.carrier


def check_sums_of_ccl(name: str, dtype: str, sizes: list[int]) -> list[str]:
    """Sum tensors of all sizes; check them against the sum in fp64 and return digests, to compare ranks.

    oneCCL chooses the order and rounds after every addition.
    """
    group = GROUPS.get(name)
    if group is None:
        return []
    kind = getattr(torch, dtype)
    digests = []
    for num_elements in sizes:
        if dtype == "int8":
            generator = torch.Generator().manual_seed(num_elements)
            parts = [torch.randint(-30, 30, (num_elements,), generator=generator).to(kind) for _ in group.ranks]
        else:
            parts = inputs(group, num_elements, kind, seed=num_elements)
        own = parts[group.rank].clone()
        assert group.all_reduce(own) is own
        if dtype == "int8":
            assert torch.equal(own, functools.reduce(operator.add, parts))
        elif dtype == "int32":
            assert torch.equal(own, expected_sum(parts))
        else:
            exact = functools.reduce(operator.add, [part.double() for part in parts])
            size = functools.reduce(operator.add, [part.double().abs() for part in parts])
            bound = size * (group.size - 1) * torch.finfo(kind).eps / 2 * 1.05 + torch.finfo(kind).tiny
            assert bool(((own.double() - exact).abs() <= bound).all()), f"{dtype} x {num_elements}: off from fp64"
        digests.append(digest(own))
    return digests


def open_alone(timeout_s: float) -> None:
    """Make a communicator of two whose other member never comes."""
    lib = native_ccl.library()
    address = ctypes.create_string_buffer(lib.corebound_ccl_address_bytes())
    assert lib.corebound_ccl_serve(address) == 0
    store = dist.HashStore()
    names = ["rank 0 (host here)", "rank 1 (host away)"]
    with contextlib.closing(alone := socket.create_server(("127.0.0.1", 0))):
        away = socket.create_connection(alone.getsockname())
        watch = PeerWatch.__new__(PeerWatch)
        watch._sockets = {1: away}
        ccl_open.join(lib, address.raw, 0, names, timeout_s, watch, store)


def meet_alone(timeout_s: float) -> None:
    """Make the connections of a group of two whose other member never comes."""
    PeerWatch(dist.HashStore(), 0, ["rank 0 (host here)", "rank 1 (host away)"], timeout_s)


def check_level_sums(name: str, dtype: str, sizes: list[int], num_slices: int) -> list[str]:
    """Sum tensors of all sizes in `num_slices` slices (0: as many as possible); check them and return digests.

    The reference adds the ranks of each host in order, rounds, and adds the hosts in order.
    """
    group = GROUPS[name]
    assert isinstance(group, HierarchicalCollectives)
    rules, group.rules = group.rules, [(float("inf"), num_slices or group.max_slices)]
    digests = []
    for num_elements in sizes:
        parts = inputs(group, num_elements, getattr(torch, dtype), seed=num_elements)
        own = parts[group.rank].clone()
        assert group.all_reduce(own) is own
        levels = [expected_sum([parts[member] for member in members]) for members in group.hosts]
        expected = expected_sum(levels)
        assert torch.equal(own, expected), f"{dtype} x {num_elements}: {own} is not {expected}"
        if dtype != "int32":
            exact = functools.reduce(operator.add, [part.double() for part in parts])
            size = functools.reduce(operator.add, [part.double().abs() for part in parts])
            half_ulp = torch.finfo(own.dtype).eps / 2
            rounded = [level.double().abs() for level in levels] + [exact.abs()]
            bound = functools.reduce(operator.add, rounded) * half_ulp * 1.02 + size * group.size * 2.0**-24
            assert bool(((own.double() - exact).abs() <= bound).all()), f"{dtype} x {num_elements}: off from fp64"
        digests.append(digest(own))
    group.rules = rules
    return digests


def compile_all_reduce(name: str) -> None:
    """Trace the provider's method inside a function, as models call it."""
    group = GROUPS[name]
    compiled = torch.compile(lambda t: group.all_reduce(t * 2) + 1, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(torch.ones(2, 16)), torch.full((2, 16), 2.0 * group.size + 1))


def shrink_pieces(num_bytes: int) -> None:
    """Let even short slices go between hosts in several pieces."""
    host_link.PIECE_BYTES = num_bytes
