"""A draw looks at a bounded part of a long study, and at all of a short one."""

from __future__ import annotations

import random

import optuna
import pytest
from optuna.distributions import IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from search.bounded import BEST, LATEST, BoundedTPE, worth_a_look

SPACE = {"a": IntDistribution(0, 9), "b": IntDistribution(0, 9)}


def _trial(number: int, rng: random.Random, state: TrialState = TrialState.COMPLETE, over: float = 0.0) -> FrozenTrial:
    steps = {name: rng.randrange(10) for name in SPACE}
    values = [rng.random(), rng.random()] if state == TrialState.COMPLETE else None
    trial = create_trial(
        state=state, values=values, params=steps, distributions=dict(SPACE), constraints={"over_budget": over}
    )
    trial.number = number
    return trial


def test_a_short_study_is_seen_whole() -> None:
    rng = random.Random(0)
    trials = [_trial(n, rng) for n in range(LATEST + BEST)]
    assert worth_a_look(trials) == trials


@pytest.mark.parametrize("count", [LATEST + BEST + 200, 3000])
def test_of_a_long_one_the_latest_the_best_and_what_runs(count: int) -> None:
    rng = random.Random(1)
    kinds = [TrialState.COMPLETE, TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL]
    trials = [_trial(n, rng, rng.choice(kinds), rng.choice([-0.5, 0.5])) for n in range(count)]
    trials[3] = _trial(3, rng, TrialState.RUNNING)
    best = _trial(5, rng, TrialState.COMPLETE, -0.5)
    best.values = [2.0, -1.0]
    beyond = _trial(6, rng, TrialState.COMPLETE, 0.5)
    beyond.values = [3.0, -2.0]
    trials[5], trials[6] = best, beyond
    seen = worth_a_look(trials)
    numbers = [t.number for t in seen]
    assert numbers == sorted(numbers)
    assert set(range(count - LATEST, count)) <= set(numbers)
    assert {3, 5} <= set(numbers)  # one that runs, and the best within the budget
    assert 6 not in numbers
    assert len(seen) <= LATEST + BEST + 1
    early = [t for t in seen[: -LATEST or None] if t.state.is_finished()]
    assert all(t.state == TrialState.COMPLETE for t in early)


@pytest.mark.parametrize("count", [40, LATEST + BEST + 50])
def test_it_draws_as_optuna_s_own_does_while_the_study_is_short(count: int) -> None:
    drawn = []
    for kind in (BoundedTPE, optuna.samplers.TPESampler):
        rng = random.Random(2)
        sampler = kind(multivariate=True, group=True, constant_liar=True, n_startup_trials=8, seed=0)
        study = optuna.create_study(sampler=sampler, directions=["maximize", "minimize"])
        study.add_trials([_trial(n, rng) for n in range(count)])
        live = study.ask()
        drawn.append([live.suggest_int(name, d.low, d.high) for name, d in SPACE.items()])
        study.tell(live, [0.5, 0.5])
    assert all(0 <= step <= 9 for steps in drawn for step in steps)
    if count <= LATEST + BEST:
        assert drawn[0] == drawn[1]
