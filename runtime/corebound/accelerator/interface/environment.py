"""What surrounds the device: backends of torch, variables of the environment, and builders of its operators."""

from __future__ import annotations

import abc
import importlib
from collections.abc import MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

from corebound.config.suggest import require_choice

if TYPE_CHECKING:
    from corebound.accelerator.op_builder import OpBuilder


class EnvironmentInterface(abc.ABC):
    """Names that other parts look up in place of writing `nccl` or `inductor` down."""

    # What torch.compile uses unless set_compile_backend() says otherwise.
    _compile_backend = "inductor"

    @abc.abstractmethod
    def communication_backend_name(self) -> str:
        """Return the backend for `torch.distributed.init_process_group`."""

    @abc.abstractmethod
    def export_envs(self) -> list[str]:
        """Return the names of variables that are set here and that ranks on other hosts need. Never a secret."""

    @abc.abstractmethod
    def visible_devices_envs(self) -> list[str]:
        """Return the variables that limit which devices a process sees."""

    @abc.abstractmethod
    def set_visible_devices_envs(
        self, current_env: MutableMapping[str, str], local_accelerator_ids: Sequence[int]
    ) -> None:
        """Write into an environment that the process which is started with it sees only these devices."""

    @abc.abstractmethod
    def op_builder_dir(self) -> str:
        """Return the package that the builders of operators are in."""

    @abc.abstractmethod
    def get_op_builder(self, class_name: str) -> type[OpBuilder] | None:
        """Return the builder of that name, None where this accelerator has none: then only that feature is missing."""

    def create_op_builder(self, class_name: str) -> OpBuilder | None:
        """Return a new builder of that name, None where this accelerator has none."""
        found = self.get_op_builder(class_name)
        return None if found is None else found()

    def build_extension(self) -> type[Any]:
        """Return the setuptools command that builds native extensions of torch."""
        extension: type[Any] = importlib.import_module("torch.utils.cpp_extension").BuildExtension
        return extension

    def get_compile_backend(self) -> str:
        """Return the backend for `torch.compile`."""
        return self._compile_backend

    def set_compile_backend(self, backend: str) -> None:
        """Choose the backend for `torch.compile`.

        Raises: ConfigError listing the backends that torch knows when this is none of them.
        """
        import torch

        self._compile_backend = require_choice(
            "compile backend", backend, torch.compiler.list_backends(exclude_tags=())
        )
