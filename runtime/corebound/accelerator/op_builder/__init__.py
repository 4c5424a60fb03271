"""Builders of native operators: one class for each library, which says what it is made of and loads it."""

from corebound.accelerator.op_builder.builder import OpBuilder

__all__ = ["OpBuilder"]
