"""What only a CUDA device can show: the kernel, the rig and 2:4 on real hardware.

Runs without the other tests' packages: `python -m pytest --confcutdir=tests/gpu tests/gpu`.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from evaluators import kept_columns_triton
from evaluators.cuda_rig import PRECISIONS, CudaRig, arithmetic
from evaluators.errors import RigError
from evaluators.kept_columns import KeptColumnsConv2d, with_kept_columns
from evaluators.module_form import KEPT_COLUMNS, TWO_OF_FOUR
from evaluators.module_lowering import TOLERANCES, lower_module, rewritten_module
from evaluators.rig import LatencyRig, ModuleRig, make_rig
from evaluators.semi_structured import to_semi_structured
from evaluators.timing import TimingSettings
from tests.contracts.module_rig_contract import ModuleRigContract
from tests.contracts.rig_contract import RigContract, assert_one_line

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
needs_triton = pytest.mark.skipif(kept_columns_triton.triton is None, reason="needs triton")

#: max|y - y'| <= this x max|y|, the design's bounds for lowered forms.
BOUNDS = {"fp32": 1e-4, "tf32": 5e-3, "fp16": 2e-2, "bf16": 2e-2}
#: AlexNet's convolutions and what else is common: (channels, filters, kernel, stride, padding, dilation, input size).
LAYERS = {
    "conv1": (3, 64, 11, 4, 2, 1, 224),
    "conv2": (64, 192, 5, 1, 2, 1, 27),
    "conv3": (192, 384, 3, 1, 1, 1, 13),
    "dilated": (32, 48, 3, 1, 2, 2, 28),
    "strided": (64, 128, 3, 2, 1, 1, 56),
    "pointwise": (64, 64, 1, 1, 0, 1, 14),
    "odd": (17, 33, 3, 1, 0, 1, 19),
}


def with_dead_columns(conv: nn.Conv2d, sparsity: float, seed: int = 0) -> nn.Conv2d:
    """`conv` with that fraction of its columns zero in all filters, chosen at random."""
    generator = torch.Generator().manual_seed(seed)
    columns = conv.weight[0].numel()
    mask = torch.ones(columns)
    mask[torch.randperm(columns, generator=generator)[: round(sparsity * columns)]] = 0.0
    with torch.no_grad():
        conv.weight.mul_(mask.view(conv.weight.shape[1:]))
    return conv


def on_cuda(module: nn.Module, x: Tensor, precision: str, layout: torch.memory_format) -> Tensor:
    """The output of `module` on the device, in float64 on the host."""
    dtype = PRECISIONS[precision][0]
    with torch.inference_mode(), arithmetic(precision):
        y: Tensor = module.to("cuda", dtype)(x.to("cuda", dtype).contiguous(memory_format=layout))
    return y.double().cpu()


@needs_triton
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("precision", list(PRECISIONS))
@pytest.mark.parametrize("name", list(LAYERS))
def test_the_kernel_is_the_masked_convolution(name: str, precision: str, layout: torch.memory_format) -> None:
    channels, filters, kernel, stride, padding, dilation, size = LAYERS[name]
    torch.manual_seed(0)
    conv = with_dead_columns(nn.Conv2d(channels, filters, kernel, stride, padding, dilation), 0.8)
    lean = KeptColumnsConv2d.from_conv(conv)
    for batch in (1, 5):
        x = torch.randn(batch, channels, size, size)
        with torch.no_grad():
            want = nn.functional.conv2d(
                x.double(),
                conv.weight.double(),
                conv.bias.double(),
                stride,
                padding,
                dilation,  # type: ignore[union-attr]
            )
        got = on_cuda(lean, x, precision, layout)
        assert got.shape == want.shape
        assert float((got - want).abs().max() / want.abs().max()) <= BOUNDS[precision]


@needs_triton
@pytest.mark.parametrize("seed", range(30))
def test_every_geometry_is_exact_on_small_integers(seed: int) -> None:
    draw = random.Random(seed)
    kernel = (draw.randint(1, 5), draw.randint(1, 5))
    dilation = (draw.randint(1, 3), draw.randint(1, 3))
    padding: Any = draw.choice(["same", "valid", (draw.randint(0, 4), draw.randint(0, 4))])
    stride = (1, 1) if padding == "same" else (draw.randint(1, 3), draw.randint(1, 3))
    channels = draw.randint(1, 20)
    conv = nn.Conv2d(
        channels, draw.randint(1, 70), kernel, stride, padding, dilation, bias=draw.random() < 0.5
    ).requires_grad_(False)
    for value in conv.parameters():
        value.copy_(torch.randint(1, 3, value.shape))
    conv = with_dead_columns(conv, draw.choice([0.0, 0.5, 0.9, 1.0]), seed)
    size = [d * (k - 1) + 1 + draw.randint(0, 12) for k, d in zip(kernel, dilation, strict=True)]
    x = torch.randint(-2, 3, (draw.randint(1, 4), channels, *size)).float()
    layout = draw.choice([torch.contiguous_format, torch.channels_last])
    want = conv(x).double()
    assert torch.equal(on_cuda(KeptColumnsConv2d.from_conv(conv), x, "fp32", layout), want)


@needs_triton
def test_a_captured_kernel_reads_its_input_anew() -> None:
    torch.manual_seed(0)
    conv = with_dead_columns(nn.Conv2d(16, 32, 3, padding=1), 0.7)
    lean = KeptColumnsConv2d.from_conv(conv).cuda()
    x = torch.randn(2, 16, 9, 9, device="cuda")
    with torch.inference_mode():
        lean(x)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = lean(x)
        x.copy_(torch.randn_like(x))
        graph.replay()
        torch.testing.assert_close(y, lean(x))


def net(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(width * 32 * 32, 10),
    )


@pytest.mark.parametrize("precision", list(PRECISIONS))
@pytest.mark.parametrize("batch", [1, 32])
def test_a_model_against_itself_is_one(precision: str, batch: int) -> None:
    model = net(64)
    result = CudaRig(precision=precision).measure_modules(model, model, torch.randn(1, 3, 32, 32), batch=batch)
    assert result.converged
    assert result.speedup == pytest.approx(1.0, abs=0.03)
    assert (result.stamp.clock, result.stamp.batch) == ("cuda_event", batch)
    assert result.stamp.isa.startswith("sm_")
    assert precision in result.stamp.provider
    assert result.wall_p50_ms is None or result.wall_p50_ms >= 0.5 * result.latency_ms


def test_a_narrower_model_is_faster_and_neither_is_changed() -> None:
    small, dense = net(64).train(), net(256).train()
    before = {name: value.clone() for name, value in small.state_dict().items()}
    result = CudaRig(threads=2).measure_modules(small, dense, torch.randn(8, 3, 32, 32), batch=8)
    assert result.speedup_low > 2.0
    assert result.stamp.threads == 2
    assert small.training
    assert next(small.parameters()).device.type == "cpu"
    assert all(torch.equal(value, before[name]) for name, value in small.state_dict().items())


def test_half_precision_is_faster_than_single() -> None:
    model, x = net(256), torch.randn(1, 3, 32, 32)
    figures = {
        precision: CudaRig(precision=precision).measure_modules(model, model, x, batch=64).latency_ms
        for precision in ("fp32", "tf32", "fp16")
    }
    assert figures["fp16"] < figures["tf32"] < figures["fp32"]


def test_eager_contiguous_and_warm_are_said_in_the_stamp() -> None:
    rig = CudaRig(graph=False, channels_last=False, flush=False, buffers=1, settings=TimingSettings(max_pairs=9))
    model = net(16)
    stamp = rig.measure_modules(model, model, torch.randn(1, 3, 32, 32)).stamp
    assert stamp.provider == "fp32, contiguous, eager, 1 inputs rotated, L2 warm"


class Waits(nn.Module):
    """Asks the device for a value in the middle."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum().item() > 0 else x


def test_a_module_that_waits_for_the_device_is_refused_in_one_line() -> None:
    assert_one_line(lambda: CudaRig().measure_modules(Waits(), Waits(), torch.ones(1, 3)), "cannot be captured")
    # The device is left usable.
    model = net(16)
    assert CudaRig().measure_modules(model, model, torch.randn(1, 3, 32, 32)).latency_ms > 0


def test_a_module_that_cannot_run_is_one_line() -> None:
    model = net(16)
    assert_one_line(lambda: CudaRig().measure_modules(model, model, torch.ones(1, 5, 32, 32)), "cannot be measured")


@needs_triton
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_converted_network_is_measured_and_is_faster(channels_last: bool) -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(with_dead_columns(nn.Conv2d(256, 384, 3, padding=1), 0.9), nn.ReLU())
    lean = nn.Sequential(with_dead_columns(nn.Conv2d(256, 384, 3, padding=1), 0.9), nn.ReLU())
    lean.load_state_dict(dense.state_dict())
    assert with_kept_columns(lean) == ("0",)
    rig = CudaRig(precision="tf32", channels_last=channels_last)
    assert rig.measure_modules(lean, dense, torch.randn(1, 256, 13, 13), batch=64).speedup > 1.0


def two_of_four(model: nn.Module) -> nn.Module:
    """`model` with the two smaller of each four weights of its linear layers zero."""
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Linear):
                fours = layer.weight.view(-1, 4)
                fours.scatter_(1, fours.abs().topk(2, dim=1, largest=False).indices, 0.0)
    return model


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_two_of_four_runs_and_agrees(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = two_of_four(nn.Sequential(nn.Linear(1024, 2048), nn.ReLU(), nn.Linear(2048, 512)))
    sparse, names = to_semi_structured(model, dtype=dtype)
    assert names == ("0", "2")
    x = torch.randn(64, 1024)
    with torch.inference_mode():
        want = model.double()(x.double())
        got = sparse(x.to("cuda", dtype)).double().cpu()
    assert float((got - want).abs().max() / want.abs().max()) <= 2e-2


def test_two_of_four_is_measured() -> None:
    """How much it gains is for a benchmark; eager, since not every library behind it can be captured."""
    model = two_of_four(nn.Sequential(nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 4096)))
    sparse, _ = to_semi_structured(model)
    rig = CudaRig(precision="fp16", graph=False)
    assert rig.measure_modules(sparse, model, torch.randn(1, 4096), batch=4096).latency_ms > 0
    assert_one_line(lambda: rig.measure_modules(sparse.train(), model, torch.randn(1, 4096)), "eval mode")


@pytest.mark.skipif("CUDAExecutionProvider" not in ort.get_available_providers(), reason="needs onnxruntime-gpu")
class TestOnnxRuntimeCuda(RigContract):
    @pytest.fixture
    def rig(self) -> LatencyRig:
        return make_rig("onnxruntime-cuda")

    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        from evaluators.onnx_export import export_onnx

        folder = tmp_path_factory.mktemp("onnx")
        for name, width in (("dense", 64), ("small", 16)):
            export_onnx(net(width).eval(), torch.randn(1, 3, 32, 32), folder / f"{name}.onnx")
        return folder

    @pytest.fixture
    def dense(self, folder: Path) -> Path:
        return folder / "dense.onnx"

    @pytest.fixture
    def small(self, folder: Path) -> Path:
        return folder / "small.onnx"

    @pytest.fixture
    def inputs(self) -> dict[str, np.ndarray]:
        return {"input": np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)}

    def test_it_runs_on_the_device(self, rig: LatencyRig, small: Path) -> None:
        try:
            stamp = rig.measure(small, small, batch=8).stamp
        except RigError as error:
            pytest.fail(f"the provider is installed and does not run: {error}")
        assert stamp.provider == "CUDAExecutionProvider fp32"


class TestCudaModules(ModuleRigContract):
    @pytest.fixture(params=list(PRECISIONS))
    def rig(self, request: pytest.FixtureRequest) -> ModuleRig:
        return CudaRig(precision=request.param)


def layers_with_zeros() -> nn.Module:
    """A convolution with dead columns and linear layers that obey 2:4: [n, 64, 14, 14] -> [n, 512]."""
    torch.manual_seed(0)
    linear = two_of_four(nn.Sequential(nn.Linear(256, 2048), nn.ReLU(), nn.Linear(2048, 512)))
    conv = with_dead_columns(nn.Conv2d(64, 256, 3, padding=1), 0.9)
    return nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), *linear).eval()


@pytest.mark.parametrize("precision", list(PRECISIONS))
def test_layers_without_their_zeros_say_what_they_said(precision: str) -> None:
    rig, model = CudaRig(precision=precision), layers_with_zeros()
    assert (KEPT_COLUMNS in rig.rewrites) is (kept_columns_triton.triton is not None)
    half = precision in ("fp16", "bf16") and torch.cuda.get_device_capability() >= (8, 0)
    assert (TWO_OF_FOUR in rig.rewrites) is half
    ways = {"0": KEPT_COLUMNS, "4": TWO_OF_FOUR, "6": TWO_OF_FOUR}
    choices = {name: way for name, way in ways.items() if way in rig.rewrites}
    x = torch.randn(9, 64, 14, 14)
    with torch.no_grad():
        want = model(x)
    got = rig.predictor(rewritten_module(model, choices, precision))(x)
    assert float((got - want).abs().max() / want.abs().max()) <= TOLERANCES[precision]
    assert next(model.parameters()).device.type == "cpu"


@pytest.mark.parametrize("precision", list(PRECISIONS))
def test_a_network_is_lowered_layer_by_layer_and_never_slower(precision: str) -> None:
    rig, model = CudaRig(precision=precision), layers_with_zeros()
    done = lower_module(model, rig, torch.randn(1, 64, 14, 14), batch=64)
    assert {layer.name for layer in done.layers} <= {"0", "4", "6"}
    assert all((layer.reason is None) == (layer.choice != "dense") for layer in done.layers)
    assert done.speedup >= 1.0
