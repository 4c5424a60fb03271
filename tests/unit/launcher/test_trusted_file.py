from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from corebound.errors import ConfigError
from corebound.launcher.trusted_file import read_trusted

STRANGER = 65_501


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_text("A=1\n")
    path.chmod(0o600)
    return path


def name_groups(monkeypatch: pytest.MonkeyPatch, group: str, members: Sequence[str], own: bool = True) -> None:
    """Let this user be `me`, whose files have this group, as the primary one or not."""
    gid = os.getegid()
    user = pwd.struct_passwd(("me", "x", os.geteuid(), gid if own else gid + 1, "", "/", "/bin/sh"))
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: user)
    monkeypatch.setattr(grp, "getgrgid", lambda gid: grp.struct_group((group, "x", gid, list(members))))


def read(path: Path) -> bytes:
    return read_trusted(path, 100)


def test_a_file_is_read_whole_and_never_in_part(file: Path) -> None:
    assert read(file) == b"A=1\n"
    assert read_trusted(file, 4) == b"A=1\n"
    with pytest.raises(ConfigError, match="at most 3 bytes"):
        read_trusted(file, 3)


def test_a_file_that_everybody_can_write_is_refused(file: Path) -> None:
    file.chmod(0o602)
    with pytest.raises(ConfigError, match="others can write it"):
        read(file)


@pytest.mark.parametrize(
    ("group", "members", "own"), [("users", [], True), ("me", ["me", "you"], True), ("me", [], False)]
)
def test_a_file_that_a_group_of_several_can_write_is_refused(
    monkeypatch: pytest.MonkeyPatch, file: Path, group: str, members: list[str], own: bool
) -> None:
    name_groups(monkeypatch, group, members, own)
    assert read(file) == b"A=1\n"
    file.chmod(0o660)
    with pytest.raises(ConfigError, match="others can write it"):
        read(file)


def test_a_group_without_a_name_is_not_ones_own(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    def unknown(gid: int) -> grp.struct_group:
        raise KeyError(gid)

    monkeypatch.setattr(grp, "getgrgid", unknown)
    file.chmod(0o660)
    with pytest.raises(ConfigError, match="others can write it"):
        read(file)


@pytest.mark.parametrize("members", [[], ["me"]])
def test_a_file_that_the_group_of_this_user_alone_can_write_is_read(
    monkeypatch: pytest.MonkeyPatch, file: Path, members: list[str]
) -> None:
    """With a umask of 002 every file is like this."""
    name_groups(monkeypatch, "me", members)
    file.chmod(0o664)
    assert read(file) == b"A=1\n"


def test_a_fifo_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path, 0o600)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read, path)
        try:
            error = reading.exception(timeout=20)
        finally:
            # Lets go of a reader that waits: without one this open is an error, which is what should be.
            try:
                os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
            except OSError:
                waited = False
            else:
                waited = True
    assert not waited
    assert isinstance(error, ConfigError)
    assert "expected a file, found a fifo" in str(error)


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a file, found a directory"):
        read(tmp_path)


def test_ones_own_links_are_followed_however_they_lead(tmp_path: Path, file: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/relative").symlink_to("../file")
    (tmp_path / "absolute").symlink_to(tmp_path / "sub/relative")
    assert read(tmp_path / "absolute") == b"A=1\n"


def test_a_link_of_somebody_else_is_refused_though_the_file_is_ones_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, file: Path
) -> None:
    """In /tmp anybody can give a file of this user the name of a file of variables."""
    theirs, mine = tmp_path / "theirs", tmp_path / "mine"
    theirs.symlink_to(file)
    if os.geteuid() == 0:
        os.chown(theirs, STRANGER, STRANGER, follow_symlinks=False)
    else:
        # A link that belongs to another user cannot be made, so this user is another one than the link's.
        monkeypatch.setattr(os, "geteuid", lambda: STRANGER)
    mine.symlink_to(theirs)
    for path in (theirs, mine) if os.getuid() == 0 else (theirs,):
        with pytest.raises(ConfigError, match=f"the link {theirs} belongs to somebody else"):
            read(path)


@pytest.mark.parametrize("target", ["loop", "gone"])
def test_a_link_that_leads_nowhere_is_an_error_in_the_systems_words(tmp_path: Path, target: str) -> None:
    (tmp_path / "loop").symlink_to(target)
    with pytest.raises(ConfigError, match=r"Too many levels|No such file"):
        read(tmp_path / "loop")
