from __future__ import annotations

import copy
import math
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from evaluators.errors import RigError
from evaluators.onnx_export import export_onnx
from evaluators.parity import FLOOR, ParityError, check_parity, compare_modules


@pytest.fixture
def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(4, 3)


def test_a_module_agrees_with_itself_exactly(linear: nn.Linear) -> None:
    report = compare_modules(linear, copy.deepcopy(linear), [torch.randn(5, 4), torch.randn(2, 4)])
    assert (report.ok, report.max_abs, report.samples, report.reason) == (True, 0.0, 7, None)
    assert report.require() is report


@pytest.mark.parametrize(("shift", "ok"), [(0.9e-5, True), (1.1e-5, False)])
def test_the_bound_is_relative_to_the_largest_output(shift: float, ok: bool) -> None:
    a, b = nn.Linear(1, 1).double(), nn.Linear(1, 1).double()
    with torch.no_grad():
        for layer, bias in ((a, 0.0), (b, 8.0 * shift)):
            layer.weight.fill_(8.0)
            layer.bias.fill_(bias)
    report = compare_modules(a, b, [torch.ones(1, 1, dtype=torch.float64)], 1e-5)
    assert report.ok is ok
    assert report.scale == 8.0
    assert report.max_abs == pytest.approx(8.0 * shift)


def test_outputs_near_zero_are_compared_absolutely() -> None:
    a, b = nn.Linear(1, 1), nn.Linear(1, 1)
    for layer, bias in ((a, 0.0), (b, 0.5e-5 * FLOOR)):
        nn.init.zeros_(layer.weight)
        nn.init.constant_(layer.bias, bias)
    assert compare_modules(a, b, [torch.ones(1, 1)]).ok


def test_one_changed_weight_in_the_file_is_a_breach(linear: nn.Linear, tmp_path: Path) -> None:
    path = export_onnx(linear, torch.randn(1, 4), tmp_path / "model.onnx")
    with torch.no_grad():
        linear.weight[1, 2] += 0.01
    report = check_parity(linear, path.read_bytes(), [torch.ones(2, 4)])
    assert not report.ok
    assert report.max_abs == pytest.approx(0.01, rel=1e-3)
    with pytest.raises(ParityError, match="exceeds") as caught:
        report.require()
    assert "\n" not in str(caught.value)
    assert caught.value.report is report
    assert pickle.loads(pickle.dumps(caught.value)).report == report


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", [0, 1, 2])
def test_outputs_that_are_not_finite_are_a_breach(linear: nn.Linear, value: float, side: int) -> None:
    pair = [linear, copy.deepcopy(linear)]
    with torch.no_grad():
        for model in pair if side == 2 else [pair[side]]:
            model.bias[0] = value
    report = compare_modules(pair[0], pair[1], [torch.randn(2, 4), torch.randn(2, 4)])
    assert not report.ok
    assert not math.isfinite(report.max_abs)
    assert "not finite" in (report.reason or "")


def test_a_nan_in_a_later_batch_is_not_lost(linear: nn.Linear) -> None:
    batches = [torch.randn(2, 4), torch.full((1, 4), math.nan)]
    report = compare_modules(linear, linear, batches)
    assert not report.ok
    assert math.isnan(report.max_abs)


def test_different_shapes_are_a_breach(linear: nn.Linear) -> None:
    report = compare_modules(linear, nn.Linear(4, 1), [torch.randn(2, 4)])
    assert not report.ok
    assert report.max_abs == math.inf
    assert "[2, 3] against [2, 1]" in (report.reason or "")


def test_modes_are_put_back() -> None:
    norm = nn.BatchNorm1d(4)
    assert norm.running_mean is not None
    model = nn.Sequential(norm, nn.Dropout()).train()
    model[1].eval()
    statistics = norm.running_mean.clone()
    assert compare_modules(model, copy.deepcopy(model), [torch.randn(3, 4)]).ok
    assert [part.training for part in model.modules()] == [True, True, False]
    assert torch.equal(norm.running_mean, statistics)


def test_nothing_to_compare_is_an_error(linear: nn.Linear) -> None:
    for inputs in ([], [torch.empty(0, 4)]):
        with pytest.raises(ValueError, match="batch"):
            compare_modules(linear, linear, inputs)


def test_a_broken_file_is_an_error(linear: nn.Linear) -> None:
    with pytest.raises(RigError):
        check_parity(linear, b"garbage", [torch.randn(1, 4)])
