"""A study's file that is cut, cannot be written, or is another run's: a clear error, or filled again."""

from __future__ import annotations

import shutil
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from search.atomic import StoreError
from search.budget import Budget
from search.result import TrialResult
from search.sampler import StudySampler
from tests.search.simulator import DENSE, Simulated, search

NETWORK = Simulated(layers=3, steps=5)


def _open(url: str, network: Simulated = NETWORK, **options: object) -> StudySampler:
    return StudySampler(url, network.space, sampler="random", dense_accuracy=DENSE, **options)  # type: ignore[arg-type]


def _run(url: str, *, seed: int = 0, trials: int = 6) -> dict[int, TrialResult]:
    return search(_open(url, seed=seed, neighbours=False), NETWORK.evaluate, trials=trials)


def _refused(url: str, path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be opened") as caught:
        _open(url)
    assert str(path) in str(caught.value)
    assert "move it away, it is filled again" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_database_that_is_cut_off_is_refused_and_refilled_once_moved(share: float, tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    url = f"sqlite:///{path}"
    results = _run(url)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    _refused(url, path)
    path.rename(tmp_path / "away.db")
    sampler = _open(url, start=1)
    sampler.fill(results)
    assert {t.number: t.values for t in sampler.study.get_trials(deepcopy=False)} == {
        n: list(r.dominates_key) for n, r in results.items()
    }
    assert sampler.ask().number == len(results)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_journal_that_is_cut_off_goes_on_with_what_the_results_say(share: float, tmp_path: Path) -> None:
    """Its last whole lines are a study of earlier; trials that it lost are filled in, none is run again."""
    url = f"journal:{tmp_path}/journal"
    results = _run(url)
    whole = (tmp_path / "journal").read_bytes()
    (tmp_path / "journal").write_bytes(whole[: int(len(whole) * share)])
    sampler = _open(url, start=1)
    sampler.fill(results)
    sampler.reconcile(results)
    search(sampler, NETWORK.evaluate, trials=10, results=results)
    trials = sampler.study.get_trials(deepcopy=False)
    assert {n: trials[n].values for n in results} == {n: list(r.dominates_key) for n, r in results.items()}
    assert len({r.plan_digest for r in results.values()}) == 10


def test_a_journal_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "journal").write_text("a shopping list\nbread\n")
    _refused(f"journal:{tmp_path}/journal", tmp_path / "journal")


def test_a_database_that_cannot_be_written_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    _run(f"sqlite:///{path}")
    sampler = _open(f"sqlite:///file:{path}?mode=ro&uri=true", start=1)
    with pytest.raises(StoreError, match=r"cannot be written .*readonly.*mend that") as caught:
        sampler.ask()
    assert "\n" not in str(caught.value)
    _open(f"sqlite:///{path}", start=1).ask()


def test_a_new_study_in_a_database_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    _run(f"sqlite:///{path}")
    with pytest.raises(StoreError, match=r"study\.db.* cannot be written .*readonly.*mend that") as caught:
        _open(f"sqlite:///file:{path}?mode=ro&uri=true", run="another")
    assert "\n" not in str(caught.value)


def test_a_database_of_another_program_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    foreign = optuna.create_study(storage=f"sqlite:///{path}", study_name="theirs")
    foreign.add_trial(optuna.trial.create_trial(value=1.0))
    results = _run(f"sqlite:///{path}")
    assert len(results) == 6
    theirs = optuna.load_study(storage=f"sqlite:///{path}", study_name="theirs")
    assert [t.value for t in theirs.trials] == [1.0]


@pytest.mark.parametrize("storage", ["sqlite:///", "journal:"])
def test_the_study_of_another_run_is_refused(storage: str, tmp_path: Path) -> None:
    """The same question with the same space, asked by another run: its trials are not ours."""
    results = _run(f"{storage}{tmp_path}/ours", seed=1)
    _run(f"{storage}{tmp_path}/theirs", seed=2)
    shutil.copy(tmp_path / "theirs", tmp_path / "ours")
    sampler = _open(f"{storage}{tmp_path}/ours", start=1)
    with pytest.raises(StoreError, match=r"ours is of another run .* move it away, it is filled again") as caught:
        sampler.fill(results)
    assert "\n" not in str(caught.value)


def test_trials_that_somebody_else_adds_take_numbers_and_nothing_is_mixed_up(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    sampler = _open(url)
    first = sampler.ask()
    other = _open(url, start=5)
    stranger = other.ask()
    second = sampler.ask()
    assert [first.number, stranger.number, second.number] == [0, 1, 2]
    for proposal in (first, second):
        sampler.tell(NETWORK.evaluate(proposal))
    third = sampler.ask()
    assert third.number == 3
    assert third.plan not in (first.plan, stranger.plan, second.plan)
    trials = sampler.study.get_trials(deepcopy=False)
    assert [t.state for t in trials] == [
        TrialState.COMPLETE,
        TrialState.RUNNING,
        TrialState.COMPLETE,
        TrialState.RUNNING,
    ]
    assert all(NETWORK.space.plan(trials[p.number].params) == p.plan for p in (first, stranger, second, third))


def test_a_write_that_fails_is_said_and_the_next_one_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = _open(f"journal:{tmp_path}/journal")
    first = sampler.ask()
    with monkeypatch.context() as broken:

        def full(*args: object, **options: object) -> int:
            raise OSError(28, "No space left on device")

        broken.setattr(sampler.study._storage, "create_new_trial", full)
        with pytest.raises(StoreError, match=r"cannot be written \(.*No space left on device\)"):
            sampler.ask()
    second = sampler.ask()
    assert (first.number, second.number) == (0, 1)
    sampler.tell(NETWORK.evaluate(second))
    states = [t.state for t in sampler.study.get_trials(deepcopy=False)]
    assert states == [TrialState.RUNNING, TrialState.COMPLETE]


@pytest.mark.parametrize("storage", ["sqlite:///", "journal:"])
def test_a_plan_enqueued_with_other_tools_is_asked_first_as_the_user_s(storage: str, tmp_path: Path) -> None:
    url = f"{storage}{tmp_path}/study"
    wanted, part = NETWORK.space.uniform(0.5), {"l00/filter": 2}
    study = _open(url).study
    study.enqueue_trial(wanted)
    study.enqueue_trial(part)  # the rest is drawn
    sampler = _open(url, start=1)
    first, second, third = (sampler.ask() for _ in range(3))
    assert (first.params, first.source) == (wanted, "user")
    assert (second.params["l00/filter"], second.source) == (2, "user")
    assert third.source == "random"
    sampler.tell(NETWORK.evaluate(first))
    assert _open(url, start=2).unfinished() == [second, third]


def test_other_tools_read_the_study(tmp_path: Path) -> None:
    """Names, values, constraints and metric names as Optuna's own tools know them."""
    url = f"sqlite:///{tmp_path}/study.db"
    budget = Budget(speedup=1.2)
    sampler = StudySampler(url, NETWORK.space, budget=budget, dense_accuracy=DENSE)
    results = search(sampler, NETWORK.evaluate, trials=12)
    study = optuna.load_study(storage=url, study_name=sampler.study.study_name)
    assert study.metric_names == ["accuracy", "relative_latency"]
    assert study.directions == [optuna.study.StudyDirection.MAXIMIZE, optuna.study.StudyDirection.MINIMIZE]
    for number, result in results.items():
        trial = study.trials[number]
        assert trial.params == dict(result.params_sampled)
        assert trial.values == list(result.dominates_key)
        assert set(trial.constraints) == {"over_budget", "0"}, "as Optuna 5 notes it, and as Optuna 4 did"
        assert set(trial.constraints.values()) == {budget.excess_of(result)}
        assert trial.datetime_start is not None
        assert trial.datetime_complete is not None
        assert not [key for key in trial.system_attrs if key.startswith("tpe:")]
    feasible = [n for n, r in results.items() if budget.holds(r)]
    assert {t.number for t in study.best_trials} <= set(feasible)
