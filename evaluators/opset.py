"""Which ONNX operator sets a file may be written in, and whether ONNX Runtime here reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evaluators.errors import ExportError, one_line

if TYPE_CHECKING:
    import onnx

#: What torch's exporter writes. It is implemented in 18: asked for less it gives 18 all the same, without an error
#: (a residual network, torch 2.13: 7 to 17 all came out as 18). Above 25 its conversion leaves operators behind.
LEAST_OPSET, MOST_OPSET = 18, 25
#: The exporter's own choice in torch 2.13, fixed here: a run goes on with it whatever version of torch it meets.
DEFAULT_OPSET = 20
#: Every runtime that reads these operator sets reads this version of the file format.
_IR_VERSION = 10


class OpsetError(ExportError):
    """An operator set that a network cannot be written in, or that the runtime here does not read."""


def opset_of(proto: onnx.ModelProto) -> int:
    """Version of the standard operators in use; 0 if none are."""
    return max((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), default=0)


def require_opset(opset: int) -> None:
    """Raises `OpsetError` unless files in this operator set can be written and ONNX Runtime here reads them; takes
    milliseconds, whatever the network."""
    if not LEAST_OPSET <= opset <= MOST_OPSET:
        raise OpsetError(f"opset must lie in {LEAST_OPSET}..{MOST_OPSET}, which torch's exporter writes, got {opset}")
    why = _unread(opset)
    if why is None:
        return
    import onnxruntime as ort

    readable = [other for other in range(opset - 1, LEAST_OPSET - 1, -1) if _unread(other) is None]
    mend = f"ask for {readable[0]} or less" if readable else "install a newer onnxruntime"
    raise OpsetError(f"onnxruntime {ort.__version__} does not read opset {opset} ({one_line(why, 120)}): {mend}")


def _unread(opset: int) -> Exception | None:
    """Why ONNX Runtime does not load a file of this operator set; None where it does."""
    # Imported here: a job file needs the bounds alone.
    import onnxruntime as ort
    from onnx import TensorProto, helper

    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("input", "output")]
    graph = helper.make_graph([helper.make_node("Identity", ["input"], ["output"])], "probe", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=_IR_VERSION)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's own kinds
        return error
    return None
