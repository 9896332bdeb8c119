"""Whatever way a layer is written, the file says the same: every candidate forced in turn, in ONNX Runtime."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from evaluators.lowering import choices, force
from tests.evaluators.lowering_graphs import Array, conv_model, model, random_weight, run

PATTERNS = ("random", "channels", "positions", "whole_and_random", "boxes", "nothing", "single")


def live_columns(pattern: str, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Which columns [groups, channels, *kernel] live."""
    groups, channels, *kernel = shape
    if pattern == "nothing":
        return np.zeros(shape, dtype=bool)
    if pattern == "single":
        one = np.zeros(math.prod(shape), dtype=bool)
        one[rng.integers(one.size)] = True
        return one.reshape(shape)
    if pattern == "channels":
        return np.broadcast_to(rng.random((groups, channels, *(1,) * len(kernel))) < 0.4, shape).copy()
    if pattern == "positions":
        return np.broadcast_to(rng.random(kernel) < 0.5, shape).copy()
    live = rng.random(shape) < 0.3
    if pattern == "whole_and_random":
        live[:, : channels // 3] = True
    if pattern == "boxes":
        live[:] = False
        for channel in range(channels):
            corners = [int(rng.integers(k)) for k in kernel]
            box = tuple(slice(corner, corner + 1 + channel % 2) for corner in corners)
            live[:, channel][(slice(None), *box)] = True
    return live


@st.composite
def convolutions(draw: st.DrawFn, relu: bool | None = None) -> tuple[bytes, tuple[int, ...], int]:
    """A convolution with zero columns in a file of free batch, the shape of one input, and a block."""
    dims = draw(st.integers(1, 3))
    groups = draw(st.sampled_from((1, 1, 2, 3)))
    channels = draw(st.integers(2, 40 if groups == 1 and dims < 3 else 9))
    filters = groups * draw(st.integers(1, 5))
    each = st.tuples(*[st.integers(1, 5 if dims < 3 else 3)] * dims)
    kernel, strides = draw(each), draw(st.tuples(*[st.integers(1, 3)] * dims))
    dilations = draw(st.tuples(*[st.integers(1, 2)] * dims))
    attributes: dict[str, Any] = {"group": groups, "strides": strides, "dilations": dilations}
    mode = draw(st.sampled_from(("NOTSET", "NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")))
    pads = [0] * 2 * dims
    if mode != "NOTSET":
        attributes |= {"auto_pad": mode}
        # ONNX Runtime refuses SAME with dilation.
        attributes["dilations"] = dilations = (1,) * dims if mode.startswith("SAME") else dilations
    else:
        pads = draw(st.lists(st.integers(0, 3), min_size=2 * dims, max_size=2 * dims))
        attributes |= {"pads": pads}
    spans = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
    size = tuple(max(1, span - pads[i] - pads[dims + i]) + draw(st.integers(0, 5)) for i, span in enumerate(spans))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    live = live_columns(draw(st.sampled_from(PATTERNS)), (groups, channels, *kernel), rng)
    weight = random_weight((filters, channels, *kernel), live, groups)
    content = conv_model(
        weight, size, bias=draw(st.booleans()), relu=draw(st.booleans()) if relu is None else relu, **attributes
    )
    return content, (channels * groups, *size), draw(st.sampled_from((1, 4, 16)))


def assert_same(content: bytes, lowered: bytes, x: Array) -> None:
    expected, got = run(content, x), run(lowered, x)
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= 1e-4 * max(float(np.abs(expected).max()), 1e-3)


SEEN: set[str] = set()


@given(convolutions())
@settings(max_examples=200)
def test_every_way_of_writing_a_convolution_says_the_same(case: tuple[bytes, tuple[int, ...], int]) -> None:
    content, shape, block = case
    rng = np.random.default_rng(0)
    for choice in choices(content, block=block)["conv"]:
        SEEN.add(choice)
        lowered = force(content, {"conv": choice}, block=block)
        for batch in (1, 3):
            assert_same(content, lowered, rng.standard_normal((batch, *shape)).astype(np.float32))


def test_the_property_met_every_way() -> None:
    if not SEEN:
        pytest.skip("the property did not run in this process")
    assert {"one-hot", "gather", "crop", "slice", "box", "hybrid"} == SEEN


# Of the layer's own output: a Relu makes a finite zero of minus infinity, and of NaN.
@given(convolutions(relu=False), st.sampled_from((np.inf, -np.inf, np.nan)), st.integers(0, 2**32 - 1))
@settings(max_examples=60)
def test_what_was_finite_stays_finite(case: tuple[bytes, tuple[int, ...], int], value: float, seed: int) -> None:
    content, shape, block = case
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((1, *shape)).astype(np.float32)
    x.reshape(-1)[rng.integers(x.size)] = value
    expected = run(content, x)
    finite = np.isfinite(expected)
    allowed = 1e-4 * float(np.abs(expected[finite]).max(initial=1e-3))
    for choice in choices(content, block=block)["conv"]:
        got = run(force(content, {"conv": choice}, block=block), x)
        assert (np.abs(got[finite] - expected[finite]) <= allowed).all()


@given(
    op=st.sampled_from(("Gemm", "GemmT", "MatMul", "MatMul3")),
    sizes=st.tuples(st.integers(1, 70), st.integers(1, 9)),
    kept=st.floats(0, 1),
    block=st.sampled_from((1, 4, 16)),
    bias=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=80)
def test_linear_layers_say_the_same(
    op: str, sizes: tuple[int, int], kept: float, block: int, bias: bool, seed: int
) -> None:
    inputs, outputs = sizes
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal(sizes).astype(np.float32)
    weight[rng.random(inputs) >= kept] = 0
    constants: dict[str, Array] = {"fc.weight": weight.T.copy() if op == "GemmT" else weight}
    attributes: dict[str, Any] = {}
    if op.startswith("Gemm"):
        attributes = {"alpha": 0.5, "beta": 2.0, "transB": int(op == "GemmT")}
        if bias:
            constants["fc.bias"] = rng.standard_normal(outputs).astype(np.float32)
    shape = (5, inputs) if op == "MatMul3" else (inputs,)
    node = helper.make_node(op[:6].rstrip("T"), ["x", *constants], ["y"], name="fc", **attributes)
    content = model([node], constants, ["n", *shape]).SerializeToString()
    ways = choices(content, block=block)["fc"]
    live = int((weight != 0).any(axis=1).sum())
    assert bool(ways) == (max(1, math.ceil(live / block) * block) < inputs)
    for choice in ways:
        lowered = force(content, {"fc": choice}, block=block)
        for batch in (1, 3):
            assert_same(content, lowered, rng.standard_normal((batch, *shape)).astype(np.float32))


@pytest.mark.parametrize("choice", ["one-hot", "crop", "slice", "gather", "box", "hybrid"])
def test_the_file_stays_what_it_was_around_the_layer(choice: str) -> None:
    rng = np.random.default_rng(0)
    live = rng.random((1, 48, 5, 5)) < 0.2
    live[:, :16] = True
    live[:, :, [0, 4]] = live[..., [0, 4]] = False
    live[:, 40:] = False
    live[:, 20:40, 1:3] = False
    content = conv_model(random_weight((8, 48, 5, 5), live), (9, 9), pads=[2, 2, 2, 2])
    before = onnx.load_model_from_string(content)
    lowered = force(content, {"conv": choice}, block=4)
    after = onnx.load_model_from_string(lowered)
    onnx.checker.check_model(after, full_check=True)
    assert after.ir_version == before.ir_version
    assert list(after.opset_import) == list(before.opset_import)
    assert list(after.metadata_props) == list(before.metadata_props)
    assert list(after.graph.input) == list(before.graph.input)
    assert list(after.graph.output) == list(before.graph.output)
    names = [node.name for node in after.graph.node]
    constants = [tensor.name for tensor in after.graph.initializer]
    assert len(set(names)) == len(names)
    assert len(set(constants)) == len(constants)
    assert "conv.weight" not in constants
    assert "conv.bias" in constants
    assert names[-1] == "node_relu"
    assert lowered == force(content, {"conv": choice}, block=4)
    assert_same(content, lowered, rng.standard_normal((2, 48, 9, 9)).astype(np.float32))


def test_names_already_taken_are_not_used_again() -> None:
    live = np.arange(8 * 9).reshape(1, 8, 3, 3) % 4 == 0
    weight = random_weight((4, 8, 3, 3), live)
    nodes = [
        helper.make_node("Identity", ["x"], ["conv/lowered/gather_out"], name="conv/lowered/conv"),
        helper.make_node("Conv", ["conv/lowered/gather_out", "conv.weight"], ["y"], name="conv/lowered/gather"),
    ]
    constants = {"conv.weight": weight}
    content = model(nodes, constants, ["n", 8, 5, 5]).SerializeToString()
    lowered = force(content, {"conv": "one-hot"}, block=4)
    names = [node.name for node in onnx.load_model_from_string(lowered).graph.node]
    assert len(set(names)) == len(names) == 4
    assert_same(content, lowered, np.random.default_rng(0).standard_normal((2, 8, 5, 5)).astype(np.float32))


def test_only_live_columns_are_computed() -> None:
    rng = np.random.default_rng(0)
    live = np.zeros(32 * 9, dtype=bool)
    live[rng.permutation(live.size)[:45]] = True
    content = conv_model(random_weight((16, 32, 3, 3), live.reshape(1, 32, 3, 3)), (8, 8))
    after = onnx.load_model_from_string(force(content, {"conv": "one-hot"}))
    shapes = [tuple(tensor.dims) for tensor in after.graph.initializer if len(tensor.dims) == 4]
    assert shapes == [(48, 1, 3, 3), (16, 48, 1, 1)]  # 45 columns, filled up to a multiple of 16


def test_a_larger_kernel_is_shifted_one_dimension_at_a_time() -> None:
    live = np.random.default_rng(0).random((1, 32, 5, 5)) < 0.2
    content = conv_model(random_weight((16, 32, 5, 5), live), (9, 9), strides=[2, 1], pads=[2, 2, 2, 2])
    after = onnx.load_model_from_string(force(content, {"conv": "one-hot"}))
    shapes = [tuple(tensor.dims)[2:] for tensor in after.graph.initializer if len(tensor.dims) == 4]
    assert shapes == [(5, 1), (1, 5), (1, 1)]
