"""The operator set of a file is the one that was asked for, or it is said before anything is spent."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from evaluators import ExportError, OpsetError, batch_kind, check_parity, export_onnx, lower, quantize_int8
from evaluators.errors import EvaluationError
from evaluators.measurement import Measurement
from evaluators.opset import DEFAULT_OPSET, LEAST_OPSET, MOST_OPSET, opset_of, require_opset
from tests.evaluators.models import randomise


class Pooled(nn.Module):
    """[batch, 3, 8, 8] -> [batch, 4], with the mean that operator sets below 18 write in another way."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 32, 3, padding=1), nn.GroupNorm(4, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))
        return scores


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return randomise(Pooled())


@pytest.mark.parametrize("opset", [LEAST_OPSET, DEFAULT_OPSET, MOST_OPSET])
def test_a_file_is_in_the_operator_set_asked_for(network: nn.Module, tmp_path: Path, opset: int) -> None:
    require_opset(opset)
    path = export_onnx(network, torch.randn(1, 3, 8, 8), tmp_path / "m.onnx", opset=opset)
    assert opset_of(onnx.load(path)) == opset
    assert batch_kind(path) == "dynamic"
    assert check_parity(network, path, [torch.randn(5, 3, 8, 8)]).ok


def test_without_a_wish_it_is_ours_and_not_the_exporters(tmp_path: Path) -> None:
    path = export_onnx(nn.Linear(3, 2), torch.randn(1, 3), tmp_path / "m.onnx")
    assert opset_of(onnx.load(path)) == DEFAULT_OPSET


@pytest.mark.parametrize("opset", [LEAST_OPSET, MOST_OPSET])
def test_what_is_made_of_a_file_stays_in_its_operator_set(network: nn.Module, tmp_path: Path, opset: int) -> None:
    with torch.no_grad():
        network.get_parameter("conv.weight")[:, :, ::2] = 0.0
    content = export_onnx(network, torch.randn(1, 3, 8, 8), tmp_path / "m.onnx", opset=opset).read_bytes()

    def gains(candidate: bytes, reference: bytes) -> Measurement:
        return _measured(speedup=2.0)

    rewritten = lower(content, gains, block=1, batch=1)
    assert rewritten.changed
    for made in (rewritten.content, quantize_int8(content, [torch.randn(8, 3, 8, 8)])):
        proto = onnx.load_model_from_string(made)
        onnx.checker.check_model(proto, full_check=True)
        assert opset_of(proto) == opset


def test_the_exporter_keeping_another_one_is_no_success(network: nn.Module, tmp_path: Path) -> None:
    """It warns, writes 18 and says nothing more: for a runtime that reads 17, a file that does not load."""
    with pytest.raises(OpsetError, match="the model cannot be written in opset 17, only in 18: ask for that"):
        export_onnx(network, torch.randn(1, 3, 8, 8), tmp_path / "m.onnx", opset=17)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("opset", [LEAST_OPSET - 1, MOST_OPSET + 1])
def test_the_bounds_are_those_of_the_exporter(opset: int) -> None:
    with pytest.raises(OpsetError, match=rf"opset must lie in 18\.\.25, which torch's exporter writes, got {opset}"):
        require_opset(opset)


@pytest.mark.parametrize(("most", "mend"), [(21, r"\): ask for 21 or less$"), (0, r"\): install a newer onnxruntime$")])
def test_a_runtime_that_reads_less_is_asked_before_anything_is_exported(
    monkeypatch: pytest.MonkeyPatch, most: int, mend: str
) -> None:
    real = ort.InferenceSession

    def older(content: bytes, *rest: object, **options: object) -> object:
        opset = opset_of(onnx.load_model_from_string(content))
        if opset > most:
            raise RuntimeError(f"Opset {opset} is under development and support for this is limited")
        return real(content, *rest, **options)

    monkeypatch.setattr(ort, "InferenceSession", older)
    with pytest.raises(OpsetError, match=rf"onnxruntime .* does not read opset 24 \(Opset 24 is under.*{mend}"):
        require_opset(24)
    if most:
        require_opset(most)


def test_it_is_an_error_of_exports() -> None:
    assert issubclass(OpsetError, ExportError)
    assert issubclass(OpsetError, EvaluationError)


def _measured(*, speedup: float) -> Measurement:
    from evaluators.rig import make_rig

    return Measurement(
        latency_ms=1.0, latency_low_ms=1.0, latency_high_ms=1.0, dense_latency_ms=speedup, speedup=speedup,
        speedup_low=speedup, speedup_high=speedup, wall_p50_ms=None, wall_p95_ms=None, wall_min_ms=None, pairs=9,
        rejected=0, converged=True, seconds=0.0, stamp=make_rig("onnxruntime-cpu").stamp(1),
    )  # fmt: skip
