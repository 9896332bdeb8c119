"""The warm start's benchmark: its figures by hand; what it measures is tested where it is made."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from search.sensitivity import Damage, Sensitivity
from search.space import Dimension, Space

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "warm_start.py"
SPACE = Space(
    (
        Dimension(layer="a", structure="filter", sparsities=(0.0, 0.25, 0.5, 0.75)),
        Dimension(layer="b", structure="filter", sparsities=(0.0, 0.5)),
    )
)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return importlib.import_module("warm_start")


def test_rank_correlation_by_hand(bench: ModuleType) -> None:
    assert bench.spearman([1, 2, 3, 4], [10, 20, 30, 99]) == pytest.approx(1.0)
    assert bench.spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1.0)
    # ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4
    assert bench.spearman([1, 5, 5, 9], [1, 2, 3, 4]) == pytest.approx(4.5 / (4.5 * 5.0) ** 0.5)


def test_uniform_plans_differ_and_none_is_dense(bench: ModuleType) -> None:
    assert bench.uniform_plans(SPACE) == [
        {"a/filter": 1, "b/filter": 0},
        {"a/filter": 2, "b/filter": 1},
        {"a/filter": 3, "b/filter": 1},
    ]


def test_random_plans_repeat_and_lie_in_the_space(bench: ModuleType) -> None:
    plans = bench.random_params(SPACE, 50, 3)
    assert plans == bench.random_params(SPACE, 50, 3)
    assert {p["a/filter"] for p in plans} == {0, 1, 2, 3}
    assert {p["b/filter"] for p in plans} == {0, 1}


def test_damage_is_a_sum_of_powers(bench: ModuleType) -> None:
    points = {
        "a/filter": (Damage(step=3, sparsity=0.75, loss=1.9, accuracy=0.5),),
        "b/filter": (Damage(step=1, sparsity=0.5, loss=4.1, accuracy=0.5),),
    }
    table = Sensitivity(loss=0.1, accuracy=1.0, samples=1, epochs=0.0, points=points)
    assert bench.predicted(SPACE, table, {"a/filter": 3, "b/filter": 1}, 1.0) == pytest.approx(1.8 + 4.0)
    assert bench.predicted(SPACE, table, {"a/filter": 1, "b/filter": 1}, 0.5) == pytest.approx(0.6**0.5 + 2.0)


def test_both_accuracy_and_loss_decide(bench: ModuleType) -> None:
    def rows(*pairs: tuple[float, float]) -> dict[int, dict[str, object]]:
        both = [
            {
                "accuracy": 0.9 + gain,
                "uniform_accuracy": 0.9,
                "loss": 1.0 + rise,
                "uniform_loss": 1.0,
                "budgeted_accuracy": 0.91,
                "budgeted_loss": 1.0,
            }
            for gain, rise in pairs
        ]
        return {0: {"rows": both}}

    good = bench.claim_of(rows((0.02, -0.1), (0.0, -0.1)), quick=False)
    assert (good.figure, good.holds) == (1.0, True)
    assert not bench.claim_of(rows((-0.02, -0.1), (0.01, -0.1)), quick=False).holds
    assert not bench.claim_of(rows((0.02, 0.1), (0.0, 0.1)), quick=False).holds
    assert set(json.loads(good.to_json())) == {"claim", "figure", "unit", "bar", "holds", "details"}


@pytest.mark.slow
def test_reduced_figures_are_not_recorded() -> None:
    command = [sys.executable, str(SCRIPT), "--quick", "--record"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=800)
    assert done.returncode == 2
    assert "full benchmark only" in done.stderr
