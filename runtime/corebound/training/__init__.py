"""What Corebound does to a torch module that stays one: `optimize` for inference; training comes later."""

from corebound.training.optimization import optimize
from corebound.training.report import Change, OptimizationReport, optimization_report

__all__ = ["Change", "OptimizationReport", "optimization_report", "optimize"]
