"""Times by node: what a profile of the runtime's means, and that a user finds the layers by their own names."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from evaluators import RigError, export_onnx
from evaluators.layer_times import layer_times, node_times
from tests.evaluators.models import ZOO


def exported(module: nn.Module, shape: tuple[int, ...], folder: Path) -> bytes:
    return export_onnx(module.eval(), torch.zeros(1, *shape), folder / "model.onnx").read_bytes()


def event(name: str, op: str, begin: float, length: float, index: int = 0) -> Mapping[str, Any]:
    return {
        "cat": "Node",
        "name": f"{name}_kernel_time",
        "ts": begin,
        "dur": length,
        "args": {"op_name": op, "node_index": str(index)},
    }


def whole(begin: float, length: float) -> Mapping[str, Any]:
    return {"cat": "Session", "name": "model_run", "ts": begin, "dur": length, "args": {}}


def test_node_times_of_a_profile_by_hand() -> None:
    events: list[Mapping[str, Any]] = [{"cat": "Session", "name": "session_initialization", "ts": 0, "dur": 50}]
    for i, (conv, relu) in enumerate([(9000, 9000), (100, 10), (120, 10), (140, 10), (9000, 10)]):
        begin = 1000.0 + 20_000.0 * i
        events += [event("conv", "Conv", begin + 1, conv), event("relu", "Relu", begin + 9500, relu, 1)]
        events += [event("conv", "Conv", begin + 9600, 7.0, 2), whole(begin, 19_000)]
    times = node_times(events, warmups=1)
    # the middle half of 100, 120, 140 and the one that waited for a core
    assert times == [
        ("conv_kernel_time", "Conv", 0.13),
        ("relu_kernel_time", "Relu", 0.01),
        ("conv_kernel_time", "Conv", 0.007),
    ]
    assert node_times(events[:1]) == []


def test_a_node_in_a_loop_is_summed_over_a_run() -> None:
    events = [event("add", "Add", 10, 5), event("add", "Add", 20, 7), whole(0, 100)]
    assert node_times(events) == [("add_kernel_time", "Add", 0.012)]


@pytest.mark.parametrize(
    ("kind", "layers"),
    [
        ("residual", ["stem.0", "inner", "head"]),
        ("concat", ["a", "b", "out"]),
        ("depthwise", ["0", "1"]),
        ("transposed", ["0"]),
        ("layernorm", ["0", "1"]),
    ],
)
def test_layers_have_their_own_names(
    kind: str, layers: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    factory, shape = ZOO[kind]
    content, scratch = exported(factory(), shape, tmp_path), tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    times = layer_times(content, runs=3)
    assert sorted(t.name for t in times if t.name in layers) == sorted(layers)
    assert all(t.ms >= 0.0 for t in times)
    assert sum(t.share for t in times) == pytest.approx(1.0)
    moves = [t.op for t in times if t.op.startswith("Reorder")]
    assert len(moves) == len(set(moves)), "summed by kind"
    assert [t.name for t in times if t.op in moves] == moves
    assert not list(scratch.iterdir()), "the profile is gone"


def test_a_linear_layer_over_a_sequence_is_found_by_its_bias(tmp_path: Path) -> None:
    """Its weight is transposed and renamed by the export: only the bias keeps the layer's name."""
    module = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 8))
    times = layer_times(exported(module, (4, 16), tmp_path), batch=2, runs=2)
    assert [t.name for t in times if t.op == "MatMul"] == ["0", "2"]


def test_a_file_is_timed_as_its_bytes_are(tmp_path: Path) -> None:
    factory, shape = ZOO["residual"]
    content = exported(factory(), shape, tmp_path)
    named = [(t.name, t.op) for t in layer_times(tmp_path / "model.onnx", runs=1)]
    assert named == [(t.name, t.op) for t in layer_times(content, runs=1)]
    assert layer_times(content), "as many runs as a second holds"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"runs": 0}, "runs must be an integer >= 1, got 0"),
        ({"batch": 0}, "batch must be an integer >= 1, got 0"),
        ({"batch": True}, "batch must be an integer >= 1, got True"),
    ],
)
def test_wrong_options(options: dict[str, Any], says: str) -> None:
    with pytest.raises(RigError, match=says):
        layer_times(b"", **options)


def test_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(RigError, match="ONNX Runtime cannot load the model"):
        layer_times(b"this is no model")
    with pytest.raises(RigError, match="no ONNX file at"):
        layer_times(tmp_path / "none.onnx")
