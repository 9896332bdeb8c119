"""The rig protocols, and the table of rigs by name: a new device is one `*_rig.py` and one line here."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

import numpy as np

from evaluators.errors import RigError, RigUnavailable
from evaluators.measurement import DeviceStamp, Measurement

if TYPE_CHECKING:
    from torch import Tensor, nn

    from evaluators.accuracy import Predict

__all__ = [
    "LatencyRig",
    "ModuleRig",
    "RigError",
    "RigUnavailable",
    "make_module_rig",
    "make_rig",
    "measures_modules",
    "require_rig_name",
    "rig_names",
]

#: name -> module:class, imported only when asked for, so that a missing runtime hurts nobody else.
_MODULE_RIGS: dict[str, str] = {
    "cuda": "evaluators.cuda_rig:CudaRig",
    "torch-cpu": "evaluators.torch_rig:TorchCpuRig",
}
_RIGS: dict[str, str] = {"onnxruntime-cpu": "evaluators.ort_rig:OrtCpuRig", **_MODULE_RIGS}
#: Any provider of ONNX Runtime makes a rig of this prefix; the names here are those that `rig_names` tells of.
_PROVIDER_RIG = "evaluators.provider_rig:ProviderRig"
_PREFIX = "onnxruntime-"
_RIGS |= {_PREFIX + provider: _PROVIDER_RIG for provider in ("cuda", "tensorrt", "openvino", "coreml", "dml")}


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


@runtime_checkable
class ModuleRig(Protocol):
    """Measures PyTorch modules on one device, each a copy in the rig's precision and in evaluation mode.

    What a Triton kernel or a sparse tensor does cannot be said in ONNX: such a form of a network is a module.
    """

    @property
    def name(self) -> str:
        """The name under which `make_module_rig` finds it."""
        ...

    @property
    def precision(self) -> str:
        """What it computes in, one of `evaluators.module_form.PRECISIONS`."""
        ...

    @property
    def rewrites(self) -> tuple[str, ...]:
        """The ways of running a layer without its zeros that may be tried on it (`evaluators.module_lowering`)."""
        ...

    def stamp(self, batch: int) -> DeviceStamp:
        """Where, with what and on which clock a measurement with this batch is taken."""
        ...

    def measure_modules(
        self, candidate: nn.Module, reference: nn.Module, example_input: Tensor, *, batch: int = 1
    ) -> Measurement:
        """Latency of `candidate` and its paired speed-up over `reference`; neither is changed.

        `example_input` holds one sample, which is repeated, or `batch` of them. The same module twice is an A/A
        control. Raises `RigError` for a module that cannot be copied or run, or an input that does not fit.
        """
        ...

    def predictor(self, module: nn.Module) -> Predict:
        """Outputs in float32 on the host, for float32 batches, of the module as it is measured."""
        ...


def measures_modules(name: str) -> bool:
    """Whether the rig of this name measures PyTorch modules; all others take ONNX files."""
    return name in _MODULE_RIGS


def make_module_rig(name: str, *, threads: int = 1, precision: str | None = None) -> ModuleRig:
    """The rig of modules called `name`; `RigUnavailable` if there is none, or if this machine cannot run it."""
    if not measures_modules(name):
        raise RigUnavailable(f"rig {name!r} measures no modules: use one of {', '.join(_MODULE_RIGS)}")
    made: object = make_rig(name, threads=threads, precision=precision)
    return cast(ModuleRig, made)


def rig_names() -> tuple[str, ...]:
    """The rigs this version knows; whether this machine can run one, `make_rig` says."""
    return tuple(_RIGS)


def make_rig(name: str, *, threads: int = 1, precision: str | None = None) -> LatencyRig:
    """The rig called `name`; `RigUnavailable` if there is none, or if this machine cannot run it.

    `onnxruntime-<provider>` makes a rig of any provider that ONNX Runtime knows. `precision` is what a rig computes
    float32 in (`fp32`, `tf32`) or turns a module into (`fp16`, `bf16`); `None` is the rig's own. A rig of modules
    refuses every ONNX file in one line: `make_module_rig` gives it with its own protocol.
    """
    known = _known(name)
    if known == _RIGS["onnxruntime-cpu"]:
        if precision not in (None, "fp32"):
            raise RigUnavailable(f"rig {name!r} computes in the types of the ONNX file, not in {precision!r}: leave it")
        return _made(name, known, threads=threads)
    if known == _PROVIDER_RIG:
        return _made(name, known, name, threads=threads, precision=precision)
    return _made(name, known, threads=threads, precision=precision)


def require_rig_name(name: str) -> None:
    """Raises `RigUnavailable` for a name that no rig has, on whatever machine."""
    _known(name)


def _known(name: str) -> str:
    known = _RIGS.get(name) or _provider_rig(name)
    if known is None:
        near = difflib.get_close_matches(str(name), _RIGS, n=1, cutoff=0.4)
        mend = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(_RIGS)}"
        raise RigUnavailable(f"unknown rig {name!r}: {mend}")
    return known


def _provider_rig(name: object) -> str | None:
    """The rig of a provider that is not in the table, or is written in other letters."""
    if not isinstance(name, str) or not name.lower().startswith(_PREFIX):
        return None
    try:
        from evaluators.provider_rig import provider_of
    except ImportError:
        return None
    known = provider_of(name)
    return None if known is None else _RIGS.get(name.lower(), _PROVIDER_RIG)


def _made(name: str, where: str, *arguments: object, **options: object) -> LatencyRig:
    module_name, _, attribute = where.partition(":")
    try:
        factory: Any = getattr(importlib.import_module(module_name), attribute)
    except ImportError as error:
        raise RigUnavailable(f"rig {name!r} needs a package that is not installed: {error}") from None
    return cast(LatencyRig, factory(*arguments, **options))
