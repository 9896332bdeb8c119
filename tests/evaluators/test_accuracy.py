from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from evaluators.accuracy import OnnxPredictor, evaluate, module_predictor, top1
from evaluators.errors import RigError
from evaluators.onnx_export import export_onnx


@given(
    sizes=st.lists(st.integers(1, 7), min_size=1, max_size=5),
    classes=st.integers(2, 5),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=50, deadline=None)
def test_score_matches_numpy(sizes: list[int], classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    batches = [(rng.standard_normal((n, classes)), rng.integers(0, classes, n)) for n in sizes]
    score = evaluate(lambda x: x, [(torch.tensor(x), torch.tensor(y)) for x, y in batches], top1)
    right = np.concatenate([x.argmax(1) == y for x, y in batches]).astype(float)
    assert score.samples == len(right)
    assert score.value == pytest.approx(right.mean(), abs=1e-12)
    expected = right.std(ddof=1) / math.sqrt(len(right)) if len(right) > 1 else 0.0
    assert score.stderr == pytest.approx(expected, abs=1e-12)


def test_any_metric_per_sample() -> None:
    def absolute_error(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).abs().mean(dim=1)

    data = [(torch.tensor([[1.0, 2.0], [3.0, 5.0]]), torch.zeros(2, 2))]
    assert evaluate(lambda x: x, data, absolute_error).value == 2.75


@pytest.fixture
def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 3)).eval()


def statistics(model: nn.Sequential) -> Tensor:
    mean = model[1].running_mean
    assert isinstance(mean, Tensor)
    return mean.clone()


@pytest.mark.parametrize("fixed", [None, 1, 4])
def test_predictor_equals_module_for_every_batch(model: nn.Module, fixed: int | None, tmp_path: Path) -> None:
    path = export_onnx(model, torch.randn(fixed or 1, 4), tmp_path / "m.onnx", dynamic_batch=fixed is None)
    predict = OnnxPredictor(path)
    assert predict.fixed_batch == fixed
    for size in (1, 3, 4, 9):
        batch = torch.randn(size, 4)
        torch.testing.assert_close(predict(batch), module_predictor(model)(batch), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="empty"):
        predict(torch.empty(0, 4))


def test_module_predictor_does_not_touch_the_module(model: nn.Sequential) -> None:
    model.train()
    mean = statistics(model)
    outputs = [module_predictor(model)(torch.ones(2, 4)) for _ in range(2)]
    assert torch.equal(outputs[0], outputs[1])
    assert not outputs[0].requires_grad
    assert all(part.training for part in model.modules())
    assert torch.equal(statistics(model), mean)


def test_a_wrong_input_is_one_line(model: nn.Module, tmp_path: Path) -> None:
    predict = OnnxPredictor(export_onnx(model, torch.randn(1, 4), tmp_path / "m.onnx").read_bytes())
    with pytest.raises(RigError) as caught:
        predict(torch.randn(2, 5))
    assert "\n" not in str(caught.value)


def test_no_data_is_an_error() -> None:
    with pytest.raises(ValueError, match="empty"):
        evaluate(lambda x: x, [], top1)
    with pytest.raises(ValueError, match="empty"):
        evaluate(lambda x: x, [(torch.empty(0, 2), torch.empty(0, dtype=torch.long))], top1)


def test_a_metric_that_is_not_per_sample_or_not_finite_is_an_error() -> None:
    data = [(torch.randn(3, 2), torch.zeros(3, dtype=torch.long))]
    with pytest.raises(ValueError, match="one value per sample"):
        evaluate(lambda x: x, data, lambda outputs, targets: outputs.mean())
    with pytest.raises(ValueError, match="not finite"):
        evaluate(lambda x: x * math.nan, data, lambda outputs, targets: outputs[:, 0])


def test_nan_is_never_right() -> None:
    outputs = torch.tensor([[math.nan, 0.0], [0.0, 1.0], [1.0, math.nan]])
    assert top1(outputs, torch.tensor([0, 1, 0])).tolist() == [0.0, 1.0, 0.0]
