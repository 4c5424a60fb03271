"""Code built for one instruction set must not be reachable where it may not run."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import corebound

pytestmark = pytest.mark.native

LIBRARY = Path(corebound.__file__).parent / "lib" / "libcorebound.so"
OBJECTS = Path(corebound.__file__).parents[2] / "build" / "native" / "kernels" / "CMakeFiles"
# 256- and 512-bit registers, masks, and everything else encoded with VEX or EVEX starts with a v.
WIDE = re.compile(r"%[yz]mm|%k[0-7]|\tv[a-z]")
# Unnamed namespaces are internal to their file. What has a linkage name must say which variant it belongs to.
CONFINED = re.compile(r"avx2|avx512|::amx::|\(anonymous namespace\)|\.avx")


def test_wide_instructions_are_only_in_functions_of_a_variant() -> None:
    if shutil.which("objdump") is None:
        pytest.skip("this machine lacks objdump, to be had with apt-get install binutils")
    if not LIBRARY.is_file():
        pytest.skip("this machine lacks the native library, to be had with make native")
    listing = subprocess.run(
        ["objdump", "-d", "-C", "--no-show-raw-insn", str(LIBRARY)], capture_output=True, text=True, check=True
    ).stdout
    function, leaks, num_wide = "", set(), 0
    for line in listing.splitlines():
        if line.endswith(">:"):
            function = line.split(" ", 1)[1]
        elif WIDE.search(line):
            num_wide += 1
            if not CONFINED.search(function):
                leaks.add(function)
    assert num_wide > 1000, "the variants are not in the library, or the listing was not understood"
    assert leaks == set()


def test_objects_of_a_variant_have_no_function_of_which_the_linker_keeps_one() -> None:
    """Whichever object came first would give its copy to all, with instructions that a processor may lack."""
    if shutil.which("nm") is None:
        pytest.skip("this machine lacks nm, to be had with apt-get install binutils")
    objects = [path for path in OBJECTS.glob("corebound_kernels_*.dir/*.o") if "generic" not in path.parent.name]
    if not objects:
        pytest.skip("this machine lacks the objects of the native library, to be had with make native")
    shared, num_symbols = set(), 0
    for path in objects:
        listing = subprocess.run(
            ["nm", "--defined-only", "-C", str(path)], capture_output=True, text=True, check=True
        ).stdout
        found = [line.split(maxsplit=2) for line in listing.splitlines()]
        num_symbols += len(found)
        # What has a variant's namespace in its name is nobody else's.
        shared |= {(path.name, name) for _, kind, name in found if kind in "Wu" and not CONFINED.search(name)}
    assert num_symbols > 100, "the listing was not understood"
    assert shared == set()
