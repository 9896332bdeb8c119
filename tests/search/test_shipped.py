"""What a trial ships: a file rewritten for its rig, or quantised; and what is said where a structure gains nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn

from admm.plan import PruningPlan
from evaluators import Measurement, OnnxPredictor
from evaluators.lowering import Lowered, LoweredLayer, lower
from search.shipped import without_gain
from search.trial import TrialSpec
from search.worker import TrialRun, evaluate_plan
from tests.search import test_worker
from tests.search.test_worker import MEASURED, make_bench


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second convolution wide enough that leaving columns out looks worth a measurement."""

    def network() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 48, 3, padding=1), nn.BatchNorm2d(48), nn.ReLU(), nn.Conv2d(48, 48, 3, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.1), nn.Linear(192, 3),
        )  # fmt: skip

    monkeypatch.setattr(test_worker, "_network", network)


COLUMNS = PruningPlan({"3": {"shape": 0.85}})


class Rig:
    """Finds every rewrite `gain` times as fast as what it replaces, and keeps count."""

    def __init__(self, gain: float) -> None:
        self.gain, self.pairs, self.alone = gain, 0, 0

    def __call__(self, name: str, candidate: bytes, reference: bytes | None = None) -> Measurement:
        self.pairs += reference is not None
        self.alone += reference is None
        ratio = self.gain if reference is not None and candidate != reference else 1.0
        return replace(MEASURED, speedup=ratio, speedup_low=0.99 * ratio, speedup_high=1.01 * ratio)


def _kinds(path: Path) -> set[str]:
    return {node.op_type for node in onnx.load(path).graph.node}


def _run(tmp_path: Path, rig: Rig, **sections: object) -> tuple[TrialRun, Path]:
    bench = make_bench(measure=rig, structures=["shape"], **{"lower": True, **sections})
    spec = TrialSpec(number=0, plan=COLUMNS, params={}, seed=0, precision=bench.job.precisions[0])
    result, run = evaluate_plan(bench, spec, artefacts=tmp_path / "out")
    assert result.status == "complete", result.reason
    return run, tmp_path / "out" / "model.onnx"


def test_columns_of_zeros_leave_the_file_that_is_shipped(tmp_path: Path) -> None:
    rig = Rig(gain=2.0)
    run, path = _run(tmp_path, rig)
    result = run.result
    assert result is not None
    assert result.lowered is not None
    assert result.lowered["changed"]
    assert [layer["choice"] != "dense" for layer in result.lowered["layers"]].count(True) == 1
    assert "Gather" in _kinds(path)
    assert rig.pairs >= 2  # the layer, and the whole file
    assert not any("no gain" in note for note in result.notes)
    assert run.pruned is not None
    x = torch.randn(5, *run._bench.task.example_input.shape[1:])
    torch.testing.assert_close(OnnxPredictor(path)(x), run.pruned.model(x).detach(), rtol=1e-4, atol=1e-4)


def test_a_rewrite_that_gains_nothing_is_left_and_said(tmp_path: Path) -> None:
    run, path = _run(tmp_path, Rig(gain=1.0))
    assert run.result is not None
    assert run.result.lowered is not None
    assert not run.result.lowered["changed"]
    assert "Gather" not in _kinds(path)
    assert any("no gain on onnxruntime-cpu by shape" in note for note in run.result.notes)


def test_a_job_may_leave_its_files_as_they_are(tmp_path: Path) -> None:
    rig = Rig(gain=2.0)
    run, path = _run(tmp_path, rig, lower=False)
    assert run.result is not None
    assert run.result.lowered is None
    assert rig.pairs == 0
    assert "Gather" not in _kinds(path)


def test_the_shapes_are_judged_in_the_form_that_is_shipped(tmp_path: Path) -> None:
    rig = Rig(gain=2.0)
    bench = make_bench(measure=rig, structures=["shape"], lower=True, budget={"speedup": 1.5})
    spec = TrialSpec(number=0, plan=COLUMNS, params={}, seed=0)
    TrialRun(bench, spec, store=None, artefacts=tmp_path / "out").step()
    before = rig.pairs
    assert before >= 2
    TrialRun(bench, replace(spec, number=1), store=None, artefacts=tmp_path / "again").step()
    assert rig.pairs == before + 1  # the layer is known by now, the whole file is measured


@pytest.mark.parametrize("lower", [False, True])
def test_an_int8_trial_ships_ints_scored_as_such(tmp_path: Path, lower: bool) -> None:
    run, path = _run(tmp_path, Rig(gain=2.0), lower=lower, quantize="int8")
    kinds = _kinds(path)
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
    assert ("Gather" in kinds) is lower
    assert run.result is not None
    assert run.result.accuracy is not None
    assert run.result.accuracy > 0.5
    x = torch.randn(3, *run._bench.task.example_input.shape[1:])
    assert OnnxPredictor(path)(x).shape == (3, 3)


def test_a_rewrite_that_costs_time_in_int8_is_not_shipped_in_int8(tmp_path: Path) -> None:
    """One-hot kernels pay in fp32 and may not in int8: the two int8 files are compared, and the faster is kept."""

    class Slower(Rig):
        def __call__(self, name: str, candidate: bytes, reference: bytes | None = None) -> Measurement:
            quantized = reference is not None and b"QuantizeLinear" in candidate
            return replace(super().__call__(name, candidate, reference), speedup_low=0.7 if quantized else 1.9)

    run, path = _run(tmp_path, Slower(gain=2.0), quantize="int8")
    assert "QuantizeLinear" in _kinds(path)
    assert "Gather" not in _kinds(path)
    assert run.result is not None
    assert run.result.lowered is not None
    assert not run.result.lowered["changed"]
    reasons = [layer["reason"] for layer in run.result.lowered["layers"] if layer["tried"]]
    assert reasons
    assert all(reason.startswith("undone: in int8 the file as it was is faster") for reason in reasons)
    assert any("no gain on onnxruntime-cpu by shape" in note for note in run.result.notes)


def test_rewrites_are_padded_to_the_device_whatever_the_job_aligns_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks: list[int] = []

    def spy(*arguments: Any, block: int, **options: Any) -> Lowered:
        blocks.append(block)
        return lower(*arguments, block=block, **options)

    monkeypatch.setattr("search.shipped.lower", spy)
    run, _ = _run(tmp_path, Rig(gain=2.0), sparsity={"align": 1})
    assert run._bench.job.align == 1
    assert set(blocks) == {16}


def test_shapes_are_filed_with_the_deciding_rig_and_judged_on_the_budgets(tmp_path: Path) -> None:
    def measure(name: str, candidate: bytes, reference: bytes | None = None) -> Measurement:
        fast = name == "onnxruntime-cpu"
        speedup = 4.0 if fast else 1.5
        return replace(MEASURED, speedup=speedup, speedup_low=speedup, speedup_high=speedup)

    bench = make_bench(
        measure=measure,
        rigs=["onnxruntime-cpu", "onnxruntime-openvino"],
        budget={"speedup": 2.0, "rig": "onnxruntime-openvino"},
    )
    run = TrialRun(bench, TrialSpec(number=0, plan=COLUMNS, params={}, seed=0), store=None, artefacts=tmp_path / "out")
    run.step()
    assert run.result is not None
    assert run.result.status == "infeasible"
    assert run.result.speedup == 4.0
    assert "1.50x at least: over the budget of 2x on onnxruntime-openvino" in (run.result.reason or "")
    assert set(run.result.measurements) == {"onnxruntime-cpu", "onnxruntime-openvino"}


def _lowered(**choices: str) -> Lowered:
    layers = tuple(
        LoweredLayer(name=name, choice=choice, speedup=1.0 if choice == "dense" else 2.0, tried={})
        for name, choice in choices.items()
    )
    return Lowered(content=b"", layers=layers, speedup=1.5, changed=True)


def test_what_gains_nothing_is_said_by_structure() -> None:
    both = PruningPlan({"a": {"shape": 0.5}, "b": {"shape": 0.5}, "c": {"unstructured": 0.9}})
    told = without_gain(both, _lowered(a="one-hot", b="dense"), "here")
    assert told == (
        "no gain on here by unstructured: single zeros in dense kernels cost what weights cost",
        "shape gains on here in 1 of 2 layers: the others run dense",
    )
    assert without_gain(PruningPlan({"a": {"shape": 0.5}}), None, "here")[0].startswith("no gain on here by shape")
    assert without_gain(PruningPlan({"a": {"filter": 0.5}}), None, "here") == ()
    assert without_gain(PruningPlan({"a": {"shape": 0.5}}), _lowered(a="crop"), "here") == ()
