"""`corebound.llm.optimize`: `corebound.optimize` under the name that scripts for `ipex.llm` look for."""

from __future__ import annotations

from corebound.training import optimization_report, optimize

__all__ = ["optimization_report", "optimize"]
