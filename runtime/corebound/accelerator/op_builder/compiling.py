"""Compiles an extension's sources once and loads the result: by torch's compiler front end, into the user's cache.

Operators of Corebound itself are never compiled here; they come built (`prebuilt`).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib
import importlib.util
import json
import os
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corebound.config import env
from corebound.errors import KernelError
from corebound.logs import get_logger

if TYPE_CHECKING:
    from corebound.accelerator.op_builder.builder import OpBuilder

LOGGER = get_logger(__name__)
_HASH_LENGTH = 16
_LINK_TIMEOUT_S = 120.0
_HEADERS = (".h", ".hh", ".hpp", ".hxx", ".cuh", ".inc", ".inl")
# Written by torch's front end while it compiles, and left behind when that is killed.
_TORCH_LOCK = "lock"
_loaded: dict[Path, Any] = {}


def missing_tools() -> str:
    """Return which programs are missing that compiling takes, empty when none is."""
    # CXX may be several words, such as `ccache g++`.
    missing = [name for name in (shlex.split(compiler())[0], "ninja") if shutil.which(name) is None]
    return f"not on PATH: {', '.join(missing)}" if missing else ""


def compiler() -> str:
    """Return the C++ compiler: CXX, or c++ as torch's front end has it."""
    return env.snapshot().get("CXX") or "c++"


def links(function: str, libraries: Sequence[str], library_dirs: Sequence[str]) -> bool:
    """Return whether a program that calls a C function links with these libraries.

    Raises: KernelError without a compiler.
    """
    program = f'extern "C" void {function}(); int main() {{ {function}(); }}\n'
    with tempfile.TemporaryDirectory() as directory:
        command = [*shlex.split(compiler()), "-x", "c++", "-", "-o", f"{directory}/program"]
        command += [f"-L{place}" for place in library_dirs] + [f"-l{name}" for name in libraries]
        try:
            done = subprocess.run(
                command, input=program, text=True, capture_output=True, check=False, timeout=_LINK_TIMEOUT_S
            )
        except FileNotFoundError as error:
            raise KernelError(f"operators: no C++ compiler {compiler()!r}", hint="install one, or set CXX") from error
    return done.returncode == 0


def load(builder: OpBuilder, *, verbose: bool) -> Any:
    """Return the operators of a builder, compiled if they are not in the cache.

    Raises: KernelError when they cannot be compiled or loaded.
    """
    directory = env.cache_dir() / "operators" / f"{builder.absolute_name()}-{_digest(builder)}"
    if directory in _loaded:
        return _loaded[directory]
    library = directory / f"{builder.absolute_name()}.so"
    done = directory / "done"
    with _locked(builder, directory):
        if not done.is_file():
            problem = builder.incompatibility()
            if problem:
                raise KernelError(
                    f"operators {builder.name}: cannot be built: {problem}",
                    hint="install a C++ compiler and ninja, or activate the environment that has them",
                )
            _compile(builder, directory, verbose=verbose)
            done.touch()
    _loaded[directory] = _open(builder, library)
    return _loaded[directory]


def _digest(builder: OpBuilder) -> str:
    """Return a name for everything that the result depends on: another text, flag, torch or machine builds anew."""
    import torch

    texts = [*builder.source_paths(), *_headers(builder)]
    contents = {str(path): hashlib.sha256(_read(builder, path)).hexdigest() for path in texts}
    parts = [
        contents,
        builder.include_paths(),
        builder.cxx_args(),
        builder.nvcc_args(),
        builder.extra_ldflags(),
        builder.libraries_args(),
        torch.__version__,
        compiler(),
        sys.version_info[:2],
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:_HASH_LENGTH]


def _headers(builder: OpBuilder) -> list[Path]:
    """Return the extension's own headers: beside its sources, and in directories given relative to the builder."""
    own = [path for path in builder.include_paths() if path and not Path(path).is_absolute()]
    found = {file for path in builder.resolved(own) for file in path.rglob("*")}
    found.update(file for source in builder.source_paths() for file in source.parent.glob("*"))
    return sorted(file for file in found if file.suffix in _HEADERS)


def _read(builder: OpBuilder, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise KernelError(
            f"operators {builder.name}: source {path}: {error.strerror}", hint="install the extension again"
        ) from error


@contextlib.contextmanager
def _locked(builder: OpBuilder, directory: Path) -> Iterator[None]:
    """Hold the directory against other processes, ranks of one launch above all; released even by SIGKILL."""
    # From `corebound` down: who may write a directory above could put another one in the place of this.
    places = (directory.parents[1], directory.parent, directory)
    try:
        for place in places:
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise KernelError(
            f"operators {builder.name}: cache {directory}: {error.strerror}",
            hint="set XDG_CACHE_HOME to a directory that can be written",
        ) from error
    try:
        for place in places:
            _require_private(builder, place)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _require_private(builder: OpBuilder, directory: Path) -> None:
    """Raise KernelError where others may write: what is loaded from here runs as this user."""
    found = directory.stat()
    mode = stat.S_IMODE(found.st_mode)
    if found.st_uid != os.geteuid() or mode & 0o022:
        raise KernelError(
            f"operators {builder.name}: cache {directory}: expected a directory that only this user can write, "
            f"found owner {found.st_uid}, mode {mode:o}",
            hint="remove it, or set XDG_CACHE_HOME to a directory of your own",
        )


def _compile(builder: OpBuilder, directory: Path, *, verbose: bool) -> None:
    cpp_extension = importlib.import_module("torch.utils.cpp_extension")
    (directory / _TORCH_LOCK).unlink(missing_ok=True)
    # It remembers for each name what it compiled last: it would take a failure for done, and rename a second version.
    cpp_extension.JIT_EXTENSION_VERSIONER.entries.pop(builder.absolute_name(), None)
    LOGGER.info("operators %s: compiling into %s", builder.name, directory)
    try:
        # Its words go to standard output, which belongs to the caller.
        with contextlib.redirect_stdout(sys.stderr):
            cpp_extension.load(
                name=builder.absolute_name(),
                sources=[str(path) for path in builder.source_paths()],
                extra_include_paths=[str(path) for path in builder.resolved(builder.include_paths())],
                extra_cflags=builder.strip_empty_entries(builder.cxx_args()),
                extra_cuda_cflags=builder.strip_empty_entries(builder.nvcc_args()),
                extra_ldflags=[*builder.extra_ldflags(), *(f"-l{name}" for name in builder.libraries_args())],
                build_directory=str(directory),
                is_python_module=builder.registers_operators is False,
                verbose=verbose,
            )
    except (RuntimeError, OSError, ImportError) as error:
        builder.error_log = str(error)
        raise KernelError(
            f"operators {builder.name}: {directory}: {error}", hint=f"compiled with {' '.join(builder.cxx_args())}"
        ) from error


def _open(builder: OpBuilder, library: Path) -> Any:
    import torch

    name = builder.absolute_name()
    try:
        if builder.registers_operators:
            torch.ops.load_library(str(library))
            return getattr(torch.ops, name)
        spec = importlib.util.spec_from_file_location(name, library)
        assert spec is not None, library
        assert spec.loader is not None, library
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    except (OSError, ImportError, RuntimeError) as error:
        raise KernelError(
            f"operators {builder.name}: {library} does not load: {error}", hint=f"remove {library.parent} to build anew"
        ) from error
