"""The `onnxruntime-cpu` rig."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from evaluators.clock import host_clock
from evaluators.errors import RigError, RigUnavailable, one_line
from evaluators.host import allowed_cores, cpu_isa, cpu_model, pinned_to_one_core
from evaluators.measurement import DeviceStamp, Measurement
from evaluators.ort_session import PROVIDER, checked_inputs, open_session, random_inputs
from evaluators.timing import TimingSettings, time_pair


class OrtCpuRig:
    """Latency in ONNX Runtime on this machine's processor; implements `evaluators.rig.LatencyRig`.

    One thread: pinned to a core and timed in thread CPU time. More: wall time, which means something only on
    a machine that has nothing else to do. The stamp says which. Raises `RigUnavailable` for more threads than
    the process has cores.
    """

    name = "onnxruntime-cpu"

    def __init__(self, *, threads: int = 1, settings: TimingSettings | None = None) -> None:
        cores = len(allowed_cores())
        if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= cores:
            raise RigUnavailable(f"threads must lie in 1..{cores}, the cores this process may use, got {threads!r}")
        self.threads = threads
        self.settings = settings or TimingSettings()
        self._clock = host_clock(threads)

    def stamp(self, batch: int) -> DeviceStamp:
        return DeviceStamp(
            rig=self.name,
            device=cpu_model(),
            isa=cpu_isa(),
            runtime=f"onnxruntime {ort.__version__}",
            provider=PROVIDER,
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
        if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
            raise RigError(f"batch must be an integer >= 1, got {batch!r}")
        # Two sessions even for the same model, so that an A/A control pays for its own weights in the caches.
        sessions = [open_session(model, threads=self.threads) for model in (candidate, reference)]
        feeds = [
            random_inputs(session, batch) if inputs is None else checked_inputs(session, inputs, batch)
            for session in sessions
        ]
        _require_same_inputs(feeds[0], feeds[1])
        with pinned_to_one_core() if self.threads == 1 else nullcontext():
            works = [_bound_call(session, feed) for session, feed in zip(sessions, feeds, strict=True)]
            try:
                timing = time_pair(works[0], works[1], settings=self.settings, clock=self._clock)
            except RigError:
                raise
            except Exception as error:
                raise RigError(f"the model broke off while being timed: {one_line(error)}") from error
        return timing.measurement(self.stamp(batch))


def _require_same_inputs(candidate: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray]) -> None:
    """A ratio of latencies means nothing if the two models do not read the same thing."""
    shapes = [[(value.shape, str(value.dtype)) for value in feed.values()] for feed in (candidate, reference)]
    if shapes[0] != shapes[1]:
        raise RigError(f"candidate and reference read different inputs: {shapes[0]} against {shapes[1]}")


def _bound_call(session: Any, feed: Mapping[str, np.ndarray]) -> Callable[[], object]:
    """One inference with inputs and outputs bound to fixed memory, so that only the graph itself is timed."""
    binding = session.io_binding()
    held = {name: ort.OrtValue.ortvalue_from_numpy(value) for name, value in feed.items()}
    for name, value in held.items():
        binding.bind_ortvalue_input(name, value)
    for node in session.get_outputs():
        binding.bind_output(node.name, "cpu")
    try:
        session.run_with_iobinding(binding)
    except Exception as error:
        raise RigError(f"the model cannot be run: {one_line(error)}") from error
    # The shapes are known now: from here on the outputs go where the first run put them.
    for node, value in zip(session.get_outputs(), binding.get_outputs(), strict=True):
        binding.bind_ortvalue_output(node.name, value)

    return _BoundCall(session, binding, held)


@dataclass(frozen=True, slots=True)
class _BoundCall:
    session: Any
    binding: Any
    held: Mapping[str, Any]
    """The binding points into these inputs without owning them."""

    def __call__(self) -> object:
        return self.session.run_with_iobinding(self.binding)
