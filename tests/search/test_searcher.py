"""The searcher without Ray: told by hand what a cluster would tell it, with results as workers would write them."""

from __future__ import annotations

import json
import os
import pickle
import random
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from ray.tune.search import Searcher

from admm.plan import PruningPlan
from search.budget import Budget
from search.nodes import NodeRefused
from search.result import Status, TrialResult
from search.sampler import Proposal, StudySampler
from search.searcher import INFEASIBLE_PER_TRIAL, RESTARTS, Halt, PlanSearcher
from search.space import Space
from search.store import RunStore, StoreError
from tests.search.fabricated import MIXED, SPACE, TINY, publish, result_of

FINISHED = Searcher.FINISHED


@pytest.fixture(autouse=True)
def no_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is killed in these tests: waiting for the disk would only cost time."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


class Search:
    """A run folder and what a driver holds; `restart()` is the next driver on the same folder."""

    def __init__(self, tmp_path: Path, space: Space = SPACE, *, kind: str = "random", **options: Any) -> None:
        self.space, self.kind, self.options = space, kind, {"trials": 10, "max_concurrent": 2, **options}
        self.budget: Budget | None = self.options.pop("budget", None)
        self.url = f"journal:{tmp_path}/journal"
        self.store = RunStore.create(tmp_path / "run", "task: made:up\n", {})
        self.starts = 0
        self.restart()

    def restart(self, **options: Any) -> None:
        self.options |= options
        self.stopped: dict[int, str] = {}
        self.seen: list[TrialResult] = []
        self.store = RunStore.open(self.store.root)
        self.sampler = StudySampler(
            self.url, self.space, sampler=self.kind, seed=0, start=self.starts, budget=self.budget
        )
        self.sampler.fill(self.store.results())
        self.sampler.reconcile(self.store.results())
        self.starts += 1
        self.searcher = PlanSearcher(
            self.sampler, self.store, seed=7, stopped=self.stopped, on_result=self.seen.append, **self.options
        )

    def proposal(self, config: dict[str, Any]) -> Proposal:
        plan = PruningPlan.from_json(config["plan"])
        names = ("number", "params", "precision", "stretch", "source")
        return Proposal(plan=plan, **{name: config[name] for name in names})

    def finish(self, trial_id: str, config: dict[str, Any], status: Status = "complete", **changes: Any) -> TrialResult:
        """What a worker does at the end, and what Tune says then."""
        result = publish(self.store, result_of(self.proposal(config), status, **changes))
        self.searcher.on_trial_complete(trial_id, {"done": True})
        return result

    def run(self, outcome: Callable[[int], Status] = lambda i: "complete") -> list[int]:
        """One trial at a time until the searcher has enough; the numbers in order."""
        numbers = []
        while (config := self.searcher.suggest(f"t{len(numbers)}")) != FINISHED:
            numbers.append(config["number"])
            self.finish(f"t{len(numbers) - 1}", config, outcome(len(numbers) - 1))
        return numbers

    def states(self) -> dict[int, TrialState]:
        return {t.number: t.state for t in self.sampler.study.get_trials(deepcopy=False)}


@pytest.mark.parametrize("kind", ["tpe", "nsga2", "random"])
def test_a_whole_search(kind: str, tmp_path: Path) -> None:
    search = Search(tmp_path, kind=kind, trials=14, budget=Budget(speedup=1.3))
    outcomes: list[Status] = ["complete", "failed", "stopped", "complete", "complete", "infeasible", "complete"]
    numbers = search.run(lambda i: outcomes[i % 7])
    results = search.store.results()
    assert sorted(results) == sorted(numbers) == sorted(set(numbers))
    assert search.searcher.spent == 14
    assert search.searcher.infeasible == Counter(r.status for r in results.values())["infeasible"]
    assert len({r.plan_digest for r in results.values()}) == len(results)
    assert [r.number for r in search.seen] == numbers
    expected = {
        "complete": TrialState.COMPLETE,
        "failed": TrialState.FAIL,
        "stopped": TrialState.PRUNED,
        "infeasible": TrialState.PRUNED,
    }
    assert all(search.states()[n] == expected[r.status] for n, r in results.items())
    assert TrialState.RUNNING not in search.states().values()
    trials = search.sampler.study.get_trials(deepcopy=False)
    assert all("over_budget" in trials[n].constraints for n in results)
    # another driver finds nothing to do, and a larger number goes on from there
    search.restart()
    assert search.searcher.suggest("t") == FINISHED
    search.restart(trials=16)
    assert len(search.run()) == 2


def test_the_config_is_all_a_worker_needs(tmp_path: Path) -> None:
    search = Search(tmp_path)
    config = search.searcher.suggest("a")
    assert set(config) == {
        "run_dir",
        "number",
        "plan",
        "params",
        "seed",
        "precision",
        "stretch",
        "source",
        "start",
        "twins",
    }
    assert json.loads(json.dumps(config)) == config
    assert config["run_dir"] == str(search.store.root.resolve())
    assert config["seed"] == 7
    assert PruningPlan.from_json(config["plan"]) == SPACE.plan(config["params"])
    assert search.searcher.proposal("a") == search.proposal(config)
    assert (config["precision"], config["stretch"]) == ("fp32", 1.0)
    assert search.searcher.proposal("b") is None


def test_no_more_run_at_once_than_may(tmp_path: Path) -> None:
    search = Search(tmp_path, max_concurrent=3, trials=4)
    configs = {i: search.searcher.suggest(i) for i in "abc"}
    assert len({c["number"] for c in configs.values()}) == search.searcher.live == 3
    assert search.searcher.suggest("d") is None
    search.finish("a", configs["a"])
    configs["d"] = search.searcher.suggest("d")
    assert configs["d"] is not None
    # four were asked for and four are spent or run: no fifth, but the run is not over either
    search.finish("b", configs["b"])
    assert search.searcher.suggest("e") is None
    search.finish("c", configs["c"])
    search.finish("d", configs["d"])
    assert search.searcher.suggest("e") == FINISHED
    assert search.searcher.live == 0


def test_unfinished_trials_are_offered_first_with_their_plans(tmp_path: Path) -> None:
    search = Search(tmp_path, max_concurrent=3)
    configs = [search.searcher.suggest(i) for i in "abc"]
    search.finish("b", configs[1])
    search.restart()
    assert [search.searcher.suggest("x"), search.searcher.suggest("y")] == [configs[0], configs[2]]
    new = search.searcher.suggest("z")
    assert new["number"] not in [c["number"] for c in configs]
    assert new["plan"] not in [c["plan"] for c in configs]


def test_a_half_asked_trial_is_completed_and_offered(tmp_path: Path) -> None:
    search = Search(tmp_path)
    search.run(lambda i: "complete")
    half = search.sampler.study.ask()
    half.suggest_int("conv1/filter", 0, 3)
    search.restart(trials=20)
    config = search.searcher.suggest("x")
    assert config["number"] >= half.number
    assert set(config["params"]) == {d.name for d in SPACE.dimensions}
    assert config["plan"] not in [PruningPlan(r.requested).to_json() for r in search.store.results().values()]
    search.finish("x", config)
    assert TrialState.RUNNING not in search.states().values()


def test_what_finished_while_no_driver_lived_is_told_and_not_run_again(tmp_path: Path) -> None:
    search = Search(tmp_path)
    first, second = search.searcher.suggest("a"), search.searcher.suggest("b")
    publish(search.store, result_of(search.proposal(first)))  # and the driver died before it heard of it
    search.restart()
    assert search.states()[first["number"]] == TrialState.COMPLETE
    assert search.searcher.spent == 1
    assert search.searcher.suggest("x") == second


def test_a_worker_that_outlives_its_driver_is_believed(tmp_path: Path) -> None:
    search = Search(tmp_path)
    first, second = search.searcher.suggest("a"), search.searcher.suggest("b")
    search.restart()
    publish(search.store, result_of(search.proposal(first)))  # after the new driver has looked
    assert search.searcher.suggest("x") == second
    assert search.states()[first["number"]] == TrialState.COMPLETE
    assert [r.number for r in search.seen] == [first["number"]]
    assert search.searcher.spent == 1


def test_plans_over_budget_are_counted_apart_and_capped(tmp_path: Path) -> None:
    search = Search(tmp_path, trials=1, max_concurrent=1, budget=Budget(speedup=1000.0))
    numbers = search.run(lambda i: "infeasible")
    assert len(numbers) == INFEASIBLE_PER_TRIAL
    assert (search.searcher.spent, search.searcher.infeasible) == (0, INFEASIBLE_PER_TRIAL)
    search.restart()  # a user who goes on all the same gets other plans
    assert search.searcher.suggest("x")["number"] not in numbers
    # a budget that they keep: they were never trained, and do not count against it
    search.budget = Budget(speedup=1.01)
    search.restart(trials=1)
    assert search.searcher.infeasible == 0
    assert search.searcher.suggest("x") != FINISHED


def test_a_lost_worker_is_tried_again_and_then_recorded_as_failed(tmp_path: Path) -> None:
    search = Search(tmp_path, max_concurrent=1)
    config = search.searcher.suggest("t0")
    for attempt in range(RESTARTS):
        search.searcher.on_trial_complete(f"t{attempt}", error=True)
        assert search.searcher.suggest(f"t{attempt + 1}") == config
    assert search.store.results() == {}
    search.searcher.on_trial_complete(f"t{RESTARTS}", error=True)
    result = search.store.result(config["number"])
    assert result.status == "failed"
    assert "lost" in (result.reason or "")
    assert result.requested == PruningPlan.from_json(config["plan"]).to_dict()
    assert dict(result.params_sampled) == config["params"]
    assert search.states()[config["number"]] == TrialState.FAIL
    assert search.seen == [result]
    assert search.searcher.spent == 1
    assert search.searcher.suggest("next")["number"] != config["number"]


def test_a_node_that_joined_later_and_differs_ends_the_search_and_no_trial(tmp_path: Path) -> None:
    search = Search(tmp_path, max_concurrent=1)
    config = search.searcher.suggest("t0")
    search.store.note_loss(config["number"], "NodeRefused: node 10.0.0.3 cannot work for this search: it has torch 2.9")
    with pytest.raises(Halt) as halt:
        search.searcher.on_trial_complete("t0", error=True)
    assert isinstance(halt.value.error, NodeRefused)
    assert str(halt.value.error).startswith("node 10.0.0.3 cannot work for this search: it has torch 2.9; take it out")
    search.restart()
    assert search.store.results() == {}
    assert search.searcher.suggest("t1")["number"] == config["number"]


def test_a_trial_that_gets_on_between_its_losses_is_not_given_up(tmp_path: Path) -> None:
    search = Search(tmp_path, max_concurrent=1)
    config = search.searcher.suggest("t0")
    number = config["number"]
    search.store.attempt_dir(number, "worker")
    checkpoint = search.store.checkpoint_path(number)
    for attempt in range(2 * RESTARTS + 3):
        checkpoint.touch()
        os.utime(checkpoint, ns=(attempt, attempt))
        search.searcher.on_trial_complete(f"t{attempt}", error=True)
        assert search.searcher.suggest(f"t{attempt + 1}") == config
    for attempt in range(2 * RESTARTS + 3, 3 * RESTARTS + 3):  # and from here on it stands still
        assert search.store.results() == {}
        search.searcher.on_trial_complete(f"t{attempt}", error=True)
        search.searcher.suggest(f"t{attempt + 1}")
    assert search.store.result(number).status == "failed"


def test_a_worker_lost_to_a_disk_that_cannot_be_written_ends_the_search_and_no_trial(tmp_path: Path) -> None:
    search = Search(tmp_path, max_concurrent=1)
    config = search.searcher.suggest("t0")
    partial = search.store.partial_dir
    partial.rename(tmp_path / "aside")
    partial.touch()  # no folder can be made there, whoever asks
    with pytest.raises(Halt) as halt:
        search.searcher.on_trial_complete("t0", error=True)
    assert isinstance(halt.value.error, StoreError)
    assert "cannot write" in str(halt.value.error)
    partial.unlink()
    (tmp_path / "aside").rename(partial)
    search.restart()
    assert search.store.results() == {}
    assert list(partial.iterdir()) == []
    again = search.searcher.suggest("t1")
    assert (again["number"], again["plan"]) == (config["number"], config["plan"])


def test_a_worker_lost_after_it_published_has_finished(tmp_path: Path) -> None:
    search = Search(tmp_path)
    config = search.searcher.suggest("a")
    publish(search.store, result_of(search.proposal(config)))
    search.searcher.on_trial_complete("a", error=True)
    assert search.states()[config["number"]] == TrialState.COMPLETE
    assert search.store.result(config["number"]).status == "complete"


def test_a_stopped_trial_is_recorded_with_the_scheduler_s_reason(tmp_path: Path) -> None:
    search = Search(tmp_path, budget=Budget(speedup=1.2))
    config = search.searcher.suggest("a")
    so_far = result_of(search.proposal(config), "stopped", epochs=3.0, rungs=((1, 0.4), (2, 0.5)))
    search.stopped[config["number"]] = "dominated at ADMM iteration 2"
    search.searcher.on_trial_complete("a", {"so_far": json.dumps(so_far.to_dict())})
    result = search.store.result(config["number"])
    assert (result.status, result.reason) == ("stopped", "dominated at ADMM iteration 2")
    assert (result.epochs, result.rungs) == (3.0, ((1, 0.4), (2, 0.5)))
    assert search.states()[config["number"]] == TrialState.PRUNED
    assert search.sampler.study.get_trials(deepcopy=False)[config["number"]].constraints
    assert search.searcher.spent == 1


def test_an_interrupted_trial_stays_for_the_next_start(tmp_path: Path) -> None:
    search = Search(tmp_path)
    config = search.searcher.suggest("a")
    search.searcher.on_trial_complete("a", {"so_far": "{}"})  # stopped by Ctrl-C or the time budget
    search.searcher.on_trial_complete("unknown", {"done": True})
    assert search.store.results() == {}
    assert search.states()[config["number"]] == TrialState.RUNNING
    search.restart()
    assert search.searcher.suggest("x") == config


def test_an_exhausted_space_ends_the_search(tmp_path: Path) -> None:
    search = Search(tmp_path, TINY, trials=50)
    first, second = search.searcher.suggest("a"), search.searcher.suggest("b")
    search.finish("a", first)
    third = search.searcher.suggest("c")
    search.finish("b", second)
    assert search.searcher.suggest("d") is None  # one still runs: its end may be waited for
    assert search.searcher.exhausted
    search.finish("c", third)
    assert search.searcher.suggest("e") == FINISHED
    assert len(search.store.results()) == 3
    assert TrialState.RUNNING not in search.states().values()


def test_numbers_follow_the_record_into_a_new_study(tmp_path: Path) -> None:
    """A new budget opens a new study in the same run: old results keep their numbers, new ones come after."""
    search = Search(tmp_path, trials=6)
    old = search.run(lambda i: "failed" if i == 2 else "complete")
    digests = {n: r.plan_digest for n, r in search.store.results().items()}
    search.budget = Budget(speedup=1.2)
    search.restart(trials=12)
    assert search.searcher.spent == 6
    trials = search.sampler.study.get_trials(deepcopy=False)
    assert all(SPACE.plan(trials[n].params).digest() == digest for n, digest in digests.items())
    new = search.run()
    assert len(new) == 6
    assert min(new) > max(old)
    assert not set(digests.values()) & {search.store.result(n).plan_digest for n in new}


@pytest.mark.parametrize("kind", ["tpe", "nsga2", "random"])
def test_the_same_seed_and_replayed_results_give_the_same_search(kind: str, tmp_path: Path) -> None:
    plans = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        search = Search(tmp_path / name, kind=kind, trials=20, budget=Budget(speedup=1.3))
        outcomes: list[Status] = ["complete", "complete", "stopped", "complete", "failed", "infeasible"]
        search.run(lambda i, outcomes=outcomes: outcomes[i % 6])  # type: ignore[misc]
        plans.append({n: r.plan_digest for n, r in search.store.results().items()})
    assert plans[0] == plans[1]


@pytest.mark.parametrize("seed", range(12))
def test_random_histories_lose_nothing_and_repeat_nothing(seed: int, tmp_path: Path) -> None:
    """Trials end, fail, are lost, are stopped; drivers die at any moment, workers outlive them."""
    rng = random.Random(seed)
    search = Search(
        tmp_path, kind=rng.choice(["random", "tpe"]), trials=15, max_concurrent=3, budget=Budget(speedup=1.2)
    )
    published: dict[int, TrialResult] = {}
    running: dict[str, dict[str, Any]] = {}
    statuses: list[Status] = ["complete", "complete", "complete", "failed", "infeasible"]
    for step in range(2000):
        action = rng.choice(["ask", "ask", "ask", "end", "end", "lose", "stop", "die", "late"])
        if action == "ask":
            config = search.searcher.suggest(f"t{step}")
            if config == FINISHED:
                break
            if config is not None:
                running[f"t{step}"] = config
                assert config["number"] not in published
        elif action == "die":
            if rng.random() < 0.3:
                running.clear()
                search.restart()
        elif running:
            trial_id = rng.choice(sorted(running))
            config = running.pop(trial_id)
            proposal = search.proposal(config)
            if action in ("end", "late"):
                published[proposal.number] = publish(search.store, result_of(proposal, rng.choice(statuses)))
            if action == "late":  # and the driver dies before it is told
                running.clear()
                search.restart()
            elif action == "stop":
                search.stopped[proposal.number] = "dominated"
                so_far = result_of(proposal, "stopped").to_dict()
                search.searcher.on_trial_complete(trial_id, {"so_far": json.dumps(so_far)})
            else:
                search.searcher.on_trial_complete(trial_id, {"done": True}, error=action == "lose")
    results = search.store.results()
    assert search.searcher.suggest("end") == FINISHED
    assert sum(r.status != "infeasible" for r in results.values()) == 15
    assert all(results[n] == r for n, r in published.items())
    assert len({r.plan_digest for r in results.values()}) == len(results)
    for trial_id, config in running.items():
        search.finish(trial_id, config)
    assert TrialState.RUNNING not in search.states().values()
    trials = search.sampler.study.get_trials(deepcopy=False)
    assert all(SPACE.plan(trials[n].params).digest() == r.plan_digest for n, r in results.items())
    assert all(trials[n].values == list(r.dominates_key) for n, r in results.items() if r.status == "complete")


def test_nothing_of_ours_goes_into_ray_s_pickles(tmp_path: Path) -> None:
    search = Search(tmp_path)
    assert pickle.dumps(search.searcher.__getstate__()) == pickle.dumps({})
    search.searcher.save(str(tmp_path / "checkpoint"))
    search.searcher.restore(str(tmp_path / "checkpoint"))
    assert not (tmp_path / "checkpoint").exists()


@pytest.mark.parametrize("kind", ["tpe", "nsga2", "random"])
def test_both_precisions_of_a_plan_are_tried_and_one_is_trained(kind: str, tmp_path: Path) -> None:
    search = Search(tmp_path, MIXED, kind=kind, trials=2, max_concurrent=1)
    trained: dict[str, int] = {}
    order = []
    while (config := search.searcher.suggest(f"t{len(order)}")) != FINISHED:
        digest = search.proposal(config).plan.digest()
        search.finish(f"t{len(order)}", config, weights_of=trained.get(digest))
        trained.setdefault(digest, config["number"])
        order.append((digest, config["precision"]))
    # each plan, then at once its twin: two trainings, four results, and the last twin comes after the last training
    assert len(order) == len(set(order)) == 4
    assert [d for d, _ in order[::2]] == [d for d, _ in order[1::2]]
    assert {p for _, p in order[:2]} == {p for _, p in order[2:]} == {"fp32", "int8"}
    assert search.searcher.spent == 2
    search.restart()
    assert search.searcher.suggest("again") == FINISHED


def test_a_twin_that_a_kill_left_waiting_is_tried_by_the_next_driver(tmp_path: Path) -> None:
    search = Search(tmp_path, MIXED, trials=1, max_concurrent=1)
    config = search.searcher.suggest("a")
    first = search.finish("a", config)
    search.restart()
    assert not search.searcher.finished()
    config = search.searcher.suggest("b")
    assert (config["plan"], {first.precision, config["precision"]}) == (
        search.proposal(config).plan.to_json(),
        {"fp32", "int8"},
    )
    assert search.proposal(config).plan.digest() == first.plan_digest
    search.finish("b", config, weights_of=first.number)
    assert search.searcher.finished()


def test_a_study_filled_from_results_knows_both_precisions(tmp_path: Path) -> None:
    search = Search(tmp_path, MIXED, trials=3, max_concurrent=1)
    search.run()
    results = search.store.results()
    search.url = f"journal:{tmp_path}/another"
    search.restart(trials=6)
    known = {(r.plan_digest, r.precision) for r in results.values()}
    added = search.run()
    assert len(known) == len(results)
    assert not known & {(r.plan_digest, r.precision) for n, r in search.store.results().items() if n in added}


def _finals(results: Mapping[int, TrialResult]) -> list[TrialResult]:
    own = [r for r in results.values() if r.status == "complete" and r.source != "final"]
    return sorted(own, key=lambda r: -(r.accuracy or 0.0))[:2]


@pytest.mark.parametrize("kind", ["tpe", "nsga2", "random"])
def test_the_front_is_trained_for_longer_when_the_search_is_over(kind: str, tmp_path: Path) -> None:
    search = Search(tmp_path, kind=kind, trials=4, finals=_finals, final_stretch=3.0)
    configs = [search.searcher.suggest(name) for name in "abcd"]
    assert [c is None for c in configs] == [False, False, True, True]
    for name, config in zip("ab", configs[:2], strict=True):
        search.finish(name, config)
    third, fourth = search.searcher.suggest("c"), search.searcher.suggest("d")
    search.finish("c", third)
    # the front is not known before the last trial ends
    assert search.searcher.suggest("e") is None
    search.finish("d", fourth)
    first = _finals(search.store.results())
    chosen = {r.plan_digest for r in first}
    for result in first[:1]:  # of one of them the weights are kept
        (search.store.trial_dir(result.number) / "weights.safetensors").write_bytes(b"weights")
    begun = search.searcher.suggest("f")
    search.finish("f", begun)
    assert (begun["source"], begun["start"]) == ("final", (first[0].number, 1.0))
    numbers = [begun["number"], *search.run()]
    finals = [search.store.result(n) for n in numbers]
    assert {r.plan_digest for r in finals} == chosen
    assert {r.stretch for r in finals} == {3.0}
    assert search.searcher.spent == 4
    # nothing is trained twice, not even by another driver or from a new study
    search.restart()
    assert search.searcher.finished()
    search.url = f"journal:{tmp_path}/another"
    search.restart()
    assert search.searcher.suggest("x") == FINISHED
    # a search that goes on has a front of its own in the end
    search.restart(trials=6)
    assert [search.store.result(n).stretch for n in search.run()][:2] == [1.0, 1.0]


def test_a_final_trial_that_was_killed_goes_on_before_anything_else(tmp_path: Path) -> None:
    search = Search(tmp_path, trials=2, max_concurrent=1, finals=_finals, final_stretch=2.0)
    for name in "ab":
        search.finish(name, search.searcher.suggest(name))
    begun = search.searcher.suggest("c")
    assert begun["stretch"] == 2.0
    search.restart()
    assert not search.searcher.finished()
    assert search.searcher.suggest("d") == begun
    search.finish("d", begun)
    assert len(search.run()) == 1


def test_when_every_plan_was_tried_the_front_is_trained_for_longer(tmp_path: Path) -> None:
    search = Search(tmp_path, TINY, trials=50, finals=_finals, final_stretch=2.0)
    stretches = [search.store.result(n).stretch for n in search.run()]
    assert stretches == [1.0, 1.0, 1.0, 2.0, 2.0]
    assert search.searcher.exhausted


def test_plans_in_line_beyond_the_trials_asked_for_are_not_tried_with_the_finals(tmp_path: Path) -> None:
    search = Search(tmp_path, trials=1, max_concurrent=1, finals=_finals, final_stretch=2.0)
    search.sampler.enqueue([SPACE.uniform(s) for s in (0.25, 0.5, 0.75)])
    assert [search.store.result(n).stretch for n in search.run()] == [1.0, 2.0]


def test_a_plan_begins_with_the_weights_of_the_nearest_less_pruned_trial(tmp_path: Path) -> None:
    search = Search(tmp_path, trials=20, max_concurrent=1, inherit=True)
    search.sampler.enqueue([SPACE.uniform(s) for s in (0.25, 0.5, 0.75)], "user")
    starts = []
    for name in "abc":
        config = search.searcher.suggest(name)
        starts.append(config["start"])
        result = result_of(search.proposal(config), macs=1000 - config["number"])
        staged = search.store.attempt_dir(result.number, "worker")
        (staged / "weights.safetensors").write_bytes(b"weights")
        search.store.commit(result.number, staged, result)
        search.searcher.on_trial_complete(name, {"done": True})
    assert starts == [None, (0, 0.0), (1, 0.0)]
    (search.store.trial_dir(2) / "weights.safetensors").unlink()
    config = search.searcher.suggest("d")
    assert config["start"] is None or config["start"][0] != 2
