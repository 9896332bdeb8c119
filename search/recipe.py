"""What makes the trials of one run comparable: the task and how a plan is trained. Fixed when the run begins."""

from __future__ import annotations

from typing import Any

from search.errors import UserError
from search.job import Job
from search.store import RunStore

#: Sections of a job that may not change between two starts; budget, trials, resources and the space may.
FIXED = ("task", "task_args", "admm", "finetune", "compute", "lower", "quantize", "opset")

#: What the trials of a run did whose version knew no such setting.
EARLIER: dict[str, Any] = {"lower": False, "quantize": "off", "opset": 20}


def recipe_of(job: Job) -> dict[str, Any]:
    """The fixed sections of a job, JSON-ready: kept in environment.json."""
    content = job.model_dump(mode="json")
    return {name: content[name] for name in FIXED}


def as_begun(store: RunStore, job: Job) -> Job:
    """The job of a run with what an earlier version, which knew no such settings, did in their place."""
    recipe = store.environment().get("recipe")
    missing = {} if recipe is None else {k: v for k, v in EARLIER.items() if k not in recipe}
    return job.model_copy(update=missing)


def require_same_recipe(store: RunStore, job: Job) -> None:
    """Raises `UserError` naming the first key of RUN/job.yaml that was edited and must not be."""
    before, now = store.environment().get("recipe"), recipe_of(job)
    if before is None:
        return
    for name in FIXED:
        # a run of an earlier version knew fewer sections
        then, new = before.get(name, EARLIER.get(name, now[name])), now[name]
        if then == new:
            continue
        if isinstance(then, dict) and isinstance(new, dict):
            key = next(k for k in (*then, *new) if then.get(k) != new.get(k))
            name, then, new = f"{name}.{key}", then.get(key), new.get(key)
        raise UserError(
            f"{store.job_path}: {name} was {then!r} when the run began and is {new!r} now: trials would not compare: "
            f"change it back, or start a new run with a job file"
        )
