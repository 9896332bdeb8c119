"""What a study says of itself and its trials beside values and parameters, for those who open it with Optuna's tools.

Parameters are steps of removal, which say nothing by themselves; a study can be looked at without the run folder. Knows
no Optuna.
"""

from __future__ import annotations

import hashlib
import json
import mimetypes
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from search.budget import Budget
from search.objectives import Objectives
from search.result import TrialResult
from search.space import Space
from search.store import MODEL_NAME, RunStore

#: Of a trial's record, under their own names.
_OF_THE_RECORD = ("accuracy_drop", "latency_ms", "speedup", "compression_x", "macs", "epochs", "reason")
#: In the run folder: links by an id to the files of trials, as Optuna's dashboard takes them (`--artifact-dir`).
FOLDER = "artifacts"
_LINKED = (MODEL_NAME, "plan.json", "trace.jsonl")

#: The files of a trial that can be looked at, by their ids.
Artefacts: TypeAlias = Callable[[int], Mapping[str, str]]


def about_study(space: Space, budget: Budget | None, rig: str, objectives: Objectives, run: str) -> dict[str, Any]:
    """What was asked, and what each step of a parameter stands for: `conv1/filter` -> its sparsities."""
    steps: dict[str, Any] = {d.name: list(d.sparsities) for d in space.dimensions}
    if len(space.precisions) > 1:
        steps["precision"] = list(space.precisions)
    costs = ", ".join(f"{name} over the dense network's (down)" for name in objectives.costs)
    asked = "none" if budget is None else f"{budget}; over_budget is how far a trial is beyond it, at most 0 within"
    return {"run": run, "objectives": f"accuracy (up); {costs}", "budget": asked, "rig": rig, "steps": steps}


def about_trial(result: TrialResult) -> dict[str, Any]:
    """How a trial ended, its plan as sparsities, and its figures as the record has them."""
    figures = {name: getattr(result, name) for name in _OF_THE_RECORD}
    plan = {layer: dict(structures) for layer, structures in result.requested.items()}
    return {"status": result.status, "plan": plan} | {k: v for k, v in figures.items() if v is not None}


def artefact_attributes(files: Mapping[str, str]) -> dict[str, str]:
    """Files by their ids as Optuna notes them of a trial (`optuna.artifacts`)."""
    return {
        f"artifacts:{key}": json.dumps(
            {
                "artifact_id": key,
                "filename": name,
                "mimetype": mimetypes.guess_type(name)[0] or "application/octet-stream",
                "encoding": None,
            }
        )
        for key, name in files.items()
    }


def link_artefacts(store: RunStore, number: int) -> dict[str, str]:
    """Link a finished trial's files by their ids in the run folder's `artifacts`; id -> name.

    A file system without links has no artefacts: nothing else is lost.
    """
    linked: dict[str, str] = {}
    folder = store.root / FOLDER
    for name in _LINKED:
        if not (store.trial_dir(number) / name).exists():
            continue
        key = hashlib.sha256(f"{number}/{name}".encode()).hexdigest()[:32]
        try:
            folder.mkdir(exist_ok=True)
            if not (folder / key).is_symlink():
                os.symlink(Path("..", "trials", str(number), name), folder / key)
        except OSError:
            return {}
        linked[key] = name
    return linked


def drop_dead_links(store: RunStore) -> None:
    """Remove the links to files that were not kept."""
    folder = store.root / FOLDER
    for link in folder.iterdir() if folder.is_dir() else ():
        if link.is_symlink() and not link.exists():
            link.unlink(missing_ok=True)
