"""The latency predictor: work counted by hand, the same from module and file, exact on latencies that are a line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from torch import Tensor, nn

from evaluators.counting import count_macs
from evaluators.errors import EvaluationError
from evaluators.onnx_export import export_onnx
from evaluators.predictor import LatencyPredictor
from evaluators.work import Work, aligned_macs, module_macs, module_work, onnx_work
from search.tasks.networks import CIFAR_INPUT, MNIST_INPUT, LeNet5, resnet20
from tests.evaluators.models import ZOO


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(16, 2, batch_first=True), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.head(self.attention(x, x, x, need_weights=False)[0])
        return output


class Functional(nn.Module):
    """Weights that no layer module holds, one of them a plain tensor on the CPU, and a value that is read."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(20, 6))
        self.fixed = torch.randn(5, 20)

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.linear(x, self.weight)
        return y @ self.fixed.T


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    **ZOO,
    "resnet20": (resnet20, CIFAR_INPUT),
    "lenet5": (LeNet5, MNIST_INPUT),
    "sequence": (lambda: nn.Sequential(nn.Linear(7, 9), nn.ReLU(), nn.Linear(9, 3)), (5, 7)),
    "attention": (Attention, (5, 16)),
    "functional": (Functional, (6,)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_module_and_its_export_do_the_same_work(name: str, tmp_path: Path) -> None:
    factory, shape = NETWORKS[name]
    model, example = factory().eval(), torch.randn(3, *shape)
    path = export_onnx(model, example, tmp_path / "model.onnx")
    for block, depthwise in ((1, None), (8, 4), (16, None)):
        work = onnx_work(path, block, depthwise=depthwise)
        assert module_work(model, example, block, depthwise=depthwise) == work
        assert module_macs(model, example, block, depthwise=depthwise) == work.macs
        assert aligned_macs(path.read_bytes(), block, depthwise=depthwise) == work.macs
    if name in ZOO:
        assert aligned_macs(path, 1) == count_macs(model, example)


@pytest.mark.parametrize(
    ("layer", "shape", "work"),
    [
        # block 16, depthwise 4: filters and channels in whole blocks, an image's channels as they are
        (nn.Conv2d(3, 17, 3, padding=1), (3, 6, 6), Work(36 * 32 * 3 * 9, 32 * 3 * 9, 36 * 32)),
        (nn.Conv2d(17, 16, 1), (17, 6, 6), Work(36 * 16 * 32, 16 * 32, 36 * 16)),
        (nn.Conv2d(10, 10, 3, groups=10), (10, 5, 5), Work(9 * 12 * 9, 12 * 9, 9 * 12)),
        (nn.Conv2d(20, 40, 1, groups=2), (20, 2, 2), Work(4 * 2 * 32 * 16, 2 * 32 * 16, 4 * 64)),
        (nn.ConvTranspose2d(8, 4, 2, stride=2), (8, 3, 3), Work(9 * 16 * 16 * 4, 16 * 16 * 4, 36 * 16)),
        (nn.Linear(17, 5), (17,), Work(32 * 16, 32 * 16, 16)),
        (nn.Linear(17, 5), (7, 17), Work(7 * 32 * 16, 32 * 16, 7 * 16)),
    ],
)
def test_layers_by_hand(layer: nn.Module, shape: tuple[int, ...], work: Work) -> None:
    assert module_work(layer, torch.randn(2, *shape), 16, depthwise=4) == work


def graph(nodes: list[Any], inputs: dict[str, list[Any]], weights: dict[str, np.ndarray]) -> bytes:
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()]
    out = helper.make_tensor_value_info("output", TensorProto.FLOAT, None)
    initializers = [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()]
    made = helper.make_graph(nodes, "g", ports, [out], initializers)
    content: bytes = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString()
    return content


def test_a_fixed_batch_is_divided_out() -> None:
    weight = {"w": np.ones((6, 2, 3, 3), np.float32)}
    node = [helper.make_node("Conv", ["x", "w"], ["output"])]
    free, fixed = (graph(node, {"x": [batch, 2, 5, 5]}, weight) for batch in ("n", 4))
    assert onnx_work(free, 1) == onnx_work(fixed, 1) == Work(9 * 6 * 2 * 9, 6 * 2 * 9, 9 * 6)


def test_products_by_hand() -> None:
    weights = {"w": np.ones((5, 3), np.float32), "v": np.ones(5, np.float32)}
    cases = {
        ("n", 5): ("Gemm", ["x", "w"], {}, 15),
        (5, "n"): ("Gemm", ["x", "w"], {"transA": 1}, 15),
        ("n", 4, 5): ("MatMul", ["x", "w"], {}, 60),
        ("n", 4, 5, 1): ("MatMul", ["x", "x2"], {}, 4 * 5 * 7),
        (1, 5): ("MatMul", ["x", "v"], {}, 5),
    }
    for shape, (kind, names, attributes, macs) in cases.items():
        inputs: dict[str, list[Any]] = {"x": [1 if size == "n" else size for size in shape]}
        if "x2" in names:
            inputs["x2"] = [1, 4, 1, 7]
        model = graph([helper.make_node(kind, names, ["output"], **attributes)], inputs, weights)
        expected = macs if kind != "Gemm" or "transA" not in attributes else 15
        assert aligned_macs(model, 1) * (5 if shape[0] == 5 else 1) == expected, (shape, kind)


def test_errors_are_one_line_each(tmp_path: Path) -> None:
    weight = {"w": np.ones((6, 2, 3, 3), np.float32)}
    unknown = graph([helper.make_node("Conv", ["x", "w"], ["output"])], {"x": ["n", 2, "h", 5]}, weight)
    with pytest.raises(EvaluationError, match=r"^Conv 'output': the shape of 'x' cannot be inferred[^\n]*$"):
        aligned_macs(unknown, 16)
    with pytest.raises(EvaluationError, match=r"^not an ONNX model[^\n]*$"):
        aligned_macs(b"\xff\xff\xff", 16)
    with pytest.raises(EvaluationError, match=r"^cannot read [^\n]*none.onnx[^\n]*$"):
        aligned_macs(tmp_path / "none.onnx", 16)
    with pytest.raises(EvaluationError, match=r"^the model does not run on the example input[^\n]*$"):
        module_macs(nn.Linear(3, 4), torch.zeros(1, 5), 16)
    for block in (0, True, 1.5):
        with pytest.raises(EvaluationError, match="block must be an integer >= 1"):
            module_macs(nn.Linear(3, 4), torch.zeros(1, 3), block)  # type: ignore[arg-type]


@pytest.mark.parametrize("broken", [False, True])
def test_the_module_is_left_as_it_was(broken: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(), nn.BatchNorm1d(4)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    parameters = list(model.parameters())
    state = torch.get_rng_state()
    example = torch.ones(2, 5 if broken else 4)
    if broken:
        with pytest.raises(EvaluationError):
            module_macs(model, example, 1)
    else:
        assert module_macs(model, example, 1) == 16
    assert all(part.training for part in model.modules())
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.backends.mha.get_fastpath_enabled()


def test_widths_inside_a_block_cost_the_same_and_work_never_falls_with_width() -> None:
    def macs(width: int) -> float:
        model = nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, 8, 3))
        return module_macs(model, torch.zeros(1, 3, 8, 8), 16)

    # Up to four channels are taken for an image's.
    counted = [macs(width) for width in range(5, 50)]
    assert counted == sorted(counted)
    assert len(set(counted)) == 4
    assert macs(17) == macs(32) < macs(33)


def work(macs: float, weights: float = 0.0, elements: float = 0.0) -> Work:
    return Work(macs, weights, elements)


@given(
    constant=st.floats(0.0, 0.5),
    slope=st.floats(0.1, 2.0),
    macs=st.lists(st.integers(10**6, 10**9), min_size=3, max_size=9, unique=True),
)
def test_a_line_in_the_macs_is_found_exactly(constant: float, slope: float, macs: list[int]) -> None:
    if max(macs) < 1.5 * sorted(macs)[1] or sorted(macs)[-2] < 1.5 * min(macs):
        macs = [10**7, 10**8, 10**9]  # a line needs some length, whichever network is left out
    scale = slope / max(macs)
    predictor = LatencyPredictor.fit([(work(m), constant + scale * m) for m in macs], block=16)
    for m in (*macs, max(macs) / 3):
        assert predictor.predict_work(work(m)) == pytest.approx(constant + scale * m, rel=1e-6)
    assert predictor.mean_error <= predictor.max_error < 1e-5
    assert predictor.residual < 1e-6
    assert (predictor.count, predictor.block, predictor.depthwise) == (len(macs), 16, 16)


def test_all_features_are_found_exactly_and_a_useless_one_is_left_out() -> None:
    rng = np.random.default_rng(0)
    works = [work(*rng.uniform(0.2, 1.0, 3) * (1e9, 1e7, 1e6)) for _ in range(8)]
    works += [work(3e7, 2e5, 1e5), work(2e7, 3e5, 2e5)]
    for weight_of_elements in (2e-7, 0.0):
        times = [0.01 + 6e-10 * w.macs + 2e-8 * w.streamed + weight_of_elements * w.elements for w in works]
        predictor = LatencyPredictor.fit(list(zip(works, times, strict=True)), block=8, depthwise=4)
        assert predictor.max_error < 1e-5
        assert predictor.coefficients.get("elements", 0.0) == pytest.approx(weight_of_elements, abs=1e-12)
        assert predictor.depthwise == 4


def test_weights_are_streamed_once_they_outgrow_the_near_caches() -> None:
    assert work(1, 0).streamed == 0.0
    assert work(1, 1e5).streamed < 0.01 * 1e5
    assert work(1, 1e7).streamed == pytest.approx(1e7, rel=1e-4)
    rising = [work(1, w).streamed for w in np.linspace(1, 3e6, 100)]
    assert rising == sorted(rising)


@given(st.lists(st.tuples(st.floats(1e5, 1e9), st.floats(1e3, 1e8), st.floats(1e3, 1e7)), min_size=3, max_size=8))
def test_more_work_is_never_predicted_faster(sizes: list[tuple[float, float, float]]) -> None:
    rng = np.random.default_rng(1)
    measured = [(work(*size), float(rng.uniform(0.05, 1.0))) for size in sizes]
    if len({w.macs for w, _ in measured}) == 1:
        return
    predictor = LatencyPredictor.fit(measured, block=16)
    assert predictor.constant >= 0.0
    assert all(slope > 0.0 for slope in predictor.coefficients.values())
    for first, _ in measured:
        more = work(first.macs * 1.1, first.weights * 1.1, first.elements * 1.1)
        assert predictor.predict_work(more) >= predictor.predict_work(first) > 0.0


def test_noise_shows_in_the_errors() -> None:
    rng = np.random.default_rng(0)
    macs = np.linspace(0.1, 1.0, 10) * 1e9
    noisy = [(work(m), float(m / 1e9 * np.exp(0.03 * rng.standard_normal()))) for m in macs]
    predictor = LatencyPredictor.fit(noisy, block=16)
    assert 0.005 < predictor.residual <= predictor.mean_error < 0.1


def test_from_files_modules_and_json(tmp_path: Path) -> None:
    example = torch.zeros(1, 3, 8, 8)
    models = [nn.Sequential(nn.Conv2d(3, w, 3), nn.ReLU(), nn.Conv2d(w, w, 3)).eval() for w in (16, 32, 48, 64)]
    files = [export_onnx(model, example, tmp_path / f"{i}.onnx") for i, model in enumerate(models)]
    times = [0.1 + 1e-7 * module_macs(model, example, 16) for model in models]
    mixed: list[tuple[bytes | Path | Work, float]] = [
        (files[0], times[0]),
        (files[1].read_bytes(), times[1]),
        (module_work(models[3], example, 16), times[3]),
    ]
    predictor = LatencyPredictor.fit(mixed, block=16, stamp={"rig": "fake"})
    assert predictor.predict(files[2]) == pytest.approx(times[2], rel=1e-6)
    assert predictor.predict_module(models[2], example) == predictor.predict(files[2].read_bytes())
    again = LatencyPredictor.from_dict(json.loads(json.dumps(predictor.to_dict())))
    assert again == predictor
    assert again.stamp == {"rig": "fake"}
    content = predictor.to_dict()
    for change, message in (({"more": 1}, "'more'"), ({"coefficients": {"x": 1.0}}, "unknown feature 'x'")):
        with pytest.raises(ValueError, match=message):
            LatencyPredictor.from_dict({**content, **change})
    del content["block"]
    with pytest.raises(ValueError, match="'block'"):
        LatencyPredictor.from_dict(content)


@pytest.mark.parametrize(
    ("measured", "message"),
    [
        ([(work(1.0), 1.0)] * 2, "at least 3 networks, got 2"),
        ([(work(1.0), 1.0), (work(2.0), 1.0), (work(3.0), 0.0)], "positive finite number, got 0"),
        ([(work(1.0), 1.0), (work(2.0), float("nan")), (work(3.0), 1.0)], "positive finite number, got nan"),
        ([(work(5.0), 1.0)] * 3, "all do the same work"),
    ],
)
def test_impossible_fits_are_refused_in_one_line(measured: list[tuple[Work, float]], message: str) -> None:
    with pytest.raises(EvaluationError, match=message) as caught:
        LatencyPredictor.fit(measured, block=16)
    assert "\n" not in str(caught.value)
