"""The `onnxruntime-cpu` rig, and what it shares with the rigs of other providers."""

from __future__ import annotations

import platform
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from evaluators.clock import WallClock, host_clock
from evaluators.errors import RigError, one_line
from evaluators.host import cpu_isa, cpu_model, pinned_to_one_core, require_threads
from evaluators.measurement import DeviceStamp, Measurement
from evaluators.ort_session import PROVIDER, checked_inputs, open_session, random_inputs
from evaluators.timing import TimingSettings, time_pair


class OrtRig(ABC):
    """What the rigs of ONNX Runtime share: two sessions, bound inputs, one paired timing.

    A subclass says how a model is opened, where its inputs live, and what the stamp holds.
    """

    name: str
    threads: int
    settings: TimingSettings
    #: Where inputs and outputs are bound: ONNX Runtime's own word for the memory.
    memory = "cpu"
    _clock: WallClock

    @abstractmethod
    def stamp(self, batch: int) -> DeviceStamp:
        """Where, with what and on which clock a measurement with this batch is taken."""

    @abstractmethod
    def _open(self, model: bytes | Path, batch: int) -> Any:
        """The session that is measured; raises `RigError` for one that would run elsewhere."""

    @property
    def _pinned(self) -> bool:
        """Whether the calling thread does the work, so that it is worth keeping on one core."""
        return False

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
        sessions = [self._open(model, batch) for model in (candidate, reference)]
        feeds = [
            random_inputs(session, batch) if inputs is None else checked_inputs(session, inputs, batch)
            for session in sessions
        ]
        _require_same_inputs(feeds[0], feeds[1])
        with pinned_to_one_core() if self._pinned else nullcontext():
            works = [_bound_call(session, feed, self.memory) for session, feed in zip(sessions, feeds, strict=True)]
            try:
                timing = time_pair(works[0], works[1], settings=self.settings, clock=self._clock)
            except RigError:
                raise
            except Exception as error:
                raise RigError(f"the model broke off while being timed: {one_line(error)}") from error
        return timing.measurement(self.stamp(batch))


class OrtCpuRig(OrtRig):
    """Latency in ONNX Runtime on this machine's processor; implements `evaluators.rig.LatencyRig`.

    One thread: pinned to a core and timed in thread CPU time. More: wall time, which means something only on
    a machine that has nothing else to do. The stamp says which. Raises `RigUnavailable` for more threads than
    the process has cores.
    """

    name = "onnxruntime-cpu"

    def __init__(self, *, threads: int = 1, settings: TimingSettings | None = None) -> None:
        self.threads = require_threads(threads)
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

    def _open(self, model: bytes | Path, batch: int) -> Any:
        return open_session(model, threads=self.threads)

    @property
    def _pinned(self) -> bool:
        return self.threads == 1


def _require_same_inputs(candidate: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray]) -> None:
    """A ratio of latencies means nothing if the two models do not read the same thing."""
    shapes = [[(value.shape, str(value.dtype)) for value in feed.values()] for feed in (candidate, reference)]
    if shapes[0] != shapes[1]:
        raise RigError(f"candidate and reference read different inputs: {shapes[0]} against {shapes[1]}")


def _bound_call(session: Any, feed: Mapping[str, np.ndarray], memory: str = "cpu") -> Callable[[], object]:
    """One inference with inputs and outputs bound to fixed memory, so that only the graph itself is timed."""
    binding = session.io_binding()
    held = {name: ort.OrtValue.ortvalue_from_numpy(value, memory, 0) for name, value in feed.items()}
    for name, value in held.items():
        binding.bind_ortvalue_input(name, value)
    for node in session.get_outputs():
        binding.bind_output(node.name, memory)
    try:
        session.run_with_iobinding(binding)
    except Exception as error:
        raise RigError(f"the model cannot be run: {one_line(error)}") from error
    # The shapes are known now: from here on the outputs go where the first run put them.
    for node, value in zip(session.get_outputs(), binding.get_outputs(), strict=True):
        binding.bind_ortvalue_output(node.name, value)

    if memory != "cpu":
        return _SynchronisedCall(session, binding, held)
    return _BoundCall(session, binding, held)


@dataclass(frozen=True, slots=True)
class _BoundCall:
    session: Any
    binding: Any
    held: Mapping[str, Any]
    """The binding points into these inputs without owning them."""

    def __call__(self) -> object:
        return self.session.run_with_iobinding(self.binding)


@dataclass(frozen=True, slots=True)
class _SynchronisedCall(_BoundCall):
    """Done only when the device is: a run that merely queued its kernels would look fast."""

    def __call__(self) -> object:
        self.session.run_with_iobinding(self.binding)
        return self.binding.synchronize_outputs()
