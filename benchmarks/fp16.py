"""What fp16 changes in ONNX Runtime on this processor: bytes, time and outputs, against the same network in fp32.

Random weights: latencies are those of the shapes, and accuracy is not judged here. One image, one pinned thread.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from claim import Claim
from rich.console import Console
from rich.table import Table
from torch import nn

from evaluators.half import FP16_TOLERANCE, check_fp16, to_fp16
from evaluators.onnx_export import export_onnx
from evaluators.ort_rig import OrtCpuRig
from evaluators.timing import TimingSettings
from search.tasks.networks import CIFAR_INPUT, MNIST_INPUT, LeNet5, resnet18, resnet20

#: Of the fp32 file's bytes, what the fp16 file may take.
BAR = 0.55
SAMPLES = 64

CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "lenet5": (LeNet5, MNIST_INPUT),
    "resnet20": (resnet20, CIFAR_INPUT),
    "resnet18": (resnet18, CIFAR_INPUT),
}


def measure(build: Callable[[], nn.Module], shape: tuple[int, ...], rig: OrtCpuRig) -> dict[str, Any]:
    """One row: the fp16 file against the fp32 file it was made from."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        fp32 = export_onnx(build(), torch.zeros(1, *shape), Path(folder) / "m.onnx").read_bytes()
    fp16 = to_fp16(fp32)
    parity = check_fp16(fp32, fp16, [torch.randn(SAMPLES, *shape)]).require()
    measured = rig.measure(fp16, fp32)
    return {
        "fp32_bytes": len(fp32),
        "bytes": round(len(fp16) / len(fp32), 4),
        "speedup": round(measured.speedup, 3),
        "low": round(measured.speedup_low, 3),
        "high": round(measured.speedup_high, 3),
        "fp32_ms": round(measured.dense_latency_ms, 4),
        "converged": measured.converged,
        "difference": float(f"{parity.max_abs / parity.scale:.3g}"),
    }


def show(rows: dict[str, dict[str, Any]]) -> None:
    """The table."""
    table = Table(title="fp16 against fp32 (thread CPU time, one thread, one image)")
    for heading in ("network", "fp32 ms", "speed-up", "interval", "bytes", "max|y - y16| / max|y|"):
        table.add_column(heading, justify="left" if heading == "network" else "right")
    for name, row in rows.items():
        table.add_row(
            name,
            f"{row['fp32_ms']:.3f}",
            f"{row['speedup']:.2f}x",
            f"{row['low']:.2f}-{row['high']:.2f}",
            f"{row['bytes']:.2f}",
            f"{row['difference']:.1e}",
        )
    Console(width=120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few pairs of blocks: under a minute")
    parser.add_argument("--record", action="store_true", help="add the figures to results/fp16.json")
    options = parser.parse_args()
    if options.record and options.quick:
        parser.error("--record keeps figures of the full benchmark only")
    torch.set_num_threads(1)
    settings = TimingSettings(min_pairs=3, max_pairs=5) if options.quick else TimingSettings(bound=0.02)
    rig = OrtCpuRig(settings=settings)
    rows = {name: measure(build, shape, rig) for name, (build, shape) in CASES.items()}
    show(rows)
    claim = Claim(
        claim=f"an fp16 file takes half the bytes and stays within {FP16_TOLERANCE:g} of its fp32 form's outputs; its "
        "speed on this processor stands beside it, without a bar",
        figure=max(row["bytes"] for row in rows.values()),
        unit="of the fp32 file's bytes, largest of three networks",
        bar=BAR,
        holds=all(row["bytes"] <= BAR for row in rows.values()),
        details={"quick": options.quick, **rows},
    )
    if options.record:
        claim.record("fp16", packages=("prunefront", "onnxruntime", "onnx", "torch"))
    print(claim.to_json())


if __name__ == "__main__":
    main()
