"""What does a plan cost that is over the budget by its shapes? Seconds from its proposal to its record, untrained.

The digits network of `examples/digits.yaml` with a budget that few plans keep. Random plans are handed to trials as a
search does it, in one process: the network is cut to the shapes of the plan, exported, and measured against the dense
one, up to three times before it is refused. `figure` is the slowest of them in seconds of wall time, the first one of a
process left out, which loads what the others find there; CPU seconds stand beside it.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from claim import Claim
from rich.console import Console
from rich.table import Table
from silent import Silent

from search.bench import Prepared, open_bench, prepare_run
from search.job import Job
from search.job_file import load_job
from search.store import RunStore
from search.trial import TrialSpec
from search.worker import evaluate_plan

JOB = Path(__file__).parents[1] / "examples" / "digits.yaml"
BAR = 2.0
PLANS, QUICK_PLANS = 20, 3
#: Near the fastest that the space reaches, so that nearly all plans are over it.
SPEEDUP = 15.0


def rejected(plans: int, *, quick: bool) -> list[dict[str, Any]]:
    """One row a plan that was refused: seconds of wall time and of CPU."""
    job = job_of(quick=quick)
    found: list[dict[str, Any]] = []
    with TemporaryDirectory() as folder:
        prepared = Prepared.of(job)
        store = RunStore.create(Path(folder) / "run", prepared.job.to_yaml(), {})
        prepare_run(store, prepared.job, prepared, Silent())
        bench = open_bench(store, prepared.job)
        space, rng = bench.profile.space, random.Random(0)
        for number in range(plans + 1):
            params = {name: rng.randrange(size) for name, size in space.sizes.items()}
            spec = TrialSpec(number=number, plan=space.plan(params), params=params, seed=0)
            wall, cpu = time.perf_counter(), time.process_time()
            result, _ = evaluate_plan(bench, spec, artefacts=Path(folder) / f"trial-{number}")
            row = {
                "status": result.status,
                "wall_s": round(time.perf_counter() - wall, 4),
                "cpu_s": round(time.process_time() - cpu, 4),
                "speedup": result.speedup,
            }
            if number > 0 and result.status == "infeasible":
                found.append(row)
    return found


def job_of(*, quick: bool) -> Job:
    """The example with a budget that is out of reach for most plans; a dense network that is hardly trained."""
    content = load_job(JOB).model_dump()
    content["task_args"] = {"width": 32 if quick else 80, "epochs": 1, "min_accuracy": 0.0}
    content["admm"].update(iterations=1)
    content["finetune"].update(epochs=1)
    return Job.model_validate({**content, "budget": {"speedup": 4.0 if quick else SPEEDUP}})


def claim_of(rows: list[dict[str, Any]], *, quick: bool) -> Claim:
    """The slowest decides."""
    slowest = max(row["wall_s"] for row in rows)
    return Claim(
        claim="a plan that is over the budget by its shapes is refused, measured and untrained, within 2 s",
        figure=slowest,
        unit="s of wall time, the slowest plan",
        bar=BAR,
        holds=not quick and slowest <= BAR,
        details={
            "quick": quick,
            "plans": len(rows),
            "median_wall_s": statistics.median(row["wall_s"] for row in rows),
            "worst_cpu_s": max(row["cpu_s"] for row in rows),
            "rows": rows,
        },
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a narrow network and three plans")
    parser.add_argument("--record", action="store_true", help="add the figures to results/rejected.json")
    options = parser.parse_args()
    if options.record and options.quick:
        parser.error("--record keeps figures of the full benchmark only")
    torch.set_num_threads(1)
    rows = rejected(QUICK_PLANS if options.quick else PLANS, quick=options.quick)
    if not rows:
        raise SystemExit("no plan was over the budget: nothing was refused")
    table = Table(title="plans over the budget by their shapes")
    for heading in ("plan", "wall s", "CPU s", "speed-up"):
        table.add_column(heading, justify="right")
    for i, row in enumerate(rows):
        table.add_row(str(i), f"{row['wall_s']:.2f}", f"{row['cpu_s']:.2f}", f"{row['speedup']:.2f}x")
    Console(width=100).print(table)
    claim = claim_of(rows, quick=options.quick)
    if options.record:
        claim.record("rejected", packages=("prunefront", "torch", "onnx", "onnxruntime"))
    print(claim.to_json())


if __name__ == "__main__":
    main()
