"""A dense file cut to what remains of its tensors: exact where names and shapes allow, refused where they do not."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from evaluators.errors import ExportError
from evaluators.onnx_cut import Cut, cut_onnx

CHANNELS, FILTERS, SIDE, CLASSES = 3, 6, 4, 5
Array = np.ndarray[Any, Any]


def values(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


WEIGHTS = {
    "conv.weight": values(FILTERS, CHANNELS, 3, 3, seed=1),
    "conv.weight_bias": values(FILTERS, seed=2),
    "head.weight": values(CLASSES, FILTERS * SIDE * SIDE, seed=3),
    "head.bias": values(CLASSES, seed=4),
}


def file(width: list[int], weights: dict[str, Array] = WEIGHTS, allowzero: int = 1) -> bytes:
    """Convolution, flattening to `width` as the exporter writes it, and a linear layer."""
    nodes = [
        helper.make_node("Conv", ["input", "conv.weight", "conv.weight_bias"], ["maps"], pads=[1, 1, 1, 1]),
        helper.make_node("Reshape", ["maps", "shape"], ["flat"], allowzero=allowzero),
        helper.make_node("Gemm", ["flat", "head.weight", "head.bias"], ["output"], transB=1),
    ]
    tensors = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    tensors.append(numpy_helper.from_array(np.asarray(width, dtype=np.int64), "shape"))
    graph = helper.make_graph(
        nodes,
        "made up",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", CHANNELS, SIDE, SIDE])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", CLASSES])],
        tensors,
        value_info=[helper.make_tensor_value_info("maps", TensorProto.FLOAT, ["batch", FILTERS, SIDE, SIDE])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return bytes(model.SerializeToString())


def run(content: bytes, x: Array) -> Array:
    session = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"input": x})[0])


def expected(filters: list[int], channels: list[int], living: Array | None, x: Array) -> Array:
    """The dense graph with what is cut set to zero."""
    weight = WEIGHTS["conv.weight"].copy()
    weight[np.setdiff1d(range(FILTERS), filters)] = 0.0
    weight[:, np.setdiff1d(range(CHANNELS), channels)] = 0.0
    if living is not None:
        weight[np.ix_(filters, channels)] = np.where(living, weight[np.ix_(filters, channels)], 0.0)
    bias = WEIGHTS["conv.weight_bias"].copy()
    bias[np.setdiff1d(range(FILTERS), filters)] = 0.0
    zeroed = {**WEIGHTS, "conv.weight": weight, "conv.weight_bias": bias}
    return run(file([-1, FILTERS * SIDE * SIDE], zeroed), x)


def some(most: int) -> st.SearchStrategy[list[int]]:
    return st.sets(st.integers(0, most - 1), min_size=1).map(sorted)


@given(filters=some(FILTERS), channels=some(CHANNELS), zeros=st.booleans(), seed=st.integers(0, 9))
def test_a_cut_file_says_what_the_masked_one_says(
    filters: list[int], channels: list[int], zeros: bool, seed: int
) -> None:
    living = values(len(filters), len(channels), 3, 3, seed=seed) > 0 if zeros else None
    features = [f * SIDE * SIDE + i for f in filters for i in range(SIDE * SIDE)]
    cut = cut_onnx(
        file([-1, FILTERS * SIDE * SIDE]),
        {
            "conv.weight": Cut(axes={0: filters, 1: channels}, living=living, selects=(-3, channels)),
            "head.weight": Cut(axes={1: features}),
            "norm.weight": Cut(axes={0: filters}),  # fused: the file does not hold it
        },
    )
    onnx.checker.check_model(onnx.load_model_from_string(cut), full_check=True)
    x = values(2, CHANNELS, SIDE, SIDE, seed=seed)
    np.testing.assert_allclose(run(cut, x), expected(filters, channels, living, x), rtol=1e-4, atol=1e-4)
    shapes = {t.name: list(t.dims) for t in onnx.load_model_from_string(cut).graph.initializer}
    assert shapes["conv.weight"] == [len(filters), len(channels), 3, 3]
    assert shapes["conv.weight_bias"] == [len(filters)]
    assert shapes["head.weight"] == [CLASSES, len(features)]


def test_without_a_cut_nothing_that_counts_changes() -> None:
    dense, x = file([-1, FILTERS * SIDE * SIDE]), values(2, CHANNELS, SIDE, SIDE)
    np.testing.assert_array_equal(run(cut_onnx(dense, {}), x), run(dense, x))


def test_a_reshape_that_merges_the_batch_with_something_else_stays() -> None:
    # [batch, 6, 4, 4] -> [batch * 96 / 24, 24] is no flattening of all that is not the batch
    proto = onnx.load_model_from_string(cut_onnx(file([-1, 24]), {}))
    reshape = next(node for node in proto.graph.node if node.op_type == "Reshape")
    assert list(reshape.input) == ["maps", "shape"]


def test_a_depthwise_convolution_has_as_many_groups_as_filters_left() -> None:
    weight, x = values(FILTERS, 1, 3, 3), values(1, FILTERS, SIDE, SIDE)
    node = helper.make_node("Conv", ["input", "depthwise.weight"], ["output"], group=FILTERS, pads=[1, 1, 1, 1])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("input", "output")]
    graph = helper.make_graph([node], "made up", ends[:1], ends[1:], [numpy_helper.from_array(weight, node.input[1])])
    dense = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()
    left = [1, 4]
    cut = cut_onnx(dense, {"depthwise.weight": Cut(axes={0: left})})
    np.testing.assert_allclose(run(cut, x[:, left]), run(dense, x)[:, left], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "cut",
    [Cut(axes={0: [FILTERS]}), Cut(axes={4: [0]}), Cut(axes={0: [0]}, living=np.ones((2, CHANNELS, 3, 3), dtype=bool))],
)
def test_what_the_tensor_has_not_is_refused_by_name(cut: Cut) -> None:
    with pytest.raises(ExportError, match=r"conv\.weight: its shape in the file is \[6, 3, 3, 3\]"):
        cut_onnx(file([-1, FILTERS * SIDE * SIDE]), {"conv.weight": cut})
