"""Which way of writing a layer is kept, what is measured for it, and what is left alone. No time is taken here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from evaluators import lowering
from evaluators.errors import EvaluationError, RigError, RigUnavailable
from evaluators.lowering import LayerTimes, Lowered, LoweredLayer, choices, force, lower
from evaluators.measurement import Measurement
from evaluators.onnx_export import export_onnx
from evaluators.ort_rig import OrtCpuRig
from evaluators.parity import check_parity
from evaluators.timing import TimingSettings
from tests.evaluators.lowering_graphs import (
    Array,
    CountingRig,
    conv_model,
    measurement,
    model,
    random_weight,
    run,
    work,
)


def assert_one_line(call: Callable[[], object], words: str) -> None:
    with pytest.raises(EvaluationError) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert words in str(caught.value)


def sparse_conv(kept: float = 0.2, *, seed: int = 0, filters: int = 64) -> bytes:
    """64 channels at 20x20, 3x3, columns at random."""
    live = np.random.default_rng(seed).permutation(64 * 9) < round(kept * 64 * 9)
    return conv_model(random_weight((filters, 64, 3, 3), live.reshape(1, 64, 3, 3)), (20, 20), pads=[1] * 4)


def network(*kept: float) -> bytes:
    """Convolutions `c0`, `c1`, ..., 32 wide at 8x8, each of other columns, each with a Relu."""
    constants: dict[str, Array] = {}
    nodes: list[onnx.NodeProto] = []
    value = "x"
    for number, part in enumerate(kept):
        live = np.random.default_rng(number).permutation(32 * 9) < round(part * 32 * 9)
        constants[f"c{number}.weight"] = random_weight((32, 32, 3, 3), live.reshape(1, 32, 3, 3), seed=number)
        nodes.append(helper.make_node("Conv", [value, f"c{number}.weight"], [f"y{number}"], pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"y{number}"], [f"z{number}"]))
        value = f"z{number}"
    return bytes(model(nodes, constants, ["n", 32, 8, 8]).SerializeToString())


class TableRig(CountingRig):
    """Layers by a table of choices, whole files by a function of the choices found in them."""

    def __init__(self, table: dict[str, float], whole: Callable[[set[str]], tuple[float, float]] | None = None) -> None:
        super().__init__()
        self.table, self.whole = table, whole

    def __call__(self, candidate: bytes, reference: bytes) -> Measurement:
        self.asked.append((candidate, reference))
        graph = onnx.load_model_from_string(candidate).graph
        if graph.name != "layer":
            names = {node.name.partition("/lowered/")[0] for node in graph.node if "/lowered/" in node.name}
            speedup, low = self.whole(names) if self.whole else (2.0, 2.0)
            return measurement(speedup, low=low)
        kinds = [node.op_type for node in graph.node]
        if kinds[0] == "Pad" or "Concat" in kinds:
            return measurement(self.table["slice"])
        depthwise = any(a.name == "group" and a.i > 1 for node in graph.node for a in node.attribute)
        return measurement(self.table[("hybrid" if "Add" in kinds else "one-hot") if depthwise else "gather"])


def test_without_zeros_nothing_is_measured_and_the_bytes_come_back() -> None:
    content = network(1.0, 1.0)
    rig = CountingRig()
    result = lower(content, rig)
    assert result.content is content
    assert (result.changed, result.speedup, rig.asked) == (False, 1.0, [])
    assert [(layer.name, layer.choice, layer.speedup) for layer in result.layers] == [
        ("c0", "dense", 1.0),
        ("c1", "dense", 1.0),
    ]
    assert all(layer.reason == "it has no zero columns" for layer in result.layers)


def test_the_fastest_measured_way_is_kept() -> None:
    content = sparse_conv()
    rig = TableRig({"one-hot": 3.0, "slice": 4.0, "hybrid": 1.0, "gather": 1.0})
    result = lower(content, rig)
    assert [layer.choice for layer in result.layers] == ["slice"]
    assert result.layers[0].tried == {"one-hot": 3.0, "slice": 4.0}
    assert result.layers[0].speedup == 4.0
    assert result.layers[0].reason is None
    assert (result.changed, result.speedup) == (True, 2.0)
    assert result.content == force(content, {"conv": "slice"})
    assert rig.asked[-1] == (result.content, content)
    assert len(rig.asked) == 3


@pytest.mark.parametrize(("speedup", "choice"), [(1.02, "dense"), (1.03, "dense"), (1.04, "one-hot"), (0.4, "dense")])
def test_a_gain_within_three_percent_is_none(speedup: float, choice: str) -> None:
    rig = TableRig({"one-hot": speedup, "slice": 0.5, "hybrid": 0.5, "gather": 0.5})
    result = lower(sparse_conv(), rig)
    assert result.layers[0].choice == choice
    assert result.layers[0].tried["one-hot"] == speedup
    assert result.changed is (choice != "dense")
    if choice == "dense":
        assert result.layers[0].speedup == 1.0
        assert f"{max(speedup, 0.5):.3g}x" in (result.layers[0].reason or "")
        assert len(rig.asked) == 2  # the whole file was not measured


def test_other_bounds_on_the_gain() -> None:
    rig = TableRig({"one-hot": 1.2, "slice": 0.5, "hybrid": 0.5, "gather": 0.5})
    assert lower(sparse_conv(), rig, least_gain=0.25).changed is False
    assert lower(sparse_conv(), rig, least_gain=0.1).changed is True


def test_what_looks_hopeless_is_not_measured() -> None:
    rig = CountingRig()
    result = lower(sparse_conv(0.97), rig)
    assert rig.asked == []
    assert result.layers[0].tried == {}
    assert "no way of writing it looks faster" in (result.layers[0].reason or "")


def test_at_most_three_ways_are_measured() -> None:
    live = np.zeros((1, 64, 3, 3), dtype=bool)
    live[:, :32, :, :2] = True
    live[:, 32:40, 0, 1] = True
    content = conv_model(random_weight((64, 64, 3, 3), live), (8, 8), pads=[1] * 4)
    assert len(choices(content)["conv"]) > 4
    rig = CountingRig()
    result = lower(content, rig)
    assert len(result.layers[0].tried) == 3
    assert len(rig.asked) == 4


def test_a_layer_is_measured_at_its_size_and_batch_with_its_relu() -> None:
    rig = CountingRig()
    lower(sparse_conv(), rig, batch=5)
    for content in rig.asked[0]:
        graph = onnx.load_model_from_string(content).graph
        assert [dim.dim_value for dim in graph.input[0].type.tensor_type.shape.dim] == [5, 64, 20, 20]
        assert graph.node[-1].op_type == "Relu"
    shape = onnx.load_model_from_string(rig.asked[-1][0]).graph.input[0].type.tensor_type.shape
    assert shape.dim[0].dim_param == "n"


def test_rows_of_several_samples_are_measured_as_samples() -> None:
    weight = np.zeros((640, 320), dtype=np.float32)
    weight[::4] = 1
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["rows"]),
        helper.make_node("Gemm", ["rows", "fc.weight"], ["y"], name="fc"),
    ]
    constants: dict[str, Array] = {"shape": np.asarray([-1, 640], dtype=np.int64), "fc.weight": weight}
    content = model(nodes, constants, ["n", 5, 640]).SerializeToString()
    rig = CountingRig()
    result = lower(content, rig, batch=2)
    assert result.layers[0].choice == "gather"
    for asked in rig.asked[0]:
        assert run(asked, np.ones((2, 5, 640), dtype=np.float32)).shape == (10, 320)
    x = np.random.default_rng(0).standard_normal((3, 5, 640)).astype(np.float32)
    assert np.allclose(run(result.content, x), run(content, x), atol=1e-4)


def test_a_layer_of_a_known_kind_is_not_measured_again() -> None:
    known = LayerTimes()
    first = lower(network(0.2, 0.2, 1.0), CountingRig(), known=known)
    # Two layers of one kind are measured once already: the numbers that decide, not the weights.
    assert len(known.speedups) == len(first.layers[0].tried)
    again = LayerTimes.from_dict(json.loads(json.dumps(known.to_dict())))
    assert again == known
    rig = CountingRig()
    second = lower(network(0.2, 0.2, 1.0), rig, known=again)
    assert second == first
    assert rig.asked == [(second.content, network(0.2, 0.2, 1.0))]
    assert again == known
    other = CountingRig()
    # Fewer columns, but as many blocks of 16.
    lower(network(0.195, 0.2, 1.0), other, known=again)
    assert len(other.asked) == 1
    for changed in ({"batch": 2}, {"block": 4}):
        other = CountingRig()
        lower(network(0.2, 0.2, 1.0), other, known=again, **changed)
        assert len(other.asked) > 1


def test_a_whole_file_that_is_slower_loses_the_lesser_half_of_its_rewrites() -> None:
    content = network(0.1, 0.4, 0.2, 0.5)
    rig = CountingRig()
    times = LayerTimes()
    lower(content, rig, known=times)
    table = TableRig({}, lambda names: (1.5, 1.4) if names <= {"c0", "c2"} else (1.1, 0.97))
    result = lower(content, table, known=times)
    assert [layer.choice for layer in result.layers] == ["one-hot", "dense", "one-hot", "dense"]
    assert result.speedup == 1.5
    assert len(table.asked) == 2
    for layer in (result.layers[1], result.layers[3]):
        assert layer.speedup == 1.0
        assert layer.tried["one-hot"] > 1.5
        assert "undone" in (layer.reason or "")
        assert "0.97x" in (layer.reason or "")
    assert result.content == force(content, {"c0": "one-hot", "c2": "one-hot"})


def test_a_whole_file_that_is_always_slower_comes_back_as_it_was() -> None:
    content = network(0.1, 0.4, 0.2)
    rig = TableRig({"one-hot": 3.0, "slice": 1.0, "gather": 1.0, "hybrid": 1.0}, lambda names: (0.99, 0.9))
    result = lower(content, rig)
    assert result.content is content
    assert (result.changed, result.speedup) == (False, 1.0)
    assert all(layer.choice == "dense" and "undone" in (layer.reason or "") for layer in result.layers)


def test_a_layer_that_the_rig_cannot_run_stays_dense() -> None:
    def refuses(candidate: bytes, reference: bytes) -> Measurement:
        if onnx.load_model_from_string(candidate).graph.name == "layer":
            raise RigError("no such\nkernel")
        raise AssertionError("nothing was rewritten")

    result = lower(sparse_conv(), refuses)
    assert result.changed is False
    assert result.layers[0].reason == "it cannot be measured alone: no such kernel"

    def missing(candidate: bytes, reference: bytes) -> Measurement:
        raise RigUnavailable("gone")

    with pytest.raises(RigUnavailable):
        lower(sparse_conv(), missing)


def single(op: str, weight: Array, size: tuple[int, ...], **attributes: Any) -> onnx.ModelProto:
    channels = weight.shape[0] if op == "ConvTranspose" else weight.shape[1] * attributes.get("group", 1)
    return model(
        [helper.make_node(op, ["x", "w"], ["y"], name="it", **attributes)], {"w": weight}, ["n", channels, *size]
    )


def with_(change: Callable[[onnx.ModelProto], object]) -> onnx.ModelProto:
    proto = onnx.load_model_from_string(sparse_conv())
    change(proto)
    return proto


def weight_as_input(proto: onnx.ModelProto) -> None:
    proto.graph.input.append(helper.make_tensor_value_info("conv.weight", TensorProto.FLOAT, [64, 64, 3, 3]))


def shared(proto: onnx.ModelProto) -> None:
    proto.graph.node.insert(1, helper.make_node("Conv", ["y", "conv.weight"], ["y2"], pads=[1] * 4, name="second"))
    proto.graph.node[2].input[0] = "y2"


def free_size(proto: onnx.ModelProto) -> None:
    del proto.graph.value_info[:]
    for value in (proto.graph.input[0], proto.graph.output[0]):
        value.type.tensor_type.shape.dim[3].dim_param = "width"


def dynamic_weight(proto: onnx.ModelProto) -> None:
    proto.graph.node.insert(0, helper.make_node("Identity", ["conv.weight"], ["w"]))
    proto.graph.node[1].input[1] = "w"


def dynamic_bias(proto: onnx.ModelProto) -> None:
    proto.graph.node.insert(0, helper.make_node("Identity", ["conv.bias"], ["b"]))
    proto.graph.node[1].input[2] = "b"


def old(proto: onnx.ModelProto) -> None:
    proto.opset_import[0].version = 9


SPARSE = np.zeros((16, 1, 3, 3), dtype=np.float32)


@pytest.mark.parametrize(
    ("proto", "reason"),
    [
        (single("ConvTranspose", np.zeros((4, 4, 3, 3), dtype=np.float32), (8, 8)), "transposed"),
        (single("Conv", SPARSE, (8, 8), group=16), "depthwise"),
        (single("Conv", np.zeros((4, 4, 3, 3), dtype=np.float16), (8, 8)), "FLOAT16"),
        (with_(weight_as_input), "not a constant initializer"),
        (with_(dynamic_weight), "not a constant initializer"),
        (with_(dynamic_bias), "bias is not a constant"),
        (with_(shared), "shared by several nodes"),
        (with_(free_size), "size of its input is not known"),
        (with_(old), "opset 11"),
    ],
)
def test_what_cannot_be_lowered_is_left_with_its_reason(proto: onnx.ModelProto, reason: str) -> None:
    if reason == "FLOAT16":
        proto.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16
        proto.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    content = proto.SerializeToString()
    result = lower(content, CountingRig())
    assert result.content is content
    assert result.changed is False
    assert all(reason in (layer.reason or "") for layer in result.layers)
    assert result.layers


def test_a_lowered_file_is_lowered_no_further() -> None:
    first = lower(network(0.2, 0.15), CountingRig())
    assert first.changed
    rig = CountingRig()
    again = lower(first.content, rig)
    assert again.changed is False
    assert again.content is first.content
    assert rig.asked == []


def test_an_exported_network_is_lowered_and_says_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(16, 48, 5, padding=2),
        nn.BatchNorm2d(48),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(48, 48, 3, padding=1, groups=3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(48 * 16, 24),
    ).eval()
    with torch.no_grad():
        for layer in (net[0], net[4], net[7]):
            weight = layer.weight
            assert isinstance(weight, torch.Tensor)
            weight *= torch.rand(weight.shape[1:]) < 0.15
    path = export_onnx(net, torch.randn(1, 16, 8, 8), tmp_path / "net.onnx")
    result = lower(path, CountingRig())
    assert {layer.name: layer.choice for layer in result.layers} == {"0": "one-hot", "4": "one-hot", "7": "gather"}
    assert work(result.content) < 0.5 * work(path.read_bytes())
    check_parity(net, result.content, [torch.randn(3, 16, 8, 8), torch.randn(1, 16, 8, 8)], tolerance=1e-4).require()
    assert lower(path.read_bytes(), CountingRig()) == result


def test_a_real_rig_measures_layers_and_file() -> None:
    rig = OrtCpuRig(settings=TimingSettings(min_pairs=1, max_pairs=1))
    known = LayerTimes()
    result = lower(sparse_conv(0.1, filters=128), rig.measure, known=known)
    assert known.speedups
    assert all(value > 0 for value in known.speedups.values())
    assert [layer.name for layer in result.layers] == ["conv"]


def test_json_round_trips() -> None:
    result = lower(network(0.2, 1.0), CountingRig())
    text = json.dumps(result.to_dict(), allow_nan=False)
    assert "content" not in json.loads(text)
    assert Lowered.from_dict(json.loads(text), result.content) == result
    assert Lowered.from_dict(json.loads(text)).content == b""
    for content, kind in (
        ({**result.to_dict(), "more": 1}, Lowered),
        ({"name": "conv"}, LoweredLayer),
        ({"speedups": {}, "more": 1}, LayerTimes),
        ({"speedups": {"a": 0.0}}, LayerTimes),
        ({"speedups": {"a": float("nan")}}, LayerTimes),
    ):
        with pytest.raises(ValueError, match=r"unknown|positive"):
            kind.from_dict(content)


def test_what_cannot_be_read_is_refused_in_one_line(tmp_path: Path) -> None:
    rig = CountingRig()
    assert_one_line(lambda: lower(b"garbage", rig), "not a valid ONNX file")
    assert_one_line(lambda: lower(tmp_path / "none.onnx", rig), "none.onnx")
    fixed = conv_model(random_weight((4, 4, 3, 3), np.zeros((1, 4, 3, 3))), (8, 8), batch=2)
    assert_one_line(lambda: lower(fixed, rig), "fixed at 2")
    assert lower(fixed, rig, batch=2).layers[0].name == "conv"
    assert_one_line(lambda: force(fixed, {"fc": "gather"}, batch=2), "no layer 'fc'")
    assert_one_line(lambda: force(fixed, {"conv": "magic"}, batch=2), "'magic'")


@pytest.mark.parametrize("seed", range(40))
def test_flipped_bytes_are_lowered_or_refused_in_one_line(seed: int) -> None:
    rng = np.random.default_rng(seed)
    content = bytearray(network(0.2))
    for place in rng.integers(-300, 300, size=rng.integers(1, 6)):
        content[place] = rng.integers(256)
    try:
        outcome = lower(
            bytes(content), TableRig({"one-hot": 2.0, "slice": 1.0, "gather": 1.0, "hybrid": 1.0})
        ).to_dict()
    except EvaluationError as error:
        outcome = {"error": str(error)}
    assert outcome
    assert "\n" not in outcome.get("error", "")


def test_weights_kept_beside_the_file_are_asked_for() -> None:
    proto = onnx.load_model_from_string(sparse_conv())
    for tensor in proto.graph.initializer:
        if tensor.name == "conv.weight":
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value="weights.bin")
    assert_one_line(lambda: lower(proto.SerializeToString(), CountingRig()), "conv.weight")


def test_lowering_knows_no_plan() -> None:
    assert not any(name in vars(lowering) for name in ("admm", "search", "PruningPlan"))
