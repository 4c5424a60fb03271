"""Files that decide what a launch runs with: read only where nobody but this user and root had a say in them."""

from __future__ import annotations

import errno
import grp
import os
import pwd
import stat
from pathlib import Path

from corebound.errors import ConfigError

# As many as the kernel follows.
_MAX_LINKS = 40


def read_trusted(path: Path, max_bytes: int) -> bytes:
    """Return the bytes of a file that nobody but this user and root can have written, or led us to by a link.

    Raises: ConfigError when others can, when it is no file or too long, or in the system's words.
    """
    try:
        descriptor = _open(path)
        try:
            _require_own(path, os.fstat(descriptor))
            with open(descriptor, "rb", closefd=False) as file:
                data = file.read(max_bytes + 1)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    if len(data) > max_bytes:
        raise ConfigError(f"{path}: expected at most {max_bytes} bytes")
    return data


def _open(path: Path) -> int:
    # Links one by one: what the kernel followed by itself could have changed after its owner was looked at.
    # O_NONBLOCK, because a fifo would wait for somebody to write.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW
    place = path
    for _ in range(_MAX_LINKS):
        try:
            return os.open(place, flags)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
        place = place.parent / _target(place, path)
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


def _target(link: Path, path: Path) -> str:
    descriptor = os.open(link, os.O_PATH | os.O_NOFOLLOW)
    try:
        owner = os.fstat(descriptor).st_uid
        if owner not in (os.geteuid(), 0):
            raise ConfigError(
                f"{path}: the link {link} belongs to somebody else (uid {owner}), who decides where it leads",
                hint="if you trust the file: make a link or a copy of your own",
            )
        return os.readlink("", dir_fd=descriptor)
    finally:
        os.close(descriptor)


def _require_own(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise ConfigError(f"{path}: expected a file, found {_kind(found.st_mode)}")
    by_group = found.st_mode & stat.S_IWGRP and not _is_own_group(found.st_gid)
    if found.st_uid not in (os.geteuid(), 0) or found.st_mode & stat.S_IWOTH or by_group:
        raise ConfigError(
            f"{path}: others can write it, and what it says would be set for all ranks",
            hint=f"if you trust what it says: chown it to yourself and chmod go-w {path}",
        )


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a directory"
    return "a fifo" if stat.S_ISFIFO(mode) else "a device or a socket"


def _is_own_group(group_id: int) -> bool:
    """Return whether a group is this user's alone, as where each user has one of the same name and a umask of 002."""
    try:
        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(group_id)
    except KeyError:
        return False
    return user.pw_gid == group_id and group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}
