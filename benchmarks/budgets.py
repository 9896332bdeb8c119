"""Is a budget asked for a budget kept? Twenty reachable budgets on two networks, each step by the real command.

For each network (the digits network of `examples/digits.yaml`, and that of `search_quality.py`) one search without a
budget is run to its end. Then budgets are spread evenly, on a logarithmic scale, over what the run can reach, by turns
as `--latency-ms` and as `--speedup`. For each of them `prunefront export` chooses, and `prunefront measure` measures
the exported file again in another process, against the run's dense file. A budget is kept when the cautious end of that
interval is within it: the same rule that search and export go by. A measurement in which the dense network itself is
slower than the run has seen it tells of the machine's other work: it is made again, whichever way it came out. Beside
it, how far the exported network's accuracy is below the best trial that the run knows within the budget.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from claim import Claim
from mnist import DATA, SOURCE
from quality_real import FULL, quality_job
from rich.console import Console
from rich.table import Table

from evaluators import Measurement
from search.budget import Budget
from search.calm import Calm
from search.errors import UserError
from search.final_measure import read_final
from search.job import Job
from search.job_file import load_job
from search.result import Baseline, TrialResult
from search.store import RunStore

ROOT = Path(__file__).parents[1]
COMMAND = (sys.executable, "-c", "from search.cli import main; main()")
#: Budgets of each network, and trials of its search.
BUDGETS, QUICK_BUDGETS = 10, 4
TRIALS, QUICK_TRIALS = {"digits": 16, "mnist-turned": 24}, {"digits": 4}
#: How far below the best trial known within the budget an exported network may be, in percentage points.
ACCURACY_BAR = 0.5
#: A measurement is made again, so many times at most, while its dense network reads slower than the run has seen it.
#: Whether the budget was kept is not looked at.
LOOKS = 12
#: Budgets keep so far from both ends of what the run reached: at the very end one network decides, and its noise.
EDGE = 0.05
QUICK_DIGITS = {"task_args": {"width": 32, "epochs": 4, "min_accuracy": 0.5}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One budget: what was exported for it, and what that is when measured again."""

    network: str
    asked: str
    within: bool
    """Measured again, the cautious end of the interval keeps the budget."""
    accuracy_loss_pp: float | None
    """Below the best trial known within the budget; None where nothing was exported."""
    trial: int | None
    speedup: float | None
    latency_ms: float | None
    over: float | None
    """How far over the budget the cautious end is, relative to it; negative within."""
    over_at_export: float | None
    """The same, as export measured it."""
    passed_over: int
    """Trials that export refused because they measured above the budget then."""
    said: str | None
    """Why nothing was exported."""
    looks: int = 0
    """Measurements made of the exported file; all but the last were disturbed."""

    @property
    def accurate(self) -> bool:
        """Whether the accuracy keeps its bar."""
        return self.accuracy_loss_pp is not None and self.accuracy_loss_pp <= ACCURACY_BAR + 1e-9


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="4 budgets on a tiny search of the digits network")
    parser.add_argument("--networks", nargs="+", choices=list(TRIALS), help="default: both")
    parser.add_argument("--data", type=Path, default=DATA, help="the folder of MNIST's four idx files")
    parser.add_argument("--runs", type=Path, help="keep the searches in this folder, and use those there")
    parser.add_argument("--record", action="store_true", help="add the figures to results/budgets.json")
    options = parser.parse_args()
    if options.record and (options.quick or options.networks):
        parser.error("--record keeps figures of the full benchmark only")
    trials = QUICK_TRIALS if options.quick else TRIALS
    names = [name for name in trials if not options.networks or name in options.networks]
    if not names:
        parser.error(f"--quick searches {', '.join(trials)} only: leave --networks out")
    console = Console(width=130)
    rows: list[Row] = []
    with contextlib.ExitStack() as stack:
        folder = (options.runs or Path(stack.enter_context(TemporaryDirectory()))).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        scratch = Path(stack.enter_context(TemporaryDirectory()))
        try:
            for name in names:
                job = network_job(name, options.data, quick=options.quick)
                run = searched(name, job, folder, trials[name], console)
                count = QUICK_BUDGETS if options.quick else BUDGETS
                rows += [answered(name, run, budget, scratch, console) for budget in reachable(RunStore(run), count)]
        except UserError as error:
            console.print(f"skipped: {error} ({SOURCE})", soft_wrap=True)
            return 2
    _show(rows, console)
    claim = claim_of(rows, quick=options.quick, trials={name: trials[name] for name in names})
    if options.record:
        claim.record("budgets", packages=("prunefront", "torch", "onnxruntime", "optuna", "ray"))
    print(claim.to_json())
    return 0


def network_job(name: str, data: Path, *, quick: bool) -> Job:
    """The job of one network, without a budget."""
    if name != "digits":
        return quality_job(FULL, data)
    content = load_job(ROOT / "examples" / "digits.yaml").model_dump()
    if quick:
        content.update(QUICK_DIGITS)
        content["admm"].update(iterations=1)
        content["finetune"].update(epochs=1)
    return Job.model_validate({**content, "budget": None})


def searched(name: str, job: Job, folder: Path, trials: int, console: Console) -> Path:
    """The folder of the finished search; one that is there already goes on, and ends at once where it is complete."""
    run = folder / name
    target = run
    if not run.exists():
        target = folder / f"{name}.yaml"
        target.write_text(job.to_yaml())
    made = () if target == run else ("--name", name, "--storage", str(folder))
    console.print(f"{name}: searching {trials} trials")
    done = command("search", str(target), "--trials", str(trials), *made)
    if done.returncode != 0:
        raise UserError(f"the search of {name} ended with {done.returncode}: {last_line(done)}")
    return run


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`prunefront ARGUMENTS` in a fresh process."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, env=environment)


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    """What the command said last."""
    lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return lines[-1] if lines else "it said nothing"


def reachable(store: RunStore, count: int) -> list[Budget]:
    """Budgets from the fastest trial's to the dense network's latency, evenly on a logarithmic scale, ends left out.

    What a trial reaches is the lower of its figure in the search, measured once while others trained, and that of the
    fresh process at the end, where it has one. By turns a latency in ms and a speed-up. Raises `UserError` where no
    trial is faster than the dense network.
    """
    baseline, results = store.read_baseline(), store.results()
    final = read_final(store, load_job(store.job_path))
    again = {} if final is None else final.networks
    most = max(
        (
            min(r.speedup_low or 0.0, again[str(n)].speedup_low if str(n) in again else math.inf)
            for n, r in results.items()
            if r.status == "complete"
        ),
        default=0.0,
    )
    least, most = 1.0 + EDGE, most / (1.0 + EDGE)
    if most <= least:
        raise UserError(f"{store.name}: its fastest trial gains too little for {count} budgets: search for longer")
    steps = [least * (most / least) ** (i / max(count - 1, 1)) for i in range(count)]
    return [
        Budget(speedup=float(f"{speedup:.4g}"))
        if i % 2
        else Budget(latency_ms=float(f"{baseline.latency_ms / speedup:.4g}"))
        for i, speedup in enumerate(steps)
    ]


def answered(name: str, run: Path, budget: Budget, scratch: Path, console: Console) -> Row:
    """Export for the budget, measure what came in another process, and compare."""
    store = RunStore.open(run)
    baseline, results = store.read_baseline(), store.results()
    out = scratch / f"{name}-{len(list(scratch.iterdir()))}"
    latency = budget.latency_ms is not None
    asked = ("--latency-ms", f"{budget.latency_ms:.6g}") if latency else ("--speedup", f"{budget.speedup:.6g}")
    done = command("export", str(run), "--out", str(out), *asked)
    passed_over = done.stdout.count("was passed over")
    row: dict[str, Any] = {"network": name, "asked": " ".join(asked), "passed_over": passed_over}
    if done.returncode != 0:
        figures = ("accuracy_loss_pp", "trial", "speedup", "latency_ms", "over", "over_at_export")
        empty: dict[str, Any] = dict.fromkeys(figures)
        return Row(**row, **empty, within=False, said=last_line(done))
    card = json.loads((out / "card.json").read_text())
    dense = store.baseline_dir / "model.onnx"
    calm = Calm.of_run(baseline, results, load_job(store.job_path).deciding_rig.name)
    measured, looks = undisturbed(out / "model.onnx", dense, calm)
    exported = Measurement.from_dict(card["measured_at_export"])
    best = best_accuracy(baseline, results, budget)
    found = Row(
        **row,
        within=budget.met_by(measured),
        accuracy_loss_pp=None if best is None else round(100.0 * (best - float(card["accuracy"])), 3),
        trial=int(card["trial"]),
        speedup=round(measured.speedup, 4),
        latency_ms=round(measured.latency_ms, 6),
        over=round(budget.excess(measured.latency_high_ms, measured.speedup_low), 4),
        over_at_export=round(budget.excess(exported.latency_high_ms, exported.speedup_low), 4),
        said=None,
        looks=looks,
    )
    console.print(str(found), soft_wrap=True)
    return found


def undisturbed(model: Path, dense: Path, calm: Calm) -> tuple[Measurement, int]:
    """(the file measured against the dense one, each time in a fresh process; how often that was done)."""
    taken: list[Measurement] = []
    while True:
        done = command("measure", str(model), "--against", str(dense), "--json")
        if done.returncode != 0:
            raise UserError(f"{model}: the exported file cannot be measured: {last_line(done)}")
        taken.append(Measurement.from_dict(json.loads(done.stdout)))
        if not calm.disturbed(taken[-1]):
            return taken[-1], len(taken)
        if len(taken) == LOOKS:
            return min(taken, key=lambda m: m.dense_latency_ms), LOOKS


def best_accuracy(baseline: Baseline, results: Mapping[int, TrialResult], budget: Budget) -> float | None:
    """Of the trials that kept the budget in the search; None where none did."""
    known = [r.accuracy for r in results.values() if r.status == "complete" and budget.holds(r) and r.accuracy]
    return max(known, default=None)


def claim_of(rows: Sequence[Row], *, quick: bool, trials: Mapping[str, int]) -> Claim:
    """How many budgets are kept; it holds when all are, and all accuracies keep their bar."""
    kept = sum(row.within for row in rows)
    return Claim(
        claim=f"{len(rows)} reachable budgets asked of finished searches are kept by the exported networks when these "
        "are measured again in a fresh process, and each is within 0.5 pp of the best trial known under its budget",
        figure=kept,
        unit=f"budgets kept of {len(rows)}",
        bar=len(rows),
        holds=not quick and bool(rows) and kept == len(rows) and all(row.accurate for row in rows),
        details={
            "quick": quick,
            "trials": dict(trials),
            "accuracy_bar_pp": ACCURACY_BAR,
            "accurate": sum(row.accurate for row in rows),
            "rows": [asdict(row) for row in rows],
        },
    )


def _show(rows: Sequence[Row], console: Console) -> None:
    table = Table(
        title="budgets asked, and what was exported for them (over: of the cautious end, measured again and then)"
    )
    for heading in (
        "network",
        "asked",
        "kept",
        "over",
        "looks",
        "over at export",
        "passed over",
        "trial",
        "speed-up",
        "loss pp",
    ):
        table.add_column(heading, justify="left" if heading in ("network", "asked") else "right")
    for row in rows:
        table.add_row(
            row.network,
            row.asked,
            "yes" if row.within else "no",
            "-" if row.over is None else f"{row.over:+.1%}",
            str(row.looks),
            "-" if row.over_at_export is None else f"{row.over_at_export:+.1%}",
            str(row.passed_over),
            "-" if row.trial is None else str(row.trial),
            "-" if row.speedup is None else f"{row.speedup:.2f}x",
            "-" if row.accuracy_loss_pp is None else f"{row.accuracy_loss_pp:.2f}",
        )
    console.print(table)
    for row in rows:
        if row.said is not None:
            console.print(f"{row.network} {row.asked}: {row.said}", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
