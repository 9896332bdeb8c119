"""Whose weights stay when a search is complete, what is said of the disk, and that no record is ever touched."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search import keep
from search.atomic import StoreError
from search.budget import Budget
from search.errors import UserError
from search.export import candidates, export_trial
from search.export_command import passed_over, with_weights
from search.front import front_results
from search.job import Job
from search.keep import NEXT_BEST, disk_line, folder_bytes, has_weights, remove_unwanted, wanted
from search.result import TrialResult
from search.store import RunStore
from tests.search.test_export import BASELINE, RESULTS, measures, trial

FILES = ("model.onnx", "plan.json", "weights.safetensors", "trace.jsonl")
#: On the front: 0 and 1. Behind it: 2 (tied with 0), 3 and 4.
SOME = {
    r.number: r
    for r in (
        trial(0, 0.94, 0.5),
        trial(1, 0.80, 0.25),
        trial(2, 0.93, 0.5),
        trial(3, 0.70, 0.45),
        trial(4, 0.60, 0.6),
        trial(5, 0.0, 0.0, "failed"),
    )
}


def job_of(budget: dict[str, float] | None = None, keep_weights: str = "front") -> Job:
    content = {"task": "a:b", "budget": budget, "search": {"keep_weights": keep_weights}}
    return Job.model_validate(content)


def run_of(root: Path, results: dict[int, TrialResult]) -> RunStore:
    store = RunStore.create(root, "task: a:b\n", {})
    store.write_baseline(BASELINE)
    for result in results.values():
        staged = store.attempt_dir(result.number, "one")
        if result.status == "complete":
            for name in FILES:
                (staged / name).write_bytes(1000 * b"x")
        store.commit(result.number, staged, result)
    return store


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return run_of(tmp_path / "r", SOME)


def kept(store: RunStore) -> list[int]:
    return [n for n, r in store.results().items() if r.status == "complete" and has_weights(store, n)]


def records(store: RunStore) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in store.trials_dir.rglob("*") if path.suffix in (".json", ".jsonl")}


def test_all_are_kept_unless_asked(store: RunStore) -> None:
    assert Job(task="a:b").search.keep_weights == "all"
    assert remove_unwanted(store, job_of(keep_weights="all"), BASELINE, SOME) == 0
    assert kept(store) == [0, 1, 2, 3, 4]


def test_the_front_and_what_is_tied_with_it_stay(store: RunStore) -> None:
    before = records(store)
    assert remove_unwanted(store, job_of(), BASELINE, SOME) == 2
    assert kept(store) == [0, 1, 2]
    assert records(store) == before, "results, plans and traces stay"
    assert {p.name for p in store.trial_dir(3).iterdir()} == {"result.json", "plan.json", "trace.jsonl"}
    assert store.results() == SOME
    assert remove_unwanted(store, job_of(), BASELINE, SOME) == 0, "once"


def test_what_export_may_take_next_within_the_budget_stays(tmp_path: Path) -> None:
    many = {n: trial(n, 0.90 - 0.05 * n, 0.4 + 0.001 * n) for n in range(NEXT_BEST + 4)}
    store = run_of(tmp_path / "r", many)
    assert remove_unwanted(store, job_of({"latency_ms": 0.5}), BASELINE, many) == 4
    assert kept(store) == list(range(NEXT_BEST))


def test_a_budget_that_nothing_keeps_keeps_no_more(store: RunStore) -> None:
    assert wanted(BASELINE, SOME, Budget(latency_ms=0.01)) == {0, 1, 2}


def test_what_a_kept_trial_began_with_stays_with_it(store: RunStore) -> None:
    chain = SOME | {1: replace(SOME[1], started_from=4), 4: replace(SOME[4], started_from=3)}
    assert wanted(BASELINE, chain, None) == {0, 1, 2, 3, 4}
    assert wanted(BASELINE, SOME | {1: replace(SOME[1], started_from=99)}, None) >= {0, 1, 2}, "gone, and no matter"
    assert wanted(BASELINE, SOME | {1: replace(SOME[1], started_from=1)}, None) == {0, 1, 2}, "of itself"


@given(results=RESULTS, latency=st.floats(0.01, 10))
def test_the_front_and_the_best_within_the_budget_are_always_kept(
    results: dict[int, TrialResult], latency: float
) -> None:
    budget = Budget(latency_ms=latency)
    found = wanted(BASELINE, results, budget)
    assert found >= {r.number for r in front_results(BASELINE, results)}
    assert all(results[number].status == "complete" for number in found)
    if any(budget.holds(r) for r in results.values() if r.status == "complete"):
        assert candidates(BASELINE, results, budget=budget)[0].number in found


def test_a_kill_in_between_is_made_good_at_the_next_end(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """After each single removal the records are whole, and the next end removes what is left."""
    removed = 0
    unlink = Path.unlink

    def killed(path: Path, missing_ok: bool = False) -> None:
        nonlocal removed
        if removed == 3:
            raise KeyboardInterrupt
        removed += 1
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", killed)
    with pytest.raises(KeyboardInterrupt):
        remove_unwanted(store, job_of(), BASELINE, SOME)
    monkeypatch.undo()
    assert store.results() == SOME
    assert store.problems() == []
    assert kept(store) == [0, 1, 2], "one that is half removed does not count as kept"
    assert remove_unwanted(store, job_of(), BASELINE, SOME) == 1
    assert not any((store.trial_dir(n) / name).exists() for n in (3, 4) for name in keep.HEAVY)


def test_a_disk_that_refuses_is_one_line(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuses)
    with pytest.raises(StoreError, match=r"cannot remove .*3/weights.safetensors: Permission denied"):
        remove_unwanted(store, job_of(), BASELINE, SOME)


def test_the_disk_is_told_where_something_went_or_it_is_large(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    assert disk_line(store, job_of(), SOME, 0) is None
    removed = remove_unwanted(store, job_of(), BASELINE, SOME)
    size = sum(path.stat().st_size for path in store.root.rglob("*") if path.is_file())
    assert folder_bytes(store.root) == size
    assert disk_line(store, job_of(), SOME, removed) == (
        f"run folder: {round(size / 1000)} kB, weights of 3 of 5 trials kept"
    )
    monkeypatch.setattr(keep, "folder_bytes", lambda root: 3_140_000_000)
    assert disk_line(store, job_of(), SOME, 0) == "run folder: 3.14 GB, weights of 3 of 5 trials kept"
    said = disk_line(store, job_of(keep_weights="all"), SOME, 0)
    assert said is not None
    assert said.endswith(f": search.keep_weights: front in {store.job_path} keeps those of the best alone")


def test_a_size_is_short() -> None:
    said = [keep._size(count) for count in (0, 12_345_678, 999_600_000, 1_000_000_000_000)]
    assert said == ["1 kB", "12.3 MB", "1 GB", "1000 GB"]


def test_an_export_of_a_trial_that_was_not_kept_says_how_to_make_it_again(store: RunStore, tmp_path: Path) -> None:
    remove_unwanted(store, job_of(), BASELINE, SOME)
    with pytest.raises(UserError) as refused:
        with_weights(store, candidates(BASELINE, SOME, trial=3))
    assert str(refused.value) == (
        f"the weights of trial 3 were not kept: prunefront prune {store.root} --plan {store.root}/trials/3/plan.json "
        f"--out NEW_FOLDER makes it again"
    )
    with pytest.raises(UserError, match=r"^2 trials fit, and none kept its weights; the weights of trial 4 were not"):
        with_weights(store, [SOME[4], SOME[3]])


def test_better_ones_that_were_not_kept_are_passed_over_by_name(store: RunStore, tmp_path: Path) -> None:
    for number in (0, 3):
        (store.trial_dir(number) / "weights.safetensors").unlink()
    chosen = candidates(BASELINE, SOME, budget=Budget(latency_ms=0.52))
    assert [t.number for t in chosen] == [0, 2, 1, 3]
    for number, content in ((2, b"of 2"), (1, b"of 1")):
        (store.trial_dir(number) / "model.onnx").write_bytes(content)
    done = export_trial(
        store,
        with_weights(store, chosen),
        tmp_path / "out",
        measure=measures({2: 0.9, 1: 0.25}),
        budget=Budget(latency_ms=0.52),
    )
    assert done.trial.number == 1
    over = passed_over(chosen, done)
    assert [number for number, _ in over] == [0, 2]
    assert over[0][1] == "its weights were not kept"
    assert over[1][1].startswith("measured again it takes")
