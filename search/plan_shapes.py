"""What a plan's shapes take, measured in the form that a trial of it would ship, before anything is trained."""

from __future__ import annotations

from functools import partial

from admm.plan import PruningPlan
from evaluators import Measurement
from evaluators.rig import measures_modules
from search.budget import Budget
from search.module_artefact import shapes_module
from search.precision import Precision
from search.profile import shapes_onnx
from search.second_look import looked_at_again
from search.shipped import SHAPE_SAMPLES
from search.trial import Bench


def look_at_shapes(
    bench: Bench, plan: PruningPlan, precision: Precision, budget: Budget | None
) -> tuple[Measurement, Measurement]:
    """(on the deciding rig, on the budget's rig): the second is the first without a budget, or with one of that rig.

    A measurement that misses the budget is not taken for final at once, see `looked_at_again`.
    """
    rig = bench.job.deciding_rig.name
    content = shapes_for(bench, rig, plan, precision)
    if budget is not None and budget.rig == rig:
        measured = looked_at_again(partial(bench.measure, rig, content), budget)
        return measured, measured
    measured = bench.measure(rig, content)
    if budget is None:
        return measured, measured
    if measures_modules(rig) or measures_modules(budget.rig):
        content = shapes_for(bench, budget.rig, plan, precision)
    return measured, looked_at_again(partial(bench.measure, budget.rig, content), budget)


def shapes_for(bench: Bench, rig: str, plan: PruningPlan, precision: Precision) -> bytes:
    """The network of the plan's shapes in the form that a trial ships for this rig; weights by magnitude."""
    job = bench.job
    if measures_modules(rig):
        assert bench.modules is not None
        return shapes_module(job, rig, bench.dense, bench.profile.groups, plan, bench.modules)
    shapes = shapes_onnx(bench.dense, bench.profile.groups, plan, bench.task.example_input, job.align)
    return bench.form(shapes, precision=precision, samples=SHAPE_SAMPLES).content
