"""Choose plans, run them on Ray, keep what happened. Names are imported on first use (PEP 562)."""

from __future__ import annotations

import importlib
import sys
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from admm.compact import compact
    from admm.pipeline import prune
    from admm.plan import PruningPlan
    from search.api import Front, Point, export, measure, search
    from search.driver import Outcome, run_search
    from search.errors import BudgetUnreachable, UserError
    from search.export import export_trial
    from search.job import Job
    from search.job_file import load_job
    from search.module_artefact import load_measured
    from search.result import Baseline, TrialResult
    from search.store import RunStore
    from search.tasks.base import DenseRecipe, Task
    from search.tasks.data import Arrays
    from search.trial import Bench, TrialSpec
    from search.worker import evaluate_plan

_HOME = {
    "Arrays": "search.tasks.data",
    "Baseline": "search.result",
    "Bench": "search.trial",
    "BudgetUnreachable": "search.errors",
    "DenseRecipe": "search.tasks.base",
    "Front": "search.api",
    "Job": "search.job",
    "Outcome": "search.driver",
    "Point": "search.api",
    "PruningPlan": "admm.plan",
    "RunStore": "search.store",
    "Task": "search.tasks.base",
    "TrialResult": "search.result",
    "TrialSpec": "search.trial",
    "UserError": "search.errors",
    "compact": "admm.compact",
    "evaluate_plan": "search.worker",
    "export": "search.api",
    "export_trial": "search.export",
    "load_job": "search.job_file",
    "load_measured": "search.module_artefact",
    "measure": "search.api",
    "prune": "admm.pipeline",
    "run_search": "search.driver",
    "search": "search.api",
}

__all__ = [
    "Arrays",
    "Baseline",
    "Bench",
    "BudgetUnreachable",
    "DenseRecipe",
    "Front",
    "Job",
    "Outcome",
    "Point",
    "PruningPlan",
    "RunStore",
    "Task",
    "TrialResult",
    "TrialSpec",
    "UserError",
    "compact",
    "evaluate_plan",
    "export",
    "export_trial",
    "load_job",
    "load_measured",
    "measure",
    "prune",
    "run_search",
    "search",
]

try:
    __version__ = version("prunefront")
except PackageNotFoundError:  # read from a source tree that is not installed
    __version__ = "0+source"


class _Package(ModuleType):
    """Importing search.export would put that module where the function of the same name belongs."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
