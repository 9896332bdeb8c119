"""The `cuda` rig: latency of torch modules on a CUDA device, each replayed as a CUDA graph."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from evaluators import kept_columns_triton
from evaluators.accuracy import Predict
from evaluators.clock import WallClock
from evaluators.cuda_clock import cuda_clock, l2_bytes
from evaluators.device import gpu_capability, gpu_label
from evaluators.errors import RigError, RigUnavailable, one_line
from evaluators.measurement import DeviceStamp, Measurement
from evaluators.modes import module_output
from evaluators.module_form import (
    KEPT_COLUMNS,
    PRECISIONS,
    TWO_OF_FOUR,
    prepared_input,
    prepared_module,
    refuse_onnx,
    require_precision,
)
from evaluators.semi_structured import holds_semi_structured
from evaluators.timing import PairedTiming, TimingSettings, time_pair

_WARMUPS = 3


class CudaRig:
    """Device time of torch modules; implements `evaluators.rig.ModuleRig`; ONNX files are for other rigs.

    A module is copied to the device in the asked precision and memory layout, warmed up on a side stream, and
    captured as one CUDA graph of `buffers` inferences, each of which reads memory of its own: launches cost the host
    next to nothing, and no inference finds its input in the cache for the last one's sake. The L2 cache is overwritten
    between repeats. Raises `RigUnavailable` without a CUDA device.
    """

    name = "cuda"

    def __init__(
        self,
        *,
        threads: int = 1,
        precision: str | None = None,
        channels_last: bool = True,
        graph: bool = True,
        buffers: int = 4,
        flush: bool = True,
        settings: TimingSettings | None = None,
    ) -> None:
        self.precision = require_precision(precision or "fp32")
        if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
            raise RigUnavailable(f"threads must be an integer >= 1, got {threads!r}")
        if isinstance(buffers, bool) or not isinstance(buffers, int) or buffers < 1:
            raise RigError(f"buffers must be an integer >= 1, got {buffers!r}")
        require_cuda(f"rig {self.name!r}")
        self.threads = threads
        self.channels_last = channels_last
        self.graph = graph
        self.buffers = buffers
        self.flush = flush
        # Of a millisecond, the few microseconds between the opening event and the first kernel are nothing.
        self.settings = settings or TimingSettings(min_repeat_ns=1_000_000)

    def stamp(self, batch: int) -> DeviceStamp:
        how = (
            self.precision,
            "channels_last" if self.channels_last else "contiguous",
            "CUDA graph" if self.graph else "eager",
            f"{self.buffers} inputs rotated",
            "L2 flushed between repeats" if self.flush else "L2 warm",
        )
        return DeviceStamp(
            rig=self.name,
            device=gpu_label(torch.cuda.current_device()),
            isa=gpu_capability(torch.cuda.current_device()),
            runtime=f"torch {torch.__version__}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}",
            provider=", ".join(how),
            threads=self.threads,
            batch=batch,
            clock="cuda_event",
            platform=platform.platform(),
        )

    def measure(
        self,
        candidate: bytes | Path,
        reference: bytes | Path,
        inputs: Mapping[str, np.ndarray] | None = None,
        *,
        batch: int = 1,
    ) -> Measurement:
        refuse_onnx(self.name, "onnxruntime-cuda")

    def measure_modules(
        self, candidate: nn.Module, reference: nn.Module, example_input: Tensor, *, batch: int = 1
    ) -> Measurement:
        """Latency of `candidate` and its paired speed-up over `reference`, both in eval mode; neither is changed.

        `example_input` holds one sample, which is repeated, or `batch` of them: [1 or batch, ...]. Raises `RigError`
        for a module that cannot be copied, run or captured (one that waits for the device cannot), or a wrong input.
        """
        inputs = [prepared_input(example_input, batch, self.precision, self.channels_last) for _ in range(self.buffers)]
        try:
            with torch.inference_mode(), arithmetic(self.precision):
                on_device = [[value.to("cuda", copy=True) for value in inputs] for _ in range(2)]
                works = [
                    self._work(on_cuda(prepared_module(module, self.precision, self.channels_last)), values)
                    for module, values in zip((candidate, reference), on_device, strict=True)
                ]
                clock = cuda_clock(flush_bytes=2 * l2_bytes(torch.cuda.current_device()) if self.flush else 0)
                timing = self._timed(works[0], works[1], clock)
        except RigError:
            raise
        except Exception as error:
            raise RigError(f"the module cannot be measured on CUDA: {one_line(error)}") from error
        return timing.measurement(self.stamp(batch))

    @property
    def rewrites(self) -> tuple[str, ...]:
        """Ways of running a layer without its zeros that this device has (`evaluators.module_lowering`)."""
        columns = () if kept_columns_triton.triton is None else (KEPT_COLUMNS,)
        sparse = self.precision in ("fp16", "bf16") and torch.cuda.get_device_capability() >= (8, 0)
        return (*columns, *((TWO_OF_FOUR,) if sparse else ()))

    def predictor(self, module: nn.Module) -> Predict:
        """Outputs [batch, ...] on the host, in float32, of the module as it is measured."""
        ready = on_cuda(prepared_module(module, self.precision, self.channels_last))

        def predict(batch: Tensor) -> Tensor:
            inputs = prepared_input(batch, len(batch), self.precision, self.channels_last)
            with torch.inference_mode(), arithmetic(self.precision):
                output = module_output(ready, inputs.to("cuda"))
            return output.float() if output.is_floating_point() else output

        return predict

    def _timed(
        self, candidate: Callable[[], object], reference: Callable[[], object], clock: WallClock
    ) -> PairedTiming:
        """The paired timing of one inference, where a call is one of every buffer."""
        return per_inference(time_pair(candidate, reference, settings=self.settings, clock=clock), self.buffers)

    def _work(self, module: nn.Module, inputs: list[Tensor]) -> Callable[[], object]:
        """One inference of every buffer, as a graph if asked for."""

        def all_buffers() -> list[Any]:
            return [module(value) for value in inputs]

        # The libraries choose their algorithms and Triton its blocks here: nothing of that may be captured.
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARMUPS):
                all_buffers()
        torch.cuda.current_stream().wait_stream(side)
        if not self.graph:
            return all_buffers
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                outputs = all_buffers()
        except Exception as error:
            raise RigError(
                f"the module cannot be captured as a CUDA graph, measure with graph=False: {one_line(error)}"
            ) from error
        return _Replay(graph, module, inputs, outputs)


class _Replay:
    """A captured graph, and the tensors that it points into without owning them."""

    def __init__(self, graph: torch.cuda.CUDAGraph, *held: object) -> None:
        self._graph = graph
        self._held = held

    def __call__(self) -> object:
        self._graph.replay()
        return None


def require_cuda(who: str) -> None:
    """Raises `RigUnavailable` in one line where torch has no CUDA device for `who`."""
    if not torch.cuda.is_available():
        why = "is built without CUDA" if torch.version.cuda is None else "sees none: check nvidia-smi"
        raise RigUnavailable(f"{who} needs a CUDA device, and this torch {torch.__version__} {why}")


def on_cuda(module: nn.Module) -> nn.Module:
    """`module` on the device; one with 2:4 weights is there already, and some torch versions cannot move it."""
    return module if holds_semi_structured(module) else module.to("cuda")


def per_inference(timing: PairedTiming, inferences: int) -> PairedTiming:
    """The figures of one inference where every timed call held `inferences` of them."""
    return replace(
        timing,
        candidate_ns=tuple(value / inferences for value in timing.candidate_ns),
        reference_ns=tuple(value / inferences for value in timing.reference_ns),
        candidate_quiet_ns=tuple(value / inferences for value in timing.candidate_quiet_ns),
        reference_quiet_ns=tuple(value / inferences for value in timing.reference_quiet_ns),
        candidate_wall_ns=tuple(value / inferences for value in timing.candidate_wall_ns),
    )


@contextmanager
def arithmetic(precision: str) -> Iterator[None]:
    """Float32 products rounded as `precision` says, and cuDNN free to try its algorithms; restored at the end."""
    rounding = PRECISIONS[precision][1]
    cudnn: Any = torch.backends.cudnn
    backends: tuple[Any, ...] = (cudnn.conv, cudnn.rnn, torch.backends.cuda.matmul)
    before = [backend.fp32_precision for backend in backends]
    benchmark = cudnn.benchmark
    try:
        for backend in backends:
            backend.fp32_precision = rounding
        cudnn.benchmark = True
        yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.fp32_precision = value
        cudnn.benchmark = benchmark
