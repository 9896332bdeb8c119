"""Searches on other objectives in the simulator: three of them, a list that changes, and one that says nothing."""

from __future__ import annotations

import itertools
import math
import os
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from search.front import front_results
from search.objectives import LATENCY_ALONE, Objectives
from search.progress_log import log_hypervolume, progress
from search.result import TrialResult
from search.sampler import Proposal, StudySampler, open_storage
from tests.search.simulator import DENSE, Simulated, search

NETWORK = Simulated(layers=4, steps=6)
MACS = 10**6
TWO_RIGS = Objectives(names=("accuracy", "latency", "latency:other"))
THREE = Objectives(names=("accuracy", "latency", "macs"), dense_macs=MACS)
Evaluate = Callable[[Proposal], TrialResult]


@pytest.fixture(autouse=True)
def no_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    """No machine is switched off in these tests: waiting for the disk would only cost time."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def _evaluate(proposal: Proposal) -> TrialResult:
    """Columns save MACs as filters do, and no time on the other rig."""
    result = NETWORK.evaluate(proposal)
    kept, filters = 1.0, 1.0
    for d in NETWORK.space.dimensions:
        share = 1.0 - d.sparsities[proposal.params[d.name]]
        kept *= share ** (1.0 / NETWORK.layers)
        filters *= share ** (1.0 / NETWORK.layers) if d.structure == "filter" else 1.0
    other = {"speedup": 1.0 / filters, "speedup_low": 0.99 / filters, "speedup_high": 1.01 / filters}
    return replace(result, macs=max(1, round(MACS * kept)), measurements={"other": other})


def _open(url: Path | str, objectives: Objectives = THREE, **options: Any) -> StudySampler:
    options.setdefault("dense_accuracy", DENSE)
    place = url if isinstance(url, str) else f"journal:{url}/journal"
    return StudySampler(place, NETWORK.space, objectives=objectives, **options)


def _values(sampler: StudySampler) -> dict[int, list[float] | None]:
    return {t.number: t.values for t in sampler.study.get_trials(deepcopy=False)}


def _expected(results: dict[int, TrialResult], objectives: Objectives) -> dict[int, list[float]]:
    return {n: list(point) for n, point in objectives.points(results).items()}


@pytest.mark.parametrize("objectives", [THREE, TWO_RIGS, Objectives(names=("accuracy", "macs"), dense_macs=MACS)])
@pytest.mark.parametrize("kind", ["tpe", "nsga2"])
def test_a_search_tells_its_study_of_every_objective(kind: str, objectives: Objectives, tmp_path: Path) -> None:
    sampler = _open(tmp_path, objectives, sampler=kind, again=True)
    results = search(sampler, _evaluate, trials=30, workers=2)
    assert sampler.study.metric_names == ["accuracy", *(f"relative_{name}" for name in objectives.costs)]
    directions = [optuna.study.StudyDirection.MAXIMIZE, *[optuna.study.StudyDirection.MINIMIZE] * len(objectives.costs)]
    assert sampler.study.directions == directions
    assert {n: _values(sampler)[n] for n in results} == _expected(results, objectives)
    sources = {t.user_attrs.get("source") for t in sampler.study.get_trials(deepcopy=False)}
    assert sources >= {kind, "neighbour"}


def test_three_objectives_find_what_two_pass_over(tmp_path: Path) -> None:
    """Columns are worth MACs here and hardly time: who is told of MACs covers more of the three."""
    covered: dict[tuple[str, ...], float] = {}
    for objectives in (THREE, LATENCY_ALONE):
        (tmp_path / str(len(objectives.names))).mkdir()
        values = []
        for seed in range(3):
            url = f"journal:{tmp_path}/{len(objectives.names)}/{seed}"
            results = search(_open(url, objectives, sampler="random", seed=seed), _evaluate, trials=30)
            rows = progress(results, NETWORK.baseline, objectives=THREE)
            assert all(a.hypervolume <= b.hypervolume for a, b in itertools.pairwise(rows))
            values.append(log_hypervolume(results, NETWORK.baseline, THREE))
        covered[objectives.names] = sum(values)
    assert min(covered.values()) > 0.0
    assert covered[THREE.names] > covered[LATENCY_ALONE.names]


def test_the_same_seed_proposes_the_same_plans_after_a_restart_too(tmp_path: Path) -> None:
    found = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        results = search(_open(tmp_path / name, sampler="tpe"), _evaluate, trials=14)
        # what a start finds it draws alike, whether the study is there or is filled from the results
        url = tmp_path / name if name == "one" else f"journal:{tmp_path}/lost"
        sampler = _open(url, sampler="tpe", start=1)
        sampler.fill(results)
        sampler.reconcile(results)
        search(sampler, _evaluate, trials=22, results=results)
        found.append([(n, results[n].plan_digest) for n in sorted(results)])
    assert found[0][:14] == found[1][:14]
    assert len(found[0]) == len(found[1]) == 22
    assert len({digest for _, digest in found[0]}) == 22


def test_a_changed_list_opens_a_study_in_the_same_database_filled_from_the_results(tmp_path: Path) -> None:
    url = f"journal:{tmp_path}/journal"
    results = search(_open(url, LATENCY_ALONE), _evaluate, trials=10)
    lists = (THREE, TWO_RIGS, THREE, LATENCY_ALONE)
    for start, objectives in enumerate(lists, start=1):
        sampler = _open(url, objectives, start=start)
        sampler.fill(results)
        assert sampler.reconcile(results) == 0
        assert {n: _values(sampler)[n] for n in results} == _expected(results, objectives)
        before = set(results)
        search(sampler, _evaluate, trials=10 + 3 * start, results=results)
        assert len(results) == 10 + 3 * start
        # no number and no plan is used twice, whichever study asked
        assert min(set(results) - before) > max(before)
        assert len({r.plan_digest for r in results.values()}) == len(results)
    assert len(optuna.get_all_study_names(open_storage(url))) == 3


def test_trials_that_lack_a_figure_take_their_number_and_teach_nothing(tmp_path: Path) -> None:
    results = search(_open(f"journal:{tmp_path}/a", LATENCY_ALONE), _evaluate, trials=8)
    lacking = {n: replace(r, measurements={}) if n % 2 else r for n, r in results.items()}
    sampler = _open(f"journal:{tmp_path}/b", TWO_RIGS)
    sampler.fill(lacking)
    states = {t.number: t.state for t in sampler.study.get_trials(deepcopy=False)}
    assert states == {n: TrialState.FAIL if n % 2 else TrialState.COMPLETE for n in results}
    proposal = sampler.ask()
    assert proposal.number >= len(results)
    assert proposal.plan.digest() not in {r.plan_digest for r in results.values()}


def _constant(result: TrialResult, rng: random.Random) -> TrialResult:
    return replace(result, macs=MACS // 2)


def _tied(result: TrialResult, rng: random.Random) -> TrialResult:
    return replace(result, macs=MACS // rng.choice([1, 2]), accuracy=round(result.accuracy or 0.0, 1))


def _nan(result: TrialResult, rng: random.Random) -> TrialResult:
    wrong = {"speedup": rng.choice([math.nan, math.inf, 0.0])}
    return replace(result, measurements={"other": wrong}) if rng.random() < 0.4 else result


def _none(result: TrialResult, rng: random.Random) -> TrialResult:
    return replace(result, measurements={})


@pytest.mark.parametrize(
    ("spoil", "objectives"), [(_constant, THREE), (_tied, THREE), (_nan, TWO_RIGS), (_none, TWO_RIGS)]
)
@pytest.mark.parametrize("kind", ["tpe", "nsga2"])
def test_an_objective_that_says_little_ends_no_search(
    kind: str, spoil: Callable[[TrialResult, random.Random], TrialResult], objectives: Objectives, tmp_path: Path
) -> None:
    rng = random.Random(0)

    def evaluate(proposal: Proposal) -> TrialResult:
        return spoil(_evaluate(proposal), rng)

    sampler = _open(tmp_path, objectives, sampler=kind)
    results = search(sampler, evaluate, trials=25)
    assert len(results) == 25
    trials = sampler.study.get_trials(deepcopy=False)
    for number, result in results.items():
        point = objectives.point(result)
        assert trials[number].state == (TrialState.FAIL if point is None else TrialState.COMPLETE)
    front = front_results(NETWORK.baseline, results, objectives)
    assert all(objectives.point(r) is not None for r in front)
    # a start that recalls the study and one that is told the results go on alike
    again = _open(tmp_path, objectives, sampler=kind, start=1)
    assert again.ask().number == len(trials)
