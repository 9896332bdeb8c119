"""The test set, read once: for the final front and the dense model of a complete search. Nothing is chosen by it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from admm.compact import WEIGHTS_FILE
from evaluators import OnnxPredictor, Score, evaluate
from evaluators.rig import measures_modules
from search.atomic import json_text, parse_json, write_atomic
from search.elsewhere import machine_of
from search.errors import UserError
from search.front import front_results
from search.job import Job
from search.job_file import load_job
from search.module_rigs import LocalModules
from search.objectives import Objectives
from search.payload import Payload, dense_payload
from search.result import Baseline, TrialResult
from search.store import MODEL_NAME, RunStore
from search.tasks.base import PreparedTask

FILE = "test.json"
DENSE = "dense"


def read_scores(store: RunStore) -> dict[str, dict[str, Any]]:
    """What was read so far: {"dense" or trial number: {"accuracy", "stderr", "samples"}}."""
    path = store.root / FILE
    return parse_json(path.read_bytes()) if path.exists() else {}


def score_front(
    store: RunStore,
    task: PreparedTask,
    baseline: Baseline,
    results: dict[int, TrialResult],
) -> dict[str, dict[str, Any]]:
    """Score what is on the front and was never scored; {} for a task without test data. Returns all scores.

    Raises `UserError` where the test data cannot be scored; what was read before stays.
    """
    if task.test_source is None:
        return {}
    scores = read_scores(store)
    job = load_job(store.job_path)
    chosen = front_results(baseline, results, Objectives.of(job, baseline))
    for name, scored in _scorers(store, job, task, chosen).items():
        if name not in scores:
            try:
                score = scored()
            except Exception as error:  # the user's metric and data are called in there
                raise UserError(f"the test data cannot be scored: {type(error).__name__}: {error}") from error
            scores[name] = {"accuracy": score.value, "stderr": score.stderr, "samples": score.samples}
            write_atomic(store.root / FILE, json_text(scores))
    return scores


def _scorers(
    store: RunStore, job: Job, task: PreparedTask, chosen: Sequence[TrialResult]
) -> dict[str, Callable[[], Score]]:
    """How to score the dense network and these trials, by name, in the form whose accuracy the search went by."""
    rig = job.deciding_rig.name
    if not measures_modules(rig):
        files = {DENSE: store.baseline_dir / MODEL_NAME}
        files |= {str(r.number): store.model_path(r.number) for r in chosen}
        return {name: partial(_of_file, path, task) for name, path in files.items()}
    machine = machine_of(rig)
    near = None if machine is not None else LocalModules([job.deciding_rig], lambda: task)

    def of_module(content: Callable[[], bytes]) -> Score:
        if machine is not None:
            return Score(**machine.ask("test", rig, content()))
        assert near is not None
        return near.test(rig, content())

    def of_trial(number: int) -> bytes:
        return Payload.of_trial(store.trial_dir(number), rig).to_bytes()

    contents: dict[str, Callable[[], bytes]] = {DENSE: partial(dense_payload, store.baseline_dir / WEIGHTS_FILE)}
    contents |= {str(result.number): partial(of_trial, result.number) for result in chosen}
    return {name: partial(of_module, content) for name, content in contents.items()}


def _of_file(path: Path, task: PreparedTask) -> Score:
    assert task.test_source is not None
    return evaluate(OnnxPredictor(path), task.test_source.batches(), task.task.metric)


def scores_line(scores: dict[str, dict[str, Any]], names: Iterable[str]) -> str:
    """`test accuracy (read once): dense 0.9833, trial 5 0.9867`, in the order of `names`."""
    shown = [
        f"{name if name == DENSE else 'trial ' + name} {scores[name]['accuracy']:.4f}"
        for name in names
        if name in scores
    ]
    return f"test accuracy (read once, nothing is chosen by it): {', '.join(shown)}"
