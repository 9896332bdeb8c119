"""ONNX files that somebody made to do harm: each is one line, and no other file is read for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from evaluators.errors import RigError
from evaluators.external_data import require_own_data
from evaluators.ort_rig import OrtCpuRig

SECRET = b"\x00\x00\x80\x3f" * 16


def model(nodes: list[NodeProto], weights: list[TensorProto] | None = None, shape: tuple[int, ...] = (1, 4)) -> bytes:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)) for name in "xy")
    graph = helper.make_graph(nodes, "graph", [x], [y], weights or [])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(made.SerializeToString())


def product() -> list[NodeProto]:
    return [helper.make_node("MatMul", ["x", "w"], ["y"])]


def weight(**fields: object) -> TensorProto:
    tensor = numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
    for name, value in fields.items():
        if name == "dims":
            del tensor.dims[:]
            tensor.dims.extend(value)  # type: ignore[arg-type]
        else:
            setattr(tensor, name, value)
    return tensor


def external(location: str) -> TensorProto:
    tensor = weight(raw_data=b"", data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "64")):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    return tensor


GOOD = model(product(), [weight()])
HOSTILE: dict[str, bytes] = {
    "huge dims": model(product(), [weight(dims=[2**40, 2**20])]),
    "huge dims without data": model(product(), [weight(dims=[2**40, 2**20], raw_data=b"")]),
    "negative dims": model(product(), [weight(dims=[-4, 4])]),
    "huge input": model([helper.make_node("Identity", ["x"], ["y"])], shape=(1, 2**31, 2**20)),
    "cycle": model(
        [
            helper.make_node("Add", ["x", "b"], ["a"]),
            helper.make_node("Add", ["a", "x"], ["b"]),
            helper.make_node("Add", ["b", "x"], ["y"]),
        ]
    ),
    "own input": model([helper.make_node("Add", ["y", "x"], ["y"])]),
    "unknown operator": model([helper.make_node("Evil", ["x"], ["y"], domain="com.evil")]),
    "truncated": GOOD[: len(GOOD) // 2],
    "empty": b"",
    "text": b"hello",
}


@pytest.mark.parametrize("as_file", [False, True], ids=["bytes", "file"])
@pytest.mark.parametrize("name", HOSTILE)
def test_one_line(tmp_path: Path, name: str, as_file: bool) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(HOSTILE[name])
    with pytest.raises(RigError) as caught:
        OrtCpuRig().measure(path if as_file else HOSTILE[name], GOOD)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def inside_branch(tensor: TensorProto) -> bytes:
    """The tensor as a constant of a branch: no initialiser of the graph."""
    branch: GraphProto = helper.make_graph(
        [helper.make_node("Constant", [], ["w"], value=tensor), helper.make_node("MatMul", ["x", "w"], ["z"])],
        "branch", [], [helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 4])],
    )  # fmt: skip
    condition = numpy_helper.from_array(np.array(True), "c")
    return model([helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)], [condition])


def as_initialiser(tensor: TensorProto) -> bytes:
    return model(product(), [tensor])


@pytest.mark.parametrize("place", [as_initialiser, inside_branch], ids=lambda place: place.__name__)
@pytest.mark.parametrize("location", ["/etc/passwd", "../secret.bin", "a/../../secret.bin", "link.bin", "", "folder/a"])
def test_no_file_outside_its_folder_is_read(
    tmp_path: Path, location: str, place: Callable[[TensorProto], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    (home / "folder").mkdir(parents=True)
    (tmp_path / "secret.bin").write_bytes(SECRET)
    (home / "link.bin").symlink_to(tmp_path / "secret.bin")
    (home / "folder" / "a").symlink_to(tmp_path / "secret.bin")
    path = home / "model.onnx"
    path.write_bytes(place(external(location)))
    with pytest.raises(RigError, match=r"which is not in its folder: save it as one file"):
        require_own_data(path)
    with pytest.raises(RigError, match="which is not in its folder"):
        OrtCpuRig().measure(path, GOOD)
    monkeypatch.chdir(home)  # where a model in memory would look
    with pytest.raises(RigError, match="keeps tensor 'w' in another file: save it as one file"):
        OrtCpuRig().measure(path.read_bytes(), GOOD)


def test_weights_beside_the_model_are_its_own(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(SECRET)
    path = tmp_path / "model.onnx"
    path.write_bytes(as_initialiser(external("weights.bin")))
    require_own_data(path)
    assert OrtCpuRig().measure(path, path).latency_ms > 0.0


def test_a_word_alone_is_no_external_data(tmp_path: Path) -> None:
    loaded = onnx.load_model_from_string(GOOD)
    loaded.doc_string = "location"
    require_own_data(bytes(loaded.SerializeToString()))
    require_own_data(tmp_path / "missing.onnx")
