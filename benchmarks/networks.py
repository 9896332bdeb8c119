"""Whole networks in ONNX Runtime: how much of the speed-up that the MACs promise does a pruned network reach?

Three ways to the same share of every layer, weights random, one thread, batch 1:

* `filter`: all coupled groups of filters, widths rounded up to the device's block, shrunk physically;
* `shape`: columns of every convolution, chosen by magnitude, the file lowered by `evaluators.lowering`;
* `peer`: torch-pruning's uniform magnitude pruning with its widths as they come, unaligned, measured by the same rig.

The ideal is the MAC ratio of the network as it is after rounding, zeros free; the share is speed-up / ideal. Bars: at
least 0.85 of the ideal at 50 % filters and 0.75 at 75 %, and nothing surely slower than dense (a speed-up whose whole
interval lies below 1).
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch_pruning
from claim import Claim
from macs import ideal_macs
from networks_zoo import NETWORKS, Network
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from admm.groupmap import GroupMap
from admm.groups import find_groups
from admm.plan import PruningPlan
from admm.shapes import shaped_by_magnitude
from admm.slicing import prunable_layers
from evaluators import Measurement, count_macs, export_onnx, make_rig
from evaluators.blocks import block_of
from evaluators.lowering import LayerTimes, lower
from search.alignment import width_for

SPARSITIES = (0.5, 0.75, 0.9)
#: Share of the ideal to reach by filters, by sparsity.
BARS = {0.5: 0.85, 0.75: 0.75}
WAYS = ("filter", "shape", "peer")
SEED = 0


def filters(groups: GroupMap, sparsity: float) -> PruningPlan:
    """The same share of every coupled group."""
    return PruningPlan({name: {"filter": sparsity} for name in groups.groups})


def columns(model: nn.Module, sparsity: float) -> PruningPlan:
    """The same share of the columns of every convolution that has a kernel and more than an image's channels."""
    wanted = {
        name: {"shape": sparsity}
        for name, layer in prunable_layers(model).items()
        if isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.kernel_size != (1, 1) and layer.in_channels > 3
    }
    return PruningPlan(wanted)


def unaligned(model: nn.Module, example: Tensor, sparsity: float) -> nn.Module:
    """torch-pruning's uniform magnitude pruning, widths as they come; the classifier keeps its outputs."""
    small = copy.deepcopy(model)
    torch_pruning.pruner.MagnitudePruner(
        small,
        example,
        importance=torch_pruning.importance.MagnitudeImportance(p=2),
        pruning_ratio=sparsity,
        ignored_layers=[list(prunable_layers(small).values())[-1]],
    ).step()
    return small


class Bench:
    """One network: its dense file, and how others are measured against it."""

    def __init__(self, network: Network, align: int | None) -> None:
        torch.manual_seed(SEED)
        self.model = network.make().eval()
        self.example = torch.randn(1, *network.shape)
        self.groups = find_groups(self.model, self.example)
        self.rig = make_rig("onnxruntime-cpu")
        self.block = align or width_for(self.model, block_of(self.rig.stamp(1), self.rig.measure))
        self.dense = self.export(self.model)
        self.macs = count_macs(self.model, self.example)
        self.times = LayerTimes()

    def export(self, model: nn.Module) -> bytes:
        """The ONNX file."""
        with tempfile.TemporaryDirectory() as folder:
            return export_onnx(model, self.example, Path(folder) / "model.onnx").read_bytes()

    def row(self, way: str, sparsity: float) -> dict[str, Any]:
        """One way at one sparsity."""
        small = self.ways[way](sparsity)
        content, lowered = self.export(small), None
        if way == "shape":
            lowered = lower(content, self.rig.measure, block=self.block, known=self.times)
            content = lowered.content
        measured: Measurement = self.rig.measure(content, self.dense)
        ideal = self.macs / ideal_macs(small, self.example)
        return {
            "way": way,
            "sparsity": sparsity,
            "ideal": round(ideal, 3),
            "kernels": round(self.macs / count_macs(small, self.example), 3),
            "speedup": round(measured.speedup, 3),
            "interval": [round(measured.speedup_low, 3), round(measured.speedup_high, 3)],
            "converged": measured.converged,
            "share": round(measured.speedup / ideal, 4),
            "dense_ms": round(measured.dense_latency_ms, 4),
            "layers": [layer.choice for layer in lowered.layers] if lowered is not None else None,
        }

    @property
    def ways(self) -> dict[str, Callable[[float], nn.Module]]:
        """What makes the pruned network, by way."""
        return {
            "filter": lambda s: self.shaped(filters(self.groups, s)),
            "shape": lambda s: self.shaped(columns(self.model, s)),
            "peer": lambda s: unaligned(self.model, self.example, s),
        }

    def shaped(self, plan: PruningPlan) -> nn.Module:
        """The network of a plan, unneeded weights chosen by magnitude."""
        return shaped_by_magnitude(self.model, self.groups, plan, align=self.block)


def holds(row: dict[str, Any]) -> bool:
    """Whether a row keeps its bar; the peer has none."""
    if row["way"] == "peer":
        return True
    bar = BARS.get(row["sparsity"], 0.0) if row["way"] == "filter" else 0.0
    # a network that is surely slower than dense: its whole interval lies below 1
    return bool(row["share"] >= bar and row["interval"][1] >= 1.0)


def main() -> None:
    """Measure, print the table, and the claim as the last line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--align", type=int, help="in place of the block measured on this machine")
    parser.add_argument("--quick", action="store_true", help="ResNet-20 at 50 %%, by filters")
    parser.add_argument("--record", action="store_true", help="add the figures to results/networks.json")
    options = parser.parse_args()
    if options.record and options.quick:
        parser.error("--record keeps figures of the full benchmark only")
    torch.set_num_threads(1)
    names = ["resnet-20"] if options.quick else options.networks
    rows: dict[str, list[dict[str, Any]]] = {}
    blocks = {}
    for name in names:
        bench = Bench(NETWORKS[name], options.align)
        blocks[name] = bench.block
        for way in WAYS[:1] if options.quick else WAYS:
            for sparsity in SPARSITIES[:1] if options.quick else SPARSITIES:
                row = bench.row(way, sparsity)
                rows.setdefault(name, []).append(row)
                print(f"{NETWORKS[name].name}, {way} {sparsity:g}: {row['speedup']}x of {row['ideal']}x", flush=True)
    show(rows)
    shares = [row["share"] / BARS[row["sparsity"]] for found in rows.values() for row in found if judged(row)]
    claim = Claim(
        claim="aligned coupled filters reach at least 0.85 of the ideal speed-up at 50 % and 0.75 at 75 %, and no "
        "whole network is slower than dense (figure: the smallest share over its bar)",
        figure=round(min(shares), 4),
        unit="share of the ideal speed-up / its bar",
        bar=1.0,
        holds=not options.quick and all(holds(row) for found in rows.values() for row in found),
        details={"quick": options.quick, "blocks": blocks, "bars": {str(s): b for s, b in BARS.items()}, "rows": rows},
    )
    if options.record:
        claim.record("networks", packages=("torch", "torch-pruning", "numpy", "onnx", "onnxruntime"))
    print(claim.to_json())


def judged(row: dict[str, Any]) -> bool:
    """Whether a row has a share to reach."""
    return row["way"] == "filter" and row["sparsity"] in BARS


def show(rows: dict[str, list[dict[str, Any]]]) -> None:
    """The table."""
    table = Table("network", "way", "removed", "ideal", "kernels", "speed-up", "interval", "share of ideal", "")
    for name, found in rows.items():
        for row in found:
            low, high = row["interval"]
            table.add_row(
                NETWORKS[name].name,
                row["way"],
                f"{100 * row['sparsity']:g} %",
                f"{row['ideal']:.2f}x",
                f"{row['kernels']:.2f}x",
                f"{row['speedup']:.2f}x",
                f"{low:.2f}-{high:.2f}",
                f"{row['share']:.2f}",
                "" if holds(row) else "MISSED",
            )
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
