"""Does the search find a better front than others at equal training epochs? Hypervolume, ours against five baselines.

Baselines: Optuna's TPE alone, its NSGA-II alone, random plans, a ladder of uniform sparsities with the same ADMM, and
uniform L1 pruning by torch-pruning. All have the same job, space, alignment, early stopping, epochs and validation
images; epochs count what is run forward and backward, forward alone a third. The reference is the dense accuracy - 3 pp
and the dense latency, on a logarithmic axis of latency. The ceiling is the best-known front: everything that any method
found with any seed, and those plans once more with a long schedule.

`--mode surrogate` compares samplers in seconds on a fit to random trials (`--collect N` makes its table); the claim is
made by trials that are trained. The parts are quality_*.py.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from claim import Claim
from mnist import DATA, SOURCE
from quality_lab import LONG, Lab, Played, Trial, play
from quality_methods import METHODS, OURS, TRAINED_ONLY, WITHOUT
from quality_real import FULL, QUICK, RealLab
from quality_score import Comparison, Measured, Verdict, compare, volume
from quality_surrogate import TABLE, SurrogateLab, collect, write_table
from rich.console import Console
from rich.table import Table

from admm.plan import PruningPlan
from search.errors import UserError
from search.pareto import front

#: What every method and seed may spend.
EPOCHS, QUICK_EPOCHS = 100.0, 12.0
SEEDS, QUICK_SEEDS = 5, 1
#: The share of the gap that ours is to close.
BAR = 0.5
#: Of the long schedule, which is not part of any run.
LONG_SEED = 0

Runs = dict[int, dict[str, Played]]
"""seed -> method -> its run."""


def main() -> int:
    options = _options()
    torch.set_num_threads(1)
    console = Console(width=130)
    try:
        if options.collect:
            return _collect(options, console)
        with _lab(options) as lab:
            return _compare(lab, options, console)
    except UserError as error:
        console.print(f"skipped: {error} ({SOURCE})", soft_wrap=True)
        return 2


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mode", choices=("real", "surrogate"), default="real")
    parser.add_argument("--quick", action="store_true", help="a few images and epochs, one seed: shows that it runs")
    parser.add_argument("--seeds", nargs="+", type=int, help="default: 0 to 4")
    parser.add_argument(
        "--methods", nargs="+", choices=[*(m for m in METHODS if m != OURS), *WITHOUT], help="default: baselines"
    )
    parser.add_argument("--epochs", type=float, help=f"of each run; default {EPOCHS:g}")
    parser.add_argument("--data", type=Path, default=DATA, help="the folder of MNIST's four idx files")
    parser.add_argument("--cache", type=Path, help="keep trials and latencies here; goes on where it was interrupted")
    parser.add_argument("--record", action="store_true", help="add the figures to results/search_quality.json")
    parser.add_argument("--collect", type=int, metavar="N", help=f"train N random plans and write {TABLE.name}")
    options = parser.parse_args()
    if options.record and (options.quick or options.mode != "real" or options.methods or options.epochs):
        parser.error("--record keeps figures of the full benchmark only")
    if options.collect is not None and (options.collect < 1 or options.quick or options.mode != "real"):
        parser.error("--collect takes a number of trials of at least 1, and neither --quick nor --mode")
    if options.epochs is not None and not options.epochs > 0:
        parser.error(f"--epochs must be above 0, got {options.epochs:g}")
    return options


@contextlib.contextmanager
def _lab(options: argparse.Namespace) -> Iterator[Lab]:
    if options.mode == "surrogate":
        yield SurrogateLab.read()
        return
    with contextlib.ExitStack() as stack:
        folder = options.cache or Path(stack.enter_context(TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        yield RealLab(QUICK if options.quick else FULL, options.data, folder)


def _collect(options: argparse.Namespace, console: Console) -> int:
    with _lab(options) as lab:
        assert isinstance(lab, RealLab)
        trials = collect(lab, options.collect, seed=0, say=lambda line: console.print(line, soft_wrap=True))
        command = f"benchmarks/search_quality.py --collect {options.collect}"
        write_table(lab, trials, command=command, conditions=lab.conditions)
    for part, errors in SurrogateLab.read().held_out.items():
        console.print(f"{part}: {errors}")
    return 0


def _compare(lab: Lab, options: argparse.Namespace, console: Console) -> int:
    real = isinstance(lab, RealLab)
    seeds = options.seeds or range(QUICK_SEEDS if options.quick else SEEDS)
    epochs = options.epochs or (QUICK_EPOCHS if options.quick and real else EPOCHS)
    names = [OURS, *(options.methods or [m for m in METHODS if m != OURS])]
    names = [name for name in names if real or name not in TRAINED_ONLY]
    started = time.process_time()
    runs = run_all(lab, names, seeds, epochs, console)
    known = [(p.accuracy, p.relative_latency) for of in runs.values() for played in of.values() for p in played.points]
    short = volume(known, lab.dense_accuracy)
    longer = long_schedule(lab, runs, console) if isinstance(lab, RealLab) else []
    every = lab.every_point() if isinstance(lab, SurrogateLab) else [*known, *longer]
    ceiling = volume(every, lab.dense_accuracy)
    judge = partial(compare, ours=OURS, dense_accuracy=lab.dense_accuracy, epochs=epochs)
    judged = {seed: judge(of, ceiling=ceiling) for seed, of in runs.items()}
    verdict = Verdict.of(list(judged.values()))
    short_closed = Verdict.of([judge(of, ceiling=short) for of in runs.values()]).closed
    finals = {n: [volume(_points(runs[s][n]), lab.dense_accuracy) for s in runs] for n in names}
    _show(finals, judged, verdict, ceiling, short, console)
    details: dict[str, Any] = {
        "quick": options.quick,
        "mode": options.mode,
        "epochs": epochs,
        "seeds": list(runs),
        "reference": {"accuracy_drop_pp": 3.0, "relative_latency": 1.0, "latency_axis": "natural logarithm"},
        "ceiling": round(ceiling, 5),
        "ceiling_without_long_schedule": round(short, 5),
        "closed_without_long_schedule": round(short_closed, 4),
        "long_schedule": [[round(a, 5), round(latency, 5)] for a, latency in longer],
        **verdict.to_dict(),
        "by_seed": {seed: judged[seed].to_dict() for seed in runs},
        "hypervolume": {name: [round(v, 5) for v in values] for name, values in finals.items()},
        "runs": {s: {n: of[n].to_dict() for n in names} for s, of in runs.items()} if real else {},
        "held_out": lab.held_out if isinstance(lab, SurrogateLab) else None,
        "conditions": lab.conditions if isinstance(lab, RealLab) else {"table": TABLE.name},
        "cpu_seconds": round(time.process_time() - started, 1),
    }
    claim = Claim(
        claim="at equal training epochs, with the same early stopping and alignment, the search closes at least half "
        "of the gap between the best of five baselines and the best-known front in hypervolume (median of the seeds), "
        "and is below no baseline with any seed",
        figure=round(verdict.closed, 4),
        unit="share of the gap closed, median of the seeds",
        bar=BAR,
        holds=real and not options.quick and verdict.closed >= BAR and verdict.never_below,
        details=details,
    )
    if options.record:
        claim.record("search_quality", packages=("prunefront", "torch", "torch-pruning", "onnxruntime", "optuna"))
    print(claim.to_json())
    return 0


def run_all(lab: Lab, names: Sequence[str], seeds: Sequence[int], epochs: float, console: Console) -> Runs:
    """Every method with every seed, the methods of one seed after another before the next seed."""
    runs: Runs = {}
    for seed in seeds:
        runs[seed] = {}
        for name in names:
            since = time.monotonic()
            played = runs[seed][name] = play(lab, (METHODS | WITHOUT)[name](lab, seed), epochs=epochs)
            console.print(
                f"seed {seed}, {name}: {volume(_points(played), lab.dense_accuracy):.4f} of {len(played.points)} "
                f"finished and {played.stopped} stopped trials, {played.epochs:.1f} epochs, "
                f"{time.monotonic() - since:.0f} s",
                soft_wrap=True,
            )
    return runs


def long_schedule(lab: RealLab, runs: Runs, console: Console) -> list[Measured]:
    """The plans of the front over all methods and seeds, trained once more for longer."""
    every = [point for of in runs.values() for played in of.values() for point in played.points]
    best = front([(p.accuracy, p.relative_latency) for p in every])
    plans = {plan.digest(): plan for plan in (PruningPlan(every[i].plan) for i in best)}
    found = []
    for plan in plans.values():
        *_, last = lab.stages(Trial(plan=plan, seed=LONG_SEED, how=LONG))
        relative = lab.figures(plan).relative_latency
        console.print(f"long schedule: accuracy {last.accuracy:.4f} at {relative:.3f} of the dense latency")
        found.append((last.accuracy, relative))
    return found


def _points(played: Played) -> list[Measured]:
    return [(p.accuracy, p.relative_latency) for p in played.points]


def _show(
    finals: Mapping[str, Sequence[float]],
    judged: Mapping[int, Comparison],
    verdict: Verdict,
    ceiling: float,
    short: float,
    console: Console,
) -> None:
    table = Table(title="hypervolume after all epochs (pp of accuracy x log of speed-up; higher is better)")
    for heading in ("method", "median", "least", "most", "of the ceiling"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for name, values in finals.items():
        middle = statistics.median(values)
        share = f"{middle / ceiling:.1%}" if ceiling > 0 else "-"
        table.add_row(name, f"{middle:.3f}", f"{min(values):.3f}", f"{max(values):.3f}", share)
    console.print(table)
    console.print(f"ceiling {ceiling:.3f}, without the long schedule {short:.3f}")
    for seed, one in judged.items():
        console.print(f"seed {seed}: {asdict(one)}", soft_wrap=True)
    ratio = "-" if verdict.ratio is None else f"{verdict.ratio:.3f}"
    passed = "never" if verdict.passed_at is None else f"after {verdict.passed_at:.0%} of the epochs"
    console.print(
        f"closed {verdict.closed:.1%} of the gap (median), {'never' if verdict.never_below else 'also'} below a "
        f"baseline, ratio {ratio}, passes the best baseline's final value {passed}",
        soft_wrap=True,
    )


if __name__ == "__main__":
    sys.exit(main())
