"""What an extension says about a native library: its sources, how they are compiled, and whether they can be here."""

from __future__ import annotations

import abc
import importlib
import inspect
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from corebound.accelerator.op_builder import compiling
from corebound.accelerator.op_builder.simd import simd_flags, simd_variant, simd_width


class OpBuilder(abc.ABC):
    """One native library. Subclasses name it and its sources; everything else has a default for the CPU.

    Relative paths are looked for beside the file that defines the subclass. Nothing is compiled before `load`.
    """

    # True: the sources register operators with torch (TORCH_LIBRARY). False: they make a Python module (PYBIND11).
    registers_operators: ClassVar[bool] = True

    def __init__(self, name: str | None = None) -> None:
        self.name = name or type(self).__name__.removesuffix("Builder")
        self.error_log: str | None = None

    @abc.abstractmethod
    def absolute_name(self) -> str:
        """Return the name of the library: the namespace below `torch.ops`, or the Python module's name."""

    @abc.abstractmethod
    def sources(self) -> list[str]:
        """Return the files that are compiled."""

    def include_paths(self) -> list[str]:
        """Return further directories of headers."""
        return []

    def cxx_args(self) -> list[str]:
        """Return the C++ compiler's arguments: optimised, for the instruction set that really runs on this machine."""
        return ["-O3", "-std=c++20", *simd_flags()]

    def nvcc_args(self) -> list[str]:
        """Return the arguments of a device compiler, empty without one."""
        return []

    def extra_ldflags(self) -> list[str]:
        """Return further arguments of the linker."""
        return []

    def libraries_args(self) -> list[str]:
        """Return the names of libraries to link with, without `lib` and `.so`."""
        return []

    def is_compatible(self, verbose: bool = False) -> bool:
        """Return whether this machine can build and load the library; `verbose` logs the reason where it cannot."""
        problem = self.incompatibility()
        if problem and verbose:
            compiling.LOGGER.warning("operators %s: %s", self.name, problem)
        return not problem

    def incompatibility(self) -> str:
        """Return why this machine cannot build or load the library, empty where it can."""
        missing = [path for path in self.source_paths() if not path.is_file()]
        if missing:
            return f"source missing: {', '.join(map(str, missing))}"
        return compiling.missing_tools()

    def builder(self) -> Any:
        """Return the library as an extension of setuptools, for packages that compile when they are built."""
        cpp_extension = importlib.import_module("torch.utils.cpp_extension")
        return cpp_extension.CppExtension(
            name=self.absolute_name(),
            sources=[str(path) for path in self.source_paths()],
            include_dirs=[str(path) for path in self.resolved(self.include_paths())],
            extra_compile_args={"cxx": self.strip_empty_entries(self.cxx_args())},
            extra_link_args=self.strip_empty_entries(self.extra_ldflags()),
            libraries=self.strip_empty_entries(self.libraries_args()),
        )

    def load(self, verbose: bool = False) -> Any:
        """Return the operators, compiled into the user's cache if they are not there yet. A second call is free.

        Raises: KernelError naming what is missing, or with the compiler's words, which `error_log` then has too.
        """
        return compiling.load(self, verbose=verbose)

    # What subclasses use to answer

    def source_paths(self) -> list[Path]:
        """Return the full paths of the sources."""
        return self.resolved(self.sources())

    def resolved(self, paths: list[str]) -> list[Path]:
        """Return full paths, relative ones from the directory of the file that defines this builder."""
        base = Path(inspect.getfile(type(self))).resolve().parent
        return [base / path for path in self.strip_empty_entries(paths)]

    @staticmethod
    def strip_empty_entries(arguments: list[str]) -> list[str]:
        """Return the arguments that are not empty."""
        return [argument for argument in arguments if argument]

    @staticmethod
    def command_exists(command: str) -> bool:
        """Return whether a program is on the path."""
        return shutil.which(command) is not None

    @staticmethod
    def has_function(function: str, libraries: Sequence[str] = (), library_dirs: Sequence[str] = ()) -> bool:
        """Return whether the compiler links a C function from these libraries.

        Raises: KernelError without a compiler.
        """
        return compiling.links(function, libraries, library_dirs)

    @staticmethod
    def cpu_arch() -> str:
        """Return the compiler's arguments for the instruction set that really runs here, as one string."""
        return " ".join(simd_flags())

    @staticmethod
    def simd_width() -> str:
        """Return the macro that says how wide vectors are: -D__AVX512__, -D__AVX256__ or -D__SCALAR__."""
        return simd_width()

    @staticmethod
    def simd_variant() -> str:
        """Return the name of the instruction set that really runs here, as COREBOUND_ISA names it."""
        return simd_variant()
