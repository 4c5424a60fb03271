"""oneCCL between two hosts with networks of their own: same host names, same process numbers, no interface named."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from multiproc.rank_harness import needs_ccl
from multiproc.two_networks import TwoHosts, two_hosts

pytestmark = [pytest.mark.multiproc, pytest.mark.native, pytest.mark.timeout(300), needs_ccl]

# Generous: the machine may have much other work.
PATIENCE_S = 120
SUM = """
import json, os, sys
import torch
from corebound import comm
group = comm.init_distributed(60)
total = group.all_reduce(torch.full((20_001,), float(group.rank + 1)))
same = all(row.equal(total) for row in group.all_gather(total))
addresses = os.environ["CCL_KVS_IFACE"], os.environ["FI_TCP_IFACE"]
line = [group.rank, group.name, getattr(group, "carrier", ""), os.getpid(), total[20_000].item(), same, *addresses]
sys.stdout.write(json.dumps(line) + "\\n")
sys.stdout.flush()
group.barrier()
group.close()
"""
# Rank 1 does not get out of, or into, the making of the communicator.
FALTER = """
import os, signal, sys, time
from corebound import comm
from corebound.comm import ccl_open
join = ccl_open.join
def falter(*args):
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), getattr(signal, os.environ["SIGNAL"]))
    return join(*args)
ccl_open.join = falter
try:
    comm.init_distributed(float(os.environ["LIMIT_S"]))
except Exception as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


@pytest.fixture
def hosts() -> Iterator[TwoHosts]:
    with two_hosts() as made:
        yield made
    present = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout.split()
    assert not set(made.names) & set(present)
    assert all(process.poll() is not None for process in made.processes)


@pytest.mark.parametrize("provider", ["ccl", "hierarchical"])
def test_hosts_with_the_same_name_and_process_numbers_sum_together(
    hosts: TwoHosts, tmp_path: Path, provider: str
) -> None:
    script = tmp_path / "sum.py"
    script.write_text(SUM)
    hosts.start(script, 2, COREBOUND_COMM=provider, COREBOUND_HOST_LINK="ccl")
    rows = []
    for number in range(2):
        code, out, err = hosts.finish(number, PATIENCE_S)
        assert code == 0, err
        rows += [json.loads(line) for line in out.splitlines() if line.startswith("[")]
    carrier = "ccl" if provider == "hierarchical" else ""
    assert [row[:3] for row in sorted(rows)] == [[rank, provider, carrier] for rank in range(4)]
    pids = [row[3] for row in sorted(rows)]
    assert pids[:2] == pids[2:]  # that is what oneCCL took for one process
    assert {tuple(row[4:]) for row in rows} == {(10.0, True, "cable", "cable")}


def test_a_member_that_dies_while_a_communicator_is_made_is_named_at_once(hosts: TwoHosts, tmp_path: Path) -> None:
    script = tmp_path / "falter.py"
    script.write_text(FALTER)
    hosts.start(script, 1, COREBOUND_COMM="ccl", SIGNAL="SIGKILL", LIMIT_S="100")
    hosts.finish(1, PATIENCE_S)
    died_s = time.monotonic()
    code, _, err = hosts.finish(0, PATIENCE_S)
    assert code == 1
    assert "PeerLostError" in err, err
    assert "rank 1 (host node) is gone, gave up, or was cut off" in err
    assert time.monotonic() - died_s < 30


def test_a_member_that_hangs_while_a_communicator_is_made_is_named_after_the_timeout(
    hosts: TwoHosts, tmp_path: Path
) -> None:
    script = tmp_path / "falter.py"
    script.write_text(FALTER)
    hosts.start(script, 1, COREBOUND_COMM="ccl", SIGNAL="SIGSTOP", LIMIT_S="15")
    code, _, err = hosts.finish(0, PATIENCE_S)
    assert code == 1
    assert "CommTimeoutError" in err, err
    assert "not all 2 members joined the communicator within 15 s; no sign of life from rank 1 (host node)" in err
