"""Accelerators: one interface to whatever computes, the CPU that is built in, and extensions that bring others.

Importing this package decides nothing and imports no torch; the first `get_accelerator()` does.
"""

from corebound.accelerator.base import AbstractAccelerator
from corebound.accelerator.op_builder import OpBuilder
from corebound.accelerator.selection import get_accelerator, set_accelerator

__all__ = ["AbstractAccelerator", "OpBuilder", "get_accelerator", "set_accelerator"]
