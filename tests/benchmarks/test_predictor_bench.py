"""The predictor's benchmark on a rig whose latencies are known: no figure of it depends on this machine's time."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from admm.groups import find_groups
from evaluators.measurement import DeviceStamp
from evaluators.work import onnx_work
from search.tasks.networks import CIFAR_INPUT, resnet20

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "predictor.py"
STAMP = DeviceStamp(
    rig="fake", device="d", isa="i", runtime="r", provider="p", threads=1, batch=1, clock="wall", platform="x"
)


@dataclass
class LinearRig:
    """Latency is a line in the aligned MACs; every `wild`-th measurement is half as much again."""

    wild: int = 0
    calls: int = 0
    known: dict[bytes, float] = field(default_factory=dict)

    def stamp(self, batch: int) -> DeviceStamp:
        return replace(STAMP, batch=batch)

    def seconds(self, model: bytes) -> float:
        if model not in self.known:
            self.known[model] = 1e6 + onnx_work(model, 16).macs
        return self.known[model]

    def measure(self, candidate: bytes, reference: bytes) -> Any:
        self.calls += 1
        noise = 1.5 if self.wild and self.calls % self.wild == 0 else 1.0
        return SimpleNamespace(speedup=self.seconds(reference) / self.seconds(candidate) / noise)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return importlib.import_module("predictor")


@pytest.mark.slow
def test_a_device_that_is_a_line_is_predicted_exactly(bench: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    (case,) = bench.cases(quick=False, tiny=True)
    rig = LinearRig()
    row = bench.measure(case, rig)
    assert rig.calls == 8 + case.plans
    assert (row["mean_error"], row["max_error"], row["within_rounds"]) == (0.0, 0.0, 0.0)
    assert row["calibration"]["dense"] == 1.0
    assert len(row["rows"]) == case.plans
    # As the whole program ends:
    bench.show({case.name: row})
    assert "0.00%" in capsys.readouterr().out
    claim = bench.claim_of({case.name: row}, quick=False, tiny=True)
    assert (claim.figure, claim.bar, claim.holds) == (0.0, 0.02, True)
    assert set(json.loads(claim.to_json())) == {"claim", "figure", "unit", "bar", "holds", "details"}


def test_both_bars_decide(bench: ModuleType) -> None:
    good, vague, wild = (
        {"mean_error": mean, "max_error": most} for mean, most in ((0.01, 0.05), (0.021, 0.05), (0.01, 0.061))
    )
    assert bench.claim_of({"a": good}, quick=False, tiny=False).holds
    for bad in (vague, wild):
        assert not bench.claim_of({"a": good, "b": bad}, quick=False, tiny=False).holds
    assert bench.claim_of({"a": good, "b": vague}, quick=False, tiny=False).figure == 0.021


def test_the_median_of_the_rounds_counts(bench: ModuleType) -> None:
    models = {"dense": b"d", "small": b"s"}
    rig = LinearRig(wild=4, known={b"d": 2.0, b"s": 1.0})
    ratios = bench.relative_latencies(models, b"d", rig, 3)
    assert ratios == {"dense": [1.0, 1.0, 1.0], "small": [0.5, 0.75, 0.5]}


def test_plans_repeat_and_spread(bench: ModuleType) -> None:
    groups = find_groups(resnet20().eval(), torch.zeros(1, *CIFAR_INPUT))
    plans = bench.random_plans(groups, 40)
    assert plans == bench.random_plans(groups, 40)
    levels = sorted(
        sum(plan.sparsity(g, "filter") for g in groups.groups) / len(groups.groups) for plan in plans.values()
    )
    assert levels[0] < 0.2
    assert levels[-1] > 0.7
    calibration = bench.calibration_plans(groups)
    assert len(calibration) == 8
    assert all(calibration["dense"].sparsity(g, "filter") == 0.0 for g in groups.groups)
    assert not {plan.digest() for plan in calibration.values()} & {plan.digest() for plan in plans.values()}


@pytest.mark.slow
def test_reduced_figures_are_not_recorded() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--tiny", "--record"], capture_output=True, text=True, timeout=800
    )
    assert done.returncode == 2
    assert "full benchmark only" in done.stderr
