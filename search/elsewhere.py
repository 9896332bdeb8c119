"""Rigs on another machine than this process: what stands for them here, wherever a rig is opened.

A driver on one machine prepares a search for another: dense network, channel block, forecast and final front are to be
measured where the trials are. Whoever joins a cluster says so once, and `search.alignment` and `search.bench` ask here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from evaluators.errors import RigError
from evaluators.measurement import DeviceStamp, Measurement
from search.job_sections import RigSpec


class Machine(Protocol):
    """The machine of some rigs, reached over the network."""

    rigs: tuple[str, ...]
    """The rigs that it has."""

    def ask(self, method: str, rig: str, *arguments: Any) -> Any:
        """What the rig's actor answers. Raises `EvaluationError`, or `UserError` where there is none."""
        ...


class FarRig:
    """An ONNX rig of another machine; implements `evaluators.LatencyRig`."""

    def __init__(self, machine: Machine, spec: RigSpec) -> None:
        self._machine, self._spec = machine, spec

    @property
    def name(self) -> str:
        return self._spec.name

    def stamp(self, batch: int) -> DeviceStamp:
        """Where, with what and on which clock it measures."""
        return DeviceStamp.from_dict(self._machine.ask("stamp", self.name, batch))

    def measure(
        self,
        candidate: bytes | Path,
        reference: bytes | Path,
        inputs: Mapping[str, np.ndarray] | None = None,
        *,
        batch: int = 1,
    ) -> Measurement:
        """As the rig measures there; files travel as bytes. Raises `RigError` for inputs, which do not travel."""
        if inputs is not None or batch != self._spec.batch:
            raise RigError(f"rig {self.name!r} stands on another machine and measures with the job's batch alone")
        sent = [part if isinstance(part, bytes) else part.read_bytes() for part in (candidate, reference)]
        return Measurement.from_dict(self._machine.ask("measure", self.name, *sent))


_machine: Machine | None = None


@contextlib.contextmanager
def measuring_at(machine: Machine) -> Iterator[None]:
    """In this process, rigs that `machine` has are opened there."""
    global _machine
    before, _machine = _machine, machine
    try:
        yield
    finally:
        _machine = before


def machine_of(rig: str) -> Machine | None:
    """The other machine that has this rig; None where it is opened here."""
    return _machine if _machine is not None and rig in _machine.rigs else None
