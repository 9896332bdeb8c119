"""A user's own plans, to be tried before all others: `prunefront search JOB --points plans.json`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from admm.bounded import read_bounded
from admm.errors import PlanError
from admm.plan import PruningPlan
from search.errors import UserError
from search.space import Space
from search.spelling import suggest

#: No file of plans is larger: it is read whole.
MOST_BYTES = 64 * 2**20


def read_points(path: Path, space: Space) -> list[dict[str, int]]:
    """The steps of each plan in the file, each once, in its order; rounded to the space, never removing more.

    The file holds a JSON list of plans, `{"plans": [...]}`, or one plan; a `plan.json` that a trial wrote is one.
    Raises `UserError`, one line, for anything else and for a plan that the space does not hold.
    """
    points: list[dict[str, int]] = []
    for where, content in _plans(path):
        try:
            plan = PruningPlan.from_json(json.dumps(content))
        except PlanError as error:
            raise UserError(f"--points {path}: {where}: {error}") from None
        _require_known(plan, space, f"--points {path}: {where}")
        said = content.get("precision") if "kept" in content else None
        steps = space.params(plan, said if said in space.precisions else None)
        if steps not in points:
            points.append(steps)
    return points


def _plans(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        content = json.loads(read_bounded(path, MOST_BYTES))
    except OSError as error:
        raise UserError(f"--points {path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"--points {path}: not JSON: {str(error).splitlines()[0]}") from None
    plans = content
    if isinstance(content, dict):
        plans = content["plans"] if set(content) == {"plans"} else [content]
    if not isinstance(plans, list) or not plans:
        raise UserError(f'--points {path}: it holds no plans: write [{{"LAYER": {{"filter": 0.5}}}}, ...]')
    for index, plan in enumerate(plans, start=1):
        if not isinstance(plan, dict):
            raise UserError(f"--points {path}: plan {index}: a plan maps layers to sparsities, got {plan!r:.40}")
        yield f"plan {index}", plan


def _require_known(plan: PruningPlan, space: Space, where: str) -> None:
    """Raises `UserError` for a sparsity of a layer or structure that the space does not search."""
    known = {d.name: d for d in space.dimensions}
    for layer in plan:
        for structure, sparsity in plan[layer].items():
            name = f"{layer}/{structure}"
            if sparsity > 0.0 and name not in known:
                raise UserError(f"{where}: {name} is not searched by this job; {suggest(name, list(known))}")
