"""Files are dropped from the page cache, and what a file system in memory keeps is noticed."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from corebound.engine.bench.page_cache import cached_share, drop_from_page_cache, where
from corebound.errors import HostError

NUM_BYTES = 1 << 20
MEMORY = Path("/dev/shm")


def kind_of(path: Path) -> str:
    """The file system that a path is on."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    above = [fields for fields in mounts if path.is_relative_to(fields[1])]
    # In a plain chroot not even / is a mount.
    return max(above, key=lambda fields: len(fields[1]))[2] if above else "unknown"


def test_a_dropped_file_is_no_longer_in_memory(tmp_path: Path) -> None:
    if kind_of(tmp_path) in ("tmpfs", "ramfs"):
        pytest.skip("this machine lacks a disk below its temporary folder")
    file = tmp_path / "weights"
    file.write_bytes(b"x" * NUM_BYTES)
    assert cached_share([file]) == 1.0
    drop_from_page_cache([file])
    assert cached_share([file]) == 0.0
    file.read_bytes()
    assert cached_share([file]) == 1.0


def test_what_a_file_system_in_memory_keeps_is_not_called_cold() -> None:
    with tempfile.NamedTemporaryFile(dir=MEMORY, prefix="corebound-test-") as stream:
        stream.write(b"x" * NUM_BYTES)
        stream.flush()
        drop_from_page_cache([Path(stream.name)])
        share = cached_share([Path(stream.name)])
    assert share == 1.0
    assert where(share) == "100% still in memory"


def test_where_files_lie_is_said_as_far_as_it_is_known() -> None:
    assert [where(share) for share in (0.0, 0.01, 0.4, None)] == [
        "on the disk",
        "on the disk",
        "40% still in memory",
        "dropped, not checked",
    ]


def test_a_file_that_is_not_there_is_an_error_that_names_it(tmp_path: Path) -> None:
    for look in (drop_from_page_cache, cached_share):
        with pytest.raises(HostError, match=f"{tmp_path}/missing"):
            look([tmp_path / "missing"])
    (tmp_path / "empty").write_bytes(b"")
    assert cached_share([tmp_path / "empty"]) == 0.0
