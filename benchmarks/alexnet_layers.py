"""What column sparsity is worth in stock ONNX Runtime: AlexNet's convolutions with the sparsities of StructADMM.

StructADMM (Zhang et al., arXiv 1807.11091) removes 70, 77, 85 and 81 % of the GEMM columns of AlexNet's conv2-5 and
reports 2.58x on a GTX 1080Ti and 3.65x on a TX2, the average of the four layers' GEMMs alone; at 15x fewer weights
11.93x on a CPU, again GEMMs alone. Here they are whole convolutions with their Relu on the CPU, batch 1, one thread,
lowered by `evaluators.lowering`; thread CPU time against the dense layer decides. Shapes are those of AlexNet without
groups at 227x227 (`search.tasks.networks_plain`), weights are random, and the columns kept are drawn uniformly, without
the clusters that training leaves. Nothing here says anything about accuracy: the mixes are chosen for speed.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import numpy as np
import onnx
import torch
from claim import Claim
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table
from torch import nn

from evaluators.lowering import Lowered, lower
from evaluators.measurement import Measurement
from evaluators.ort_rig import OrtCpuRig
from evaluators.ort_session import open_session, random_inputs
from evaluators.timing import TimingSettings
from search.tasks.networks_plain import IMAGENET_INPUT, AlexNet

#: Of conv1-5: the paper's, and one fifteenth of the columns kept.
PAPER = (0.0, 0.70, 0.77, 0.85, 0.81)
MOST = 1 - 1 / 15
#: Averages of conv2-5 at the two, and the whole convolutional part at 15x fewer weights.
BAR, BAR_MOST, BAR_STACK = 3.6, 9.0, 11.0
#: How many times fewer weights a mix may have to count: at least the paper's, and not much more.
COMPRESSION = (15.0, 16.0)
#: Name -> filters of conv1-5, columns removed of what those leave of each. The first one removes more than is asked and
#: only stands beside the others.
MIXES: dict[str, tuple[tuple[int, ...], tuple[float, ...]]] = {
    "filters, narrow": ((16, 48, 96, 64, 64), (0.0,) * 5),
    "filters": ((16, 32, 80, 144, 80), (0.0,) * 5),
    "columns": ((96, 256, 384, 384, 256), (0.0, 0.944, 0.944, 0.944, 0.944)),
    "filters and columns": ((32, 64, 128, 128, 128), (0.0, 0.7, 0.4, 0.4, 0.4)),
    "filters and columns, conv1 narrow": ((16, 128, 192, 192, 128), (0.0, 0.85, 0.7, 0.7, 0.7)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Conv:
    """One convolution of the stack, with the square input it sees."""

    name: str
    shape: tuple[int, int, int, int]
    stride: int
    padding: int
    size: int
    pooled: bool
    """Whether 3x3 pooling at stride 2 follows its Relu."""


def stack(widths: Sequence[int], size: int) -> list[Conv]:
    """AlexNet's five convolutions with these numbers of filters, for images of this size."""
    with torch.device("meta"):
        network = AlexNet()
    layers, channels = [], IMAGENET_INPUT[0]
    for number, width in enumerate(widths, start=1):
        conv = getattr(network, f"conv{number}")
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(conv.padding, tuple)
        kernel, stride, padding = conv.kernel_size[0], conv.stride[0], conv.padding[0]
        pooled = number in (1, 2, 5)
        shape = (width, channels, kernel, kernel)
        layers.append(Conv(name=f"conv{number}", shape=shape, stride=stride, padding=padding, size=size, pooled=pooled))
        size = (size + 2 * padding - kernel) // stride + 1
        size, channels = (size - 3) // 2 + 1 if pooled else size, width
    return layers


def weights(conv: Conv, sparsity: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Normal weights [filters, channels, k, k] with this share of the columns zero, and a bias."""
    rng = np.random.default_rng((seed, *conv.shape))
    columns = math.prod(conv.shape[1:])
    kept = np.zeros(columns, dtype=bool)
    kept[rng.permutation(columns)[: columns - round(columns * sparsity)]] = True
    weight = rng.standard_normal(conv.shape) / math.sqrt(kept.sum()) * kept.reshape(conv.shape[1:])
    return weight.astype(np.float32), rng.standard_normal(conv.shape[0]).astype(np.float32)


def file_of(layers: Sequence[Conv], sparsities: Sequence[float], seed: int, *, pooling: bool) -> bytes:
    """An ONNX file of these convolutions with their Relus, and their poolings if asked, at a free batch."""
    nodes: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []
    value = "input"

    def add(op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    for conv, sparsity in zip(layers, sparsities, strict=True):
        names = [f"{conv.name}.weight", f"{conv.name}.bias"]
        pairs = zip(weights(conv, sparsity, seed), names, strict=True)
        constants.extend(numpy_helper.from_array(array, name) for array, name in pairs)
        pads, strides = [conv.padding] * 4, [conv.stride] * 2
        value = add("Conv", [value, *names], conv.name, pads=pads, strides=strides)
        value = add("Relu", [value], f"{conv.name}_relu")
        if pooling and conv.pooled:
            value = add("MaxPool", [value], f"{conv.name}_pool", kernel_shape=[3, 3], strides=[2, 2])
    first = layers[0]
    shape: list[int | str | None] = ["batch", first.shape[1], first.size, first.size]
    graph = helper.make_graph(
        nodes,
        "alexnet",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, ["batch", None, None, None])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return bytes(model.SerializeToString())


def difference(lowered: bytes, original: bytes) -> float:
    """max|a - b| / max|b| of the two files' outputs on random input."""
    outputs = []
    for content in (lowered, original):
        session = open_session(content)
        outputs.append(np.asarray(session.run(None, random_inputs(session, 2))[0]))
    return float(np.abs(outputs[0] - outputs[1]).max() / np.abs(outputs[1]).max())


def figures(measured: Measurement) -> dict[str, Any]:
    interval = [round(measured.speedup_low, 3), round(measured.speedup_high, 3)]
    return {
        "speedup": round(measured.speedup, 3),
        "interval": interval,
        "ms": round(measured.latency_ms, 4),
        "dense_ms": round(measured.dense_latency_ms, 4),
    }


def layer_row(conv: Conv, sparsity: float, seeds: Sequence[int], rig: OrtCpuRig) -> dict[str, Any]:
    """One layer at one sparsity: chosen by `lower`, then measured anew, so that the choice's luck does not count."""
    runs: list[dict[str, Any]] = []
    for seed in seeds:
        content = file_of([conv], [sparsity], seed, pooling=False)
        lowered = lower(content, rig.measure)
        chosen = lowered.layers[0]
        tried = {choice: round(speedup, 3) for choice, speedup in chosen.tried.items()}
        run: dict[str, Any] = {"seed": seed, "choice": chosen.choice, "reason": chosen.reason, "tried": tried}
        run |= figures(rig.measure(lowered.content, content))
        runs.append({**run, "difference": difference(lowered.content, content)})
    return {
        "layer": conv.name,
        "sparsity": round(sparsity, 4),
        "choice": runs[0]["choice"],
        "speedup": round(mean(run["speedup"] for run in runs), 3),
        "low": round(mean(run["interval"][0] for run in runs), 3),
        "high": round(mean(run["interval"][1] for run in runs), 3),
        "ms": round(mean(run["ms"] for run in runs), 4),
        "dense_ms": round(mean(run["dense_ms"] for run in runs), 4),
        "ideal": round(1 / (1 - sparsity), 2),
        "exact": all(run["difference"] <= 1e-4 for run in runs),
        "runs": runs,
    }


def stack_row(name: str, dense: bytes, dense_weights: int, size: int, shrink: int, rig: OrtCpuRig) -> dict[str, Any]:
    """The whole convolutional part under one mix, against the dense one."""
    widths, sparsities = MIXES[name]
    layers = stack([width // shrink for width in widths], size)
    content = file_of(layers, sparsities, 0, pooling=True)
    lowered = lower(content, rig.measure)
    measured = rig.measure(lowered.content, dense)
    kept = sum(int(np.count_nonzero(weights(conv, s, 0)[0])) for conv, s in zip(layers, sparsities, strict=True))
    return {
        "mix": name,
        "widths": list(widths),
        "columns_removed": list(sparsities),
        "compression_x": round(dense_weights / kept, 2),
        **figures(measured),
        "lowering_alone": round(lowered.speedup, 3),
        "choices": {layer.name: layer.choice for layer in lowered.layers},
        "dense_share": dense_share(layers, sparsities, lowered, measured.latency_ms, rig),
        "difference": difference(lowered.content, content),
    }


def dense_share(
    layers: Sequence[Conv], sparsities: Sequence[float], lowered: Lowered, total_ms: float, rig: OrtCpuRig
) -> float:
    """Share of the file's time that goes into layers written as they were, each timed alone with its Relu."""
    time = 0.0
    for conv, sparsity, layer in zip(layers, sparsities, lowered.layers, strict=True):
        if layer.choice == "dense":
            alone = file_of([conv], [sparsity], 0, pooling=False)
            time += rig.measure(alone, alone).latency_ms
    return round(time / total_ms, 3)


def show(console: Console, rows: Sequence[dict[str, Any]], mixes: Sequence[dict[str, Any]]) -> None:
    table = Table(title="AlexNet's convolutions, columns removed at random (thread CPU time, one thread, batch 1)")
    for heading in ("layer", "sparsity", "choice", "dense ms", "ms", "speed-up", "interval", "ideal"):
        table.add_column(heading, justify="left" if heading in ("layer", "choice") else "right")
    for row in rows:
        times = (f"{row['dense_ms']:.2f}", f"{row['ms']:.2f}", f"{row['speedup']:.2f}")
        interval = f"{row['low']:.2f}-{row['high']:.2f}"
        table.add_row(row["layer"], f"{row['sparsity']:.1%}", row["choice"], *times, interval, f"{row['ideal']:.1f}")
    console.print(table)
    table = Table(title="the convolutional part with its poolings against the dense one")
    for heading in ("mix", "fewer weights", "speed-up", "interval", "of it lowering", "left dense", "choices"):
        table.add_column(heading, justify="left" if heading in ("mix", "choices") else "right")
    for row in mixes:
        table.add_row(
            row["mix"],
            f"{row['compression_x']:.1f}x",
            f"{row['speedup']:.2f}",
            f"{row['interval'][0]:.2f}-{row['interval'][1]:.2f}",
            f"{row['lowering_alone']:.2f}",
            f"{row['dense_share']:.0%}",
            " ".join(row["choices"].values()),
        )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one draw of columns, few pairs: under a minute")
    parser.add_argument("--tiny", action="store_true", help="an eighth of the width: figures mean nothing")
    parser.add_argument("--record", action="store_true", help="add the figures to results/alexnet_layers.json")
    options = parser.parse_args()
    full = not (options.quick or options.tiny)
    if options.record and not full:
        parser.error("--record keeps figures of the full benchmark only")
    torch.set_num_threads(1)
    few = TimingSettings(min_pairs=3, max_pairs=5) if options.quick else TimingSettings(min_pairs=1, max_pairs=1)
    rig = OrtCpuRig(settings=TimingSettings(bound=0.02) if full else few)
    size, shrink = (67, 8) if options.tiny else (IMAGENET_INPUT[1], 1)
    seeds = (0, 1, 2) if full else (0,)
    dense_layers = stack([width // shrink for width in (96, 256, 384, 384, 256)], size)
    pairs = list(zip(dense_layers, PAPER, strict=True))
    rows = [layer_row(conv, sparsity, seeds, rig) for conv, sparsity in pairs]
    most = [layer_row(conv, MOST, seeds, rig) for conv in dense_layers]
    dense = file_of(dense_layers, (0.0,) * 5, 0, pooling=True)
    dense_weights = sum(math.prod(conv.shape) for conv in dense_layers)
    mixes = [stack_row(name, dense, dense_weights, size, shrink, rig) for name in MIXES]
    console = Console(width=130)
    show(console, [*rows, *most], mixes)

    averages = {
        name: {key: round(mean(row[key] for row in of[1:]), 3) for key in ("speedup", "low", "high")}
        for name, of in (("paper", rows), ("most", most))
    }
    allowed = [row for row in mixes if COMPRESSION[0] <= row["compression_x"] <= COMPRESSION[1]]
    best = max(allowed, key=lambda row: float(row["speedup"]), default=None)
    stack_speedup = best["speedup"] if best else 0.0
    kept = {
        "paper": averages["paper"]["speedup"] >= BAR,
        "most": averages["most"]["speedup"] >= BAR_MOST,
        "stack": stack_speedup >= BAR_STACK,
        "exact": all(row["exact"] for row in (*rows, *most)) and all(row["difference"] <= 1e-4 for row in mixes),
    }
    paper, most_average = (averages[name]["speedup"] for name in ("paper", "most"))
    words = (
        f"{paper:.2f}x at 70/77/85/81 % of the columns (bar {BAR}; the paper's GEMMs 2.58x on a GTX 1080Ti, 3.65x on a "
        f"TX2), {most_average:.1f}x at {MOST:.1%} (bar {BAR_MOST:g}); the whole convolutional part at "
        f"{COMPRESSION[0]:g}x fewer weights {stack_speedup:.1f}x with the best mix (bar {BAR_STACK:g}; the paper "
        "11.93x, GEMMs alone)"
    )
    claim = Claim(
        claim=f"AlexNet's conv2-5 in stock ONNX Runtime on a CPU, one thread, on average: {words}",
        figure=averages["paper"]["speedup"],
        unit="x the dense layers (thread CPU time), average of conv2-5 at the paper's column sparsities",
        bar=BAR,
        holds=all(kept.values()),
        details={
            "quick": options.quick,
            "tiny": options.tiny,
            "holds": kept,
            "averages": averages,
            "stamp": rig.stamp(1).to_dict(),
            "layers": rows,
            "layers_most": most,
            "stack": mixes,
            "best_stack": best["mix"] if best else None,
        },
    )
    if options.record:
        claim.record("alexnet_layers", packages=("prunefront", "torch", "numpy", "onnx", "onnxruntime"))
    print(claim.to_json())


if __name__ == "__main__":
    main()
