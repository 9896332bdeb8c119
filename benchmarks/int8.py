"""What int8 adds to pruning in ONNX Runtime: int8, half the filters, and both, against the dense fp32 network.

Random weights: latencies are those of the shapes, and accuracy is not judged here. One image, one pinned thread.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from claim import Claim
from rich.console import Console
from rich.table import Table
from torch import nn

from evaluators.measurement import Measurement
from evaluators.onnx_export import export_onnx
from evaluators.ort_rig import OrtCpuRig
from evaluators.quantize import quantize_int8, saturates
from evaluators.timing import TimingSettings
from search.tasks.networks import CIFAR_INPUT, CifarResNet, resnet18, resnet20

#: What int8 must still add to the pruned network.
BAR = 2.0
SAMPLES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A dense network and one of half its filters; `bar` is for int8 on top of the pruned one, None without."""

    name: str
    dense: Callable[[], nn.Module]
    pruned: Callable[[], nn.Module]
    bar: float | None


CASES = {
    "resnet18": Case(
        name="ResNet-18, half width",
        dense=resnet18,
        pruned=lambda: CifarResNet((32, 64, 128, 256), (2, 2, 2, 2)),
        bar=BAR,
    ),
    "resnet20": Case(
        name="ResNet-20, half width",
        dense=resnet20,
        pruned=lambda: CifarResNet((8, 16, 32), (3, 3, 3)),
        bar=None,
    ),
    "resnet20_blocks": Case(
        name="ResNet-20, blocks of 16",
        dense=resnet20,
        pruned=lambda: CifarResNet((16, 16, 32), (3, 3, 3)),
        bar=None,
    ),
}


def forms(model: nn.Module, path: Path) -> tuple[bytes, bytes]:
    """The fp32 file of `model` and its int8 form."""
    fp32 = export_onnx(model, torch.zeros(1, *CIFAR_INPUT), path).read_bytes()
    return fp32, quantize_int8(fp32, [torch.randn(SAMPLES, *CIFAR_INPUT)])


def measure(case: Case, rig: OrtCpuRig) -> dict[str, Any]:
    """One row: speed-ups over the dense fp32 network, and what each step adds to the other."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        dense, dense8 = forms(case.dense(), Path(folder) / "dense.onnx")
        pruned, pruned8 = forms(case.pruned(), Path(folder) / "pruned.onnx")
    int8, small = rig.measure(dense8, dense), rig.measure(pruned, dense)
    both, on_top = rig.measure(pruned8, dense), rig.measure(pruned8, pruned)
    return {
        "network": case.name,
        "dense_ms": round(both.dense_latency_ms, 4),
        "int8": figures(int8),
        "pruned": figures(small),
        "both": figures(both),
        "int8_on_pruned": figures(on_top),
        "share_of_product": round(both.speedup / (int8.speedup * small.speedup), 3),
        "bar": case.bar,
    }


def figures(measured: Measurement) -> dict[str, Any]:
    """The speed-up with its interval, and whether it was found within the bound."""
    return {
        "speedup": round(measured.speedup, 3),
        "low": round(measured.speedup_low, 3),
        "high": round(measured.speedup_high, 3),
        "latency_ms": round(measured.latency_ms, 4),
        "converged": measured.converged,
    }


def show(rows: dict[str, dict[str, Any]]) -> None:
    """The table."""
    table = Table(title="speed-up over the dense fp32 network (thread CPU time, one thread, one image)")
    for heading in ("network", "dense ms", "int8", "pruned", "both", "both / (int8 x pruned)", "int8 on pruned"):
        table.add_column(heading, justify="left" if heading == "network" else "right")
    for row in rows.values():
        speedups = {name: f"{row[name]['speedup']:.2f}x" for name in ("int8", "pruned", "both", "int8_on_pruned")}
        table.add_row(
            row["network"],
            f"{row['dense_ms']:.3f}",
            speedups["int8"],
            speedups["pruned"],
            speedups["both"],
            f"{row['share_of_product']:.2f}",
            speedups["int8_on_pruned"],
        )
    Console(width=120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few pairs of blocks: under a minute")
    parser.add_argument("--record", action="store_true", help="add the figures to results/int8.json")
    options = parser.parse_args()
    if options.record and options.quick:
        parser.error("--record keeps figures of the full benchmark only")
    torch.set_num_threads(1)
    settings = TimingSettings(min_pairs=3, max_pairs=5) if options.quick else TimingSettings(bound=0.02)
    rig = OrtCpuRig(settings=settings)
    rows = {key: measure(case, rig) for key, case in CASES.items()}
    show(rows)
    claim = Claim(
        claim="int8 (static QDQ, U8S8, per channel) multiplies the speed-up of pruning: ResNet-18 at half width; "
        "beside it, without a bar, ResNet-20, which is small from the start",
        figure=rows["resnet18"]["int8_on_pruned"]["speedup"],
        unit="x pruned fp32 (thread CPU time)",
        bar=BAR,
        holds=all(row["int8_on_pruned"]["speedup"] >= row["bar"] for row in rows.values() if row["bar"] is not None),
        details={"quick": options.quick, "weight_bits": 7 if saturates() else 8, **rows},
    )
    if options.record:
        claim.record("int8", packages=("prunefront", "onnxruntime", "onnx", "torch"))
    print(claim.to_json())


if __name__ == "__main__":
    main()
