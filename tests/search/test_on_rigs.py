"""A record as a job sees it whose rig, threads or objectives are not those that it was made for."""

# ruff: noqa: E501  (a row a case: what was written beside what is said)

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.atomic import StoreError
from search.budget import Budget
from search.job import Job
from search.on_rigs import deciding_specs, judged_on, listed, passed_over, seen_by
from search.result import Status, TrialResult
from search.store import RunStore


def _measured(speedup: float, threads: int = 1, batch: int = 1) -> dict[str, Any]:
    return {
        "latency_ms": 1.0 / speedup, "latency_high_ms": 1.1 / speedup, "speedup": speedup, "speedup_low": 0.9 * speedup,
        "speedup_high": 1.1 * speedup, "stamp": {"threads": threads, "batch": batch},
    }  # fmt: skip


def _result(status: Status = "complete", **changes: Any) -> TrialResult:
    values: dict[str, Any] = {
        "number": 3, "plan_digest": "p", "seed": 0, "accuracy": 0.9, "accuracy_drop": 1.0, "latency_ms": 0.5, "latency_high_ms": 0.55,
        "speedup": 2.0, "speedup_low": 1.8, "compression_x": 2.0, "macs": 5, "params": 6, "size_bytes": 100,
        "measurements": {"onnxruntime-cpu": _measured(2.0), "torch-cpu": _measured(1.5)},
        "accuracies": {"onnxruntime-cpu": 0.9, "torch-cpu": 0.89}, "sizes": {"onnxruntime-cpu": 100, "torch-cpu": 80},
    }  # fmt: skip
    if status != "complete":
        values["reason"] = "made up"
    return TrialResult(status=status, **(values | changes))


def _job(*rigs: str | dict[str, Any], **changes: Any) -> Job:
    return Job.model_validate({"task": "a:b", "rigs": list(rigs), **changes})


def test_a_record_of_the_deciding_rig_is_seen_as_it_is() -> None:
    result = _result()
    assert seen_by(_job("onnxruntime-cpu"), result) is result
    assert seen_by(_job("onnxruntime-cpu", "torch-cpu"), result) is result
    bare = _result(measurements={})
    assert seen_by(_job("torch-cpu"), bare) is bare  # it names no rig


def test_another_rig_decides_with_its_own_figures() -> None:
    seen = seen_by(_job("torch-cpu"), _result())
    assert isinstance(seen, TrialResult)
    assert (seen.latency_ms, seen.latency_high_ms, seen.speedup, seen.speedup_low) == (1 / 1.5, 1.1 / 1.5, 1.5, 1.35)
    assert (seen.accuracy, seen.accuracy_drop, seen.size_bytes) == (0.89, pytest.approx(2.0), 80)
    assert seen_by(_job("onnxruntime-cpu"), seen) == _result()


@pytest.mark.parametrize(
    ("job", "said"),
    [
        (_job("cuda"), "not measured on cuda"),
        (_job({"name": "onnxruntime-cpu", "threads": 4}), "not measured on onnxruntime-cpu (threads 4)"),
        (_job({"name": "torch-cpu", "batch": 8}), "not measured on torch-cpu (batch 8)"),
        (
            _job("onnxruntime-cpu", "cuda", search={"objectives": ["accuracy", "latency", "latency:cuda"]}),
            "not measured on cuda",
        ),
        (_job("onnxruntime-cpu", "cuda", budget={"speedup": 2.0, "rig": "cuda"}), "not measured on cuda"),
    ],
)
def test_what_a_record_does_not_tell_keeps_it_from_being_judged(job: Job, said: str) -> None:
    assert seen_by(job, _result()) == said
    assert seen_by(job, _result("failed")) == _result("failed")


def test_a_rig_that_nothing_is_judged_by_need_not_have_measured() -> None:
    job = _job("onnxruntime-cpu", "cuda")
    assert [spec.name for spec in deciding_specs(job)] == ["onnxruntime-cpu"]
    assert seen_by(job, _result()) == _result()


def test_a_size_is_asked_for_only_where_it_is_an_objective() -> None:
    unsized = _result(sizes={}, size_bytes=None)
    assert seen_by(_job("onnxruntime-cpu"), unsized) == unsized
    sized = _job("onnxruntime-cpu", search={"objectives": ["accuracy", "size"]})
    assert seen_by(sized, unsized) == "the size of its file is not known"
    assert seen_by(sized, _result()) == _result()


def test_what_was_over_the_budget_of_one_rig_is_not_held_against_another() -> None:
    over = _result("infeasible", measurements={"onnxruntime-cpu": _measured(2.0)})
    assert seen_by(_job("torch-cpu", budget={"speedup": 3.0}), over) == "not measured on torch-cpu"
    job = _job("onnxruntime-cpu", "torch-cpu", budget={"speedup": 3.0, "rig": "torch-cpu"})
    seen = seen_by(job, over)
    assert isinstance(seen, TrialResult)
    budget = Budget.of(job)
    assert budget is not None
    assert budget.excess_of(seen) is None
    assert Budget(speedup=3.0).excess_of(seen) == pytest.approx(3.0 / 1.8 - 1.0)


def test_a_rig_is_named_with_what_sets_it_apart() -> None:
    rigs = _job("torch-cpu", {"name": "cuda", "batch": 8, "precision": "fp16"}, {"name": "x", "threads": 2}).rigs
    assert [judged_on(spec) for spec in rigs] == ["torch-cpu", "cuda (batch 8, precision fp16)", "x (threads 2)"]


@given(st.sets(st.integers(0, 60), max_size=11))
def test_a_list_of_numbers_says_each_once(numbers: set[int]) -> None:
    said: set[int] = set()
    for part in listed(sorted(numbers)).split(", ") if numbers else []:
        first, _, last = part.partition(" to ")
        span = set(range(int(first), int(last or first) + 1))
        assert not span & said
        said |= span
    assert said == numbers


def test_many_numbers_are_cut_short_and_reasons_have_a_line_each() -> None:
    assert listed(range(0, 60, 2)).endswith(", 22 and 18 more")
    assert passed_over({3: "a", 4: "a", 5: "a", 9: "b"}) == ["trials 3 to 5: a: passed over", "trial 9: b: passed over"]
    assert passed_over({}) == []


def test_a_store_shows_records_through_the_job_and_keeps_them(tmp_path: Path) -> None:
    store = RunStore.create(tmp_path / "run", "task: a:b\n", {})
    assert store.commit(3, store.attempt_dir(3, "one"), _result())
    only = replace(_result(number=4), measurements={"onnxruntime-cpu": _measured(2.0)})
    assert store.commit(4, store.attempt_dir(4, "one"), only)
    store.see_through(lambda result: seen_by(_job("torch-cpu"), result))
    assert {n: r.speedup for n, r in store.results().items()} == {3: 1.5}
    assert store.unseen() == {4: "not measured on torch-cpu"}
    assert store.finished() == {3, 4}
    with pytest.raises(StoreError, match=r"^trial 4 of run run: not measured on torch-cpu: passed over$"):
        store.result(4)
    store.amend(replace(only, measurements={**only.measurements, "torch-cpu": _measured(3.0)}))
    assert store.result(4).speedup == 3.0
    assert RunStore.open(tmp_path / "run").result(4).speedup == 2.0
    with pytest.raises(StoreError, match="no finished trial 5"):
        store.amend(_result(number=5))
