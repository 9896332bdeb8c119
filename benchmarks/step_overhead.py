"""What ADMM costs on top of plain training, per step, with projections and dual updates spread over an epoch.

Two copies of a network train on random data of the right shape with the same optimiser, in alternating blocks of one
run (ABBA) on one thread; thread CPU time decides. One of them takes ADMM's proximal step after each optimiser step.
What happens once an iteration (`Admm.end_iteration`, and the gradients observed in the steps that follow) is timed by
itself and divided by the steps of an epoch of the real data set, the shortest iteration there is.
"""

from __future__ import annotations

import argparse
import itertools
import math
import multiprocessing
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from claim import Claim
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from admm.constraint import constraint
from admm.groupmap import GroupMap
from admm.groups import find_groups
from admm.plan import PruningPlan
from admm.settings import AdmmSettings
from admm.solver import Admm
from admm.target import Target
from admm.training import make_optimizer
from evaluators.clock import Clock, host_clock
from evaluators.host import pinned_to_one_core
from evaluators.timing import TimingSettings, bootstrap_median, time_pair
from search.tasks.networks import CIFAR_INPUT, MNIST_INPUT, LeNet5, resnet18

#: Where Linux says a process's peak memory; elsewhere the peak is left out.
STATUS = Path("/proc/self/status")
LR = 0.01
SEED = 0
#: Steps after an iteration's end that are timed one by one: gradients are observed in the first few of them.
EARLY_STEPS = 16
#: Batches of random data and labels that both sides go through in turn.
BATCHES = 8


def unstructured(model: nn.Module, groups: GroupMap) -> PruningPlan:
    """Nine tenths of the single weights of every layer."""
    return PruningPlan({name: {"unstructured": 0.9} for name in groups.layers})


def lenet_mix(model: nn.Module, groups: GroupMap) -> PruningPlan:
    """Filters everywhere, columns of the convolutions as well."""
    return PruningPlan(
        {
            "conv1": {"filter": 0.5, "shape": 0.4},
            "conv2": {"filter": 0.5, "shape": 0.7},
            "fc1": {"filter": 0.5},
        }
    )


def half_of_both(model: nn.Module, groups: GroupMap) -> PruningPlan:
    """Half the filters of every group, half the columns of every 3x3 convolution."""
    layers: dict[str, dict[str, float]] = {name: {"filter": 0.5} for name in groups.groups}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            layers.setdefault(name, {})["shape"] = 0.5
    return PruningPlan(layers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One row: a network, a batch, an epoch's samples and a plan."""

    name: str
    network: Callable[[], nn.Module]
    shape: tuple[int, ...]
    batch: int
    train_size: int
    plan: Callable[[nn.Module, GroupMap], PruningPlan | Target]
    bar: float

    @property
    def steps(self) -> int:
        """Steps an epoch."""
        return math.ceil(self.train_size / self.batch)


def cases(*, quick: bool, tiny: bool) -> dict[str, Case]:
    """The rows by key. Reduced forms have smaller batches, so that ADMM's share in them is larger, never smaller."""
    mnist: dict[str, Any] = {
        "network": LeNet5,
        "shape": MNIST_INPUT,
        "batch": 16 if tiny else 128,
        "train_size": 60_000,
        "bar": 1.10,
    }
    rows = {
        "lenet5_unstructured": Case(name="LeNet-5, unstructured 0.9", plan=unstructured, **mnist),
        "lenet5_filter_shape": Case(name="LeNet-5, filter 0.5 + shape", plan=lenet_mix, **mnist),
    }
    if not tiny:
        rows["resnet18_filter_shape"] = Case(
            name="ResNet-18, filter 0.5 + shape 0.5",
            network=resnet18,
            shape=CIFAR_INPUT,
            batch=16 if quick else 64,
            train_size=50_000,
            plan=half_of_both,
            bar=1.03,
        )
    return rows


class Side:
    """One copy of the network in training, with ADMM over these groups or (None) without."""

    def __init__(self, case: Case, groups: GroupMap | None) -> None:
        torch.manual_seed(SEED)
        self.model = case.network().train()
        self.optimizer = make_optimizer(self.model.parameters(), kind="sgd", lr=LR, momentum=0.9, weight_decay=1e-4)
        inputs = torch.randn(BATCHES, case.batch, *case.shape)
        targets = torch.randint(10, (BATCHES, case.batch))
        self._batches: Iterator[tuple[Tensor, Tensor]] = itertools.cycle(zip(inputs, targets, strict=True))
        self.admm: Admm | None = None
        if groups is not None:
            wanted, example = case.plan(self.model, groups), torch.zeros(1, *case.shape)
            projector = constraint(self.model, groups, wanted, example_input=example)
            # Iterations enough that none is the last, which has less to do.
            self.admm = Admm(self.model, projector, AdmmSettings(iterations=1000))

    def step(self) -> None:
        """One training step: forward, backward, optimiser and, on this side, ADMM."""
        inputs, targets = next(self._batches)
        self.optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(self.model(inputs), targets).backward()
        self.optimizer.step()
        if self.admm is not None:
            self.admm.after_step(LR)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmmParts:
    """CPU milliseconds of ADMM's parts by themselves, medians."""

    after_step: float
    early_extra: float
    """What the first steps of an iteration cost more than later ones, together."""
    end_iteration: float


def time_parts(side: Side, clock: Clock, repeats: int) -> AdmmParts:
    """Time `end_iteration` and the `after_step` calls that follow it, on gradients that a training step left."""
    admm = side.admm
    assert admm is not None
    ends, extras, laters = [], [], []
    for _ in range(repeats):
        side.step()
        ends.append(_milliseconds(lambda: admm.end_iteration(1.0), clock))
        early = [_milliseconds(lambda: admm.after_step(LR), clock) for _ in range(EARLY_STEPS)]
        later = median(_milliseconds(lambda: admm.after_step(LR), clock) for _ in range(EARLY_STEPS))
        extras.append(sum(early) - EARLY_STEPS * later)
        laters.append(later)
    return AdmmParts(after_step=median(laters), early_extra=max(median(extras), 0.0), end_iteration=median(ends))


def measure(case: Case, settings: TimingSettings, *, repeats: int, peaks: bool) -> dict[str, Any]:
    """One row: the ratio with its interval, ADMM's parts in milliseconds, its memory in bytes."""
    clock = host_clock(threads=1)
    groups = find_groups(case.network(), torch.zeros(1, *case.shape))
    plain, ours = Side(case, None), Side(case, groups)
    # The parts come first: after them every step is one of the many, none of the few that observe gradients.
    parts = time_parts(ours, clock, repeats)
    timing = time_pair(ours.step, plain.step, settings=settings, clock=clock)
    plain_ms = median(timing.reference_ns) / 1e6
    amortised = (parts.end_iteration + parts.early_extra) / (case.steps * plain_ms)
    ratios = [a / b + amortised for a, b in zip(timing.candidate_ns, timing.reference_ns, strict=True)]
    low, high = bootstrap_median(ratios, settings)
    ratio = median(ratios)
    assert ours.admm is not None
    return {
        "network": case.name,
        "batch": case.batch,
        "steps_per_epoch": case.steps,
        "ratio": round(ratio, 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "bar": case.bar,
        "pairs": len(ratios),
        "converged": timing.converged,
        "plain_step_ms": round(plain_ms, 3),
        "after_step_ms": round(parts.after_step, 4),
        "early_extra_ms": round(parts.early_extra, 3),
        "end_iteration_ms": round(parts.end_iteration, 3),
        "ratio_by_parts": round(1.0 + parts.after_step / plain_ms + amortised, 4),
        "memory_bytes": {
            **resident_bytes(ours),
            "peak_beyond_plain": peak_bytes(case, groups) - peak_bytes(case, None) if peaks else None,
        },
    }


def resident_bytes(side: Side) -> dict[str, int]:
    """Bytes of the weights and of what ADMM keeps beside them, read off its state."""
    assert side.admm is not None
    sizes = {"weights": sum(p.nbytes for p in side.model.parameters()), "t": 0, "u": 0, "masks": 0}
    for name, tensor in side.admm.state()[0].items():
        kind = name.partition(".")[0]
        sizes[kind if kind in ("t", "u") else "masks"] += tensor.nbytes
    return sizes


def peak_bytes(case: Case, groups: GroupMap | None) -> int:
    """Peak resident memory of three training steps, and with ADMM a projection in between, in a fresh process."""
    # Freed blocks go back to the system at once: else the peak says what the C library happened to keep.
    os.environ |= {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_train_and_read_peak, (case, groups))


def _train_and_read_peak(case: Case, groups: GroupMap | None) -> int:
    torch.set_num_threads(1)
    side = Side(case, groups)
    side.step()
    if side.admm is not None:
        side.admm.end_iteration(1.0)
    side.step()
    side.step()
    found = re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text())
    assert found is not None
    return int(found.group(1)) * 1024


def _milliseconds(work: Callable[[], object], clock: Clock) -> float:
    begin = clock.deciding()
    work()
    return (clock.deciding() - begin) / 1e6


def show(rows: dict[str, dict[str, Any]]) -> None:
    """The table; times are CPU milliseconds of one thread."""
    table = Table(title="an ADMM step / a plain training step (thread CPU time, one thread)")
    headings = (
        "network",
        "batch",
        "plain ms",
        "after_step ms",
        "end_iteration ms",
        "ratio",
        "interval",
        "MiB",
        "peak MiB",
    )
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "network" else "right", no_wrap=heading == "network")
    for row in rows.values():
        memory = row["memory_bytes"]
        peak = memory["peak_beyond_plain"]
        table.add_row(
            row["network"],
            str(row["batch"]),
            f"{row['plain_step_ms']:.1f}",
            f"{row['after_step_ms']:.2f}",
            f"{row['end_iteration_ms']:.1f}",
            f"{row['ratio']:.4f}",
            f"{row['low']:.4f} - {row['high']:.4f}",
            f"{(memory['t'] + memory['u'] + memory['masks']) / 2**20:.1f}",
            "not read" if peak is None else f"{peak / 2**20:+.1f}",
        )
    console = Console(width=140)
    console.print(table)
    console.print(
        "MiB: what ADMM keeps. Peak MiB: peak memory of training beyond that without ADMM; full runs on Linux."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="ResNet-18 at batch 16 and few pairs: under a minute")
    parser.add_argument("--tiny", action="store_true", help="LeNet-5 at batch 16 only: seconds, figures mean nothing")
    parser.add_argument("--record", action="store_true", help="add the figures to results/step_overhead.json")
    options = parser.parse_args()
    if options.record and (options.quick or options.tiny):
        parser.error("--record keeps figures of the full benchmark only")
    torch.set_num_threads(1)
    full = not (options.quick or options.tiny)
    settings = (
        TimingSettings(min_block_ns=200_000_000, min_pairs=21, max_pairs=41, bound=0.005)
        if full
        else TimingSettings(warmups=1, max_warmups=1, min_pairs=3, max_pairs=5)
    )
    chosen = cases(quick=options.quick, tiny=options.tiny)
    with pinned_to_one_core():
        rows = {
            key: measure(case, settings, repeats=5 if full else 2, peaks=full and STATUS.exists())
            for key, case in chosen.items()
        }
    show(rows)
    decisive = list(rows.values())[-1]
    claim = Claim(
        claim="training with ADMM costs at most the bar times plain training, per step over an epoch",
        figure=decisive["ratio"],
        unit="x plain step (thread CPU time)",
        bar=decisive["bar"],
        holds=all(row["ratio"] <= row["bar"] for row in rows.values()),
        details={"quick": options.quick, "tiny": options.tiny, **rows},
    )
    if options.record:
        claim.record("step_overhead", packages=("prunefront", "torch"))
    print(claim.to_json())


if __name__ == "__main__":
    main()
