"""The Python API: a front from a run folder, the best of it, an export of it, and mistakes as `UserError`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import search
from search import Front, Job, Point, UserError, export, measure
from search.budget import Budget
from search.errors import BudgetUnreachable
from search.front import front_results
from search.store import RunStore
from tests.search.fabricated_run import DENSE_MS, dense_onnx, fabricated_run

SMALL = Path(__file__).parent / "small_task"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    return fabricated_run(tmp_path_factory.mktemp("api") / "run", trials=24)


@pytest.fixture(scope="module")
def front(store: RunStore) -> Front:
    return Front(store.root)


def test_every_name_is_there_whatever_was_imported_before() -> None:
    import search.export  # a module of the same name
    import search.search_command

    assert all(getattr(search, name) is not None for name in search.__all__)
    assert search.export is export
    assert callable(search.export)
    from admm import compact, prune

    assert (search.prune, search.compact) == (prune, compact)


def test_importing_the_package_stays_cheap() -> None:
    code = "import sys, search; print({'torch', 'ray', 'optuna', 'pydantic'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "set()\n"


def test_a_front_is_that_of_the_run(front: Front, store: RunStore) -> None:
    results = front_results(store.read_baseline(), store.results())
    assert [point.trial for point in front] == [r.number for r in results]
    assert len(front) == len(results) > 1
    first = front[0]
    assert (first.accuracy, first.latency_ms, first.speedup) == (
        results[0].accuracy, results[0].latency_ms, results[0].speedup,
    )  # fmt: skip
    assert first.plan.to_dict() == results[0].requested
    assert [p.latency_ms for p in front] == sorted((p.latency_ms for p in front), reverse=True)
    assert (front.dense.trial, front.dense.latency_ms, front.dense.accuracy_drop) == (-1, DENSE_MS, 0.0)
    assert front[:2] == tuple(front)[:2]
    assert repr(front).startswith(f"Front('{store.root}': {len(front)} points, 24 trials: ")


def test_the_best_is_what_was_asked(front: Front, store: RunStore) -> None:
    complete = [r for r in store.results().values() if r.status == "complete"]
    budget = Budget(speedup=1.5)
    best = front.best(speedup=1.5)
    assert best.accuracy == max(r.accuracy or 0.0 for r in complete if budget.holds(r))
    assert best.trial in [r.number for r in complete if budget.holds(r)]
    allowed = [r.speedup or 0.0 for r in complete if (r.accuracy_drop or 0.0) <= 1.0]
    assert front.best(max_drop=1.0).speedup == max(allowed)
    with pytest.raises(BudgetUnreachable, match="no trial keeps the budget of 1e-06 ms"):
        front.best(latency_ms=1e-6)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "exactly one of latency_ms, speedup, max_drop: got nothing"),
        ({"speedup": 2.0, "max_drop": 1.0}, "got speedup and max_drop"),
        ({"speedup": -1.0}, r"speedup must be a number above 0, got -1\.0"),
        ({"latency_ms": float("nan")}, "latency_ms must be a number above 0, got nan"),
    ],
)
def test_what_is_not_one_question_is_refused(front: Front, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        front.best(**asked)


def test_a_table_for_pandas_and_one_for_a_notebook(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = front._repr_html_()
    assert shown.count("<tr>") == len(front) + 2
    assert f"<td>{front[0].accuracy:.4f}</td>" in shown
    pandas = pytest.importorskip("pandas")
    table = front.to_pandas()
    assert isinstance(table, pandas.DataFrame)
    assert list(table["trial"]) == ["dense", *(p.trial for p in front)]
    assert list(table["latency_ms"])[1:] == [p.latency_ms for p in front]
    assert table["plan"].iloc[1] == front[0].plan.to_dict()
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match="pip install pandas"):
        front.to_pandas()


def test_a_name_of_a_run_cannot_write_into_a_notebook(tmp_path: Path) -> None:
    root = fabricated_run(tmp_path / "<script>", trials=3).root
    assert "<script>" not in Front(root)._repr_html_()


def test_a_point_and_a_front_are_exported(front: Front, store: RunStore, tmp_path: Path) -> None:
    point = front.best(max_drop=50.0)
    content = dense_onnx()
    for path in (store.root / "baseline" / "model.onnx", store.model_path(point.trial)):
        path.write_bytes(content)
    (store.trial_dir(point.trial) / "weights.safetensors").write_bytes(b"weights")
    done = export(point, tmp_path / "one")
    assert done.trial.number == point.trial
    card = json.loads((tmp_path / "one" / "card.json").read_text())
    assert card["trial"] == point.trial
    assert (tmp_path / "one" / "README.md").is_file()
    assert export(front, tmp_path / "two", trial=point.trial).trial.number == point.trial
    with pytest.raises(UserError, match="not empty"):
        export(store.root, tmp_path / "two", trial=point.trial)
    with pytest.raises(UserError, match="leave out speedup, or export its front"):
        export(point, tmp_path / "no", speedup=2.0)
    with pytest.raises(UserError, match="exactly one of latency_ms, speedup, max_drop, trial: got nothing"):
        export(front, tmp_path / "no")
    with pytest.raises(UserError, match="the dense network lies in"):
        export(front.dense, tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_files_and_modules_are_measured(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()).eval()
    measured = measure(model, dense_onnx(), example_input=torch.zeros(1, 1, 8, 8))
    assert measured.latency_ms > 0.0
    assert measured.stamp.rig == "onnxruntime-cpu"
    with pytest.raises(UserError, match="give an example_input"):
        measure(model)
    with pytest.raises(UserError, match="no such file"):
        measure(tmp_path / "none.onnx")
    with pytest.raises(UserError, match="did you mean 'onnxruntime-cpu'"):
        measure(dense_onnx(), rig="onnxruntime-cpus")


def test_mistakes_are_user_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        Front(tmp_path)
    (tmp_path / "job.yaml").write_text("task: a:b\ntrails: 3\n")
    for begin in (Job.from_yaml, search.search):
        with pytest.raises(UserError, match=r"job\.yaml:2: trails: unknown key"):
            begin(tmp_path / "job.yaml")
    with pytest.raises(UserError, match="there is no module 'nowhere'"):
        search.search(Job(task="nowhere:task"), show=False)
    assert {p.name for p in tmp_path.iterdir()} == {"job.yaml"}


@pytest.mark.slow
@pytest.mark.ray
def test_a_search_from_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    job = Job.from_yaml(SMALL / "job.yaml")
    front = search.search(job, trials=2, seed=1, show=False)
    assert front.run.parent.name == "runs"
    assert len(RunStore.open(front.run).results()) >= 2
    assert len(front) >= 1
    assert all(isinstance(point, Point) for point in front)
    done = export(front, tmp_path / "small", max_drop=100.0)
    assert done.measured.latency_ms > 0.0
    again = search.search(front.run, trials=2, show=False)
    assert [p.trial for p in again] == [p.trial for p in front]
