"""The `cuda` rig where there is no GPU: refusals, preparing modules and inputs, the clock on pretended events."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from evaluators import cuda_rig
from evaluators.cuda_clock import CudaEventClock
from evaluators.cuda_rig import CudaRig, arithmetic, per_inference, prepared_input, prepared_module
from evaluators.errors import RigUnavailable
from evaluators.rig import LatencyRig, make_rig
from evaluators.semi_structured import holds_semi_structured, obeys_two_of_four, to_semi_structured
from evaluators.timing import TimingSettings, time_pair
from tests.contracts.rig_contract import assert_one_line

without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")


@without_cuda
def test_without_a_device_the_rig_is_one_line() -> None:
    with pytest.raises(RigUnavailable) as caught:
        make_rig("cuda")
    assert str(caught.value).startswith("rig 'cuda' needs a CUDA device, and this torch ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precision": "fp8"}, "precision must be one of fp32, tf32, fp16, bf16, got 'fp8'"),
        ({"threads": 0}, "threads must be an integer >= 1, got 0"),
        ({"threads": True}, "threads must be an integer >= 1, got True"),
        ({"buffers": 0}, "buffers must be an integer >= 1, got 0"),
    ],
)
def test_impossible_options_are_refused_before_the_device_is_asked_for(options: dict[str, Any], words: str) -> None:
    assert_one_line(lambda: CudaRig(**options), words)


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> CudaRig:
    """A rig that believes in a device."""
    monkeypatch.setattr(cuda_rig, "require_cuda", lambda who: None)
    return CudaRig(precision="tf32")


def test_an_onnx_file_is_sent_elsewhere(rig: CudaRig) -> None:
    assert isinstance(rig, LatencyRig)
    assert_one_line(lambda: rig.measure(Path("a.onnx"), b""), "measure_modules", "onnxruntime-cuda")


@without_cuda
def test_a_device_that_is_gone_is_one_line(rig: CudaRig) -> None:
    layer = nn.Linear(3, 2)
    assert_one_line(lambda: rig.measure_modules(layer, layer, torch.zeros(1, 3)), "cannot be measured on CUDA")


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("fp32", torch.float32), ("tf32", torch.float32), ("fp16", torch.float16), ("bf16", torch.bfloat16)],
)
def test_modules_are_prepared_as_copies(precision: str, dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ready = prepared_module(model, precision, channels_last=True)
    assert ready is not model
    assert not ready.training
    assert {value.dtype for value in ready.parameters()} == {dtype}
    conv = ready.get_submodule("0")
    assert isinstance(conv, nn.Conv2d)
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_module_that_cannot_be_copied_is_one_line() -> None:
    class Stubborn(nn.Module):
        def __deepcopy__(self, memo: object) -> nn.Module:
            raise TypeError("no\ncopies")

    assert_one_line(lambda: prepared_module(Stubborn(), "fp32", False), "cannot be copied", "no copies")


def test_inputs_are_prepared_with_memory_of_their_own() -> None:
    sample = torch.randn(1, 3, 4, 5)
    first, second = (prepared_input(sample, 6, "fp16", channels_last=True) for _ in range(2))
    assert first.shape == (6, 3, 4, 5)
    assert first.dtype == torch.float16
    assert first.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(first, sample.half().repeat(6, 1, 1, 1))
    assert first.data_ptr() != second.data_ptr()
    tokens = prepared_input(torch.zeros(2, 7, dtype=torch.int64), 2, "bf16", channels_last=True)
    assert tokens.dtype == torch.int64
    assert prepared_input(sample, 1, "fp32", channels_last=False).is_contiguous()


@pytest.mark.parametrize("batch", [0, -1, True, 1.5])
def test_impossible_batches_are_refused(batch: Any) -> None:
    assert_one_line(lambda: prepared_input(torch.zeros(1, 3), batch, "fp32", False), "batch")


@pytest.mark.parametrize("example", [torch.zeros(3, 2), torch.tensor(1.0), "text"])
def test_examples_that_do_not_fit_are_refused(example: Any) -> None:
    assert_one_line(lambda: prepared_input(example, 2, "fp32", False), "example_input")


@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "bf16"])
def test_arithmetic_is_set_and_put_back(precision: str) -> None:
    cudnn: Any = torch.backends.cudnn
    states = [cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision, cudnn.benchmark]

    def break_off() -> None:
        with arithmetic(precision):
            want = "tf32" if precision == "tf32" else "ieee"
            assert cudnn.conv.fp32_precision == torch.backends.cuda.matmul.fp32_precision == want
            assert cudnn.benchmark
            raise KeyError

    with pytest.raises(KeyError):
        break_off()
    assert [cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision, cudnn.benchmark] == states


class Device:
    """A stream that works through what it is given at once, on a clock of its own."""

    def __init__(self) -> None:
        self.now_ms = 0.0
        self.flushes = 0

    def event(self) -> Any:
        return Mark(self)

    def flush(self) -> None:
        self.flushes += 1
        self.now_ms += 7.0

    def work(self, ms: float) -> Callable[[], None]:
        def run() -> None:
            self.now_ms += ms

        return run


class Mark:
    def __init__(self, device: Device) -> None:
        self.device = device
        self.at: float | None = None

    def record(self) -> None:
        self.at = self.device.now_ms

    def synchronize(self) -> None:
        assert self.at is not None

    def elapsed_time(self, end: Mark) -> float:
        assert self.at is not None
        assert end.at is not None
        return float(torch.tensor(end.at - self.at, dtype=torch.float32))


def test_the_clock_counts_the_model_and_not_the_flush() -> None:
    device = Device()
    clock = CudaEventClock(device.event, device.flush)
    begin = clock.deciding()
    device.work(0.25)()
    assert clock.deciding() - begin == 250_000
    assert device.flushes == 2
    # Far from the first event a float32 of milliseconds knows no microseconds any more; the counter still does.
    device.now_ms += 1e8
    begin = clock.deciding()
    device.work(0.001)()
    assert clock.deciding() - begin == pytest.approx(1000, rel=0.02)


def test_wall_time_leaves_the_readings_out() -> None:
    device = Device()
    clock = CudaEventClock(device.event)
    begin = clock.wall()
    for _ in range(200):
        clock.deciding()
    assert 0 <= clock.wall() - begin < 200 * 100_000
    assert clock.kind == "cuda_event"


def test_the_timing_loop_gives_exact_figures_on_this_clock() -> None:
    device = Device()
    clock = CudaEventClock(device.event, device.flush)
    settings = TimingSettings(min_repeat_ns=1_000_000)
    timing = time_pair(device.work(0.5), device.work(2.0), settings=settings, clock=clock)
    assert timing.converged
    assert set(timing.candidate_ns) == {500_000.0}
    assert set(timing.reference_ns) == {2_000_000.0}
    each = per_inference(timing, 4)
    assert set(each.candidate_ns) == {125_000.0}
    assert set(each.reference_ns) == {500_000.0}
    assert [v * 4 for v in each.candidate_wall_ns] == pytest.approx(list(timing.candidate_wall_ns))


def two_of_four(outputs: int, inputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(outputs, inputs // 4, 4).mul(torch.tensor([1.0, 0.0, 0.0, 1.0])).flatten(1))
    return layer


def test_two_of_four_is_recognised() -> None:
    assert obeys_two_of_four(two_of_four(3, 8).weight)
    assert obeys_two_of_four(torch.zeros(2, 4))
    assert not obeys_two_of_four(torch.ones(2, 4))
    assert not obeys_two_of_four(torch.zeros(2, 6))
    assert not obeys_two_of_four(torch.zeros(0, 4))
    assert not obeys_two_of_four(torch.zeros(2, 4, 1))
    # Two zeros in each four from an odd place on are not 2:4.
    assert not obeys_two_of_four(torch.tensor([[1.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 1.0]]))


def test_two_of_four_is_refused_in_one_line_where_it_cannot_be() -> None:
    dense = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    assert_one_line(lambda: to_semi_structured(dense), "none of the 2 linear layers")
    assert_one_line(lambda: to_semi_structured(dense, dtype=torch.float32), "float16 or bfloat16")
    assert not holds_semi_structured(dense)


@without_cuda
def test_two_of_four_without_a_device_is_one_line() -> None:
    with pytest.raises(RigUnavailable, match="2:4 needs a CUDA device"):
        to_semi_structured(nn.Sequential(two_of_four(64, 64)))


@without_cuda
def test_the_benchmark_says_in_one_line_that_it_needs_a_device() -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "benchmarks/gpu_alexnet.py", "--quick"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2
    assert done.stdout.startswith("benchmarks/gpu_alexnet.py needs a CUDA device")
    assert (done.stdout.count("\n"), done.stderr) == (1, "")
