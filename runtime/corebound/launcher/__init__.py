"""Starts ranks on cores: what was asked (`LaunchSpec`), what will run (`plan`), and running it (`launch`)."""

from __future__ import annotations

from corebound.launcher.binding import Binding, bind
from corebound.launcher.launch import launch, run_launch
from corebound.launcher.outcome import LaunchOutcome
from corebound.launcher.plan import LaunchPlan, NodePlan, RankPlan, plan
from corebound.launcher.spec import LAUNCHERS, LaunchSpec

__all__ = [
    "LAUNCHERS",
    "Binding",
    "LaunchOutcome",
    "LaunchPlan",
    "LaunchSpec",
    "NodePlan",
    "RankPlan",
    "bind",
    "launch",
    "plan",
    "run_launch",
]
