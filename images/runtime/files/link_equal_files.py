"""Replaces files of equal content in a folder by links to the one with the longest name.

Usage: link_equal_files.py FOLDER...
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path


def link_equal_files(folder: Path) -> None:
    """Leave each content in the folder once, under its longest name, and make the other names links to it."""
    kept: dict[str, Path] = {}
    files = (path for path in folder.iterdir() if path.is_file() and not path.is_symlink())
    for path in sorted(files, key=lambda path: (-len(path.name), path.name)):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        first = kept.setdefault(digest, path)
        if first != path:
            path.unlink()
            path.symlink_to(first.name)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        link_equal_files(Path(name))
