"""int8 by the library, on a small network that was trained: untrained outputs lie too close together to judge."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from evaluators import quantize
from evaluators.accuracy import OnnxPredictor, evaluate, top1
from evaluators.errors import EvaluationError
from evaluators.onnx_export import batch_kind, export_onnx
from evaluators.parity import ParityError, check_parity
from evaluators.quantize import INT8_TOLERANCE, PRECISION_KEY, check_int8, int8_weights, quantize_int8
from search.tasks import digits
from search.tasks.base import prepare
from search.tasks.dense import build_model, train_dense
from tests.evaluators.models import ZOO, randomise

#: Percentage points of 300 validation images: three of them.
MOST_DROP = 1.0


@dataclass(frozen=True)
class Trained:
    """The digits network after a few epochs, its file and its data."""

    module: nn.Module
    fp32: bytes
    calibration: list[Tensor]
    validation: list[tuple[Tensor, Tensor]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    pytest.importorskip("sklearn")
    task = digits.task(width=16, epochs=3, min_accuracy=0.9)
    prepared = prepare(task)
    module = build_model(prepared)
    assert task.dense is not None
    train_dense(prepared, module, task.dense)
    path = export_onnx(module, prepared.example_input, tmp_path_factory.mktemp("int8") / "fp32.onnx")
    inputs = [x for x, _ in prepared.train_batches(0)]
    return Trained(module, path.read_bytes(), inputs, list(prepared.val_batches()))


@pytest.fixture(scope="module")
def int8(trained: Trained) -> bytes:
    return quantize_int8(trained.fp32, trained.calibration)


def exported(module: nn.Module, shape: tuple[int, ...], folder: Path, *, batch: int = 1, dynamic: bool = True) -> bytes:
    example = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(0))
    return export_onnx(module, example, folder / "model.onnx", dynamic_batch=dynamic).read_bytes()


def graph(nodes: tuple[list[onnx.NodeProto], dict[str, np.ndarray]], columns: int = 1) -> bytes:
    """Nodes from `x` [batch, columns] to `y`, with their constants, as a file."""
    sides = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size])
        for name, size in (("x", columns), ("y", None))
    ]
    constants = [numpy_helper.from_array(value, name) for name, value in nodes[1].items()]
    made = helper.make_graph(nodes[0], "small", sides[:1], sides[1:], constants)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


def gemm(weight: list[list[float]], bias: list[float]) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray]]:
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="gemm", transB=1)
    return [node], {"w": np.asarray(weight, np.float32), "b": np.asarray(bias, np.float32)}


def drawn(shape: tuple[int, ...], *, batches: int = 4, size: int = 32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, *shape, generator=generator) for _ in range(batches)]


def refused(work: Callable[[], object], *words: str) -> None:
    with pytest.raises(EvaluationError) as caught:
        work()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def operators(model: bytes) -> set[str]:
    return {node.op_type for node in onnx.load_model_from_string(model).graph.node}


class TestTheFile:
    def test_accuracy_stays(self, trained: Trained, int8: bytes) -> None:
        scores = [evaluate(OnnxPredictor(file), trained.validation, top1).value for file in (trained.fp32, int8)]
        assert scores[0] >= 0.9
        assert 100.0 * (scores[0] - scores[1]) <= MOST_DROP

    def test_every_layer_reads_and_writes_int8(self, int8: bytes) -> None:
        graph = onnx.load_model_from_string(int8).graph
        makers = {name: node for node in graph.node for name in node.output}
        readers = {name: node for node in graph.node for name in node.input}
        layers = [node for node in graph.node if node.op_type in ("Conv", "Gemm")]
        assert len(layers) == 9
        for layer in layers:
            assert {makers[name].op_type for name in layer.input} == {"DequantizeLinear"}
            ends = layer.output[0] == graph.output[0].name
            assert ends is (layer.op_type == "Gemm")
            assert ends or readers[layer.output[0]].op_type == "QuantizeLinear"

    def test_weights_are_int8_per_channel_and_activations_uint8(self, trained: Trained, int8: bytes) -> None:
        graph = onnx.load_model_from_string(int8).graph
        values = {item.name: item for item in graph.initializer}
        assert sorted(int8_weights(int8).values()) == sorted(
            tuple(p.shape) for p in trained.module.parameters() if p.ndim > 1
        )
        for node in graph.node:
            if node.op_type == "QuantizeLinear":
                assert values[node.input[2]].data_type == TensorProto.UINT8
            elif node.op_type == "DequantizeLinear" and node.input[0] in int8_weights(int8):
                scales = numpy_helper.to_array(values[node.input[1]])
                assert scales.shape == (values[node.input[0]].dims[0],)
                assert len(np.unique(scales)) > 1
        assert len(int8) < 0.5 * len(trained.fp32)

    def test_reduced_weights_stay_within_7_bits(self, trained: Trained) -> None:
        largest = []
        for reduced in (False, True):
            content = quantize_int8(trained.fp32, trained.calibration, reduce_range=reduced)
            assert check_int8(trained.fp32, content, trained.calibration[:4]).ok
            names = int8_weights(content)
            weights = [w for w in onnx.load_model_from_string(content).graph.initializer if w.name in names]
            largest.append(max(int(np.abs(numpy_helper.to_array(w).astype(int)).max()) for w in weights))
        assert largest == [127, 64]

    @pytest.mark.parametrize("batch", [1, 7])
    def test_the_batch_stays_free(self, batch: int, trained: Trained, int8: bytes) -> None:
        inputs = trained.calibration[0][:batch]
        assert OnnxPredictor(int8)(inputs).shape == (batch, 10)
        assert OnnxPredictor(int8).fixed_batch is None

    def test_metadata_stay(self, trained: Trained, int8: bytes) -> None:
        def read(model: bytes) -> dict[str, str]:
            return {entry.key: entry.value for entry in onnx.load_model_from_string(model).metadata_props}

        assert read(int8) == {**read(trained.fp32), PRECISION_KEY: "int8"}
        assert batch_kind(int8) == "dynamic"

    def test_same_bytes_in_another_process(self, trained: Trained, int8: bytes, tmp_path: Path) -> None:
        (tmp_path / "fp32.onnx").write_bytes(trained.fp32)
        torch.save(trained.calibration, tmp_path / "inputs.pt")
        script = (
            "import sys, torch; from pathlib import Path; from evaluators.quantize import quantize_int8\n"
            "folder = Path(sys.argv[1])\n"
            "content = quantize_int8(folder / 'fp32.onnx', torch.load(folder / 'inputs.pt'))\n"
            "(folder / 'int8.onnx').write_bytes(content)"
        )
        environment = {**os.environ, "PYTHONHASHSEED": "5"}
        root = Path(__file__).parents[2]
        subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, cwd=root, env=environment)
        assert (tmp_path / "int8.onnx").read_bytes() == int8

    def test_nothing_is_said_and_nothing_is_left(
        self,
        trained: Trained,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        root = logging.getLogger()
        before = (root.handlers[:], root.filters[:], root.level)
        quantize_int8(trained.fp32, trained.calibration, samples=8)
        assert capfd.readouterr() == ("", "")
        assert (root.handlers, root.filters, root.level) == before
        assert list(tmp_path.iterdir()) == []

    def test_only_the_first_samples_are_read(self, trained: Trained) -> None:
        def endless() -> Iterable[Tensor]:
            yield trained.calibration[0][:0]
            yield trained.calibration[0][:10]
            yield trained.calibration[1][:10]
            raise AssertionError

        exactly = torch.cat([trained.calibration[0][:10], trained.calibration[1][:5]])
        assert quantize_int8(trained.fp32, endless(), samples=15) == quantize_int8(trained.fp32, [exactly])


class TestTheGate:
    def test_int8_agrees(self, trained: Trained, int8: bytes) -> None:
        report = check_int8(trained.fp32, int8, trained.calibration[:4])
        assert report.require() is report
        assert report.parity.max_abs > 0.0
        assert check_parity(trained.module, int8, trained.calibration[:4], tolerance=INT8_TOLERANCE).ok

    @pytest.mark.parametrize("scale", [0.0, 0.1, 0.5, 100.0])
    def test_ranges_of_other_data_are_a_breach(self, scale: float, trained: Trained) -> None:
        broken = quantize_int8(trained.fp32, [scale * x for x in trained.calibration])
        report = check_int8(trained.fp32, broken, trained.calibration[:4])
        assert not report.ok
        refused(report.require, "parity breach: max abs difference")
        with pytest.raises(ParityError):
            report.require()

    def test_classes_that_change_places_are_a_breach(self) -> None:
        inputs = [torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])]
        near = [graph(gemm([[0.0], [sign * 0.01]], [1.0, 1.0])) for sign in (1.0, -1.0)]
        assert check_int8(near[0], near[0], inputs).agreement == 1.0
        report = check_int8(*near, inputs)
        assert (report.ok, report.agreement) == (False, 0.0)
        refused(report.require, "parity breach: the same class is first on 0.0000 of the samples, 0.95 is needed")
        assert check_int8(*near, inputs, agreement=0.0).ok

    def test_another_network_is_a_breach(self) -> None:
        inputs = [torch.ones(2, 1)]
        two, three = (graph(gemm([[1.0]] * n, [0.0] * n)) for n in (2, 3))
        report = check_int8(two, three, inputs)
        assert (report.ok, report.agreement) == (False, 0.0)
        refused(report.require, "output shapes differ")
        with pytest.raises(ValueError, match="at least one batch"):
            check_int8(two, two, [])


class Lowered(nn.Module):
    """A 3x3 convolution that reads 16 of its 72 columns: gather, one-hot depthwise, 1x1; then crop and concat."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.index: Tensor
        self.register_buffer("index", torch.arange(16) % 8)
        self.pick = nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False)
        hot = torch.zeros(16, 9)
        hot[torch.arange(16), torch.arange(16) % 9] = 1.0
        self.pick.weight = nn.Parameter(hot.view(16, 1, 3, 3))
        self.mix = nn.Conv2d(16, 12, 1)
        self.rest = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(16, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        picked = self.mix(self.pick(torch.index_select(x, 1, self.index)))
        x = torch.cat([picked, self.rest(x[:, 2:6])], dim=1).relu()
        output: Tensor = self.head(x[:, :, 1:-1, 1:-1].mean((2, 3)))
        return output


class TestOtherGraphs:
    def test_a_lowered_graph_survives(self, tmp_path: Path) -> None:
        torch.manual_seed(0)
        fp32 = exported(Lowered(), (3, 8, 8), tmp_path)
        assert {"Gather", "Slice", "Concat"} <= operators(fp32)
        content = quantize_int8(fp32, drawn((3, 8, 8)))
        assert check_int8(fp32, content, drawn((3, 8, 8)), agreement=0.9).ok
        graph = onnx.load_model_from_string(content).graph
        values = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
        (name,) = [name for name, shape in int8_weights(content).items() if shape == (16, 1, 3, 3)]
        assert set(np.unique(values[name])) == {0, 127}, "a one-hot kernel is exact in int8"
        assert OnnxPredictor(content)(drawn((3, 8, 8), size=7)[0]).shape == (7, 6)

    @pytest.mark.parametrize("kind", ["conv3d", "layernorm", "transposed"])
    def test_every_kind_of_layer(self, kind: str, tmp_path: Path) -> None:
        factory, shape = ZOO[kind]
        fp32 = exported(randomise(factory()), shape, tmp_path)
        content = quantize_int8(fp32, drawn(shape))
        assert int8_weights(content)
        assert check_int8(fp32, content, drawn(shape), tolerance=0.1, agreement=0.0).ok

    def test_a_fixed_batch_stays_fixed(self, tmp_path: Path) -> None:
        factory, shape = ZOO["lenet"]
        fp32 = exported(randomise(factory()), shape, tmp_path, batch=3, dynamic=False)
        content = quantize_int8(fp32, drawn(shape, batches=1, size=10))
        assert OnnxPredictor(content).fixed_batch == 3
        assert batch_kind(content) == "fixed"
        # The last piece is filled up with samples that are there: the ranges are those of the ten.
        assert content == quantize_int8(fp32, list(drawn(shape, batches=1, size=10)[0].split(5)))


class TestRefusals:
    def test_calibration(self, trained: Trained) -> None:
        def refuse(calibration: Iterable[Any], *words: str, samples: Any = 256) -> None:
            refused(lambda: quantize_int8(trained.fp32, calibration, samples=samples), *words)

        x = trained.calibration[0]
        refuse([], "no data to calibrate on")
        refuse([x[:0]], "no data to calibrate on")
        for bad in (float("nan"), float("inf")):
            refuse([x, torch.full_like(x, bad)], "calibration batch 1 holds NaN or infinity")
        refuse([(x, x)], "got tuple: leave targets out")
        refuse([x.long()], "int64")
        refuse([x[:, :, :4]], "cannot run the model")
        for samples in (0, -1, True, 1.5):
            refuse([x], "samples must be an integer >= 1", samples=samples)

    def test_models(self, trained: Trained, int8: bytes, tmp_path: Path) -> None:
        x = trained.calibration
        refused(lambda: quantize_int8(int8, x), "quantised already")
        refused(lambda: quantize_int8(b"no model", x), "cannot load")
        refused(lambda: quantize_int8(tmp_path / "none.onnx", x), "no ONNX file")
        bare = graph(([helper.make_node("Relu", ["x"], ["y"], name="relu")], {}))
        refused(lambda: quantize_int8(bare, [torch.ones(2, 1)]), "nothing to quantise")
        poisoned = graph(gemm([[1.0]], [float("nan")]))
        refused(lambda: quantize_int8(poisoned, [torch.ones(2, 1)]), "the model gives NaN or infinity")

    def test_what_the_library_raises(self, trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
        def breaks(*_: object, **__: object) -> None:
            raise RuntimeError("out\nof memory")

        monkeypatch.setattr("onnxruntime.quantization.quantize_static", breaks)
        refused(lambda: quantize_int8(trained.fp32, trained.calibration), "cannot be quantised: out of memory")


@pytest.mark.parametrize(
    ("machine", "flags", "expected"),
    [
        ("x86_64", "avx2 avx512f", True),
        ("AMD64", "", True),
        ("x86_64", "avx512f avx512_vnni", False),
        ("x86_64", "avx2 avx_vnni", False),
        ("aarch64", "", False),
    ],
)
def test_7_bits_where_the_processor_saturates(
    machine: str, flags: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(quantize, "cpuinfo", lambda: {"flags": flags})
    assert quantize.saturates() is expected
