"""Which network is handed over, that it is measured once more, and that it appears whole or not at all."""

from __future__ import annotations

import errno
import importlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluators.accuracy import Score
from evaluators.errors import EvaluationError
from evaluators.measurement import DeviceStamp, Measurement
from search.budget import Budget
from search.conversion import Conversion, Converted
from search.errors import BudgetUnreachable, UserError
from search.export import candidates, export_trial
from search.result import STATUSES, Baseline, Status, TrialResult
from search.store import RunStore

#: `search.export` itself is the function of the Python API.
export = importlib.import_module("search.export")

BASELINE = Baseline(accuracy=0.95, accuracy_stderr=0.01, latency_ms=1.0, macs=100, params=50, weights=40)
STAMP = DeviceStamp(
    rig="onnxruntime-cpu", device="a processor", isa="avx512", runtime="onnxruntime 1", provider="CPUExecutionProvider",
    threads=1, batch=1, clock="thread_cpu", platform="linux",
)  # fmt: skip


def measurement(latency_ms: float) -> Measurement:
    """A measurement whose interval is +-2 %, of a dense network of 1 ms."""
    return Measurement(
        latency_ms=latency_ms, latency_low_ms=0.98 * latency_ms, latency_high_ms=1.02 * latency_ms,
        dense_latency_ms=1.0, speedup=1 / latency_ms, speedup_low=0.98 / latency_ms, speedup_high=1.02 / latency_ms,
        wall_p50_ms=latency_ms, wall_p95_ms=latency_ms, wall_min_ms=latency_ms, pairs=9, rejected=0, converged=True,
        seconds=0.1, stamp=STAMP,
    )  # fmt: skip


def trial(number: int, accuracy: float, latency_ms: float, status: Status = "complete") -> TrialResult:
    if status != "complete":
        return TrialResult(number=number, status=status, plan_digest="d", seed=0, reason="because")
    measured = measurement(latency_ms)
    return TrialResult(
        number=number, status="complete", plan_digest=f"digest{number}", seed=3, accuracy=accuracy,
        accuracy_drop=100 * (BASELINE.accuracy - accuracy), accuracy_stderr=0.01, latency_ms=latency_ms,
        latency_high_ms=measured.latency_high_ms, speedup=measured.speedup, speedup_low=measured.speedup_low,
        compression_x=2.0, macs=50, params=25, measurements={STAMP.rig: measured.to_dict()}, notes=("a note",),
    )  # fmt: skip


def by_number(*results: TrialResult) -> dict[int, TrialResult]:
    return {result.number: result for result in results}


SOME = by_number(trial(0, 0.94, 0.5), trial(1, 0.90, 0.25), trial(2, 0.94, 0.6), trial(3, 0.93, 0.4))


def test_a_budget_takes_the_most_accurate_then_the_fastest() -> None:
    assert [t.number for t in candidates(BASELINE, SOME, budget=Budget(latency_ms=0.7))] == [0, 2, 3, 1]
    assert [t.number for t in candidates(BASELINE, SOME, budget=Budget(speedup=2.2))] == [3, 1]


def test_a_budget_compares_with_the_cautious_end_of_the_interval() -> None:
    assert [t.number for t in candidates(BASELINE, SOME, budget=Budget(latency_ms=0.5))] == [3, 1]
    assert [t.number for t in candidates(BASELINE, SOME, budget=Budget(latency_ms=0.5 * 1.02))] == [0, 3, 1]


def test_a_drop_takes_the_fastest_then_the_most_accurate() -> None:
    assert [t.number for t in candidates(BASELINE, SOME, max_drop=2.5)] == [3, 0, 2]
    assert [t.number for t in candidates(BASELINE, SOME, max_drop=100.0)] == [1, 3, 0, 2]


RESULTS = st.lists(
    st.tuples(st.sampled_from(STATUSES), st.floats(0, 1), st.floats(0.01, 10)), min_size=1, max_size=8
).map(lambda drawn: by_number(*(trial(n, accuracy, ms, status) for n, (status, accuracy, ms) in enumerate(drawn))))


@given(results=RESULTS, speedup=st.floats(0.2, 20), drop=st.floats(0, 100))
def test_what_is_offered_fits_what_was_asked(results: dict[int, TrialResult], speedup: float, drop: float) -> None:
    budget = Budget(speedup=speedup)
    complete = [r for r in results.values() if r.status == "complete"]
    for asked, fits in (
        ({"budget": budget}, budget.holds),
        ({"max_drop": drop}, lambda r: r.accuracy_drop is not None and r.accuracy_drop <= drop),
    ):
        fitting = {r.number for r in complete if fits(r)}
        try:
            offered = candidates(BASELINE, results, **asked)  # type: ignore[arg-type]
        except (UserError, BudgetUnreachable):
            assert fitting == set()
        else:
            assert {r.number for r in offered} == fitting != set()


def test_a_trial_by_its_number() -> None:
    results = SOME | by_number(trial(4, 0, 0, "stopped"), trial(5, 0, 0, "infeasible"), trial(6, 0, 0, "failed"))
    assert [t.number for t in candidates(BASELINE, results, trial=2)] == [2], (
        "behind the front, and asked for all the same"
    )
    for number, ended in ((4, "was stopped early"), (5, "was not trained"), (6, "failed")):
        with pytest.raises(UserError, match=f"trial {number} {ended}: because: choose another"):
            candidates(BASELINE, results, trial=number)
    with pytest.raises(UserError, match="there is no finished trial 9: on the front are 0, 3, 1"):
        candidates(BASELINE, results, trial=9)


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    store = RunStore.create(tmp_path / "runs" / "r", "task: a:b\n", {})
    store.write_baseline(BASELINE)
    for result in SOME.values():
        staged = store.attempt_dir(result.number, "one")
        for name in export.FILES:
            (staged / name).write_bytes(f"{name} of {result.number}".encode())
        store.commit(result.number, staged, result)
    return store


def measures(figures: Mapping[int, float]) -> Callable[[bytes], Measurement]:
    """A rig that knows each model by its bytes."""
    return lambda content: measurement(figures[int(content.decode().split()[-1])])


def asked(budget: Budget) -> list[TrialResult]:
    return candidates(BASELINE, SOME, budget=budget)


def test_an_export_holds_the_files_and_a_card_with_both_measurements(store: RunStore, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "down" / "out"
    done = export_trial(store, asked(Budget(latency_ms=0.7)), out, measure=measures({0: 0.52}))
    assert (done.trial.number, done.measured.latency_ms, done.refused) == (0, 0.52, ())
    assert {path.name for path in out.iterdir()} == {*export.FILES, "card.json", "README.md"}
    assert (out / "model.onnx").read_bytes().startswith(b"model.onnx of 0")
    card = json.loads((out / "card.json").read_text())
    assert card.keys() == {
        "schema", "prunefront", "run", "trial", "plan_digest", "seed", "accuracy", "accuracy_stderr", "accuracy_drop",
        "accuracy_data", "test", "compression_x", "macs", "params", "measured_in_search", "measured_at_export", "dense",
        "lowered", "int8", "fp16", "opset", "notes", "reproduce", "precision", "stretch",
    }  # fmt: skip
    assert (card["run"], card["trial"], card["seed"], card["plan_digest"]) == ("r", 0, 3, "digest0")
    assert Measurement.from_dict(card["measured_at_export"]) == done.measured
    assert card["measured_in_search"][STAMP.rig]["latency_ms"] == 0.5
    assert card["dense"] == {"accuracy": 0.95, "macs": 100, "params": 50}
    assert card["reproduce"] == f"prunefront prune {store.root} --plan plan.json --out NEW_FOLDER"


def test_what_misses_the_budget_when_measured_again_is_passed_over(store: RunStore, tmp_path: Path) -> None:
    budget = Budget(latency_ms=0.7)
    done = export_trial(
        store, asked(budget), tmp_path / "out", measure=measures({0: 0.71, 2: 0.7, 3: 0.4}), budget=budget
    )
    assert done.trial.number == 3
    assert done.refused == (
        (0, "measured again it takes up to 0.7242 ms, 1.38x at least"),
        (2, "measured again it takes up to 0.714 ms, 1.40x at least"),
    )
    assert json.loads((tmp_path / "out" / "card.json").read_text())["trial"] == 3


def test_what_keeps_the_budget_once_and_then_misses_it_is_passed_over(store: RunStore, tmp_path: Path) -> None:
    budget = Budget(latency_ms=0.7)
    turns = {0: iter([0.6, 0.6, 0.69]), 2: iter([0.6, 0.66, 0.62])}  # of 0 the third, with 2 % for its interval, misses

    def measure(content: bytes) -> Measurement:
        return measurement(next(turns[int(content.decode().split()[-1])]))

    done = export_trial(store, asked(budget), tmp_path / "out", measure=measure, budget=budget)
    assert done.refused == ((0, "measured again it takes up to 0.7038 ms, 1.42x at least"),)
    assert (done.trial.number, done.measured.latency_ms) == (2, 0.66)  # the least favourable is what is told
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["measured_at_export"]["latency_ms"] == 0.66
    assert all(next(rest, None) is None for rest in turns.values())


def test_without_a_budget_it_is_measured_once(store: RunStore, tmp_path: Path) -> None:
    turns = iter([0.5])
    done = export_trial(store, [SOME[0]], tmp_path / "out", measure=lambda content: measurement(next(turns)))
    assert done.measured.latency_ms == 0.5


def test_nothing_is_exported_when_all_miss(store: RunStore, tmp_path: Path) -> None:
    budget, out = Budget(speedup=2.2), tmp_path / "out"
    with pytest.raises(
        BudgetUnreachable, match=r"2 trials .* does now \(trial 3: measured again it takes up to 2.04 ms, 0.49x at "
    ):
        export_trial(store, asked(budget), out, measure=measures({3: 2.0, 1: 2.0}), budget=budget)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]


def test_an_int8_export_has_figures_of_its_own(store: RunStore, tmp_path: Path) -> None:
    baseline, results = store.read_baseline(), store.results()
    budget, out = Budget(speedup=1000.0), tmp_path / "out"
    with pytest.raises(BudgetUnreachable):
        candidates(baseline, results, budget=budget)
    chosen = candidates(baseline, results, budget=budget, recorded=False)  # int8 may reach what no record reaches
    assert [r.number for r in chosen[:1]] == [max(chosen, key=lambda r: r.accuracy or 0.0).number]
    seen: list[bytes] = []

    def quantize(trial: TrialResult, content: bytes) -> Converted:
        seen.append(content)
        if len(seen) == 1:
            raise EvaluationError("parity breach")
        score = Score(value=0.5, stderr=0.1, samples=10)
        return Converted(precision="int8", content=b"ints", score=score, agreement=0.97)

    int8 = Conversion(precision="int8", make=quantize)

    measured = measurement(1e-4)
    done = export_trial(store, chosen, out, measure=lambda content: measured, budget=budget, conversion=int8)
    assert done.trial.number == chosen[1].number
    assert done.refused == ((chosen[0].number, "parity breach"),)
    assert (out / "model.onnx").read_bytes().startswith(b"ints")
    card = json.loads((out / "card.json").read_text())
    assert (card["accuracy"], card["accuracy_stderr"], card["test"]) == (0.5, 0.1, None)
    assert card["accuracy_drop"] == pytest.approx(100.0 * (baseline.accuracy - 0.5))
    assert card["int8"] == {"agreement": 0.97, "fp32_accuracy": chosen[1].accuracy}
    with pytest.raises(BudgetUnreachable, match=r"no trial can be handed over in int8 .*it drops"):
        export_trial(
            store, chosen[1:2], tmp_path / "no", measure=lambda content: measured, conversion=int8, max_drop=0.1
        )
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("broken", ["copy", "card", "rename"])
def test_nothing_is_left_half_written(
    store: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    place = {"copy": (shutil, "copyfile"), "card": (export, "write_atomic"), "rename": (os, "rename")}[broken]
    with monkeypatch.context() as patch:
        patch.setattr(*place, full)
        with pytest.raises(UserError, match=r"--out .*out cannot be written \(No space left on device\)"):
            export_trial(store, [SOME[0]], tmp_path / "out", measure=measures({0: 0.5}))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]
    export_trial(store, [SOME[0]], tmp_path / "out", measure=measures({0: 0.5}))
    assert (tmp_path / "out" / "card.json").exists()


def test_an_empty_folder_is_as_good_as_a_new_one(
    store: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("out", "here"):
        (tmp_path / name).mkdir()
    export_trial(store, [SOME[1]], tmp_path / "out", measure=measures({1: 0.3}))
    assert (tmp_path / "out" / "model.onnx").read_bytes().startswith(b"model.onnx of 1")
    monkeypatch.chdir(tmp_path / "here")
    export_trial(store, [SOME[1]], Path("."), measure=measures({1: 0.3}))
    assert (tmp_path / "here" / "model.onnx").read_bytes().startswith(b"model.onnx of 1")


def test_what_is_there_is_never_written_over(store: RunStore, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name, why in (("full", "not empty"), ("file", "is a file"), ("link", "is a file"), ("file/below", "Not a dir")):
        with pytest.raises(UserError, match=why):
            export_trial(store, [SOME[0]], tmp_path / name, measure=measures({0: 0.5}))
    assert (tmp_path / "full" / "mine.txt").read_text() == (tmp_path / "file").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full", "link", "runs"]


def test_a_trial_whose_model_is_gone_is_named(store: RunStore, tmp_path: Path) -> None:
    (store.trial_dir(0) / "model.onnx").unlink()
    with pytest.raises(UserError, match=r"trial 0 of run r has no model.onnx: the file is gone"):
        export_trial(store, [SOME[0]], tmp_path / "out", measure=measures({0: 0.5}))


def test_a_record_without_a_drop_is_never_offered_for_a_drop() -> None:
    odd = by_number(replace(SOME[0], accuracy_drop=None), SOME[1])
    assert [t.number for t in candidates(BASELINE, odd, max_drop=50.0)] == [1]
