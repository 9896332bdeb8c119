"""The `torch-cpu` rig: latency of PyTorch modules on this machine's processor, eager, as a user would call them."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from evaluators.accuracy import Predict
from evaluators.clock import host_clock
from evaluators.errors import RigError, one_line
from evaluators.host import cpu_isa, cpu_model, pinned_to_one_core, require_threads
from evaluators.measurement import DeviceStamp, Measurement
from evaluators.modes import module_output
from evaluators.module_form import (
    KEPT_COLUMNS,
    prepared_input,
    prepared_module,
    refuse_onnx,
    require_precision,
)
from evaluators.timing import TimingSettings, time_pair

#: What it computes in; a processor has no TF32, and its float16 is for storage.
PRECISIONS = ("fp32", "bf16")


class TorchCpuRig:
    """Time of torch modules on the processor; implements `evaluators.rig.ModuleRig`.

    One thread: pinned to a core and timed in thread CPU time. More: wall time, which means something only on a machine
    that has nothing else to do. Raises `RigUnavailable` for more threads than the process has cores.
    """

    name = "torch-cpu"
    rewrites: tuple[str, ...] = (KEPT_COLUMNS,)

    def __init__(
        self, *, threads: int = 1, precision: str | None = None, settings: TimingSettings | None = None
    ) -> None:
        self.precision = require_precision(precision or "fp32", PRECISIONS)
        self.threads = require_threads(threads)
        self.settings = settings or TimingSettings()
        self._clock = host_clock(threads)

    def stamp(self, batch: int) -> DeviceStamp:
        return DeviceStamp(
            rig=self.name,
            device=cpu_model(),
            isa=cpu_isa(),
            runtime=f"torch {torch.__version__}",
            provider=f"{self.precision}, eager",
            threads=self.threads,
            batch=batch,
            clock=self._clock.kind,
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
        refuse_onnx(self.name, "onnxruntime-cpu")

    def measure_modules(
        self, candidate: nn.Module, reference: nn.Module, example_input: Tensor, *, batch: int = 1
    ) -> Measurement:
        """Latency of `candidate` and its paired speed-up over `reference`, both in eval mode; neither is changed.

        `example_input` holds one sample, which is repeated, or `batch` of them: [1 or batch, ...]. Raises `RigError`
        for a module that cannot be copied or run, or a wrong input.
        """
        # Copies and inputs of their own even for the same module, so that an A/A control pays for its own memory.
        works = [self._work(module, example_input, batch) for module in (candidate, reference)]
        with torch_threads(self.threads), torch.inference_mode():
            try:
                with pinned_to_one_core() if self.threads == 1 else nullcontext():
                    timing = time_pair(works[0], works[1], settings=self.settings, clock=self._clock)
            except RigError:
                raise
            except Exception as error:
                raise RigError(f"the module cannot be run: {one_line(error)}") from error
        return timing.measurement(self.stamp(batch))

    def predictor(self, module: nn.Module) -> Predict:
        """Outputs [batch, ...] in float32 of the module as it is measured."""
        ready = prepared_module(module, self.precision, channels_last=False)

        def predict(batch: Tensor) -> Tensor:
            inputs = prepared_input(batch, len(batch), self.precision, channels_last=False)
            with torch.inference_mode():
                output = module_output(ready, inputs)
            return output.float() if output.is_floating_point() else output

        return predict

    def _work(self, module: nn.Module, example: Tensor, batch: int) -> Callable[[], object]:
        ready = prepared_module(module, self.precision, channels_last=False)
        inputs = prepared_input(example, batch, self.precision, channels_last=False)
        return lambda: ready(inputs)


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """So many threads in torch's kernels inside, as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
