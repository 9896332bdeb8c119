"""Rigs for any execution provider of ONNX Runtime: `onnxruntime-cuda`, `-openvino`, `-tensorrt`, `-coreml`, ..."""

from __future__ import annotations

import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort

from evaluators.clock import WallClock
from evaluators.device import gpu_capability, gpu_label
from evaluators.errors import RigError, RigUnavailable, one_line
from evaluators.external_data import require_own_data
from evaluators.host import cpu_isa, cpu_model, require_threads
from evaluators.measurement import DeviceStamp
from evaluators.ort_rig import OrtRig
from evaluators.timing import TimingSettings

CPU = "CPUExecutionProvider"
_SUFFIX = "ExecutionProvider"
_PREFIX = "onnxruntime-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """What is particular to one provider; the defaults do for one that reads and writes host memory."""

    package: str = ""
    """What to install for it; empty: a build of ONNX Runtime that holds it."""
    memory: str = "cpu"
    """Where inputs and outputs are bound, so that no copy is timed."""
    options: dict[str, dict[str, str]] = field(default_factory=lambda: {"fp32": {}})
    """Provider options for each arithmetic it can be told to use for float32 models; the first is the default."""


#: onnxruntime.ai/docs/execution-providers; the other providers are taken with no options of their own.
_BACKENDS: dict[str, Backend] = {
    "CUDAExecutionProvider": Backend(
        package="onnxruntime-gpu",
        memory="cuda",
        # TF32 is the provider's own default, and 1e-3 off: a plain measurement is one of float32.
        options={"fp32": {"use_tf32": "0"}, "tf32": {"use_tf32": "1"}},
    ),
    "TensorrtExecutionProvider": Backend(
        package="onnxruntime-gpu and tensorrt",
        memory="cuda",
        # TensorRT builds float32 engines with TF32, and the provider has no switch for it (onnxruntime issue 26029).
        options={"tf32": {}, "fp16": {"trt_fp16_enable": "1"}, "bf16": {"trt_bf16_enable": "1"}},
    ),
    "OpenVINOExecutionProvider": Backend(package="onnxruntime-openvino", options={"fp32": {"device_type": "CPU"}}),
    "CoreMLExecutionProvider": Backend(package="onnxruntime on macOS"),
    "DmlExecutionProvider": Backend(package="onnxruntime-directml on Windows"),
    "QNNExecutionProvider": Backend(package="onnxruntime-qnn"),
    "MIGraphXExecutionProvider": Backend(package="onnxruntime-migraphx"),
    "WebGpuExecutionProvider": Backend(package="onnxruntime-webgpu"),
}


class ProviderRig(OrtRig):
    """Latency in ONNX Runtime on one named provider; implements `evaluators.rig.LatencyRig`.

    Wall time decides, the device being waited for after every run; free sizes of the graph are fixed to the batch
    before it is optimised, so that arithmetic on shapes folds away instead of running on the host. Raises
    `RigUnavailable` for a provider or arithmetic that is not here, and refuses (`RigError`) a model of which any node
    would run on another provider.
    """

    def __init__(
        self, name: str, *, threads: int = 1, precision: str | None = None, settings: TimingSettings | None = None
    ) -> None:
        self.provider = _installed(name)
        self.name = name.lower()
        self.threads = require_threads(threads)
        self.settings = settings or TimingSettings()
        self._clock = WallClock()
        backend = _BACKENDS.get(self.provider, Backend())
        self.memory = backend.memory
        self.precision = next(iter(backend.options)) if precision is None else precision
        if self.precision not in backend.options:
            raise RigUnavailable(
                f"rig {self.name!r} computes in {' or '.join(backend.options)}, not in {precision!r}: "
                "other types are those of the ONNX file"
            )
        self._options = dict(backend.options[self.precision])
        if self.provider == "OpenVINOExecutionProvider":
            self._options["num_of_threads"] = str(threads)

    def stamp(self, batch: int) -> DeviceStamp:
        on_gpu = self.memory == "cuda"
        return DeviceStamp(
            rig=self.name,
            device=gpu_label() if on_gpu else cpu_model(),
            isa=gpu_capability() if on_gpu else cpu_isa(),
            runtime=f"onnxruntime {ort.__version__}",
            provider=f"{self.provider} {self.precision}",
            threads=self.threads,
            batch=batch,
            clock=self._clock.kind,
            platform=platform.platform(),
        )

    def _open(self, model: bytes | Path, batch: int) -> Any:
        label = "the model" if isinstance(model, bytes) else str(model)
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        if self.provider != CPU:
            # ONNX Runtime adds its CPU provider to every session; this makes it refuse to place a node there.
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        require_own_data(model)
        for size in _free_batch_sizes(model, label):
            options.add_free_dimension_override_by_name(size, batch)
        source = model if isinstance(model, bytes) else str(model)
        try:
            session = ort.InferenceSession(
                source, options, providers=[(self.provider, self._options)], enable_fallback=0
            )
        except Exception as error:
            raise RigError(_refusal(label, self.provider, error)) from error
        require_only(session, self.provider)
        return session


def provider_of(name: str) -> str | None:
    """The provider that a rig name such as `onnxruntime-openvino` means; `None` if ONNX Runtime knows none."""
    known = {p.removesuffix(_SUFFIX).lower(): p for p in (*ort.get_all_providers(), *ort.get_available_providers())}
    lower = name.lower()
    return known.get(lower.removeprefix(_PREFIX)) if lower.startswith(_PREFIX) else None


def require_only(session: Any, provider: str) -> None:
    """Refuse a session in which `provider` does not come first, or has another beside it than the unused CPU one."""
    used = list(session.get_providers())
    if used[:1] != [provider] or not set(used) <= {provider, CPU}:
        raise RigError(f"ONNX Runtime would run on {', '.join(used) or 'nothing'} where {provider} was asked for")


def _installed(name: str) -> str:
    """The provider that `name` means, if this onnxruntime has it."""
    provider = provider_of(name)
    here = ort.get_available_providers()
    if provider is not None and provider in here:
        return provider
    wanted = provider or f"a provider called {name.removeprefix(_PREFIX)!r}"
    package = _BACKENDS[provider].package if provider in _BACKENDS else "a build of onnxruntime that has it"
    raise RigUnavailable(
        f"rig {name!r} needs {wanted}, this onnxruntime {ort.__version__} has {', '.join(here)}: install {package}"
    )


def _free_batch_sizes(model: bytes | Path, label: str) -> list[str]:
    """Names of the free first sizes of the graph's inputs."""
    if isinstance(model, Path) and not model.is_file():
        raise RigError(f"no ONNX file at {model}")
    try:
        content = model if isinstance(model, bytes) else model.read_bytes()
        graph = onnx.load_model_from_string(content).graph
        shapes = [value.type.tensor_type.shape.dim for value in graph.input]
        return sorted({shape[0].dim_param for shape in shapes if len(shape) and shape[0].dim_param})
    except Exception as error:
        raise RigError(f"ONNX Runtime cannot load {label}: {one_line(error)}") from error


def _refusal(label: str, provider: str, error: Exception) -> str:
    """One line for a session that was not made: falling back is told apart from a model that is broken."""
    reason = one_line(error)
    if "CPU EP" in reason:
        return f"{provider} cannot run all of {label}, and its latency elsewhere is not filed: {reason}"
    return f"ONNX Runtime cannot load {label} on {provider}: {reason}"
