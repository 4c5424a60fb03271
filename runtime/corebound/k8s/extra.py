"""Packages that only Kubernetes needs: imported on use, with one error that says how to install them."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from corebound.errors import ConfigError


def load(module: str, package: str) -> Any:
    """Return an imported module.

    Raises: ConfigError with the line for pip when `package` is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name):
            raise
        raise ConfigError(
            f"`corebound k8s` needs the package {package}, which is not installed",
            hint="pip install 'corebound[k8s]'",
        ) from error


def available(module: str) -> bool:
    """Return whether a module is installed, without importing it."""
    return importlib.util.find_spec(module) is not None
