"""The int8 form of an ONNX file, calibrated on training data: the last step of a trial or of an export."""

from __future__ import annotations

import io
import logging
import platform
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import TensorProto
from torch import Tensor

from evaluators.accuracy import OnnxPredictor
from evaluators.errors import EvaluationError, one_line
from evaluators.host import cpuinfo
from evaluators.ort_session import PROVIDER
from evaluators.ort_tools import ort_tools
from evaluators.parity import FLOOR, ParityError, ParityReport, compare

#: Key of the file's metadata that says what its weights are kept in; a file without it is fp32.
PRECISION_KEY = "prunefront.precision"

#: max|y - y_int8| <= this x max|y|, on the inputs it was calibrated on. Rounding to 8 bits costs up to 0.2 % of a
#: tensor's range, and the largest of many outputs shows what the layers add up to. Trained for 3 to 8 epochs, 256
#: samples: 0.006 digits (width 80), 0.012 digits (width 16), 0.008 LeNet-5, 0.016 ResNet-20; 7-bit weights 0.009 to
#: 0.024. Calibrated on inputs ten times too large 0.066 to 0.135, half as large 0.45 to 0.83, on zeros 0.87 to 1.7.
INT8_TOLERANCE = 0.05
#: Least fraction of samples on which both forms put the same class first. The networks above: 1 where trained to 98 %
#: and more; 0.973 and up for ResNet-20 at 60 %, whose classes lie close together. Calibrated on zeros 0.11 to 0.93.
INT8_AGREEMENT = 0.95

#: Samples run at once: the calibration run holds every tensor of the graph.
_PIECE = 32
_X86 = ("x86_64", "amd64", "i686", "i386")
_VNNI_FLAGS = ("avx512_vnni", "avx_vnni")


def quantize_int8(
    model: bytes | Path, calibration: Iterable[Tensor], *, samples: int = 256, reduce_range: bool | None = None
) -> bytes:
    """The model with static int8 QDQ: activations U8, weights S8 per output channel; ranges are minima and maxima.

    `calibration` gives batches [batch, ...] of training inputs, of which the first `samples` are used. The batch stays
    as free as it was, the metadata are kept and `PRECISION_KEY` is set to `int8`; the same model and data give the same
    bytes. A last Gemm or MatMul gives its scores in float: clipped to the calibrated range, they cost up to a fifth
    of max|y| on new data, and nothing is gained. Activations are not S8, which is slow in ONNX Runtime on x86.

    `reduce_range` keeps weights to 7 bits, for processors that add two U8 x S8 products in 16 bits and saturate there:
    x86 without VNNI. `None` asks this one: on x86 it is True unless /proc/cpuinfo has `avx512_vnni` or `avx_vnni`; give
    True for a file that goes elsewhere. Raises `EvaluationError` in one line: no data or data that are not finite, a
    model that cannot be run, gives NaN, has nothing to quantise or is quantised already.
    """
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
        raise EvaluationError(f"samples must be an integer >= 1, got {samples!r}")
    predictor = OnnxPredictor(model)
    proto = onnx.load_model_from_string(model if isinstance(model, bytes) else model.read_bytes())
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in proto.graph.node):
        raise EvaluationError("the model is quantised already: give the fp32 file")
    pieces = list(_pieces(predictor, calibration, samples))
    if not pieces:
        raise EvaluationError("no data to calibrate on: give at least one batch of training inputs")
    reduced = saturates() if reduce_range is None else reduce_range
    quantized = _quantized(proto, _Reader(_input_name(proto), pieces), reduced)
    if not int8_weights(quantized):
        raise EvaluationError("the model has nothing to quantise: no Conv, Gemm or MatMul with weights of its own")
    _free_scores(quantized.graph)
    _tidy(quantized, proto)
    try:
        onnx.checker.check_model(quantized, full_check=True)
    except Exception as error:
        raise EvaluationError(f"the quantised graph is not valid ONNX: {one_line(error)}") from error
    content: bytes = quantized.SerializeToString(deterministic=True)
    return content


def int8_weights(model: bytes | onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the weights that a quantised model keeps as int8."""
    proto = onnx.load_model_from_string(model) if isinstance(model, bytes) else model
    held = {node.input[0] for node in proto.graph.node if node.op_type == "DequantizeLinear"}
    kept = (w for w in proto.graph.initializer if w.name in held and w.data_type == TensorProto.INT8)
    return {weight.name: tuple(weight.dims) for weight in kept}


def saturates() -> bool:
    """Whether this processor adds pairs of U8 x S8 products in 16 bits: x86 without VNNI, or not known to have it."""
    if platform.machine().lower() not in _X86:
        return False
    return not set(_VNNI_FLAGS) & set(cpuinfo().get("flags", "").split())


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8Report:
    """How far an int8 model is from the fp32 one."""

    parity: ParityReport
    """In the words of `evaluators.parity`; not `ok` as well where the agreement is too low."""
    agreement: float
    """Fraction of samples on which both put the same class first; 1 for outputs that are not [batch, classes]."""

    @property
    def ok(self) -> bool:
        """Whether both bounds are kept."""
        return self.parity.ok

    def require(self) -> Int8Report:
        """Itself if `ok`; raises `ParityError` with the one-line reason otherwise."""
        if not self.ok:
            raise ParityError(self.parity)
        return self


def check_int8(
    reference: bytes | Path,
    quantized: bytes | Path,
    inputs: Sequence[Tensor],
    *,
    tolerance: float = INT8_TOLERANCE,
    agreement: float = INT8_AGREEMENT,
) -> Int8Report:
    """Compare an int8 model with the fp32 one it was made from on the batches that it was calibrated on.

    Other inputs leave its ranges here and there (validation data: up to 0.051 x max|y|, with nothing wrong): what that
    costs is for the accuracy on validation data to say. Raises `RigError` for a file that cannot be loaded or run,
    `ValueError` for no inputs.
    """
    pair = OnnxPredictor(reference), OnnxPredictor(quantized)
    # What each side said, so that both figures come from one run.
    said: tuple[list[Tensor], list[Tensor]] = ([], [])

    def listening(side: int, batch: Tensor) -> Tensor:
        said[side].append(pair[side](batch))
        return said[side][-1]

    parity = compare(lambda x: listening(0, x), lambda x: listening(1, x), inputs, tolerance, FLOOR)
    agreed = _agreement(torch.cat(said[0]), torch.cat(said[1]))
    if parity.ok and not agreed >= agreement:
        reason = f"parity breach: the same class is first on {agreed:.4f} of the samples, {agreement:g} is needed"
        parity = replace(parity, ok=False, reason=reason)
    return Int8Report(parity=parity, agreement=agreed)


def _agreement(reference: Tensor, quantized: Tensor) -> float:
    if reference.shape != quantized.shape:
        return 0.0
    if reference.ndim != 2:
        return 1.0
    return float((reference.argmax(dim=1) == quantized.argmax(dim=1)).double().mean())


def _pieces(predictor: OnnxPredictor, calibration: Iterable[Tensor], samples: int) -> Iterator[np.ndarray]:
    """The first `samples` inputs in arrays [piece, ...] that the graph takes; each has been run, and gave numbers."""
    left = samples
    for number, batch in enumerate(calibration):
        if not isinstance(batch, Tensor):
            raise EvaluationError(
                f"calibration must give tensors of inputs [batch, ...], got {type(batch).__name__}: leave targets out"
            )
        if not batch.is_floating_point():
            raise EvaluationError(
                f"calibration batch {number} is {batch.dtype}: only networks on float inputs are quantised"
            )
        for part in batch[:left].detach().cpu().float().split(predictor.fixed_batch or _PIECE):
            if len(part) == 0:
                continue
            if not torch.isfinite(part).all():
                raise EvaluationError(f"calibration batch {number} holds NaN or infinity: mend the training data")
            if not torch.isfinite(predictor(part)).all():
                raise EvaluationError(f"the model gives NaN or infinity on calibration batch {number}: it has no range")
            missing = (predictor.fixed_batch or 0) - len(part)
            filled = torch.cat([part, *[part[-1:]] * missing]) if missing > 0 else part
            yield np.ascontiguousarray(filled.numpy())
        left -= min(left, len(batch))
        if left == 0:
            return


class _Reader:
    """Feeds `quantize_static`: its `CalibrationDataReader`."""

    def __init__(self, name: str, pieces: Iterable[np.ndarray]) -> None:
        self._feeds = iter([{name: piece} for piece in pieces])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)


def _input_name(proto: onnx.ModelProto) -> str:
    """The one graph input that is no initialiser: `OnnxPredictor` has refused all others."""
    weights = {weight.name for weight in proto.graph.initializer}
    return next(str(node.name) for node in proto.graph.input if node.name not in weights)


def _quantized(proto: onnx.ModelProto, reader: _Reader, reduce_range: bool) -> onnx.ModelProto:
    # Imported here: it brings in half of ONNX Runtime's tools, and int8 is an option.
    with ort_tools():
        from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    with tempfile.TemporaryDirectory(prefix="prunefront-int8-") as folder, _quiet():
        try:
            target = Path(folder) / "int8.onnx"
            quantize_static(
                _preprocessed(proto, Path(folder) / "fp32.onnx"),
                target,
                reader,
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                reduce_range=reduce_range,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
            )
            return onnx.load(target)
        except Exception as error:
            raise EvaluationError(f"the model cannot be quantised: {one_line(error)}") from error


def _preprocessed(proto: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """Constants folded, norms folded into convolutions, every shape known: what the quantiser asks for.

    As `quant_pre_process` does, without its prints and without symbolic shapes, which these graphs have no use for.
    """
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 4
    ort.InferenceSession(proto.SerializeToString(), options, providers=[PROVIDER])
    ready = onnx.shape_inference.infer_shapes(onnx.load(path))
    onnx.helper.set_model_props(ready, {"onnx.quant.pre_process": "onnxruntime.quant"})
    return ready


def _free_scores(graph: onnx.GraphProto) -> None:
    """Let a Gemm or MatMul that ends the graph write its output in float instead of through a Quantize/Dequantize pair.

    Only these: without the pair behind it a Conv would be computed in float.
    """
    makers = {name: node for node in graph.node for name in node.output}
    readers = Counter(name for node in graph.node for name in node.input)
    for output in graph.output:
        widened = makers.get(output.name)
        if widened is None or widened.op_type != "DequantizeLinear":
            continue
        rounded = makers.get(widened.input[0])
        if rounded is None or rounded.op_type != "QuantizeLinear":
            continue
        layer = makers.get(rounded.input[0])
        if layer is None or layer.op_type not in ("Gemm", "MatMul"):
            continue
        if readers[rounded.input[0]] == readers[widened.input[0]] == 1 and output.name not in readers:
            layer.output[0] = output.name
            graph.node.remove(rounded)
            graph.node.remove(widened)


def _tidy(quantized: onnx.ModelProto, proto: onnx.ModelProto) -> None:
    """The metadata of `proto` and the precision; no initialisers, shapes and operator sets that nothing uses."""
    props = {entry.key: entry.value for entry in proto.metadata_props}
    onnx.helper.set_model_props(quantized, {**props, PRECISION_KEY: "int8"})
    graph = quantized.graph
    used = {name for node in graph.node for name in (*node.input, *node.output)} | {o.name for o in graph.output}
    for field in (graph.initializer, graph.value_info):
        kept = [item for item in field if item.name in used]
        del field[:]
        field.extend(kept)
    domains = {node.domain for node in graph.node} | {""}
    sets = [entry for entry in quantized.opset_import if entry.domain in domains]
    del quantized.opset_import[:]
    quantized.opset_import.extend(sets)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the quantiser's remarks to itself: it logs on the root logger, and prints.

    `logging.warning` gives a root logger without handlers one that writes to stderr for good, so it gets one.
    """
    root = logging.getLogger()
    handler = logging.NullHandler()

    def none(_: logging.LogRecord) -> bool:
        return False

    root.addHandler(handler)
    # Only of records that are logged on the root itself: other loggers speak on.
    root.addFilter(none)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        root.removeFilter(none)
        root.removeHandler(handler)
