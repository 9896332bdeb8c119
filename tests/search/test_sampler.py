"""The sampler's memory: no plan twice, half-asked trials completed, states and constraints right, and reproducible."""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from optuna.samplers import NSGAIISampler
from optuna.trial import TrialState

from search.atomic import StoreError
from search.budget import Budget
from search.result import Status
from search.sampler import PATIENCE, SpaceExhausted, StudySampler, drop_torn_line, study_url
from search.space import Dimension, Space
from tests.contracts.storage_contract import StorageContract
from tests.search.fabricated import SPACE, TINY, result_of

torch.set_num_threads(1)
SAMPLERS = ("tpe", "nsga2", "random")
kinds = pytest.mark.parametrize("kind", SAMPLERS)


class TestSqlite(StorageContract):
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path}/study.db"

    def test_a_file_that_is_no_database_is_refused_with_the_mend(self, url: str, tmp_path: Path) -> None:
        (tmp_path / "study.db").write_bytes(b"this is not a database" * 100)
        with pytest.raises(StoreError, match=r"study\.db cannot be opened .*move it away, it is filled again"):
            self.open(url)

    def test_a_folder_that_does_not_exist(self, tmp_path: Path) -> None:
        with pytest.raises(StoreError, match="cannot be opened") as caught:
            self.open(f"sqlite:///{tmp_path}/nowhere/study.db")
        assert "\n" not in str(caught.value)


class TestJournal(StorageContract):
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"journal:{tmp_path}/shared/journal.log"

    def test_a_torn_last_line_is_cut_off_and_the_study_goes_on(self, url: str, tmp_path: Path) -> None:
        path = tmp_path / "shared" / "journal.log"
        sampler = self.open(url)
        first = sampler.ask()
        sampler.tell(result_of(first))
        whole = path.read_bytes()
        lines = whole.splitlines(keepends=True)
        path.write_bytes(whole + lines[-1][: len(lines[-1]) // 2])
        again = self.open(url)
        assert path.read_bytes().startswith(whole)
        trials = again.study.get_trials(deepcopy=False)
        assert [t.state for t in trials] == [TrialState.COMPLETE]
        proposal = again.ask()
        assert self.open(url).unfinished() == [proposal]


@pytest.mark.parametrize(
    ("content", "left"),
    [(b"", b""), (b"a\n", b"a\n"), (b"a\nb", b"a\n"), (b"torn", b""), (b"a\n\n", b"a\n\n"), (b"a\n\xff\xfe", b"a\n")],
)
def test_only_a_last_line_without_an_end_is_dropped(content: bytes, left: bytes, tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_bytes(content)
    drop_torn_line(path)
    assert path.read_bytes() == left
    drop_torn_line(tmp_path / "absent")
    assert not (tmp_path / "absent").exists()


def test_the_setting_names_the_storage(tmp_path: Path) -> None:
    assert study_url("sqlite", tmp_path / "study.db") == f"sqlite:///{tmp_path.resolve()}/study.db"
    assert study_url("journal:x.log", tmp_path) == "journal:x.log"


@pytest.fixture
def no_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is killed in these tests: waiting for the disk would only cost time."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


pytestmark = pytest.mark.usefixtures("no_flush")


def _open(tmp_path: Path, space: Space = SPACE, **options: object) -> StudySampler:
    """The journal is the quickest storage: no flush to the disk at each parameter."""
    return StudySampler(f"journal:{tmp_path}/journal", space, **options)  # type: ignore[arg-type]


def _states(sampler: StudySampler) -> dict[int, TrialState]:
    return {t.number: t.state for t in sampler.study.get_trials(deepcopy=False)}


@kinds
def test_no_plan_is_proposed_twice_and_none_is_left_out(kind: str, tmp_path: Path) -> None:
    small = Space((*SPACE.dimensions[:2],))
    sampler = _open(tmp_path, small, sampler=kind, seed=3)
    plans = []
    for i in range(16):
        proposal = sampler.ask()
        assert proposal.plan == small.plan(proposal.params)
        plans.append(proposal.plan)
        sampler.tell(result_of(proposal, "complete" if i % 3 else "failed"))
    assert len(set(plans)) == 16
    with pytest.raises(SpaceExhausted):
        sampler.ask()
    asked = len(_states(sampler))
    for _ in range(3):  # asked again and again while the last trials run, it stays cheap
        with pytest.raises(SpaceExhausted):
            sampler.ask()
    assert len(_states(sampler)) == asked
    assert TrialState.RUNNING not in _states(sampler).values()
    # the next driver knows
    with pytest.raises(SpaceExhausted):
        _open(tmp_path, small, sampler=kind, start=1).ask()


def test_the_last_plan_of_a_large_space_is_found(tmp_path: Path) -> None:
    wide = Space(
        tuple(Dimension(layer=f"l{i}", structure="filter", sparsities=(0.0, 0.25, 0.5, 0.75)) for i in range(5))
    )
    sampler = _open(tmp_path, wide, sampler="random")
    last = dict.fromkeys(sampler._distributions, 2)
    for steps in itertools.product(range(4), repeat=5):
        params = dict(zip(sampler._distributions, steps, strict=True))
        if params != last:
            sampler._seen[sampler._key(params)] = 0
    assert sampler._unseen() == last


def test_duplicates_are_told_with_the_figures_of_the_first(tmp_path: Path) -> None:
    budget = Budget(speedup=1.2)
    sampler = _open(tmp_path, TINY, sampler="random", budget=budget)
    statuses: list[Status] = ["complete", "failed", "complete"]
    for status in statuses:
        sampler.tell(result_of(sampler.ask(), status))
    with pytest.raises(SpaceExhausted):
        sampler.ask()
    trials = sampler.study.get_trials(deepcopy=False)
    twins = [t for t in trials if "duplicate_of" in t.user_attrs]
    assert twins
    for twin in twins:
        first = trials[twin.user_attrs["duplicate_of"]]
        assert twin.params == first.params
        if first.state == TrialState.COMPLETE:
            assert (twin.state, twin.values, twin.constraints) == (TrialState.COMPLETE, first.values, first.constraints)
        else:
            assert twin.state == TrialState.FAIL
    assert len(trials) <= 3 + PATIENCE * 4


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ("complete", TrialState.COMPLETE),
        ("stopped", TrialState.PRUNED),
        ("infeasible", TrialState.PRUNED),
        ("failed", TrialState.FAIL),
    ],
)
def test_outcomes_are_filed_as_what_they_are(status: Status, state: TrialState, tmp_path: Path) -> None:
    budget = Budget(latency_ms=0.5)
    sampler = _open(tmp_path, budget=budget)
    proposal = sampler.ask()
    result = result_of(proposal, status)
    sampler.tell(result)
    trial = sampler.study.get_trials(deepcopy=False)[0]
    assert trial.state == state
    assert trial.values == (list(result.dominates_key) if status == "complete" else None)
    assert result.latency_high_ms is not None
    excess = pytest.approx(result.latency_high_ms / 0.5 - 1.0)
    assert trial.constraints == {"over_budget": excess, "0": excess}, "as Optuna 5 notes it, and as Optuna 4 did"
    # told again, by a driver that starts or a second worker: nothing changes
    sampler.tell(result_of(proposal, "failed"))
    assert sampler.study.get_trials(deepcopy=False)[0].state == state


def test_without_budget_or_figures_there_is_no_constraint(tmp_path: Path) -> None:
    sampler = _open(tmp_path)
    sampler.tell(result_of(sampler.ask()))
    assert sampler.study.get_trials(deepcopy=False)[0].constraints == {}
    tight = _open(tmp_path, budget=Budget(speedup=2.0))
    tight.tell(result_of(tight.ask(), "failed", latency_high_ms=None, speedup_low=None))
    assert tight.study.get_trials(deepcopy=False)[0].constraints == {}


def test_figures_that_are_not_finite_reach_no_sampler(tmp_path: Path) -> None:
    sampler = _open(tmp_path, budget=Budget(speedup=2.0))
    for figures in ({"speedup_low": math.nan}, {"speedup_low": 0.0}, {"latency_high_ms": math.inf}):
        sampler.tell(result_of(sampler.ask(), **figures))
    for trial in sampler.study.get_trials(deepcopy=False):
        assert trial.values is not None
        assert all(math.isfinite(v) for v in trial.values)
        assert not any(math.isnan(c) for c in trial.constraints.values())
    for _ in range(3 * 8):
        sampler.tell(result_of(sampler.ask()))
    assert TrialState.RUNNING not in _states(sampler).values()


@kinds
@pytest.mark.parametrize("known", [0, 1, 2, 3])
def test_parameters_left_half_set_by_a_kill_are_completed(kind: str, known: int, tmp_path: Path) -> None:
    before = _open(tmp_path, sampler=kind)
    for _ in range(10):
        before.tell(result_of(before.ask()))
    half = before.study.ask()
    names = list(before._distributions)
    kept = {n: half.suggest_int(n, 0, before._distributions[n].high) for n in names[:known]}
    after = _open(tmp_path, sampler=kind, start=1)
    proposals = after.unfinished()
    seen = [t.params for t in after.study.get_trials(deepcopy=False)[:10]]
    if not proposals:  # what was drawn for the rest made a known plan of it
        trial = after.study.get_trials(deepcopy=False)[half.number]
        assert trial.state == TrialState.COMPLETE
        assert trial.params in seen
        return
    assert [p.number for p in proposals] == [half.number]
    assert set(proposals[0].params) == set(names)
    assert all(proposals[0].params[n] == v for n, v in kept.items())
    assert proposals[0].params not in seen
    after.tell(result_of(proposals[0]))
    assert _states(after)[half.number] == TrialState.COMPLETE
    assert after.ask().plan != proposals[0].plan


def test_plans_given_first_are_asked_first_and_once(tmp_path: Path) -> None:
    sampler = _open(tmp_path)
    wanted = [SPACE.uniform(s) for s in (0.5, 0.75, 0.5)]
    sampler.enqueue(wanted)
    sampler.enqueue(wanted)
    assert [dict(sampler.ask().params) for _ in range(2)] == wanted[:2]
    assert dict(sampler.ask().params) not in wanted
    sampler.enqueue(wanted)
    assert dict(sampler.ask().params) not in wanted


def test_late_results_are_told_to_a_driver_that_starts(tmp_path: Path) -> None:
    before = _open(tmp_path)
    asked = [before.ask() for _ in range(4)]
    statuses: list[Status] = ["complete", "failed", "stopped"]
    results = {p.number: result_of(p, s) for p, s in zip(asked[:3], statuses, strict=True)}
    after = _open(tmp_path, start=1)
    assert after.reconcile(results) == 3
    assert after.reconcile(results) == 0
    states = _states(after)
    assert [states[p.number] for p in asked] == [
        TrialState.COMPLETE,
        TrialState.FAIL,
        TrialState.PRUNED,
        TrialState.RUNNING,
    ]
    assert after.unfinished() == asked[3:]


def test_a_fill_that_was_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    old = _open(tmp_path)
    results = {p.number: result_of(p) for p in (old.ask() for _ in range(6))}
    budget = Budget(speedup=1.1)
    _open(tmp_path, budget=budget).fill(dict(list(results.items())[:3]))
    new = _open(tmp_path, budget=budget)
    new.fill(results)
    new.fill(results)
    trials = new.study.get_trials(deepcopy=False)
    assert len(trials) == max(results) + 1
    assert {n: trials[n].values for n in results} == {n: list(r.dominates_key) for n, r in results.items()}
    assert new.ask().number > max(results)


def test_a_fill_goes_by_plans_not_by_steps(tmp_path: Path) -> None:
    """With another `sparsity.step` the same steps are other plans: figures must not go to the wrong one."""
    old = _open(tmp_path)
    results = {p.number: result_of(p) for p in (old.ask() for _ in range(12))}
    finer = Space(
        tuple(Dimension(layer=d.layer, structure=d.structure, sparsities=d.sparsities[::2]) for d in SPACE.dimensions)
    )
    new = _open(tmp_path, finer)
    new.fill(results)
    matched = 0
    trials = new.study.get_trials(deepcopy=False)
    for number, result in results.items():
        there = all(s in d for d, s in _sparsities_asked(finer, result.requested))
        assert bool(trials[number].params) == there
        matched += there
        if there:
            assert finer.plan(trials[number].params).digest() == result.plan_digest
            assert trials[number].values == list(result.dominates_key)
        else:
            assert trials[number].state == TrialState.FAIL
    assert 0 < matched < 12
    hostile = result_of(old.ask(), requested={"conv1": {"filter": 7.0}})
    new.fill({**results, hostile.number: hostile})
    assert _states(new)[hostile.number] == TrialState.FAIL


def _sparsities_asked(
    space: Space, requested: Mapping[str, Mapping[str, float]]
) -> list[tuple[tuple[float, ...], float]]:
    return [(d.sparsities, requested.get(d.layer, {}).get(d.structure, 0.0)) for d in space.dimensions]


def test_plans_over_an_old_budget_may_be_tried_under_a_new_one(tmp_path: Path) -> None:
    tight = _open(tmp_path, TINY, sampler="random", budget=Budget(speedup=50.0))
    results = {p.number: result_of(p, "infeasible") for p in (tight.ask() for _ in range(3))}
    assert len(results) == 3
    # the same question asked of a lost study: they stay infeasible
    same = StudySampler(f"journal:{tmp_path}/lost", TINY, sampler="random", budget=Budget(speedup=50.0))
    same.fill(results)
    assert all(_states(same)[number] == TrialState.PRUNED for number in results)
    with pytest.raises(SpaceExhausted):
        same.ask()
    for budget in (Budget(speedup=1.05), None):
        loose = _open(tmp_path, TINY, sampler="random", budget=budget)
        loose.fill(results)
        again = [loose.ask().plan for _ in range(3 if budget is None else 2)]
        assert len(set(again)) == len(again)


def test_an_old_population_breeds_on_after_a_fill(tmp_path: Path) -> None:
    """NSGA-II counts only trials with a place in a generation: filled and enqueued ones need one too."""
    old = _open(tmp_path, sampler="nsga2")
    old.enqueue([SPACE.uniform(0.5)])
    results = {}
    while len(results) < 16:
        proposal = old.ask()
        results[proposal.number] = result_of(proposal)
        old.tell(results[proposal.number])
    key = NSGAIISampler._get_generation_key()
    assert all(key in t.system_attrs for t in old.study.get_trials(deepcopy=False))
    new = _open(tmp_path, sampler="nsga2", budget=Budget(speedup=1.1))
    new.fill(results)
    child = new.ask()
    assert new.study.get_trials(deepcopy=False)[child.number].system_attrs[key] == 1


@kinds
def test_the_same_seed_and_replayed_results_give_the_same_plans(kind: str, tmp_path: Path) -> None:
    def plans(name: str, seed: int) -> list[str]:
        sampler = StudySampler(f"journal:{tmp_path}/{name}", SPACE, sampler=kind, seed=seed, budget=Budget(speedup=1.3))
        drawn = []
        for i in range(24):
            proposal = sampler.ask()
            drawn.append(f"{proposal.number} {proposal.plan.digest()}")
            status: Status = "failed" if i % 11 == 5 else "stopped" if i % 7 == 3 else "complete"
            sampler.tell(result_of(proposal, status))
        return drawn

    first = plans("first", 5)
    assert plans("second", 5) == first
    assert plans("third", 6) != first


def test_a_restart_draws_other_numbers(tmp_path: Path) -> None:
    first = [_open(tmp_path / str(i), sampler="random", seed=1, start=i).ask().plan for i in range(4)]
    assert len(set(first)) > 1


def test_the_guided_samplers_learn(tmp_path: Path) -> None:
    """Not a benchmark: after 40 trials most proposals of TPE lie within the budget, where few random ones do."""
    wide = Space(
        tuple(
            Dimension(layer=f"l{i}", structure="filter", sparsities=tuple(k / 20 for k in range(19))) for i in range(4)
        )
    )
    budget = Budget(speedup=2.4)
    shares = {}
    for kind in ("tpe", "random"):
        sampler = StudySampler(f"journal:{tmp_path}/{kind}", wide, sampler=kind, seed=0, budget=budget)
        within = []
        for _ in range(60):
            result = result_of(sampler.ask())
            sampler.tell(result)
            within.append(budget.holds(result))
        shares[kind] = sum(within[40:]) / 20
    print(f"within the budget, last 20 of 60: {shares}")
    assert shares["tpe"] > shares["random"]


@pytest.mark.parametrize("storage", ["sqlite:///", "journal:"])
def test_two_hundred_trials(storage: str, tmp_path: Path) -> None:
    """The time of an ask and a tell is printed, not judged."""
    space = Space(
        tuple(Dimension(layer=f"l{i}", structure="filter", sparsities=(0.0, 0.25, 0.5, 0.75)) for i in range(12))
    )
    sampler = StudySampler(f"{storage}{tmp_path}/study", space, sampler="tpe", budget=Budget(speedup=1.5))
    spent = {"ask": 0.0, "tell": 0.0}
    trials = 200 if storage == "journal:" else 20
    for _ in range(trials):
        begun = time.perf_counter()
        proposal = sampler.ask()
        asked = time.perf_counter()
        sampler.tell(result_of(proposal))
        spent["ask"] += asked - begun
        spent["tell"] += time.perf_counter() - asked
    figures = {what: f"{1000 * seconds / trials:.1f} ms" for what, seconds in spent.items()}
    print(f"{storage} {trials} trials, 12 dimensions: {figures}")
    assert set(_states(sampler).values()) == {TrialState.COMPLETE}
    assert len(_states(sampler)) >= trials
