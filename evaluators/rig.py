"""The rig protocol, and the table of rigs by name: a new device is one `*_rig.py` and one line here."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np

from evaluators.errors import RigError, RigUnavailable
from evaluators.measurement import DeviceStamp, Measurement

__all__ = ["LatencyRig", "RigError", "RigUnavailable", "make_rig", "rig_names"]

#: name -> module:class, imported only when asked for, so that a missing runtime hurts nobody else.
_RIGS: dict[str, str] = {"onnxruntime-cpu": "evaluators.ort_rig:OrtCpuRig"}
_LATER: tuple[str, ...] = ("cuda", "onnxruntime-cuda")


@runtime_checkable
class LatencyRig(Protocol):
    """Measures the latency of a model on one device and runtime, paired with a reference model."""

    @property
    def name(self) -> str:
        """The name under which `make_rig` finds it."""
        ...

    def stamp(self, batch: int) -> DeviceStamp:
        """Where, with what and on which clock a measurement with this batch is taken."""
        ...

    def measure(
        self,
        candidate: bytes | Path,
        reference: bytes | Path,
        inputs: Mapping[str, np.ndarray] | None = None,
        *,
        batch: int = 1,
    ) -> Measurement:
        """Latency of `candidate` and its paired speed-up over `reference`; both are ONNX bytes or files.

        `inputs` maps graph inputs to arrays [batch, ...]; `None` draws seeded random ones from the graph's
        shapes. The same model twice is an A/A control. Raises `RigError` for a model that cannot be loaded or
        run, inputs that do not fit, or a runtime that would not run on the rig's own device.
        """
        ...


def rig_names() -> tuple[str, ...]:
    """The rigs this version can make."""
    return tuple(_RIGS)


def make_rig(name: str, *, threads: int = 1) -> LatencyRig:
    """The rig called `name`; `RigUnavailable` if there is none, or if this machine cannot run it."""
    if name in _LATER:
        raise RigUnavailable(f"rig {name!r} is not in this version, which measures onnxruntime-cpu only: ask for that")
    if name not in _RIGS:
        near = difflib.get_close_matches(str(name), _RIGS, n=1, cutoff=0.4)
        mend = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(_RIGS)}"
        raise RigUnavailable(f"unknown rig {name!r}: {mend}")
    module_name, _, attribute = _RIGS[name].partition(":")
    try:
        factory: Any = getattr(importlib.import_module(module_name), attribute)
    except ImportError as error:
        raise RigUnavailable(f"rig {name!r} needs a package that is not installed: {error}") from None
    return cast(LatencyRig, factory(threads=threads))
