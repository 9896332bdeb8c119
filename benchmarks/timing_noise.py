"""How far the reported speed-up of a fixed pair moves while somebody trains on this machine.

Dense and half the filters (in whole blocks of 16) of AlexNet and ResNet-20, measured by the rig as in a search: one
pinned thread, thread CPU time. The load is a process that trains, pinned to another core or to the rig's own; it runs
from the start and rests while it is not its turn, so that the conditions alternate within seconds and slow drift of the
machine does not count as one of them.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import torch
from claim import Claim
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn import functional as F

from evaluators.host import allowed_cores
from evaluators.onnx_export import export_onnx
from evaluators.rig import LatencyRig, make_rig
from search.tasks.networks import CIFAR_INPUT, CifarResNet, resnet20
from search.tasks.networks_plain import IMAGENET_INPUT, AlexNet

#: Every measurement within this fraction of the idle median; what is aimed at; the same model against itself.
BAR, AIM, CONTROL_BAR = 0.07, 0.05, 0.03
#: A measurement of a network under `FAST_MS` takes at most this long.
SECONDS_BAR, FAST_MS = 2.0, 5.0
IDLE, OTHER_CORE, SAME_CORE = "idle", "other core", "same core"
_START_SECONDS = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A dense network and a pruned one."""

    name: str
    shape: tuple[int, ...]
    dense: Callable[[], nn.Module]
    pruned: Callable[[], nn.Module]


def pairs(*, quick: bool) -> tuple[Pair, ...]:
    """The fixed pairs; the reduced form has an AlexNet of a quarter of the width."""
    size = 4 if quick else 1
    return (
        Pair(
            name="ResNet-20",
            shape=CIFAR_INPUT,
            dense=resnet20,
            pruned=lambda: CifarResNet((16, 16, 32), (3, 3, 3)),
        ),
        Pair(
            name="AlexNet",
            shape=IMAGENET_INPUT,
            dense=lambda: AlexNet(shrink=size),
            pruned=lambda: AlexNet(shrink=2 * size),
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One measurement of a pair, and the control that followed it: the pruned model against itself."""

    network: str
    condition: str
    speedup: float
    control: float
    latency_ms: float
    dense_ms: float
    seconds: float
    """Wall time of the longer of the two, as the rig reports it."""
    converged: bool
    control_converged: bool
    load_steps: int = 0
    """Training steps that the load took meanwhile."""


class Load:
    """A process that trains on one core between `resume` and `rest`, until `end`; it does not outlive this one."""

    def __init__(self, core: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.core = core
        #: Training steps taken until the last `resume` or `rest`.
        self.steps = 0
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(target=train_on, args=(core, theirs), daemon=True)
        self.process.start()
        theirs.close()

    def resume(self) -> None:
        """Train from here on; returns when a step has been taken."""
        self._tell(True)

    def rest(self) -> None:
        """Stop training; returns when the process waits."""
        self._tell(False)

    def end(self) -> None:
        """The process is gone afterwards, whatever it was doing."""
        self.process.kill()
        self.process.join()
        self._pipe.close()

    def _tell(self, train: bool) -> None:
        try:
            self._pipe.send(train)
            if not self._pipe.poll(_START_SECONDS):
                raise RuntimeError(f"the load on core {self.core} did nothing for {_START_SECONDS:g} s")
            self.steps = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise RuntimeError(f"the load on core {self.core} has ended") from error


def train_on(core: int, orders: Connection) -> None:
    """Steps of SGD on ResNet-20, batch 32, one thread on `core`, while the last order is True.

    Each order is answered by the number of steps taken: True after the first step, False when there are no more. Ends
    with the process that gives them.
    """
    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = resnet20()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    inputs, targets = torch.randn(32, *CIFAR_INPUT), torch.randint(10, (32,))
    steps, train = 0, False
    with suppress(EOFError, OSError):
        while True:
            told = not train or orders.poll()
            if told:
                train = orders.recv()
            if train:
                optimizer.zero_grad(set_to_none=True)
                F.cross_entropy(model(inputs), targets).backward()
                optimizer.step()
                steps += 1
            if told:
                orders.send(steps)


@contextmanager
def loads() -> Iterator[tuple[dict[str, Load | None], str | None]]:
    """Condition -> its load, at rest, and why a condition is left out; all of them are gone at the end."""
    if not hasattr(os, "sched_setaffinity"):
        yield {IDLE: None}, "this system pins no process to a core: idle only"
        return
    cores = allowed_cores()
    places = {SAME_CORE: max(cores)}
    reason = None
    if len(cores) > 1:
        places = {OTHER_CORE: min(cores), **places}
    else:
        reason = "one core only: nothing can be loaded beside it"
    with ExitStack() as stack:
        running: dict[str, Load | None] = {IDLE: None}
        for condition, core in places.items():
            load = Load(core)
            stack.callback(load.end)
            running[condition] = load
        for started in running.values():
            if started is not None:
                # The first steps are slow: they are over before anything is measured.
                started.resume()
                started.rest()
        yield running, reason


def measure_once(rig: LatencyRig, name: str, files: tuple[Path, Path], condition: str, load: Load | None) -> Sample:
    """One measurement of (dense, pruned) `files` with its control, while `load` trains."""
    dense, pruned = files
    begun = load.steps if load is not None else 0
    if load is not None:
        load.resume()
    try:
        pair = rig.measure(pruned, dense)
        control = rig.measure(pruned, pruned)
    finally:
        if load is not None:
            load.rest()
    return Sample(
        network=name,
        condition=condition,
        speedup=pair.speedup,
        control=control.speedup,
        latency_ms=pair.latency_ms,
        dense_ms=pair.dense_latency_ms,
        seconds=max(pair.seconds, control.seconds),
        converged=pair.converged,
        control_converged=control.converged,
        load_steps=load.steps - begun if load is not None else 0,
    )


def measure(chosen: Sequence[Pair], rounds: int) -> tuple[list[Sample], str | None]:
    """All samples, round by round, the order of conditions turned about each time; and what was left out."""
    rig = make_rig("onnxruntime-cpu", threads=1)
    samples = []
    with tempfile.TemporaryDirectory() as folder, loads() as (running, reason):
        for pair in chosen:
            torch.manual_seed(0)
            example = torch.zeros(1, *pair.shape)
            dense = export_onnx(pair.dense(), example, Path(folder) / "dense.onnx")
            pruned = export_onnx(pair.pruned(), example, Path(folder) / "pruned.onnx")
            order = list(running)
            for _ in range(rounds):
                samples += [measure_once(rig, pair.name, (dense, pruned), c, running[c]) for c in order]
                order.reverse()
    return samples, reason


def summarise(samples: Sequence[Sample]) -> dict[str, dict[str, Any]]:
    """`network, condition` -> its row; deviations are fractions of the network's idle median."""
    rows = {}
    for network, condition in dict.fromkeys((s.network, s.condition) for s in samples):
        idle = median(s.speedup for s in samples if (s.network, s.condition) == (network, IDLE))
        here = [s for s in samples if (s.network, s.condition) == (network, condition)]
        rows[f"{network}, {condition}"] = {
            "network": network,
            "condition": condition,
            "latency_ms": round(median(s.latency_ms for s in here), 4),
            "dense_ms": round(median(s.dense_ms for s in here), 4),
            "speedups": [round(s.speedup, 4) for s in here],
            "median": round(median(s.speedup for s in here), 4),
            "median_deviation": round(median(s.speedup for s in here) / idle - 1.0, 4),
            "deviation": round(max(abs(s.speedup / idle - 1.0) for s in here), 4),
            "controls": [round(s.control, 4) for s in here],
            "control": round(max(abs(s.control - 1.0) for s in here), 4),
            "seconds": round(max(s.seconds for s in here), 3),
            "converged": sum(s.converged for s in here),
            "controls_converged": sum(s.control_converged for s in here),
            "measurements": len(here),
            "load_steps": sum(s.load_steps for s in here),
        }
    return rows


def verdict(rows: dict[str, dict[str, Any]], *, quick: bool, left_out: str | None) -> Claim:
    """The claim that these rows decide."""
    fast = [row for row in rows.values() if row["dense_ms"] < FAST_MS]
    figure = max(row["deviation"] for row in rows.values())
    control = max(row["control"] for row in rows.values())
    seconds = max((row["seconds"] for row in fast), default=None)
    kept = {
        "within_bar": figure <= BAR,
        "within_aim": figure <= AIM,
        "controls_within_bar": control <= CONTROL_BAR,
        "seconds_within_bar": None if seconds is None else seconds <= SECONDS_BAR,
    }
    return Claim(
        claim="the speed-up reported for a fixed pair stays within the bar of its idle median while a process trains "
        "on another core or on the same one, a model against itself within 3 % of 1, in at most 2 s a measurement for "
        "networks under 5 ms",
        figure=figure,
        unit="largest deviation from the idle median, as a fraction",
        bar=BAR,
        holds=all(kept[name] is not False for name in kept if name != "within_aim"),
        details={
            "quick": quick,
            "aim": AIM,
            "control": control,
            "control_bar": CONTROL_BAR,
            "seconds": seconds,
            "seconds_bar": SECONDS_BAR,
            **kept,
            "left_out": left_out,
            "cores_share_a_core": siblings(),
            "rows": rows,
        },
    )


def siblings() -> bool | None:
    """Whether the rig's core and the other one are two threads of one; None where the system does not tell."""
    cores = allowed_cores()
    path = Path(f"/sys/devices/system/cpu/cpu{max(cores)}/topology/thread_siblings_list")
    try:
        listed = path.read_text().strip()
    except OSError:
        return None
    first, _, last = listed.replace(",", "-").partition("-")
    return min(cores) in (int(first), int(last or first)) and len(cores) > 1


def show(rows: dict[str, dict[str, Any]], left_out: str | None) -> None:
    """The table."""
    table = Table(title="speed-up of a fixed pair (thread CPU time, one thread)")
    for heading in (
        "network",
        "load",
        "pruned ms",
        "dense ms",
        "median",
        "largest dev.",
        "A/A",
        "seconds",
        "converged",
    ):
        table.add_column(heading, justify="left" if heading in ("network", "load") else "right")
    for row in rows.values():
        table.add_row(
            row["network"],
            row["condition"],
            f"{row['latency_ms']:.3f}",
            f"{row['dense_ms']:.3f}",
            f"{row['median']:.3f} ({100 * row['median_deviation']:+.1f} %)",
            f"{100 * row['deviation']:.1f} %",
            f"{100 * row['control']:.1f} %",
            f"{row['seconds']:.2f}",
            f"{row['converged']}/{row['measurements']}",
        )
    console = Console(width=120)
    console.print(table)
    if left_out is not None:
        console.print(f"left out: {left_out}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--quick", action="store_true", help="an AlexNet of a quarter of the width, two rounds: under a minute"
    )
    parser.add_argument("--rounds", type=int, default=5, help="measurements a condition")
    parser.add_argument("--record", action="store_true", help="add the figures to results/timing_noise.json")
    options = parser.parse_args()
    if options.record and (options.quick or options.rounds < 5):
        parser.error("--record keeps figures of the full benchmark only")
    torch.set_num_threads(1)
    samples, left_out = measure(pairs(quick=options.quick), 2 if options.quick else options.rounds)
    rows = summarise(samples)
    show(rows, left_out)
    claim = verdict(rows, quick=options.quick, left_out=left_out)
    if options.record:
        claim.record("timing_noise", packages=("prunefront", "onnxruntime", "torch"))
    print(claim.to_json())


if __name__ == "__main__":
    main()
