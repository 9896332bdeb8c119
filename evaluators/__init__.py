"""Given any plain `nn.Module` or ONNX file, measure it: latency, accuracy, parity, cost on paper.

Names are imported on first use (PEP 562): reading an `errors` or `measurement` needs neither torch nor ONNX
Runtime.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evaluators.accuracy import OnnxPredictor, Score, evaluate, module_predictor, top1
    from evaluators.blocks import ChannelBlock, block_of
    from evaluators.counting import count_macs, count_params
    from evaluators.errors import EvaluationError, ExportError, RigError, RigUnavailable
    from evaluators.half import check_fp16, to_fp16
    from evaluators.lowering import LayerTimes, Lowered, LoweredLayer, lower
    from evaluators.measurement import DeviceStamp, Measurement
    from evaluators.onnx_export import batch_kind, export_onnx
    from evaluators.opset import OpsetError, require_opset
    from evaluators.parity import ParityError, ParityReport, check_parity, compare_modules
    from evaluators.predictor import LatencyPredictor
    from evaluators.quantize import Int8Report, check_int8, quantize_int8
    from evaluators.rig import LatencyRig, make_rig, rig_names
    from evaluators.timing import PairedTiming, TimingSettings, time_pair

__all__ = [
    "ChannelBlock",
    "DeviceStamp",
    "EvaluationError",
    "ExportError",
    "Int8Report",
    "LatencyPredictor",
    "LatencyRig",
    "LayerTimes",
    "Lowered",
    "LoweredLayer",
    "Measurement",
    "OnnxPredictor",
    "OpsetError",
    "PairedTiming",
    "ParityError",
    "ParityReport",
    "RigError",
    "RigUnavailable",
    "Score",
    "TimingSettings",
    "batch_kind",
    "block_of",
    "check_fp16",
    "check_int8",
    "check_parity",
    "compare_modules",
    "count_macs",
    "count_params",
    "evaluate",
    "export_onnx",
    "lower",
    "make_rig",
    "module_predictor",
    "quantize_int8",
    "require_opset",
    "rig_names",
    "time_pair",
    "to_fp16",
    "top1",
]

_HOMES: dict[str, tuple[str, ...]] = {
    "accuracy": ("OnnxPredictor", "Score", "evaluate", "module_predictor", "top1"),
    "blocks": ("ChannelBlock", "block_of"),
    "counting": ("count_macs", "count_params"),
    "errors": ("EvaluationError", "ExportError", "RigError", "RigUnavailable"),
    "half": ("check_fp16", "to_fp16"),
    "lowering": ("LayerTimes", "Lowered", "LoweredLayer", "lower"),
    "measurement": ("DeviceStamp", "Measurement"),
    "onnx_export": ("batch_kind", "export_onnx"),
    "opset": ("OpsetError", "require_opset"),
    "parity": ("ParityError", "ParityReport", "check_parity", "compare_modules"),
    "predictor": ("LatencyPredictor",),
    "quantize": ("Int8Report", "check_int8", "quantize_int8"),
    "rig": ("LatencyRig", "make_rig", "rig_names"),
    "timing": ("PairedTiming", "TimingSettings", "time_pair"),
}
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'evaluators' has no attribute {name!r}")
    return getattr(importlib.import_module(f"evaluators.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
