"""Are the first plans of a search, found without training, better than the uniform ones a user would try by hand?

The digits network is trained lightly; then everything a search knows before its first epoch is made (`first_plans`):
the forecast of latency, the sensitivities, the ladder of plans. Beside each uniform plan of the space stands the plan
that the ladder gives for its forecast latency, which is as fast or faster, and that of the budgeted projection, which
keeps the weights' energy. All are pruned one shot by magnitude, their BatchNorm statistics are settled on training
batches, and the loss and accuracy on validation data decide; nothing is retrained. Beside it: what the forecast errs by
on random plans that it was not fitted on, and how well the predicted damage orders random combined plans by the loss
they really have, over all and among plans of equal forecast latency.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import torch
from claim import Claim
from rich.console import Console
from rich.table import Table

from admm.plan import PruningPlan
from admm.recalibrate import recalibrate
from admm.shapes import shaped_by_magnitude
from search.bench import Prepared, local_measure
from search.budgeted_plans import Budgeted
from search.calibration import export_plan
from search.forecast import Forecast
from search.job import Job
from search.job_file import load_job
from search.ladder import EXPONENT, ladder
from search.module_artefact import DenseForms
from search.sensitivity import Sensitivity
from search.space import Space
from search.tasks.dense import train_dense
from search.warmstart import FirstPlans, first_plans

JOB = Path(__file__).parents[1] / "examples" / "digits.yaml"
EXPONENTS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
#: Parts of one, from which the uniform plans are drawn.
LEVELS = tuple(i / 200 for i in range(200))


def job_of(*, seed: int, quick: bool) -> Job:
    """The example without its budget, so that the ladder spans all speed-ups; the quick form is a narrower network."""
    job = load_job(JOB)
    changes: dict[str, Any] = {"budget": None, "search": job.search.model_copy(update={"seed": seed})}
    if quick:
        changes |= {"task_args": {"width": 32}, "sparsity": job.sparsity.model_copy(update={"align": 8})}
    return job.model_copy(update=changes)


def trained(job: Job, epochs: int) -> tuple[Prepared, float]:
    """The job with a lightly trained network in it, and that network's validation accuracy."""
    prepared = Prepared.of(job)
    recipe = prepared.task.task.dense
    assert recipe is not None
    accuracy = train_dense(prepared.task, prepared.model, replace(recipe, epochs=epochs, min_accuracy=None))
    prepared.model.eval()
    return prepared, accuracy


@torch.no_grad()
def scored(prepared: Prepared, params: Mapping[str, int]) -> tuple[float, float]:
    """(loss, accuracy) on validation data of the plan, one shot, its statistics settled on training batches."""
    plan = prepared.profile.space.plan(params)
    small = shaped_by_magnitude(prepared.model, prepared.profile.groups, plan, align=prepared.job.align)
    recalibrate(small, prepared.task.train_batches(1))
    small.eval()
    task, loss, right, samples = prepared.task.task, 0.0, 0.0, 0
    for inputs, targets in prepared.task.val_batches():
        outputs = small(inputs)
        loss += float(task.loss(outputs, targets)) * len(inputs)
        right += float(task.metric(outputs, targets).double().sum())
        samples += len(inputs)
    return loss / samples, right / samples


def uniform_plans(space: Space) -> list[dict[str, int]]:
    """Every uniform plan but dense, each once, the least pruned first."""
    every = {tuple(sorted(space.uniform(level).items())): space.uniform(level) for level in LEVELS}
    return [params for params in every.values() if any(params.values())]


def random_params(space: Space, count: int, seed: int) -> list[dict[str, int]]:
    """Plans around a random level each, like a front has them."""
    rng, found = random.Random(seed), []
    for _ in range(count):
        level = rng.uniform(0.1, 0.9)
        found.append(
            {
                d.name: d.nearest(d.sparsities[-1] * min(max(level + rng.uniform(-0.4, 0.4), 0.0), 1.0))
                for d in space.dimensions
            }
        )
    return found


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Rank correlation; equal values share their ranks."""
    ranks = [_ranks(np.asarray(values)) for values in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])


def _ranks(values: Any) -> Any:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2.0)[inverse]


def predicted(space: Space, table: Sensitivity, params: Mapping[str, int], exponent: float) -> float:
    """The damage that the ladder sees."""
    return sum(table.curve(d)[params[d.name]] ** exponent for d in space.dimensions)


def forecast_errors(
    prepared: Prepared, forecast: Forecast, plans: Sequence[Mapping[str, int]], rounds: int
) -> dict[str, Any]:
    """Of the forecast on plans that it was not fitted on: relative errors, and how many are within its margin."""
    space, fitted = prepared.profile.space, {p.plan.digest() for p in forecast.points}
    fresh = [params for params in plans if space.plan(params).digest() not in fitted]
    dense = export_plan(prepared, PruningPlan())
    measure = local_measure(prepared.job, DenseForms(file=dense))
    files = [export_plan(prepared, space.plan(params)) for params in fresh]
    ratios = [[1.0 / measure("onnxruntime-cpu", file).speedup for file in files] for _ in range(rounds)]
    measured = [median(values) for values in zip(*ratios, strict=True)]
    errors = [forecast.relative(p) / m - 1.0 for p, m in zip(fresh, measured, strict=True)]
    within = [m <= forecast.safe_relative(p) for p, m in zip(fresh, measured, strict=True)]
    return {
        "plans": len(fresh),
        "mean_error": round(mean(abs(e) for e in errors), 5),
        "max_error": round(max(abs(e) for e in errors), 5),
        "bias": round(mean(errors), 5),
        "within_margin": round(mean(within), 4),
        "margin": round(forecast.margin, 5),
        "leave_one_out_mean": round(forecast.mean_error, 5),
        "leave_one_out_max": round(forecast.max_error, 5),
    }


def order_of_damage(
    prepared: Prepared, found: FirstPlans, plans: Sequence[Mapping[str, int]]
) -> dict[str, dict[str, float]]:
    """Exponent -> rank correlation of predicted damage and real loss of random plans: over all, and at equal latency.

    The second is the partial one: more is lost by all plans that are faster, which is no merit of a prediction.
    """
    assert found.forecast is not None
    assert found.sensitivity is not None
    losses, space = [scored(prepared, params)[0] for params in plans], prepared.profile.space
    latencies = [found.forecast.relative(params) for params in plans]
    orders = {}
    for exponent in EXPONENTS:
        damages = [predicted(space, found.sensitivity, params, exponent) for params in plans]
        both, ours, theirs = spearman(damages, losses), spearman(damages, latencies), spearman(losses, latencies)
        partial = (both - ours * theirs) / ((1.0 - ours**2) * (1.0 - theirs**2)) ** 0.5
        orders[f"{exponent:g}"] = {"all": round(both, 4), "equal_latency": round(partial, 4)}
    return orders


def one_seed(seed: int, *, quick: bool) -> dict[str, Any]:
    """One dense network, its the ladder beside uniform plans, and what the forecast and the damage are worth."""
    job = job_of(seed=seed, quick=quick)
    prepared, accuracy = trained(job, epochs=4)
    began = time.process_time()
    found = first_plans(prepared, folder=None, dense_latency_ms=1.0)
    seconds = time.process_time() - began
    if found.forecast is None or found.sensitivity is None:
        raise SystemExit(f"nothing to compare: {found.notes[0]}")
    plans = random_params(prepared.profile.space, 16 if quick else 60, seed)
    return {
        "dense_accuracy": round(accuracy, 4),
        "epochs": round(found.epochs, 3),
        "first_plans": [plan.to_dict() for plan in found.plans],
        "cpu_seconds": round(seconds, 1),
        "rows": rows_of(prepared, found),
        "forecast": forecast_errors(prepared, found.forecast, plans[: 3 if quick else 16], 1 if quick else 3),
        "spearman": order_of_damage(prepared, found, plans),
    }


def rows_of(prepared: Prepared, found: FirstPlans) -> list[dict[str, Any]]:
    """Each uniform plan, and the ladder's and the budgeted projection's for the same forecast latency, by speed-up."""
    assert found.forecast is not None
    assert found.sensitivity is not None
    space, forecast = prepared.profile.space, found.forecast
    uniform = uniform_plans(space)
    budgets = [forecast.safe_speedup(params) for params in uniform]
    steps, budgeted = ladder(space, found.sensitivity, forecast, budgets), Budgeted(prepared, forecast)
    rows = []
    for params, plan, budget in zip(uniform, steps.plans, budgets, strict=True):
        ours, theirs = scored(prepared, plan.params), scored(prepared, params)
        kept = budgeted.steps(budget) if budget > 1.0 else None
        energy = (None, None) if kept is None else scored(prepared, kept)
        rows.append(
            {
                "speedup": round(plan.speedup, 3),
                "uniform_speedup": round(forecast.speedup(params), 3),
                "loss": round(ours[0], 4),
                "uniform_loss": round(theirs[0], 4),
                "accuracy": round(ours[1], 4),
                "uniform_accuracy": round(theirs[1], 4),
                "budgeted_loss": None if energy[0] is None else round(energy[0], 4),
                "budgeted_accuracy": None if energy[1] is None else round(energy[1], 4),
            }
        )
    return rows


def show(seeds: Mapping[int, Mapping[str, Any]]) -> None:
    """The tables."""
    table = Table(title="one shot, statistics settled, validation data: the ladder beside uniform plans")
    for heading in ("seed", "speed-up", "loss", "accuracy", "uniform", "loss", "accuracy", "budgeted", "accuracy"):
        table.add_column(heading, justify="right")
    for seed, found in seeds.items():
        for row in found["rows"]:
            table.add_row(
                str(seed),
                f"{row['speedup']:.2f}x",
                f"{row['loss']:.3f}",
                f"{row['accuracy']:.4f}",
                f"{row['uniform_speedup']:.2f}x",
                f"{row['uniform_loss']:.3f}",
                f"{row['uniform_accuracy']:.4f}",
                "-" if row["budgeted_loss"] is None else f"{row['budgeted_loss']:.3f}",
                "-" if row["budgeted_accuracy"] is None else f"{row['budgeted_accuracy']:.4f}",
            )
    console = Console(width=140)
    console.print(table)
    for seed, found in seeds.items():
        f = found["forecast"]
        console.print(
            f"seed {seed}: forecast on {f['plans']} plans not fitted: mean error {f['mean_error']:.1%}, max "
            f"{f['max_error']:.1%}, bias {f['bias']:+.1%}; {f['within_margin']:.0%} no slower than its margin of "
            f"{f['margin']:.1%} allows. Predicted damage against real loss, rank correlation by exponent: "
            f"{found['spearman']}. {found['epochs']:.1f} epochs and {found['cpu_seconds']:.0f} CPU seconds spent."
        )


def claim_of(seeds: Mapping[int, Mapping[str, Any]], *, quick: bool) -> Claim:
    """The mean difference of accuracy decides; the loss of most plans must be lower as well."""
    rows = [row for found in seeds.values() for row in found["rows"]]
    gain = 100.0 * mean(row["accuracy"] - row["uniform_accuracy"] for row in rows)
    better = mean(row["loss"] < row["uniform_loss"] for row in rows)
    both = [row for row in rows if row["budgeted_loss"] is not None]
    return Claim(
        claim="plans found before the first epoch lose less accuracy than uniform plans of the same forecast latency "
        "(digits, one shot, validation, mean over all uniform plans), with a lower loss for most",
        figure=round(gain, 3),
        unit="percentage points of accuracy",
        bar=0.0,
        holds=gain > 0.0 and better > 0.5,
        details={
            "quick": quick,
            "lower_loss": round(better, 4),
            "budgeted": {
                "rows": len(both),
                "gain_over_uniform_pp": round(
                    100.0 * mean([r["budgeted_accuracy"] - r["uniform_accuracy"] for r in both] or [0.0]), 3
                ),
                "lower_loss_than_ladder": round(mean([r["budgeted_loss"] < r["loss"] for r in both] or [0.0]), 4),
            },
            "exponent": EXPONENT,
            **{str(seed): dict(f) for seed, f in seeds.items()},
        },
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a narrow network, one seed, few plans: under a minute")
    parser.add_argument("--seeds", type=int, default=3, help="dense networks; one in the quick form")
    parser.add_argument("--record", action="store_true", help="add the figures to results/warm_start.json")
    options = parser.parse_args()
    if options.record and options.quick:
        parser.error("--record keeps figures of the full benchmark only")
    if options.seeds < 1:
        parser.error(f"--seeds must be at least 1, got {options.seeds}")
    torch.set_num_threads(1)
    seeds = {seed: one_seed(seed, quick=options.quick) for seed in range(1 if options.quick else options.seeds)}
    show(seeds)
    claim = claim_of(seeds, quick=options.quick)
    if options.record:
        claim.record("warm_start", packages=("prunefront", "torch", "onnx", "onnxruntime"))
    print(claim.to_json())


if __name__ == "__main__":
    main()
