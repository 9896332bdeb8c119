from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from evaluators import export_failure
from evaluators.errors import ExportError
from evaluators.onnx_export import BATCH_KEY, batch_kind, export_onnx
from evaluators.parity import check_parity
from tests.evaluators.models import ZOO, BatchOfOne, lenet_like, randomise


@pytest.mark.parametrize("name", ZOO)
def test_zoo_exports_with_free_batch_and_parity(name: str, tmp_path: Path) -> None:
    factory, shape = ZOO[name]
    model = randomise(factory())
    path = export_onnx(model, torch.randn(1, *shape), tmp_path / "model.onnx")
    assert batch_kind(path) == "dynamic"
    generator = torch.Generator().manual_seed(1)
    inputs = [torch.randn(batch, *shape, generator=generator) for batch in (1, 2, 5)]
    report = check_parity(model, path, inputs, tolerance=1e-5).require()
    assert report.samples == 8
    assert report.scale > 0


def test_names_metadata_and_a_single_file(tmp_path: Path) -> None:
    path = export_onnx(lenet_like(), torch.randn(1, 3, 8, 8), tmp_path / "model.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    proto = onnx.load(path)
    assert [node.name for node in proto.graph.input] == ["input"]
    assert [node.name for node in proto.graph.output] == ["output"]
    assert {entry.key: entry.value for entry in proto.metadata_props} == {BATCH_KEY: "dynamic"}
    assert all(tensor.data_location == onnx.TensorProto.DEFAULT for tensor in proto.graph.initializer)
    assert not any(node.metadata_props or node.doc_string for node in proto.graph.node)
    assert str(Path(__file__).parent).encode() not in path.read_bytes()


def test_the_model_is_left_as_it_was_and_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = randomise(lenet_like()).train()
    model[3].eval()
    modes = [part.training for part in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    level = logging.getLogger("torch.onnx").level
    random_state = torch.get_rng_state()
    export_onnx(model, torch.zeros(1, 3, 8, 8), tmp_path / "model.onnx")
    assert [part.training for part in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert logging.getLogger("torch.onnx").level == level
    assert capfd.readouterr() == ("", "")


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    model = randomise(lenet_like())
    paths = [export_onnx(model, torch.randn(1, 3, 8, 8), tmp_path / name) for name in ("a.onnx", "b.onnx")]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_batch_that_cannot_be_free_is_recorded_as_fixed(tmp_path: Path) -> None:
    model = randomise(BatchOfOne())
    path = export_onnx(model, torch.randn(1, 3, 8, 8), tmp_path / "model.onnx")
    assert batch_kind(path) == "fixed"
    assert onnx.load(path).graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1
    assert check_parity(model, path, [torch.randn(1, 3, 8, 8)]).ok


def test_fixed_batch_and_opset_on_demand(tmp_path: Path) -> None:
    example = torch.randn(3, 3, 8, 8)
    path = export_onnx(lenet_like(), example, tmp_path / "model.onnx", opset=18, dynamic_batch=False)
    proto = onnx.load(path)
    assert batch_kind(path.read_bytes()) == "fixed"
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 3
    assert next(entry.version for entry in proto.opset_import if entry.domain == "") == 18


class TwoOutputs(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x + 1


class DataDependent(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if float(x.sum()) > 0 else x - 1


class Spun(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        for _ in range(int(x.abs().max()) % 3 + 1):
            x = x * 0.5
        return x


class Unknown(nn.Module):
    """Of operators that ONNX has no form of: one by its own name, one that the exporter takes apart first."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Elsewhere(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(x.numpy() * 2.0)


def within(part: nn.Module) -> nn.Module:
    """[batch, 3] -> [batch, 2], with `part` in it, two levels down."""
    return nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.ReLU(), part), nn.Linear(3, 2))


@pytest.mark.parametrize(
    ("model", "example", "words"),
    [
        (TwoOutputs(), torch.randn(1, 3), "one tensor"),
        (nn.Linear(4, 2), torch.randn(1, 3), "does not run"),
        (nn.Linear(4, 2), torch.tensor(1.0), "scalar"),
        (
            DataDependent(),
            torch.randn(1, 3),
            r"exported: in the forward of DataDependent itself, whose path depends on the data: Guard.*: Could not",
        ),
        (
            within(DataDependent()),
            torch.randn(1, 3),
            r"exported: in module '1\.1' \(DataDependent\), whose path depends on the data: Guard",
        ),
        (within(Spun()), torch.randn(1, 3), r"in module '1\.1' \(Spun\), whose path depends on the data: "),
        (
            within(Unknown(lambda x: x * torch.linalg.svdvals(x).sum())),
            torch.randn(1, 3),
            r"exported: in module '1\.1' \(Unknown\): DispatchError: No ONNX function found for .*svd",
        ),
        (
            within(Unknown(torch.special.bessel_j0)),
            torch.randn(1, 3),
            r"exported: in module '1\.1' \(Unknown\): DispatchError: No ONNX function found for .*bessel_j0",
        ),
        (within(Elsewhere()), torch.randn(1, 3), r"exported: in module '1\.1' \(Elsewhere\): RuntimeError: "),
    ],
)
def test_what_cannot_be_exported_is_refused_in_one_line(
    model: nn.Module, example: Tensor, words: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=words) as caught:
        export_onnx(model, example, tmp_path / "model.onnx")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_where_it_broke_is_a_help_and_no_failure_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_failure, "_entered", lambda *_: 1 / 0)
    with pytest.raises(ExportError, match="cannot be exported: its path depends on the data: Guard"):
        export_onnx(within(DataDependent()), torch.randn(1, 3), tmp_path / "model.onnx")


def test_a_path_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "absent" / "model.onnx", tmp_path / "folder"):
        with pytest.raises(ExportError, match="cannot write"):
            export_onnx(nn.Linear(2, 2), torch.randn(1, 2), path)
    assert [file.name for file in tmp_path.iterdir()] == ["folder"]


def test_a_file_of_another_origin_has_no_batch_kind() -> None:
    assert batch_kind(onnx.ModelProto().SerializeToString()) == "unknown"
