"""Packages that only Kubernetes needs: imported on use, with one error that says how to install them."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import re
import shlex
import sys
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
            hint=f"{install_command()}, as the user who installed Corebound",
        ) from error


def install_command() -> str:
    """Return the line that installs what is missing beside this Corebound, which no package index has."""
    try:
        lines = importlib.metadata.requires("corebound") or []
    except importlib.metadata.PackageNotFoundError:  # sources that nobody installed
        lines = []
    if not lines:
        return "`make setup` in a checkout, whose .venv/bin/corebound has them"
    extra = [line.partition(";") for line in lines]
    wanted = [name.strip() for name, _, marker in extra if re.search(r"extra\s*==\s*['\"]k8s['\"]", marker)]
    return shlex.join([sys.executable, "-m", "pip", "install", *wanted])


def available(module: str) -> bool:
    """Return whether a module is installed, without importing it."""
    return importlib.util.find_spec(module) is not None
