"""What a plan's shapes take, measured in the form that a trial of it would ship, before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from admm.plan import PruningPlan
from admm.shapes import shaped_by_magnitude
from evaluators import Measurement, count_macs
from evaluators.rig import measures_modules
from search.budget import Budget
from search.module_artefact import shapes_module
from search.objective_names import MACS, rig_of
from search.precision import Precision
from search.second_look import looked_at_again
from search.shapes_file import shapes_onnx
from search.shipped import SHAPE_SAMPLES
from search.trial import Bench


@dataclass(frozen=True, slots=True, kw_only=True)
class Shapes:
    """What is known of a plan before it is trained."""

    deciding: Measurement
    judged: Measurement
    """On the budget's rig: `deciding` without a budget, or with one of that rig."""
    measurements: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By rig: of the deciding one, the budget's and those of the objectives."""
    size_bytes: int | None = None
    """Of the form for the deciding rig."""
    macs: int | None = None
    """Where they are an objective."""

    def figures(self) -> dict[str, Any]:
        """What the record of a trial that ends before it has a network says of them."""
        return {
            "latency_ms": self.deciding.latency_ms,
            "latency_high_ms": self.deciding.latency_high_ms,
            "speedup": self.deciding.speedup,
            "speedup_low": self.deciding.speedup_low,
            "measurements": self.measurements,
            "size_bytes": self.size_bytes,
            "macs": self.macs,
        }

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {
            "deciding": self.deciding.to_dict(),
            "judged": self.judged.to_dict(),
            "measurements": dict(self.measurements),
            "size_bytes": self.size_bytes,
            "macs": self.macs,
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Shapes:
        """Read what `to_dict` wrote; raises `ValueError`, `KeyError` or `TypeError` for anything else."""
        measured = {name: Measurement.from_dict(content[name]) for name in ("deciding", "judged")}
        return cls(**{**content, **measured})


def look_at_shapes(bench: Bench, plan: PruningPlan, precision: Precision, budget: Budget | None) -> Shapes:
    """The plan's shapes on the deciding rig, the budget's and those of the objectives, each once.

    A measurement that misses the budget is not taken for final at once, see `looked_at_again`; where it does, the
    other objectives' rigs are left out: nothing more is asked of the plan.
    """
    rig, names = bench.job.deciding_rig.name, bench.job.search.objectives
    content = shapes_for(bench, rig, plan, precision)
    if budget is not None and budget.rig == rig:
        measured = judged = looked_at_again(partial(bench.measure, rig, content), budget)
    else:
        measured = judged = bench.measure(rig, content)
        if budget is not None:
            form = _form_for(bench, budget.rig, plan, precision, content)
            judged = looked_at_again(partial(bench.measure, budget.rig, form), budget)
    known = {rig: measured} | ({} if budget is None else {budget.rig: judged})
    if budget is None or budget.met_by(judged):
        for other in (name for name in map(rig_of, names) if name is not None and name not in known):
            known[other] = bench.measure(other, _form_for(bench, other, plan, precision, content))
    return Shapes(
        deciding=measured,
        judged=judged,
        measurements={name: of.to_dict() for name, of in known.items()},
        size_bytes=len(content),
        macs=_macs(bench, plan) if MACS in names else None,
    )


def _form_for(bench: Bench, rig: str, plan: PruningPlan, precision: Precision, content: bytes) -> bytes:
    """For another rig than the deciding one, whose form is `content`: of files there is one form."""
    if measures_modules(rig) or measures_modules(bench.job.deciding_rig.name):
        return shapes_for(bench, rig, plan, precision)
    return content


def _macs(bench: Bench, plan: PruningPlan) -> int:
    small = shaped_by_magnitude(bench.dense, bench.profile.groups, plan, align=bench.job.align)
    return count_macs(small, bench.task.example_input)


def shapes_for(bench: Bench, rig: str, plan: PruningPlan, precision: Precision) -> bytes:
    """The network of the plan's shapes in the form that a trial ships for this rig; weights by magnitude."""
    job = bench.job
    if measures_modules(rig):
        assert bench.modules is not None
        return shapes_module(job, rig, bench.dense, bench.profile.groups, plan, bench.modules)
    shapes = shapes_onnx(
        bench.dense, bench.profile.groups, plan, bench.task.example_input, job.align, bench.file, opset=job.opset
    )
    return bench.form(shapes, precision=precision, samples=SHAPE_SAMPLES).content
