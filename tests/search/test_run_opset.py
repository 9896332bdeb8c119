"""The operator set that a job names is that of every ONNX file of its run: shapes, the dense network, trials, int8."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from admm.plan import PruningPlan
from evaluators import Measurement, OpsetError
from evaluators.opset import opset_of
from search import bench as bench_module
from search.bench import Prepared
from search.calibration import export_plan
from search.errors import UserError
from search.job_file import load_job
from search.module_artefact import ship_forms
from search.trial import Bench, TrialSpec
from search.worker import evaluate_plan
from tests.search import test_worker
from tests.search.test_worker import MEASURED, make_bench

COLUMNS = PruningPlan({"3": {"shape": 0.85}})
OPSET = 18


class Rig:
    """Notes the operator set of all it is given, and finds every rewrite twice as fast as what it replaces."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def __call__(self, name: str, candidate: bytes, reference: bytes | None = None) -> Measurement:
        self.seen += [opset_of(onnx.load_model_from_string(one)) for one in (candidate, reference) if one is not None]
        return replace(MEASURED, speedup=2.0, speedup_low=1.98, speedup_high=2.02)


@pytest.fixture
def rig() -> Rig:
    return Rig()


@pytest.fixture
def bench(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Of a job that rewrites and quantises its files; a convolution is wide enough for a rewrite."""

    def network() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 48, 3, padding=1), nn.BatchNorm2d(48), nn.ReLU(), nn.Conv2d(48, 48, 3, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(192, 3),
        )  # fmt: skip

    monkeypatch.setattr(test_worker, "_network", network)
    sections = {"lower": True, "quantize": "int8", "budget": {"speedup": 1.5}, "opset": OPSET}
    return make_bench(measure=rig, structures=["shape"], **sections)


def test_every_file_of_a_trial_is_in_it(bench: Bench, rig: Rig, tmp_path: Path) -> None:
    spec = TrialSpec(number=0, plan=COLUMNS, params={}, seed=0, precision="int8")
    result, _ = evaluate_plan(bench, spec, artefacts=tmp_path / "out")
    assert result.status == "complete", result.reason
    proto = onnx.load(tmp_path / "out" / "model.onnx")
    assert {"Gather", "QuantizeLinear"} <= {node.op_type for node in proto.graph.node}
    assert opset_of(proto) == OPSET
    assert set(rig.seen) == {OPSET}
    assert len(rig.seen) > 4, "shapes before training, layers, whole files"


def test_the_dense_network_and_what_is_measured_of_a_space_are_in_it(bench: Bench, rig: Rig, tmp_path: Path) -> None:
    prepared = Prepared(job=bench.job, task=bench.task, model=bench.dense, profile=bench.profile)
    forms = prepared.dense_forms()
    dense = forms.of("onnxruntime-cpu")
    shapes = prepared.shapes(COLUMNS, "onnxruntime-cpu", rig, None, dense=forms)
    shipped = ship_forms(bench.job, bench.task, bench.dense, {}, tmp_path / "model.onnx", None)
    files = [dense, shapes, export_plan(prepared, COLUMNS), shipped["onnxruntime-cpu"].content]
    assert [opset_of(onnx.load_model_from_string(file)) for file in files] == [OPSET] * 4


def test_one_that_the_runtime_does_not_read_is_said_before_the_task_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("task: nowhere:task\nopset: 24\n")
    unread = RuntimeError("Opset 24 is under development")
    monkeypatch.setattr("evaluators.opset._unread", lambda opset: unread if opset > 21 else None)
    with pytest.raises(UserError) as caught:
        Prepared.of(load_job(path))
    assert str(caught.value).startswith(f"{path}:2: opset: onnxruntime ")
    assert str(caught.value).endswith("does not read opset 24 (Opset 24 is under development): ask for 21 or less")
    path.write_text("task: nowhere:task\nopset: 24\nrigs: [torch-cpu]\n")
    with pytest.raises(UserError, match="there is no module 'nowhere'"):  # no file is written for such a rig
        Prepared.of(load_job(path))


def test_one_that_the_network_cannot_be_written_in_is_said_by_its_key(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kept(*arguments: object, **options: object) -> bytes:
        raise OpsetError(f"the model cannot be written in opset {options['opset']}, only in 20: ask for that")

    monkeypatch.setattr(bench_module, "shapes_onnx", kept)
    prepared = Prepared(job=bench.job, task=bench.task, model=bench.dense, profile=bench.profile)
    with pytest.raises(UserError, match=r"^opset: task 'made up': the model cannot be written in opset 18, only in 20"):
        prepared.dense_forms()
