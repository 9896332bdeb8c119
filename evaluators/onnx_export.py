"""A module becomes one self-contained, checked ONNX file."""

from __future__ import annotations

import copy
import io
import logging
import os
import secrets
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from evaluators.errors import ExportError, one_line
from evaluators.export_failure import failure
from evaluators.modes import evaluating
from evaluators.opset import DEFAULT_OPSET, OpsetError, opset_of

#: Key of the file's metadata that says whether the batch is free: `dynamic` or `fixed`.
BATCH_KEY = "prunefront.batch"
#: Protocol buffers cannot be larger, and a file with weights beside it is not one artefact.
_MOST_BYTES = 2**31 - 1
_LOUD_LOGGERS = ("torch.onnx", "torch.export", "torch._export", "torch.fx", "onnxscript", "onnx_ir")


def export_onnx(
    module: nn.Module,
    example_input: Tensor,
    path: Path,
    *,
    opset: int = DEFAULT_OPSET,
    dynamic_batch: bool = True,
) -> Path:
    """Write `module` in evaluation mode to `path`; the graph's input is `input`, its output `output`.

    `example_input` is [batch, ...]. The batch is left free where the model allows it; where it does not, or
    with `dynamic_batch=False`, it is the example's. Which of the two stands in the file's metadata under
    `BATCH_KEY` (`batch_kind` reads it). Weights are inside the file, which appears whole or not at all. The
    module itself is not touched. Raises `ExportError` in one line, `OpsetError` where the file cannot be in `opset`.
    """
    size = sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))
    if size > _MOST_BYTES:
        raise ExportError(f"the weights take {size} bytes, an ONNX file holds at most {_MOST_BYTES}: prune more")
    try:
        model = copy.deepcopy(module).cpu().eval()
    except Exception as error:
        raise ExportError(f"the model cannot be copied for export: {one_line(error)}") from error
    example = example_input.detach().cpu()
    with _quiet(), torch.random.fork_rng(devices=[]):
        proto = _proto(model, example, opset, dynamic_batch)
    if (written := opset_of(proto)) != opset:  # a conversion that fails is a warning of the exporter's, and no error
        raise OpsetError(f"the model cannot be written in opset {opset}, only in {written}: ask for that")
    _strip(proto)
    kind = "dynamic" if proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param else "fixed"
    onnx.helper.set_model_props(proto, {BATCH_KEY: kind})
    try:
        onnx.checker.check_model(proto, full_check=True)
    except Exception as error:
        raise ExportError(f"the exported graph is not valid ONNX: {one_line(error)}") from error
    _write(proto.SerializeToString(deterministic=True), path)
    return path


def batch_kind(model: bytes | Path) -> str:
    """`dynamic` or `fixed`, as recorded at export; `unknown` for a file of another origin."""
    content = model if isinstance(model, bytes) else model.read_bytes()
    entries = onnx.load_model_from_string(content).metadata_props
    return next((entry.value for entry in entries if entry.key == BATCH_KEY), "unknown")


def _proto(model: nn.Module, example: Tensor, opset: int, dynamic_batch: bool) -> onnx.ModelProto:
    if example.ndim == 0:
        raise ExportError("the example input is a scalar: give a batch [batch, ...]")
    try:
        with evaluating(model):
            output = model(example)
    except Exception as error:
        raise ExportError(f"the model does not run on the example input: {one_line(error)}") from error
    if not isinstance(output, Tensor):
        raise ExportError(f"the model must return one tensor, got {type(output).__name__}")
    if dynamic_batch:
        # A batch of one would be taken for a constant: torch.export specialises sizes 0 and 1.
        several = torch.cat([example, example])[: max(2, example.shape[0])]
        with suppress(Exception):
            return _trace(model, several, opset, ({0: torch.export.Dim("batch", min=1)},))
    try:
        return _trace(model, example, opset, None)
    except Exception as error:
        raise ExportError(f"the model cannot be exported: {failure(model, example, error)}") from error


def _trace(model: nn.Module, example: Tensor, opset: int, shapes: Any) -> onnx.ModelProto:
    program = torch.export.export(model, (example,), dynamic_shapes=shapes, strict=False)
    exported = torch.onnx.export(
        program,
        dynamo=True,
        input_names=["input"],
        output_names=["output"],
        dynamic_shapes=None if shapes is None else ({0: "batch"},),
        opset_version=opset,
        external_data=False,
        verbose=False,
    )
    if exported is None:
        raise ExportError("the exporter gave nothing back")
    proto: onnx.ModelProto = exported.model_proto
    if len(proto.graph.input) != 1:
        raise ExportError(f"the graph has {len(proto.graph.input)} inputs, one is needed: the model ignores its input")
    return proto


def _strip(proto: onnx.ModelProto) -> None:
    """Drop the exporter's notes: they hold stack traces with the paths of this machine."""
    graphs = [proto.graph]
    while graphs:
        graph = graphs.pop()
        for item in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
            item.ClearField("metadata_props")
            item.ClearField("doc_string")
        for node in graph.node:
            graphs.extend(a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH)
    for function in proto.functions:
        function.ClearField("metadata_props")
        for node in function.node:
            node.ClearField("metadata_props")
            node.ClearField("doc_string")


def _write(content: bytes, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise ExportError(f"cannot write {path}: {error.strerror or error}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns about its own deprecations and packages not needed here, and prints the graphs it refuses."""
    loggers = [logging.getLogger(name) for name in _LOUD_LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
