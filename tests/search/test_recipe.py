"""Trials of one run are made by one recipe: an edited job.yaml is refused, what may change may change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from search.budget import Budget
from search.errors import UserError
from search.job import Job
from search.prune_command import as_in_trial
from search.recipe import as_begun, recipe_of, require_same_recipe
from search.sampler import Proposal
from search.store import RunStore
from tests.search.fabricated import SPACE, result_of

JOB = Job.model_validate({"task": "a:b", "task_args": {"width": 8}, "admm": {"iterations": 4}})


def edited(**sections: Any) -> Job:
    return Job.model_validate({**JOB.model_dump(), **sections})


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore.create(tmp_path / "run", JOB.to_yaml(), {"recipe": recipe_of(JOB)})


def test_what_may_change_may_change(store: RunStore) -> None:
    require_same_recipe(store, JOB)
    require_same_recipe(store, JOB.with_overrides(trials=99, speedup=3.0, seed=5))
    other = edited(sparsity={"max": 0.5}, resources={"max_concurrent": 1})
    require_same_recipe(store, other)
    assert recipe_of(other) == recipe_of(JOB)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"admm": {"iterations": 3}}, r"admm\.iterations was 4 when the run began and is 3 now"),
        ({"finetune": {"epochs": 9}}, r"finetune\.epochs was 4 when the run began and is 9 now"),
        ({"task": "a:c"}, r"task was 'a:b' when the run began and is 'a:c' now"),
        ({"opset": 18}, r"opset was 20 when the run began and is 18 now"),
        ({"task_args": {}}, r"task_args\.width was 8 when the run began and is None now"),
    ],
)
def test_an_edited_recipe_is_refused_by_key(store: RunStore, change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said + ".*change it back"):
        require_same_recipe(store, edited(**change))


def test_a_run_of_an_earlier_version_goes_on_as_it_began(tmp_path: Path) -> None:
    recipe = {key: value for key, value in recipe_of(JOB).items() if key not in ("lower", "quantize", "opset")}
    store = RunStore.create(tmp_path / "earlier", JOB.to_yaml(), {"recipe": recipe})
    assert JOB.lower
    job = as_begun(store, JOB)
    assert (job.lower, job.quantize, job.opset) == (False, "off", 20)
    require_same_recipe(store, job)
    with pytest.raises(UserError, match="lower was False when the run began and is True now"):
        require_same_recipe(store, JOB)
    now = RunStore.create(tmp_path / "now", JOB.to_yaml(), {"recipe": recipe_of(JOB)})
    assert as_begun(now, JOB) == JOB


def test_a_recorded_plan_brings_its_seed_and_alignment() -> None:
    path = Path("plan.json")
    job = edited(budget={"speedup": 3.0})
    trial = as_in_trial(job, '{"requested": {}, "kept": {}, "seed": 7, "align": 4}', path)
    assert (trial.search.seed, trial.sparsity.align, trial.budget) == (7, 4, None)
    by_hand = as_in_trial(job, '{"conv": {"filter": 0.5}}', path)
    assert (by_hand.search.seed, by_hand.sparsity.align) == (job.search.seed, job.sparsity.align)
    for broken in ('{"kept": {}, "seed": -1}', '{"kept": {}, "align": 0}', '{"kept": {}, "seed": "x"}'):
        with pytest.raises(UserError, match=r"plan\.json: its seed or align is no valid value"):
            as_in_trial(job, broken, path)


def test_a_budget_on_another_rig_reads_that_rigs_figures() -> None:
    params = dict.fromkeys((d.name for d in SPACE.dimensions), 1)
    other = {"latency_high_ms": 9.0, "speedup_low": 1.1}
    result = result_of(Proposal(number=0, params=params, plan=SPACE.plan(params)), measurements={"cuda": other})
    assert result.speedup_low is not None
    assert Budget(speedup=result.speedup_low - 0.1).holds(result)
    assert not Budget(speedup=1.2, rig="cuda").holds(result)
    assert Budget(latency_ms=9.5, rig="cuda").holds(result)
