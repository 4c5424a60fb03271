"""Kernel injection: decoder blocks of transformers, replaced by ours on the operators of corebound.kernels."""

from corebound.models.injection.families import FAMILIES, describe_block
from corebound.models.injection.inject import inject_kernels, require_injectable
from corebound.models.injection.report import InjectionReport

__all__ = ["FAMILIES", "InjectionReport", "describe_block", "inject_kernels", "require_injectable"]
