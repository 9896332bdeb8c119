"""Choose plans, run them on Ray, keep what happened. Names are imported on first use (PEP 562)."""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from search.driver import Outcome, run_search
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
    "DenseRecipe": "search.tasks.base",
    "Job": "search.job",
    "Outcome": "search.driver",
    "RunStore": "search.store",
    "Task": "search.tasks.base",
    "TrialResult": "search.result",
    "TrialSpec": "search.trial",
    "evaluate_plan": "search.worker",
    "export_trial": "search.export",
    "load_job": "search.job_file",
    "load_measured": "search.module_artefact",
    "run_search": "search.driver",
}

__all__ = [
    "Arrays",
    "Baseline",
    "Bench",
    "DenseRecipe",
    "Job",
    "Outcome",
    "RunStore",
    "Task",
    "TrialResult",
    "TrialSpec",
    "evaluate_plan",
    "export_trial",
    "load_job",
    "load_measured",
    "run_search",
]

try:
    __version__ = version("prunefront")
except PackageNotFoundError:  # read from a source tree that is not installed
    __version__ = "0+source"


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
