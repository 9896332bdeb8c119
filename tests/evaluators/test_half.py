"""The fp16 form of a file: half the bytes, float32 at both ends, and a gate for what fp16 cannot hold."""

from __future__ import annotations

import builtins
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn
from torch.nn import functional as F

from evaluators import EvaluationError, OnnxPredictor, batch_kind, check_fp16, export_onnx, quantize_int8, to_fp16
from evaluators.half import FP16_TOLERANCE, half_weights
from evaluators.opset import opset_of
from evaluators.quantize import PRECISION_KEY
from tests.evaluators.models import randomise


class Mixed(nn.Module):
    """[batch, 3, 8, 8] -> [batch, 4], with what fp16 treats apart: Resize, norms, Clip, TopK, Max."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.group = nn.Conv2d(3, 16, 3, padding=1), nn.GroupNorm(4, 16)
        self.norm, self.up, self.head = nn.LayerNorm(16), nn.ConvTranspose2d(16, 8, 2, 2), nn.Linear(8, 4)
        self.batch = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.group(self.conv(x)))
        x = F.interpolate(x, scale_factor=2, mode="bilinear")
        x = self.norm(x.transpose(1, 3)).transpose(1, 3) * x.amax((2, 3), keepdim=True).softmax(1)
        x = F.hardtanh(torch.maximum(self.batch(self.up(x)), x[:, :8, :1, :1]), -3.0, 3.0)
        best = x.flatten(2).topk(3, dim=2).values.mean(2)
        scores: Tensor = self.head(best)
        return scores


@pytest.fixture(scope="module")
def fp32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("half") / "fp32.onnx"
    return export_onnx(randomise(Mixed()), torch.randn(1, 3, 8, 8), path, opset=19)


def inputs(scale: float = 1.0) -> list[Tensor]:
    return [scale * torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))]


def test_half_the_bytes_and_float32_at_both_ends(fp32: Path) -> None:
    content = to_fp16(fp32)
    proto = onnx.load_model_from_string(content)
    onnx.checker.check_model(proto, full_check=True)
    ends = [*proto.graph.input, *proto.graph.output]
    assert [end.type.tensor_type.elem_type for end in ends] == [TensorProto.FLOAT] * 2
    assert [end.name for end in ends] == ["input", "output"]
    assert {"conv.weight", "up.weight", "head.weight"} <= set(half_weights(content))
    assert half_weights(fp32.read_bytes()) == {}
    assert (opset_of(proto), batch_kind(content)) == (19, "dynamic")
    assert {e.key: e.value for e in proto.metadata_props}[PRECISION_KEY] == "fp16"
    assert OnnxPredictor(content)(inputs()[0]).dtype == torch.float32
    report = check_fp16(fp32, content, inputs()).require()
    assert 0.0 < report.max_abs <= FP16_TOLERANCE * report.scale


def test_weights_take_half_the_bytes(tmp_path: Path) -> None:
    path = export_onnx(nn.Linear(64, 256), torch.randn(1, 64), tmp_path / "m.onnx")
    assert len(to_fp16(path)) < 0.55 * path.stat().st_size


def test_the_same_file_gives_the_same_bytes(fp32: Path) -> None:
    assert to_fp16(fp32) == to_fp16(fp32.read_bytes())


def test_what_fp16_cannot_hold_is_found_by_the_gate(fp32: Path, tmp_path: Path) -> None:
    content = to_fp16(fp32)
    assert check_fp16(fp32, content, inputs()).ok
    plain = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    with torch.no_grad():
        plain[0].weight.fill_(1e5)  # type: ignore[union-attr, operator]
        plain[1].weight.fill_(1e-4)  # type: ignore[union-attr, operator]
    path = export_onnx(plain, torch.randn(1, 4), tmp_path / "wide.onnx")
    report = check_fp16(path, to_fp16(path), [torch.randn(8, 4)])
    assert not report.ok
    assert "parity breach" in (report.reason or "")


@pytest.mark.parametrize("order", ["to_fp16(path); quantize_int8(path, x)", "quantize_int8(path, x); to_fp16(path)"])
def test_the_users_modules_are_found_as_before(fp32: Path, order: str) -> None:
    """ONNX Runtime's tools put a folder with a `models` and a `metrics` of its own on the path, and need it there."""
    code = (
        "import sys, torch; from pathlib import Path; from evaluators import quantize_int8, to_fp16\n"
        "path, x, before = Path(sys.argv[1]), [torch.randn(4, 3, 8, 8)], list(sys.path)\n"
        f"{order}\nassert sys.path == before, sys.path"
    )
    done = subprocess.run([sys.executable, "-c", code, str(fp32)], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_runtime_without_the_converter_is_said(fp32: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **options: Any) -> Any:
        if name.startswith("onnxruntime.transformers"):
            raise ImportError("No module named 'onnxruntime.transformers'")
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(EvaluationError, match=r"no converter to fp16 \(No module.*\): install the stock onnxruntime"):
        to_fp16(fp32)


def _int64() -> bytes:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in ("input", "output")]
    nodes = [helper.make_node("Relu", ["input"], ["output"])]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:])
    content: bytes = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    ).SerializeToString()
    return content


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda path: quantize_int8(path, inputs()), "the model is quantised: give the fp32 file"),
        (lambda path: to_fp16(path), "the model has fp16 weights already: give the fp32 file"),
        (lambda path: _int64(), "the model has no float32 weights: nothing would be gained"),
    ],
)
def test_what_has_no_fp16_form_is_one_line(fp32: Path, made: Any, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        to_fp16(made(fp32))


def test_a_conversion_that_breaks_is_one_line(fp32: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(proto: onnx.ModelProto, **options: object) -> onnx.ModelProto:
        other = onnx.ModelProto()
        other.CopyFrom(proto)
        other.graph.node[0].input[0] = "nowhere"
        return other

    monkeypatch.setattr("evaluators.half._converter", lambda: broken)
    with pytest.raises(EvaluationError, match="the model cannot be converted to fp16: ") as caught:
        to_fp16(fp32)
    assert "\n" not in str(caught.value)
