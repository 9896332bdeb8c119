"""Given a plan, make the model obey it: ADMM pruning to physically smaller networks (torch and torch-pruning only)."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from admm.attach import AttachedAdmm, attach
    from admm.budgeted import BudgetProjector
    from admm.checkpoint import read_state, save_state
    from admm.compact import compact, load_pruned, mask_removed, save_pruned
    from admm.compute import Compute, ComputeChoice, fastest_compute
    from admm.cost import CostTable, LayerSize, MacCost, WeightCost
    from admm.ema import Ema
    from admm.errors import DivergedError, GroupError, PlanError, PruneError
    from admm.groupmap import Group, GroupMap
    from admm.groups import find_groups
    from admm.hold import hold_zeros
    from admm.outcome import PruneResult
    from admm.pipeline import PruneRun, prune
    from admm.plan import LayerPlan, PruningPlan
    from admm.projector import Projector
    from admm.purify import purify
    from admm.recalibrate import recalibrate
    from admm.settings import AdmmSettings, FinetuneSettings
    from admm.shrink import Shrunk, shrink
    from admm.solver import Admm
    from admm.target import Target
    from admm.trace import AdmmTrace

_HOME = {
    "Admm": "solver",
    "AdmmSettings": "settings",
    "AdmmTrace": "trace",
    "AttachedAdmm": "attach",
    "BudgetProjector": "budgeted",
    "Compute": "compute",
    "ComputeChoice": "compute",
    "CostTable": "cost",
    "DivergedError": "errors",
    "Ema": "ema",
    "FinetuneSettings": "settings",
    "Group": "groupmap",
    "GroupError": "errors",
    "GroupMap": "groupmap",
    "LayerPlan": "plan",
    "LayerSize": "cost",
    "MacCost": "cost",
    "PlanError": "errors",
    "Projector": "projector",
    "PruneError": "errors",
    "PruneResult": "outcome",
    "PruneRun": "pipeline",
    "PruningPlan": "plan",
    "Shrunk": "shrink",
    "Target": "target",
    "WeightCost": "cost",
    "attach": "attach",
    "compact": "compact",
    "fastest_compute": "compute",
    "find_groups": "groups",
    "hold_zeros": "hold",
    "load_pruned": "compact",
    "mask_removed": "compact",
    "prune": "pipeline",
    "purify": "purify",
    "read_state": "checkpoint",
    "recalibrate": "recalibrate",
    "save_pruned": "compact",
    "save_state": "checkpoint",
    "shrink": "shrink",
}

__all__ = [
    "Admm",
    "AdmmSettings",
    "AdmmTrace",
    "AttachedAdmm",
    "BudgetProjector",
    "Compute",
    "ComputeChoice",
    "CostTable",
    "DivergedError",
    "Ema",
    "FinetuneSettings",
    "Group",
    "GroupError",
    "GroupMap",
    "LayerPlan",
    "LayerSize",
    "MacCost",
    "PlanError",
    "Projector",
    "PruneError",
    "PruneResult",
    "PruneRun",
    "PruningPlan",
    "Shrunk",
    "Target",
    "WeightCost",
    "attach",
    "compact",
    "fastest_compute",
    "find_groups",
    "hold_zeros",
    "load_pruned",
    "mask_removed",
    "prune",
    "purify",
    "read_state",
    "recalibrate",
    "save_pruned",
    "save_state",
    "shrink",
]


class _Package(ModuleType):
    """Importing admm.compact would put that module where the function of the same name belongs."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"admm.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
