"""The fp16 form of an ONNX file: half the bytes, for runtimes that compute in it; inputs and outputs stay float32."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import onnx_ir
from onnx import TensorProto
from onnx_ir.passes.common import TopologicalSortPass
from torch import Tensor

from evaluators.accuracy import OnnxPredictor
from evaluators.errors import EvaluationError, one_line
from evaluators.ort_tools import ort_tools
from evaluators.parity import FLOOR, ParityReport, compare
from evaluators.quantize import PRECISION_KEY

#: Design: an fp16 file against its fp32 form, max|y - y16| <= this x max|y|.
FP16_TOLERANCE = 2e-2


def to_fp16(model: bytes | Path) -> bytes:
    """The model with weights and activations in fp16, the input and the output float32 as they were.

    By ONNX Runtime's own converter, which leaves operators in float32 that have no fp16 form. Names, operator set, free
    batch and metadata stay, `PRECISION_KEY` is set to `fp16`. What is too large for fp16 is cut to 65504: `check_fp16`
    finds it. Raises `EvaluationError` in one line for a model that is quantised, is fp16 already, has no float weights,
    or cannot be converted.
    """
    proto = onnx.load_model_from_string(model if isinstance(model, bytes) else model.read_bytes())
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in proto.graph.node):
        raise EvaluationError("the model is quantised: give the fp32 file")
    if half_weights(proto):
        raise EvaluationError("the model has fp16 weights already: give the fp32 file")
    if all(weight.data_type != TensorProto.FLOAT for weight in proto.graph.initializer):
        raise EvaluationError("the model has no float32 weights: nothing would be gained")
    try:
        with _quiet():
            made = _converter()(proto, keep_io_types=True)
        # Of nodes that are left in float32 and of the two ends: the converter puts the casts last.
        sorted_ = TopologicalSortPass()(onnx_ir.from_proto(made)).model
        made = onnx_ir.to_proto(sorted_)
        # Types of float32 that the converter has not kept up with.
        made.graph.ClearField("value_info")
        onnx.helper.set_model_props(made, {**_props(proto), PRECISION_KEY: "fp16"})
        onnx.checker.check_model(made, full_check=True)
    except EvaluationError:
        raise
    except Exception as error:
        raise EvaluationError(f"the model cannot be converted to fp16: {one_line(error)}") from error
    content: bytes = made.SerializeToString(deterministic=True)
    return content


def half_weights(model: bytes | onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the weights that a model keeps as fp16."""
    proto = onnx.load_model_from_string(model) if isinstance(model, bytes) else model
    kept = (weight for weight in proto.graph.initializer if weight.data_type == TensorProto.FLOAT16)
    return {weight.name: tuple(weight.dims) for weight in kept}


def check_fp16(
    reference: bytes | Path, converted: bytes | Path, inputs: Sequence[Tensor], *, tolerance: float = FP16_TOLERANCE
) -> ParityReport:
    """Compare an fp16 model with the fp32 one it was made from, on batches [batch, ...].

    Raises `RigError` for a file that cannot be loaded or run, `ValueError` for no inputs.
    """
    return compare(OnnxPredictor(reference), OnnxPredictor(converted), inputs, tolerance, FLOOR)


def _props(proto: onnx.ModelProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in proto.metadata_props}


def _converter() -> Callable[..., Any]:
    """`convert_float_to_float16` of ONNX Runtime's tools; imported here, because fp16 is an option."""
    try:
        with ort_tools():
            from onnxruntime.transformers.float16 import convert_float_to_float16
    except ImportError as error:
        raise EvaluationError(
            f"this onnxruntime has no converter to fp16 ({one_line(error)}): install the stock onnxruntime package"
        ) from error
    converter: Callable[..., Any] = convert_float_to_float16
    return converter


@contextmanager
def _quiet() -> Iterator[None]:
    """The converter tells of weights that nodes of both precisions read; the gate judges what comes out."""
    logger = logging.getLogger("onnxruntime.transformers.float16")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
