"""Whole searches in the simulator: a thousand trials, kills at any write, budgets met, missed and out of reach."""

from __future__ import annotations

import itertools
import math
import os
import random
import statistics
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from search.budget import Budget
from search.memory import FIRST
from search.progress_log import log_hypervolume, progress
from search.result import TrialResult
from search.sampler import Proposal, StudySampler
from tests.search.simulator import DENSE, Simulated, search

SMALL = Simulated(layers=4, steps=6)


@pytest.fixture(autouse=True)
def no_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    """No machine is switched off in these tests: waiting for the disk would only cost time."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def _open(folder: Path, network: Simulated, **options: Any) -> StudySampler:
    options.setdefault("dense_accuracy", DENSE)
    return StudySampler(f"journal:{folder}/journal", network.space, budget=network.budget, **options)


def _plans(results: dict[int, TrialResult]) -> list[tuple[int, str]]:
    return [(number, results[number].plan_digest) for number in sorted(results)]


def _consistent(sampler: StudySampler, results: dict[int, TrialResult]) -> None:
    """No plan twice, and the study says what the record says."""
    assert len({r.plan_digest for r in results.values()}) == len(results)
    trials = sampler.study.get_trials(deepcopy=False)
    assert not [t for t in trials if not t.state.is_finished()]
    for number, result in results.items():
        assert sampler.space.plan(trials[number].params).digest() == result.plan_digest
        if result.status == "complete":
            assert trials[number].values == list(result.dominates_key)
    real = [t.number for t in trials if t.state != TrialState.FAIL and "duplicate_of" not in t.user_attrs]
    assert sorted(results) == real


class Killed(BaseException):
    """The process ends here."""


def _mortal(sampler: StudySampler, lives: Callable[[], bool]) -> None:
    """Let the durable storage's writes end the process, before they are done or just after."""
    storage: Any = sampler.study._storage

    def mortal(real: Callable[..., Any]) -> Callable[..., Any]:
        def write(*args: Any, **options: Any) -> Any:
            if not lives():
                raise Killed
            done = real(*args, **options)
            if not lives():
                raise Killed
            return done

        return write

    for name in ("create_new_trial", "set_trial_state_values", "set_trial_system_attr", "set_trial_param"):
        setattr(storage, name, mortal(getattr(storage, name)))


def test_a_thousand_trials_with_kills_repeat_nothing_and_lose_nothing(tmp_path: Path) -> None:
    network = Simulated()
    rng, deaths = random.Random(0), 0
    results: dict[int, TrialResult] = {}
    for start in itertools.count():
        sampler = _open(tmp_path, network, sampler="nsga2", neighbours=False, start=start)
        sampler.fill(results)
        sampler.reconcile(results)
        if not results:
            sampler.enqueue(network.space.uniform(s) for s in (0.0, 0.3, 0.6))
        left = rng.randrange(1, 1500)

        def lives() -> bool:
            nonlocal left
            left -= 1
            return left > 0

        _mortal(sampler, lives)
        try:
            search(sampler, network.evaluate, trials=1000, workers=4, results=results)
            break
        except Killed:
            deaths += 1
    assert deaths >= 3
    assert len(results) == 1000
    _consistent(_open(tmp_path, network, sampler="nsga2", start=99), results)


@pytest.mark.parametrize("seed", range(6))
def test_kills_at_every_few_writes(seed: int, tmp_path: Path) -> None:
    network = replace(SMALL, budget=Budget(speedup=1.5))
    rng = random.Random(seed)
    results: dict[int, TrialResult] = {}
    for start in range(400):
        sampler = _open(tmp_path, network, sampler=rng.choice(["tpe", "nsga2", "random"]), start=start)
        sampler.fill(results)
        sampler.reconcile(results)
        if not results:
            sampler.enqueue(network.space.uniform(s) for s in (0.0, 0.3, 0.6))
        _mortal(sampler, lambda: rng.random() > 0.05)
        try:
            search(sampler, network.evaluate, trials=25, workers=2, results=results)
            break
        except Killed:
            pass
    assert sum(r.status == "complete" for r in results.values()) == 25
    _consistent(_open(tmp_path, network, start=999), results)


@pytest.mark.parametrize("kind", ["tpe", "nsga2", "random"])
def test_the_same_seed_gives_the_same_search_with_neighbours(kind: str, tmp_path: Path) -> None:
    network = replace(SMALL, budget=Budget(speedup=1.5))
    runs = [
        search(_open(tmp_path / name, network, sampler=kind, seed=seed), network.evaluate, trials=40, workers=3)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert _plans(runs[0]) == _plans(runs[1])
    assert _plans(runs[0]) != _plans(runs[2])


def test_a_restart_knows_the_shares_the_parents_and_the_sources(tmp_path: Path) -> None:
    first = _open(tmp_path, SMALL, seed=3)
    first.enqueue([SMALL.space.uniform(0.3)])
    first.enqueue([SMALL.space.uniform(0.5)], source="warm start")
    results = search(first, SMALL.evaluate, trials=40)
    again = _open(tmp_path, SMALL, seed=3, start=1)
    again.fill(results)
    assert again._memory.shares() == first._memory.shares() != {"tpe": 0.5, "neighbour": 0.5}
    assert again._memory.parents() == first._memory.parents()
    trials = again.study.get_trials(deepcopy=False)
    sources = Counter(t.user_attrs["source"] for t in trials if "duplicate_of" not in t.user_attrs)
    assert set(sources) == {"uniform", "warm start", "tpe", "neighbour"}
    assert [trials[n].user_attrs["source"] for n in (0, 1)] == ["uniform", "warm start"]
    offered = [again.ask() for _ in range(3)]
    assert _open(tmp_path, SMALL, start=2).unfinished() == offered


def test_a_study_whose_results_are_not_at_hand_still_has_a_front(tmp_path: Path) -> None:
    """The study's own values will do, without their noise and epochs."""
    results = search(_open(tmp_path, SMALL), SMALL.evaluate, trials=20)
    bare = _open(tmp_path, SMALL, start=1, dense_accuracy=None)
    front = {tuple(k.steps.items()) for k, _ in bare._memory.parents()}
    known = {tuple(results[n].params_sampled.items()) for n in results}
    assert front
    assert front <= known
    assert {bare.ask().source for _ in range(12)} == {"tpe", "neighbour"}


def test_a_swap_goes_by_the_forecast_that_the_sampler_is_given(tmp_path: Path) -> None:
    asked: list[dict[str, int]] = []

    def cost(steps: Mapping[str, int]) -> float:
        asked.append(dict(steps))
        return SMALL.relative_latency(steps)

    search(_open(tmp_path, SMALL, cost=cost), SMALL.evaluate, trials=20)
    assert asked


def test_without_neighbours_the_sampler_is_alone(tmp_path: Path) -> None:
    sampler = _open(tmp_path, SMALL, sampler="random", neighbours=False)
    search(sampler, SMALL.evaluate, trials=3 * FIRST)
    assert {t.user_attrs.get("source", "random") for t in sampler.study.get_trials(deepcopy=False)} == {"random"}


def test_a_search_goes_on_with_more_trials_and_another_budget(tmp_path: Path) -> None:
    results = search(_open(tmp_path, SMALL), SMALL.evaluate, trials=20)
    search(_open(tmp_path, SMALL, start=1), SMALL.evaluate, trials=30, results=results)
    tight = replace(SMALL, budget=Budget(speedup=2.0))
    sampler = _open(tmp_path, tight, start=2)
    sampler.fill(results)
    old = dict(results)
    search(sampler, tight.evaluate, trials=45, results=results)
    assert {n: results[n] for n in old} == old
    assert sum(r.status == "complete" for r in results.values()) == 45
    assert min(set(results) - set(old)) > max(old)
    assert len({r.plan_digest for r in results.values()}) == len(results)


@pytest.mark.slow
def test_proposals_gather_under_the_budget(tmp_path: Path) -> None:
    """More of them end in the last 20 % below it than without one: the budget is what the search is for."""
    budget = Budget(speedup=2.5)
    shares = {}
    for name, asked in (("budget", budget), ("none", None)):
        inside = []
        for seed in range(3):
            network = Simulated(seed=seed, budget=asked)
            sampler = _open(tmp_path / f"{name}{seed}", network, seed=seed)
            sampler.enqueue(network.space.uniform(s) for s in (0.0, 0.2, 0.4, 0.6))
            results = search(sampler, network.evaluate, trials=70, infeasible_per_trial=100)
            # a plan found over budget by its shapes costs nothing: what is compared are the plans that were trained
            trained = [r for n, r in sorted(results.items()) if r.status == "complete"][20:]
            inside += [-0.2 <= budget.excess(r.latency_high_ms or 0.0, r.speedup_low or 0.0) <= 0.0 for r in trained]
        shares[name] = statistics.mean(inside)
    print(f"trained plans in the last 20 % below the budget: {shares}")
    assert shares["budget"] > 1.5 * shares["none"]


@pytest.mark.parametrize("kind", ["tpe", "nsga2", "random"])
def test_a_budget_out_of_reach_ends(kind: str, tmp_path: Path) -> None:
    network = replace(SMALL, budget=Budget(speedup=500.0))
    results = search(_open(tmp_path, network, sampler=kind), network.evaluate, trials=4)
    assert {r.status for r in results.values()} == {"infeasible"}
    assert len(results) == 8 * 4


def test_budgets_that_contradict_one_another_each_end(tmp_path: Path) -> None:
    """Tighter than what is there, then looser than anything: neither study spoils the other."""
    results: dict[int, TrialResult] = {}
    for start, speedup in enumerate((500.0, 0.01, 500.0, 2.0)):
        network = replace(SMALL, budget=Budget(speedup=speedup))
        sampler = _open(tmp_path, network, start=start)
        sampler.fill(results)
        trained = sum(r.status == "complete" for r in results.values())
        kept = {n: r for n, r in results.items() if not sampler.fits_now(r)}
        search(sampler, network.evaluate, trials=trained + 6, results=kept)
        results |= kept
    assert Counter(r.status for r in results.values())["complete"] == 12


FLAT: dict[str, Callable[[TrialResult], TrialResult]] = {
    "constant": lambda r: replace(r, accuracy=0.5, speedup=1.0, speedup_low=1.0, latency_ms=1.0, latency_high_ms=1.0),
    "accuracy tied": lambda r: replace(r, accuracy=0.9),
    "latency tied": lambda r: replace(r, speedup=2.0, speedup_low=1.9),
    "all wrong": lambda r: replace(r, accuracy=0.0, accuracy_drop=95.0, speedup=0.01, speedup_low=0.009),
    "NaN error": lambda r: replace(r, accuracy_stderr=math.nan, speedup_low=math.nan),
    "failed": lambda r: TrialResult(
        number=r.number, status="failed", plan_digest=r.plan_digest, seed=0, reason="the loss is NaN", epochs=1.0
    ),
    "half failed": lambda r: r if r.number % 2 else FLAT["failed"](r),
    "no epochs": lambda r: replace(r, epochs=0.0),
}


@pytest.mark.parametrize("kind", ["tpe", "nsga2"])
@pytest.mark.parametrize("odd", FLAT)
def test_objectives_that_say_nothing_end_the_search_no_earlier(odd: str, kind: str, tmp_path: Path) -> None:
    def evaluate(proposal: Proposal) -> TrialResult:
        return FLAT[odd](SMALL.evaluate(proposal))

    for dense in (DENSE, None):
        sampler = _open(tmp_path / str(dense), SMALL, sampler=kind, dense_accuracy=dense)
        results = search(sampler, evaluate, trials=40, workers=2)
        assert len(results) == 40
        assert len({r.plan_digest for r in results.values()}) == 40
        shares = sampler._memory.shares()
        assert sum(shares.values()) == pytest.approx(1.0)


def test_a_small_space_is_gone_through_whole(tmp_path: Path) -> None:
    tiny = Simulated(layers=1, steps=5)
    results = search(_open(tmp_path, tiny), tiny.evaluate, trials=1000)
    assert len(results) == 25


@pytest.mark.slow
def test_the_mix_learns_faster_than_the_sampler_alone(tmp_path: Path) -> None:
    """Not a benchmark: over three networks at 70 trials the mixed search covers more than TPE alone or chance."""
    covered: dict[str, float] = {}
    for name, kind, mixed in (("mixed", "tpe", True), ("tpe", "tpe", False), ("random", "random", False)):
        areas = []
        for seed in range(3):
            network = Simulated(seed=seed)
            sampler = _open(tmp_path / f"{name}{seed}", network, sampler=kind, neighbours=mixed, seed=seed)
            sampler.enqueue(network.space.uniform(s) for s in (0.0, 0.25, 0.5))
            results = search(sampler, network.evaluate, trials=70, workers=2)
            areas.append(log_hypervolume(results, network.baseline))
            assert progress(results, network.baseline)[-1].epochs == pytest.approx(70 * network.epochs)
        covered[name] = statistics.mean(areas)
    print(f"hypervolume after 70 trials: {covered}")
    assert covered["mixed"] > covered["tpe"]
    assert covered["mixed"] > covered["random"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tpe", "nsga2"])
def test_a_thousand_trials_of_the_mix_in_thirty_dimensions(kind: str, tmp_path: Path) -> None:
    network = Simulated()
    first = _open(tmp_path, network, sampler=kind)
    results = search(first, network.evaluate, trials=500, workers=4)
    again = _open(tmp_path, network, sampler=kind, start=1)
    again.fill(results)
    search(again, network.evaluate, trials=1000, workers=4, results=results)
    assert len(results) == 1000
    _consistent(again, results)
