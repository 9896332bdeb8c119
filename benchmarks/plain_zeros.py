"""What zeros alone are worth in ONNX Runtime on a CPU: single weights, the pattern 2:4, and columns left as they are.

Random weights: latencies are those of the kernels, and accuracy is not judged here. One image, one pinned thread.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from claim import Claim
from rich.console import Console
from rich.table import Table
from torch import nn

from admm.groups import find_groups
from admm.plan import N_OF_M, PruningPlan
from admm.projector import Projector
from admm.shapes import masks_by_magnitude
from evaluators.onnx_export import export_onnx
from evaluators.ort_rig import OrtCpuRig
from evaluators.timing import TimingSettings
from search.tasks.networks import CIFAR_INPUT, resnet18, resnet20

#: No row may be faster than the dense network by more than this.
BAR = 1.05
NETWORKS: dict[str, Callable[[], nn.Module]] = {"resnet-18": resnet18, "resnet-20": resnet20}
#: Structure -> sparsity of every convolution.
ZEROS = {"unstructured": 0.9, N_OF_M: 0.5, "shape": 0.9}


def zeroed(model: nn.Module, structure: str) -> nn.Module:
    """The network with that structure's zeros in all convolutions but the first; no weight is taken away."""
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)][1:]
    plan = PruningPlan({name: {structure: ZEROS[structure]} for name in layers})
    copied = copy.deepcopy(model)
    masks = masks_by_magnitude(copied, Projector(copied, find_groups(model, torch.zeros(1, *CIFAR_INPUT)), plan))
    assert masks is not None
    with torch.no_grad():
        for name, parameter in copied.named_parameters():
            if name in masks.parameters:
                parameter.mul_(masks.parameters[name])
    return copied


def measure(network: str, rig: OrtCpuRig) -> dict[str, Any]:
    """One network: for each structure the share of zeros in the file and its speed-up over the dense one."""
    torch.manual_seed(0)
    model = NETWORKS[network]().eval()
    example = torch.zeros(1, *CIFAR_INPUT)
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        dense = export_onnx(model, example, Path(folder) / "dense.onnx").read_bytes()
        for structure in ZEROS:
            pruned = zeroed(model, structure)
            weights = [m.weight for m in pruned.modules() if isinstance(m, nn.Conv2d)]
            zeros = sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)
            measured = rig.measure(export_onnx(pruned, example, Path(folder) / "zeros.onnx").read_bytes(), dense)
            rows[structure] = {
                "zeros": round(zeros, 4),
                "speedup": round(measured.speedup, 3),
                "low": round(measured.speedup_low, 3),
                "high": round(measured.speedup_high, 3),
                "dense_ms": round(measured.dense_latency_ms, 4),
                "converged": measured.converged,
            }
    return rows


def build_claim(rows: dict[str, dict[str, Any]], *, quick: bool, rig: OrtCpuRig) -> Claim:
    """The claim of these rows."""
    most = max(row["speedup"] for network in rows.values() for row in network.values())
    return Claim(
        claim="zeros in dense kernels gain no time on onnxruntime-cpu: single weights, 2:4, columns not rewritten",
        figure=most,
        unit="x the dense network (thread CPU time), the largest of the rows",
        bar=BAR,
        holds=most <= BAR,
        details={"quick": quick, "stamp": rig.stamp(1).to_dict(), "rows": rows},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="ResNet-20 alone, few pairs")
    parser.add_argument("--record", action="store_true", help="file the figures in results/plain_zeros.json")
    options = parser.parse_args()
    if options.record and options.quick:
        parser.error("--record keeps figures of the full benchmark only")
    torch.set_num_threads(1)
    rig = OrtCpuRig(settings=TimingSettings(max_pairs=9) if options.quick else TimingSettings())
    rows = {name: measure(name, rig) for name in NETWORKS if not options.quick or name == "resnet-20"}
    table = Table(title="speed-up over the dense network by zeros alone")
    for heading in ("network", "structure", "zeros", "speed-up", "interval"):
        table.add_column(heading)
    for name, network in rows.items():
        for structure, row in network.items():
            interval = f"{row['low']:.2f}-{row['high']:.2f}"
            table.add_row(name, structure, f"{row['zeros']:.1%}", f"{row['speedup']:.2f}x", interval)
    Console().print(table)
    claim = build_claim(rows, quick=options.quick, rig=rig)
    if options.record:
        claim.record("plain_zeros", packages=("prunefront", "torch", "onnx", "onnxruntime"))
    print(claim.to_json())


if __name__ == "__main__":
    main()
