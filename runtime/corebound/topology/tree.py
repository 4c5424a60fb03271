"""Reads small kernel files below a root directory that tests and dumps can replace."""

from __future__ import annotations

import re
from pathlib import Path

from corebound.errors import HostError
from corebound.topology.cpulist import parse_cpu_list

_NUMBERED = re.compile(r"([a-z_]+)(\d+)")
_MAX_BYTES = 4 << 20


class Tree:
    """The `sys` and `proc` of a machine below `root`. A file that is missing or unreadable reads as None."""

    def __init__(self, root: str | Path = "/") -> None:
        self.root = Path(root)
        self.is_live = self.root.resolve() == Path("/")

    def text(self, path: str) -> str | None:
        """Return a file's text without surrounding blanks."""
        # Plain open: pathlib costs more than the read, and a large machine has thousands of these files.
        try:
            with open(f"{self.root}/{path}", encoding="utf-8", errors="replace") as file:  # noqa: PTH123
                return file.read(_MAX_BYTES).strip()
        except OSError:
            return None

    def integer(self, path: str) -> int | None:
        """Return a file's number, None also when it holds none (such as `max`)."""
        text = self.text(path)
        try:
            return None if text is None else int(text)
        except ValueError:
            return None

    def cpu_list(self, path: str) -> tuple[int, ...] | None:
        """Return a file's list of CPUs or nodes.

        Raises: HostError when the text does not follow the kernel's grammar.
        """
        text = self.text(path)
        if text is None:
            return None
        try:
            return parse_cpu_list(text)
        except ValueError as error:
            raise HostError(f"{self.root / path}: {error}", hint="check that --root holds a copy of /sys") from error

    def numbered(self, path: str, prefix: str) -> tuple[int, ...]:
        """Return the N of every entry `<prefix>N` of a directory, ascending."""
        try:
            names = [entry.name for entry in (self.root / path).iterdir()]
        except OSError:
            return ()
        matches = (_NUMBERED.fullmatch(name) for name in names)
        return tuple(sorted(int(match[2]) for match in matches if match and match[1] == prefix))

    def names(self, path: str) -> tuple[str, ...]:
        """Return the names in a directory, sorted; none when it cannot be listed."""
        try:
            return tuple(sorted(entry.name for entry in (self.root / path).iterdir()))
        except OSError:
            return ()

    def is_dir(self, path: str) -> bool:
        """Return whether a directory is there."""
        return (self.root / path).is_dir()


def parse_size(text: str | None) -> int:
    """Return bytes of a size such as `32768K` or `1G`; 0 for None or text that is no size."""
    match = re.fullmatch(r"(\d+)\s*([KMG]?)(?:i?B)?", (text or "").strip(), re.IGNORECASE)
    if match is None:
        return 0
    return int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2].upper()]
