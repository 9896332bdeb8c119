"""What goes with an exported network: metadata inside its file, and a README that runs it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx

from evaluators.opset import opset_of

#: Keys of the file's metadata begin with it.
PREFIX = "prunefront."


def with_metadata(content: bytes, values: Mapping[str, str]) -> bytes:
    """An ONNX file with these entries added to its `metadata_props`; every byte it had stays where it was.

    Protocol buffers that follow each other are merged, repeated fields joined (protobuf.dev, "Encoding", last one
    wins), so that graph and weights need not be read, nor written anew. A key that is there already is there twice.
    """
    more = onnx.ModelProto()
    onnx.helper.set_model_props(more, {f"{PREFIX}{key}": value for key, value in values.items()})
    added: bytes = more.SerializeToString(deterministic=True)
    return content + added


def metadata_of(card: Mapping[str, Any]) -> dict[str, str]:
    """What of an export's card goes into the file; figures in full, the device by its stamp."""
    measured = card["measured_at_export"]
    stamp = measured["stamp"]
    return {
        "version": str(card["prunefront"]),
        "plan_digest": str(card["plan_digest"]),
        "precision": str(card["precision"]),
        "accuracy": repr(card["accuracy"]),
        "accuracy_data": str(card["accuracy_data"]),
        "latency_ms": repr(measured["latency_ms"]),
        "speedup": repr(measured["speedup"]),
        "rig": str(stamp["rig"]),
        "device": str(stamp["device"]),
        "runtime": str(stamp["runtime"]),
        "threads": str(stamp["threads"]),
        "measured_batch": str(stamp["batch"]),  # `prunefront.batch` says whether the file's batch is free
    }


def readme_text(card: Mapping[str, Any], content: bytes | None) -> str:
    """README.md of an export: what it is, and the lines that run it; `content` is its ONNX file, if it has one."""
    measured = card["measured_at_export"]
    stamp = measured["stamp"]
    drop = card["accuracy_drop"]
    told = "" if drop is None else f", {drop:.2f} pp below the dense network's"
    lines = [
        f"# Trial {card['trial']} of {card['run']}",
        "",
        f"A network pruned by prunefront {card['prunefront']}, in {_form(card)}.",
        "",
        f"- accuracy {card['accuracy']:.4f} on validation data{told} (the mean of the task's metric)",
        f"- {measured['latency_ms']:.4g} ms, {measured['speedup']:.2f} times as fast as dense, on {stamp['device']} "
        f"({stamp['rig']}, {stamp['runtime']}, threads {stamp['threads']}, batch {stamp['batch']})",
        *([] if card["fp16"] is None else [f"- {fp16_line(card['fp16']['measured_over_fp32'])}"]),
        f"- {card['params']} parameters, {card['macs']} multiply-accumulates for one input",
        "",
    ]
    if content is not None:
        lines += _run_onnx(content, int(stamp["threads"]))
    if "load" in card:
        lines += [
            "In PyTorch, with the function that builds the dense network, FOLDER being this one:",
            "",
            "```python",
        ]
        lines += [f"import {name}" for name in sorted({call.partition(".")[0] for call in card["load"].values()})]
        lines += [f"network = {call}  # {name}" for name, call in card["load"].items()]
        lines += ["```", ""]
    lines += ["Every figure is in `card.json`; `plan.json` says what was removed, layer by layer.", ""]
    return "\n".join(lines)


def _form(card: Mapping[str, Any]) -> str:
    """`fp32, ONNX opset 20`."""
    form = str(card["precision"]) + ("" if card["fp16"] is None else " with float32 inputs and outputs")
    return form if card["opset"] is None else f"{form}, ONNX opset {card['opset']}"


def fp16_line(measured: Mapping[str, Any]) -> str:
    """What fp16 brought beside half the bytes: `measured` is a measurement of it against its own fp32 file."""
    figures = f"{measured['speedup']:.2f}x, {measured['speedup_low']:.2f}-{measured['speedup_high']:.2f}"
    if measured["speedup_low"] > 1.0:
        return f"in fp16 faster than in fp32 on {measured['stamp']['rig']} ({figures}), and half the bytes"
    return (
        f"no gain in time by fp16 on {measured['stamp']['rig']} ({figures} of its fp32 form's speed), but half the "
        f"bytes: processors without fp16 arithmetic compute in fp32 all the same"
    )


def opset_in(content: bytes) -> int | None:
    """The operator set of an ONNX file; None of what is none."""
    try:
        return opset_of(onnx.load_model_from_string(content)) or None
    except Exception:  # protobuf's own
        return None


def _run_onnx(content: bytes, threads: int) -> list[str]:
    name, output, shape, kind, free = _interface(content)
    batch = "; any batch" if free else ""
    return [
        f"In this folder; it was measured with `intra_op_num_threads` {threads} in `onnxruntime.SessionOptions`:",
        "",
        "```python",
        "import numpy as np",
        "import onnxruntime",
        "",
        'session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])',
        f"inputs = np.zeros({shape}, np.{kind})  # yours, prepared as the training data were{batch}",
        f"outputs = session.run([{output!r}], {{{name!r}: inputs}})[0]",
        "print(outputs.shape)",
        "```",
        "",
    ]


def _interface(content: bytes) -> tuple[str, str, str, str, bool]:
    """(input's name, output's name, shape with a batch of one where it is free, NumPy type, whether it is free)."""
    try:
        graph = onnx.load_model_from_string(content).graph
    except Exception:  # protobuf's own
        graph = onnx.GraphProto()
    try:
        given = graph.input[0]
        kind = given.type.tensor_type
        sides = [side.dim_value or 1 for side in kind.shape.dim]
        numpy_type = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
        return given.name, graph.output[0].name, str(tuple(sides)), numpy_type, not kind.shape.dim[0].dim_value
    except (IndexError, KeyError):  # a file from elsewhere put in its place: its names are ours at least
        return "input", "output", "SHAPE", "float32", False
