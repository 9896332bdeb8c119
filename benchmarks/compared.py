"""What benchmarks that compare ways of pruning share: one start for all sides, what came of each, table and claim.

Every side of a comparison starts from the same trained network, sees the same batches for as many epochs in all,
computes alike and is as small as was asked. Accuracy is that on the 5,000 validation images; nobody reads the test set.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from claim import Claim
from macs import ideal_macs
from mnist import DATA, QUICK_EPOCHS, ROWS, SOURCE, Dense, score
from pruned import pruned, steps_per_epoch
from rich.console import Console
from rich.table import Table
from torch import nn

from admm.compute import Compute
from admm.groupmap import GroupMap
from admm.plan import PruningPlan
from admm.settings import AdmmSettings, FinetuneSettings
from admm.slicing import prunable_layers
from admm.target import Target
from search.errors import UserError
from search.tasks.base import PreparedTask
from search.weights import prunable_weights

#: What rounding may add to a bound.
SLACK = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What all sides of one seed have in common."""

    prepared: PreparedTask
    model: nn.Module
    """Trained; every side prunes a copy."""
    compute: Compute
    admm: AdmmSettings
    finetune: FinetuneSettings
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch."""
        return steps_per_epoch(self.prepared)

    @property
    def epochs(self) -> int:
        """What every side may spend."""
        return self.admm.epochs + self.finetune.epochs

    def outcome(self, model: nn.Module, *, paid: int, after_prune: float, epochs: float, since: float) -> Outcome:
        """What became of the network, for which `paid` weights were kept before purification.

        `since` is the process's CPU time in seconds when the side began.
        """
        seconds = time.process_time() - since
        example = self.prepared.example_input
        return Outcome(
            seed=self.seed,
            compression_x=prunable_weights(self.model) / max(paid, 1),
            idle=paid - prunable_weights(model),
            mac_fraction=ideal_macs(model, example) / ideal_macs(self.model, example),
            after_prune=after_prune,
            val=score(self.prepared, model),
            epochs=round(epochs, 3),
            seconds=round(seconds, 1),
            kept={name: int(layer.weight.count_nonzero()) for name, layer in prunable_layers(model).items()},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One side, one seed."""

    seed: int
    compression_x: float
    """Dense weights / weights that the pruning kept."""
    idle: int
    """Of those, weights that served nothing: no path led through them, and purification removed them unnoticed."""
    mac_fraction: float
    """Of the network that came out, zeros free."""
    after_prune: float
    """Accuracy before any retraining."""
    val: float
    epochs: float
    seconds: float
    kept: dict[str, int]
    """Weights of the network that came out, by layer; without the idle ones."""


Side = Callable[[Start, Target], Outcome]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One network, how small it shall be, and ways to get there; the first is ours."""

    network: str
    asked: Target
    sides: Mapping[str, Side]
    ablations: frozenset[str] = frozenset()
    """Sides that tell what a part of ours is worth, and are nobody's rival."""

    @property
    def ours(self) -> str:
        """The side that the others are held against."""
        return next(iter(self.sides))

    def within(self, outcome: Outcome) -> bool:
        """Whether a side is as small as was asked."""
        if self.asked.compression_x is not None:
            return outcome.compression_x >= self.asked.compression_x * (1.0 - SLACK)
        assert self.asked.mac_fraction is not None
        return outcome.mac_fraction <= self.asked.mac_fraction * (1.0 + SLACK)


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """The claim over all comparisons: ours is better by more than `bar` percentage points (or by as much)."""

    name: str
    """Of the file in `results/`."""
    claim: str
    bar: float
    equal_holds: bool

    def holds(self, advantage: float) -> bool:
        """Whether an advantage in percentage points keeps the bar."""
        return advantage >= self.bar if self.equal_holds else advantage > self.bar


def by_admm(start: Start, wanted: PruningPlan | Target, groups: GroupMap | None = None) -> Outcome:
    """ADMM under a plan or a target, and retraining."""
    since = time.process_time()
    result = pruned(
        start.model,
        wanted,
        start.prepared,
        evaluate=score,
        admm=start.admm,
        finetune=start.finetune,
        seed=start.seed,
        compute=start.compute,
        groups=groups,
    )
    after_prune, kept = result.trace.accuracy_after_prune, result.trace.records[-1].kept
    assert after_prune is not None
    layers = prunable_layers(start.model).items()
    return start.outcome(
        result.model,
        paid=sum(kept.get(f"{name}.weight", layer.weight.numel()) for name, layer in layers),
        after_prune=after_prune,
        epochs=result.epochs,
        since=since,
    )


def main(comparisons: Mapping[str, Comparison], statement: Statement, doc: str) -> int:
    """Run the comparisons asked for, print a table, and the claim as the last line."""
    parser = argparse.ArgumentParser(description=doc.partition("\n")[0])
    parser.add_argument("--rows", nargs="+", choices=list(comparisons), default=list(comparisons))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--data", type=Path, default=DATA, help="the folder of MNIST's four idx files")
    parser.add_argument("--quick", action="store_true", help="a few images and epochs: shows that it runs")
    parser.add_argument("--record", action="store_true", help=f"add the figures to results/{statement.name}.json")
    parser.add_argument("--cache", type=Path, help="keep the dense networks in this folder, and use those there")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if options.record and options.quick:
        parser.error("--record keeps figures of the full benchmark only")
    torch.set_num_threads(options.threads)
    console = Console(width=130)
    chosen = {name: comparisons[name] for name in options.rows}
    dense = Dense(options.data, quick=options.quick, cache=options.cache)
    details: dict[str, Any] = {"quick": options.quick, "accuracy": "of the validation images"}
    try:
        rows = {name: _run(name, comparison, dense, options, console) for name, comparison in chosen.items()}
    except UserError as error:
        console.print(f"skipped: {error} ({SOURCE})", soft_wrap=True)
        return 2
    for name, row in rows.items():
        _summarise(row, chosen[name], statement)
    console.print(_table(rows))
    figure = min(row["advantage_pp"] for row in rows.values())
    claim = Claim(
        claim=statement.claim,
        figure=figure,
        unit="percentage points of mean validation accuracy over the best other side, the smaller of the rows",
        bar=statement.bar,
        holds=not options.quick and all(row["holds"] for row in rows.values()),
        details=details | rows,
    )
    if options.record:
        claim.record(statement.name, packages=("prunefront", "torch", "torch-pruning", "numpy"))
    print(claim.to_json())
    return 0


def _run(
    name: str, comparison: Comparison, dense: Dense, options: argparse.Namespace, console: Console
) -> dict[str, Any]:
    """All seeds and sides of one comparison."""
    compute: Compute | None = None
    dense_val: list[float] = []
    sides: dict[str, list[Outcome]] = {side: [] for side in comparison.sides}
    for seed in options.seeds:
        torch.manual_seed(seed)
        prepared, model, compute, _ = dense.get(comparison.network, seed, compute)
        row = ROWS[f"{comparison.network}-most"]
        # a rate at which no side diverges, the reduced form included
        admm, finetune = row.admm, replace(row.finetune, lr=min(row.finetune.lr, 0.02))
        if options.quick:
            admm, finetune = replace(admm, iterations=QUICK_EPOCHS), replace(finetune, epochs=QUICK_EPOCHS)
        start = Start(prepared=prepared, model=model, compute=compute, admm=admm, finetune=finetune, seed=seed)
        dense_val.append(score(prepared, model))
        for side, run in comparison.sides.items():
            outcome = run(start, comparison.asked)
            sides[side].append(outcome)
            console.print(f"{name}, seed {seed}, {side}: {outcome}", soft_wrap=True)
    return {
        "network": comparison.network,
        "asked": comparison.asked.asked,
        "compute": str(compute),
        "settings": {"admm": asdict(admm), "finetune": asdict(finetune)},
        "dense_val": dense_val,
        "sides": {side: [asdict(o) for o in found] for side, found in sides.items()},
        "within": {side: all(comparison.within(o) for o in found) for side, found in sides.items()},
    }


def _summarise(row: dict[str, Any], comparison: Comparison, statement: Statement) -> None:
    """Means, the best other side, and ours against it; a side that is not small enough is nobody's rival."""
    row["val_mean"] = {s: statistics.fmean(o["val"] for o in found) for s, found in row["sides"].items()}
    others = [s for s in row["sides"] if s not in {comparison.ours, *comparison.ablations} and row["within"][s]]
    if not others:
        row |= {"best_other": "none within size", "advantage_pp": math.nan, "holds": False}
        return
    row["best_other"] = max(others, key=lambda s: row["val_mean"][s])
    row["advantage_pp"] = round(100 * (row["val_mean"][comparison.ours] - row["val_mean"][row["best_other"]]), 4)
    row["holds"] = row["within"][comparison.ours] and statement.holds(row["advantage_pp"])


def _table(rows: dict[str, dict[str, Any]]) -> Table:
    table = Table(
        "row", "side", "x", "idle %", "MACs %", "val %", "after prune %", "kept by layer", "epochs", "CPU min"
    )
    for name, row in rows.items():
        table.add_row(name, "dense", "1", "", "100", _spread(row["dense_val"]), "", "", "", "")
        for side, found in row["sides"].items():
            idle = [o["idle"] / (o["idle"] + sum(o["kept"].values())) for o in found]
            kept = [round(statistics.fmean(o["kept"][layer] for o in found)) for layer in found[0]["kept"]]
            table.add_row(
                "",
                side + ("" if row["within"][side] else " (TOO LARGE)"),
                f"{min(o['compression_x'] for o in found):.1f}",
                f"{100 * statistics.fmean(idle):.0f}",
                f"{100 * max(o['mac_fraction'] for o in found):.1f}",
                _spread([o["val"] for o in found]),
                _spread([o["after_prune"] for o in found]),
                " ".join(f"{count:,}" for count in kept),
                f"{max(o['epochs'] for o in found):.1f}",
                f"{max(o['seconds'] for o in found) / 60:.1f}",
            )
    return table


def _spread(values: list[float]) -> str:
    """Mean and range in per cent."""
    return f"{100 * statistics.fmean(values):.2f} ({100 * min(values):.2f}-{100 * max(values):.2f})"
