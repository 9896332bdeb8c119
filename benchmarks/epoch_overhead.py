"""What an epoch of LeNet-5 on MNIST costs with `train_epoch` and ADMM, beside a bare loop of forward, backward, step.

Five copies of the network go through the same epoch of the same resident data in the same order, with the same
optimiser, one thread and segments of a few steps in turn, so that a busy machine slows all alike: the bare loop, ours
with a fixed plan, ours where every projection finds the sparsities anew (a `Target`: one of single weights, one of
filters and columns), and the fixed plan computing as `fastest_compute` chooses on this machine. Thread CPU time
decides. Every layer is under ADMM, and its projection at the epoch's end counts. The bar is the fixed plan's; what the
others cost is told. The second table says what is in memory at the end.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from claim import Claim
from rich.console import Console
from rich.table import Table
from step_overhead import cases, peak_bytes, unstructured
from torch import Tensor, nn
from torch.nn import functional as F

from admm.compute import PLAIN, Compute, fastest_compute
from admm.constraint import constraint
from admm.ema import Ema
from admm.groupmap import GroupMap
from admm.groups import find_groups
from admm.settings import AdmmSettings
from admm.solver import Admm
from admm.target import Target
from admm.training import Batch, make_optimizer, train_epoch
from evaluators.clock import Clock, host_clock
from evaluators.host import pinned_to_one_core
from search.errors import UserError
from search.tasks.idx import read_split
from search.tasks.networks import MNIST_INPUT, LeNet5

#: Where the four idx files are looked for: the folder of the environment variable, else beside the repository.
DATA = Path(os.environ.get("PRUNEFRONT_DATA", Path(__file__).parents[2] / "shared" / "data")) / "mnist"
IMAGES = 60_000
LR = 0.01
SEED = 0
BAR = 1.10
#: Sparsities that nobody set: the paper's compression, and a quarter of the MACs by filters and columns.
TARGETS = (Target(compression_x=71.2), Target(mac_fraction=0.25, structures=("filter", "shape")))
#: Steps in turn for each side, and steps before anything is timed.
SEGMENT, WARMUP = 20, 10


def asked(target: Target, model: nn.Module, groups: GroupMap) -> Target:
    """A case's plan that is a target; a function, so that a fresh process can be handed it."""
    return target


def training_images(count: int) -> tuple[Tensor, Tensor, str]:
    """Images [count, 1, 28, 28], labels and where they are from: MNIST, or noise of its shape where it is not there."""
    try:
        split = read_split(DATA, "train")
    except UserError:
        generator = torch.Generator().manual_seed(SEED)
        images = torch.randn(count, *MNIST_INPUT, generator=generator)
        labels = torch.randint(10, (count,), generator=generator)
        return images, labels, "noise of MNIST's shape (no idx files in ../shared/data/mnist or $PRUNEFRONT_DATA/mnist)"
    images = (torch.from_numpy(split.images[:count].astype(np.float32)) / 255.0 - 0.1307) / 0.3081
    return images, torch.from_numpy(split.labels[:count]), "MNIST"


class Data:
    """An epoch's batches, sliced from one resident tensor; everyone who asks gets the same."""

    def __init__(self, images: Tensor, labels: Tensor, batch: int) -> None:
        self._images, self._labels = images, labels
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(SEED))
        self._index = order.split(batch)

    def __len__(self) -> int:
        return len(self._index)

    def segment(self, start: int, stop: int) -> Iterator[Batch]:
        """Batches start .. stop - 1."""
        for index in self._index[start:stop]:
            yield self._images[index], self._labels[index]


class Side:
    """One copy of the network in training: bare (`compute` None), or by `train_epoch` with ADMM."""

    def __init__(self, data: Data, compute: Compute | None, target: Target | None = None) -> None:
        torch.manual_seed(SEED)
        self.data, self.compute = data, compute
        self.model: nn.Module = LeNet5().train()
        self.optimizer = make_optimizer(self.model.parameters(), kind="sgd", lr=LR, momentum=0.9, weight_decay=1e-4)
        self.admm: Admm | None = None
        if compute is not None:
            example = torch.zeros(1, *MNIST_INPUT)
            groups = find_groups(self.model, example)
            wanted = target or unstructured(self.model, groups)
            projector = constraint(self.model, groups, wanted, example_input=example)
            self.admm = Admm(self.model, projector, AdmmSettings(iterations=1000), steps_per_iteration=len(data))

    def steps(self, start: int, stop: int) -> None:
        """Train on a segment of the epoch."""
        batches = self.data.segment(start, stop)
        if self.compute is None or self.admm is None:
            for inputs, targets in batches:
                self.optimizer.zero_grad(set_to_none=True)
                F.cross_entropy(self.model(inputs), targets).backward()
                self.optimizer.step()
            return
        after_step: Callable[[], None] = lambda: self.admm.after_step(LR)  # type: ignore[union-attr]  # noqa: E731
        train_epoch(
            self.model,
            batches,
            F.cross_entropy,
            self.optimizer,
            phase="benchmark",
            after_step=after_step,
            compute=self.compute,
        )

    def end(self) -> None:
        """What ADMM does once an iteration."""
        if self.admm is not None:
            self.admm.end_iteration(1.0)


def run_epoch(sides: dict[str, Side], steps: int, segment: int, clock: Clock) -> dict[str, list[float]]:
    """CPU milliseconds of each side's segments, the last entry being the epoch's end; the order turns each time."""
    spent: dict[str, list[float]] = {name: [] for name in sides}

    def timed(name: str, work: Callable[[], None]) -> None:
        begin = clock.deciding()
        work()
        spent[name].append((clock.deciding() - begin) / 1e6)

    for turn, start in enumerate(range(0, steps, segment)):
        for name in sides if turn % 2 == 0 else reversed(sides):
            side, stop = sides[name], min(start + segment, steps)
            timed(name, lambda side=side, start=start, stop=stop: side.steps(start, stop))  # type: ignore[misc]
    for name, side in sides.items():
        timed(name, side.end)
    return spent


def memory(side: Side) -> dict[str, int]:
    """Bytes by purpose, from the tensors themselves; EMA and teacher are there when asked for only."""
    assert side.admm is not None
    parameters = list(side.model.parameters())
    state = side.optimizer.state.values()
    sizes = {
        "weights": sum(p.nbytes for p in parameters),
        "gradients": sum(p.grad.nbytes for p in parameters if p.grad is not None),
        "optimiser": sum(v.nbytes for entry in state for v in entry.values() if isinstance(v, Tensor)),
        "t": 0,
        "u": 0,
        "masks": 0,
    }
    for name, tensor in side.admm.state()[0].items():
        kind = name.partition(".")[0]
        sizes[kind if kind in ("t", "u") else "masks"] += tensor.nbytes
    average, teacher = Ema(side.model, 0.999).model, copy.deepcopy(side.model)
    for name, module in (("ema", average), ("teacher", teacher)):
        sizes[name] = sum(t.nbytes for t in module.state_dict().values())
    return sizes


def show(details: dict[str, Any], console: Console) -> None:
    """Both tables."""
    times = Table(title=f"one epoch of LeNet-5, {details['data']} (thread CPU time, one thread)")
    for heading in ("", "a step ms", "epoch's end ms", "the epoch s", "x bare loop"):
        times.add_column(heading, justify="right")
    for name, row in details["sides"].items():
        times.add_row(
            name,
            f"{row['step_ms']:.2f}",
            f"{row['end_ms']:.1f}",
            f"{row['epoch_s']:.2f}",
            f"{row['ratio']:.4f}",
        )
    console.print(times)
    sizes = Table(title="memory: batches and activations apart")
    for heading in ("", "bytes", "x weights"):
        sizes.add_column(heading, justify="left" if not heading else "right")
    for name, size in details["memory_bytes"].items():
        if size is not None:
            sizes.add_row(name.replace("_", " "), f"{size:,}", f"{size / details['memory_bytes']['weights']:.2f}")
    console.print(sizes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of an epoch: under a minute")
    parser.add_argument("--tiny", action="store_true", help="a few steps at batch 16: figures mean nothing")
    parser.add_argument("--record", action="store_true", help="add the figures to results/epoch_overhead.json")
    options = parser.parse_args()
    if options.record and (options.quick or options.tiny):
        parser.error("--record keeps figures of the full benchmark only")
    torch.set_num_threads(1)
    full = not (options.quick or options.tiny)
    batch = 16 if options.tiny else 128
    images, labels, source = training_images(320 if options.tiny else IMAGES)
    data = Data(images, labels, batch)
    steps = len(data) if full or options.tiny else len(data) // 10
    with pinned_to_one_core():
        choice = fastest_compute(LeNet5(), next(data.segment(0, 1)), F.cross_entropy)
        sides = {
            "bare loop": Side(data, None),
            "train_epoch + ADMM": Side(data, PLAIN),
            **{f"the same, {t.asked} by {' + '.join(t.structures)}": Side(data, PLAIN, t) for t in TARGETS},
            f"the same, {choice.compute}": Side(data, choice.compute),
        }
        for side in sides.values():
            side.steps(0, min(WARMUP, len(data)))
            side.end()
        spent = run_epoch(sides, steps, min(SEGMENT, max(steps // 4, 1)), host_clock(threads=1))
    # A reduced run has a part of the steps; the epoch's end is spread over all of them, as in an epoch.
    share = steps / len(data)
    totals = {name: sum(parts[:-1]) + share * parts[-1] for name, parts in spent.items()}
    bare = spent["bare loop"][:-1]
    rows: dict[str, dict[str, Any]] = {}
    for name, parts in spent.items():
        paired = [a / b for a, b in zip(parts[:-1], bare, strict=True)]
        rows[name] = {
            "step_ms": round(sum(parts[:-1]) / steps, 3),
            "end_ms": round(parts[-1], 3),
            "epoch_s": round(totals[name] / share / 1e3, 6),
            "ratio": round(totals[name] / totals["bare loop"], 4),
            "segments_median": round(median(paired), 4),
            "segments_quartiles": [round(float(q), 4) for q in np.quantile(paired, (0.25, 0.75))],
        }
    ours = sides["train_epoch + ADMM"]
    sizes: dict[str, int | None] = dict(memory(ours))
    if full:
        case = cases(quick=False, tiny=False)["lenet5_unstructured"]
        groups = find_groups(case.network(), torch.zeros(1, *case.shape))
        plain = peak_bytes(case, None)
        sizes["peak_beyond_plain_training"] = peak_bytes(case, groups) - plain
        for t in TARGETS:
            peak = peak_bytes(replace(case, plan=partial(asked, t)), groups)
            sizes[f"the_same,_{t.asked}_by_{'_+_'.join(t.structures)}"] = peak - plain
    details: dict[str, Any] = {
        "quick": options.quick,
        "tiny": options.tiny,
        "data": source,
        "batch": batch,
        "steps": steps,
        "steps_per_epoch": math.ceil(len(images) / batch),
        "sides": rows,
        "compute": {"chosen": choice.compute.to_dict(), "milliseconds": choice.milliseconds, "not": choice.passed_over},
        "memory_bytes": sizes,
    }
    show(details, Console(width=130))
    ratio = rows["train_epoch + ADMM"]["ratio"]
    claim = Claim(
        claim="an epoch of LeNet-5 on MNIST at batch 128 with ADMM costs at most the bar times a bare training loop",
        figure=ratio,
        unit="x bare loop (thread CPU time)",
        bar=BAR,
        holds=ratio <= BAR,
        details=details,
    )
    if options.record:
        claim.record("epoch_overhead", packages=("prunefront", "torch"))
    print(claim.to_json())


if __name__ == "__main__":
    main()
