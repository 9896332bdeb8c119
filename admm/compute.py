"""How forward and backward passes are computed: bf16 autocast and channels-last activations, chosen by measurement.

Only the passes change. Weights, gradients and everything kept beside them stay float32 and contiguous: a convolution
takes its layout from its input, so converting the batch is enough, and state, copies and files are what they were.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Literal

import torch
from torch import Tensor, nn

#: Steps per way of computing that `fastest_compute` times, after one that warms up.
STEPS = 3
#: A less plain way must be this much faster than the best plainer one.
WORTH = 1.05
#: Largest difference of a loss from the plain one's, relative to it: bf16 has 8 bits, a wrong layout is far off.
CLOSE = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Compute:
    """How a pass over a batch is computed; the default is torch's own, bit for bit."""

    autocast: Literal["off", "bf16"] = "off"
    """`bf16`: convolutions and matrix products in bfloat16, outputs and loss in float32."""
    channels_last: bool = False
    """Batches [n, channels, height, width] are laid out [n, height, width, channels]; others are left as they are."""

    def __post_init__(self) -> None:
        if self.autocast not in ("off", "bf16"):
            raise ValueError(f"compute.autocast must be 'off' or 'bf16', got {self.autocast!r}")

    def __str__(self) -> str:
        parts = ["bf16" if self.autocast == "bf16" else "fp32", *(["channels-last"] if self.channels_last else [])]
        return " ".join(parts)

    def require(self, device: torch.device) -> None:
        """Raises `ValueError` where the device has no instructions for it: emulated bf16 is slower than float32."""
        if self.autocast == "bf16" and not has_bf16(device):
            raise ValueError(
                f"compute.autocast is 'bf16', but this {device.type} has no bf16 instructions "
                "(on a CPU: avx512_bf16 or amx): use 'off'"
            )

    def layout(self, inputs: Tensor) -> Tensor:
        """The batch in the layout asked for; the same tensor where it is so already."""
        if not self.channels_last or inputs.ndim != 4:
            return inputs
        samples, channels, height, width = inputs.shape
        if channels > 1:
            return inputs.contiguous(memory_format=torch.channels_last)
        # with one channel both layouts are the same bytes; the strides tell the first convolution which is meant
        strides = (height * width, 1, width, 1)
        return inputs.contiguous().as_strided((samples, channels, height, width), strides)

    def context(self, device: torch.device) -> AbstractContextManager[Any]:
        """What a forward pass runs in."""
        if self.autocast == "off":
            return nullcontext()
        return torch.autocast(device.type, dtype=torch.bfloat16)

    def forward(self, model: Callable[[Tensor], Any], inputs: Tensor) -> Any:
        """`model(inputs)`; half-precision outputs come back in float32, for the loss."""
        inputs = self.layout(inputs)
        with self.context(inputs.device):
            outputs = model(inputs)
        if self.autocast == "bf16" and isinstance(outputs, Tensor) and outputs.is_floating_point():
            return outputs.float()
        return outputs

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `Compute(**values)` is the way back."""
        return asdict(self)


#: torch's own way.
PLAIN = Compute()


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeChoice:
    """The way of computing that was fastest, and what was measured."""

    compute: Compute
    milliseconds: dict[str, float] = field(default_factory=dict)
    """A forward and backward pass, median, by the name of the way."""
    passed_over: dict[str, str] = field(default_factory=dict)
    """Ways that cannot be used here, with the reason."""

    def note(self) -> str:
        """One line for the user."""
        times = ", ".join(f"{name} {value:.1f} ms" for name, value in self.milliseconds.items())
        others = "".join(f"; not {name}: {why}" for name, why in self.passed_over.items())
        return f"training in {self.compute} (a forward and backward pass: {times}{others})"


def has_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 in hardware, as far as torch can tell."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    checks = (getattr(torch.cpu, f"_is_{isa}_supported", None) for isa in ("avx512_bf16", "amx_tile"))
    return any(check is not None and check() for check in checks)


def fastest_compute(
    model: nn.Module, batch: tuple[Tensor, Tensor], loss: Callable[[Tensor, Tensor], Tensor], *, steps: int = STEPS
) -> ComputeChoice:
    """Time forward and backward passes of a copy of `model` on a real batch, `steps` of each way in turn.

    The clock is the thread's CPU time for one thread on the CPU, else wall time. A way that fails, or whose loss
    differs from the plain one's, is passed over. The choice depends on the moment's timings: keep it with the run's
    state, so that a resumed run computes as the first did. Model and random generators are left as they were.
    """
    device = next(model.parameters()).device
    inputs, targets = batch[0].to(device), batch[1].to(device)
    trial = copy.deepcopy(model).train()
    clock = time.thread_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter

    def timed(way: Compute) -> tuple[float, float]:
        start = clock()
        trial.zero_grad(set_to_none=True)
        value = loss(way.forward(trial, inputs), targets)
        value.backward()
        reached = float(value.detach())  # waits for the device's forward pass
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return clock() - start, reached

    ways: dict[str, Compute] = {}
    passed_over: dict[str, str] = {}
    reference = 0.0
    with torch.random.fork_rng([device] if device.type == "cuda" else [], device_type="cuda"):
        for way in _ways(inputs):
            torch.manual_seed(0)
            try:
                way.require(device)
                _, reached = timed(way)
            except (RuntimeError, ValueError) as error:
                if way == PLAIN:
                    raise
                passed_over[str(way)] = str(error).splitlines()[0]
                continue
            if way == PLAIN:
                reference = reached
            elif not abs(reached - reference) <= CLOSE * max(abs(reference), 1.0):
                passed_over[str(way)] = f"its loss is {reached:.4g}, not {reference:.4g}"
                continue
            ways[str(way)] = way
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(steps):
            for name, way in ways.items():
                times[name].append(1e3 * timed(way)[0])
    milliseconds = {name: round(median(values), 3) for name, values in times.items()}
    best = str(PLAIN)
    for name in ways:
        if milliseconds[name] * WORTH < milliseconds[best]:
            best = name
    return ComputeChoice(compute=ways[best], milliseconds=milliseconds, passed_over=passed_over)


def _ways(inputs: Tensor) -> list[Compute]:
    """From the plainest on; layouts matter to images only."""
    layouts = (False, True) if inputs.ndim == 4 else (False,)
    kinds: tuple[Literal["off", "bf16"], ...] = ("off", "bf16")
    return [Compute(autocast=kind, channels_last=layout) for kind in kinds for layout in layouts]
