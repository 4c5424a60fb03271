"""The operator libraries that come with Corebound: built with the package, so loading them compiles nothing."""

from __future__ import annotations

from typing import Any, NoReturn

from corebound import native, native_ccl
from corebound.accelerator.op_builder.builder import OpBuilder
from corebound.config import env
from corebound.errors import CoreboundError, KernelError
from corebound.topology.native_report import native_active_isa


class PrebuiltOpBuilder(OpBuilder):
    """A library of the package. It has no sources here: `make native` builds it in a checkout."""

    def sources(self) -> list[str]:
        """Return nothing: what is installed is compiled already."""
        return []

    def builder(self) -> NoReturn:
        """Refuse. Raises: KernelError."""
        raise KernelError(
            f"operators {self.name}: come built with Corebound, there is nothing to compile",
            hint="in a checkout `make native` builds them",
        )


class KernelsBuilder(PrebuiltOpBuilder):
    """The decoder's operators, as `torch.ops.corebound`; `corebound.kernels` has their functions."""

    def absolute_name(self) -> str:
        """Return the namespace of the operators."""
        return "corebound"

    def incompatibility(self) -> str:
        """Return why the operators do not load, empty when they do."""
        return _problem(self.load)

    def load(self, verbose: bool = False) -> Any:
        """Return `torch.ops.corebound`, with the variant that COREBOUND_ISA names. Raises: KernelError."""
        import torch

        native.load_torch_ops()
        native_active_isa(env.settings().isa)
        return torch.ops.corebound


class ShareMemCommBuilder(PrebuiltOpBuilder):
    """Sums through shared memory: the library with the functions of csrc/comm, which `corebound.comm` calls."""

    def absolute_name(self) -> str:
        """Return the name of the library."""
        return "libcorebound"

    def incompatibility(self) -> str:
        """Return why the library does not load, empty when it does."""
        return _problem(native.core_library)

    def load(self, verbose: bool = False) -> Any:
        """Return the library. Raises: KernelError."""
        return native.core_library()


class CCLCommBuilder(PrebuiltOpBuilder):
    """The binding to oneCCL, which is optional: the library with the functions of csrc/ccl."""

    def absolute_name(self) -> str:
        """Return the name of the library."""
        return "libcorebound_ccl"

    def incompatibility(self) -> str:
        """Return what is missing of oneCCL, empty when nothing is."""
        return _problem(native_ccl.require)

    def load(self, verbose: bool = False) -> Any:
        """Return the library, with oneCCL set up for this process. Raises: CclUnavailableError."""
        return native_ccl.library()


# The names that DeepSpeed's callers ask for, where what they get is the same thing.
BUILDERS: dict[str, type[OpBuilder]] = {
    builder.__name__: builder for builder in (CCLCommBuilder, KernelsBuilder, ShareMemCommBuilder)
}


def _problem(attempt: Any) -> str:
    try:
        attempt()
    except CoreboundError as error:
        return error.message
    return ""
