"""Relative latency of any plan of a job's space on its deciding rig, without exporting or measuring it.

A predictor (`evaluators.predictor`) is fitted on the handful of networks that `prunefront profile` measures, by the
work that `search.plan_work` tells of their plans: what that work leaves out is in the error that is told with it. The
measured figures are kept and taken up again.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from admm.plan import PruningPlan
from evaluators import EvaluationError
from evaluators.blocks import ChannelBlock
from evaluators.predictor import LatencyPredictor
from evaluators.rig import measures_modules
from evaluators.work import Work
from search.alignment import device_block, open_rig
from search.atomic import json_text, parse_json, write_atomic
from search.bench import Prepared, local_measure
from search.calibration import export_plan, fit_predictor, measured_networks, plans_to_measure
from search.module_artefact import DenseForms
from search.plan_work import PlanWork
from search.shipped import lowers
from search.trial import MeasureOn

SCHEMA = 1
FILE_NAME = "forecast.json"
#: A predictor that errs by more than this on average, each network left out once, is none.
_USELESS = 0.25
#: The margin is never less than this: what a rig's own figures are apart.
_LEAST_MARGIN = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One network that was measured."""

    name: str
    plan: PruningPlan
    relative: float
    """Its latency over the dense network's."""


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Latency relative to the dense network for plans of one space, as steps of its dimensions.

    Of files in fp32, where a job searches precisions. Asked some microseconds a plan where the layers were asked at
    these steps before, about a millisecond where not.
    """

    predictor: LatencyPredictor
    works: PlanWork
    points: tuple[Point, ...]
    inner_error: float | None = None
    """The largest error, each network but those of most and least work predicted by a fit to all others; None for too
    few. Plans lie between the extremes, whose own errors are those of a line drawn further than it was fitted.
    """

    @property
    def mean_error(self) -> float:
        """Mean relative error, each measured network predicted by a fit to the others."""
        return self.predictor.mean_error

    @property
    def max_error(self) -> float:
        """The largest of these errors: as a rule that of the smallest network, which lies outside of the others."""
        return self.predictor.max_error

    @property
    def margin(self) -> float:
        """By how much a latency may be higher than it is forecast: the largest error of a network left out.

        That of the networks inside the range that was measured, where there are such.
        """
        return max(self.max_error if self.inner_error is None else self.inner_error, _LEAST_MARGIN)

    def relative(self, params: Mapping[str, Any]) -> float:
        """Latency of the plan of these steps over the dense network's: the middle of what is likely."""
        return self.predictor.predict_work(self.works(params))

    def speedup(self, params: Mapping[str, Any]) -> float:
        """Over the dense network, the middle of what is likely."""
        return 1.0 / self.relative(params)

    def safe_relative(self, params: Mapping[str, Any]) -> float:
        """`relative` with the margin on top."""
        return self.relative(params) * (1.0 + self.margin)

    def safe_speedup(self, params: Mapping[str, Any]) -> float:
        """The speed-up that may be counted on: `speedup` less the margin."""
        return 1.0 / self.safe_relative(params)

    def to_dict(self) -> dict[str, Any]:
        """What there is to say of it, JSON-ready."""
        return {
            "predictor": self.predictor.to_dict(),
            "inner_error": self.inner_error,
            "margin": self.margin,
            "points": [{"name": p.name, "plan": p.plan.to_dict(), "relative": p.relative} for p in self.points],
        }


def make_forecast(
    prepared: Prepared,
    *,
    dense: bytes | None = None,
    measure: MeasureOn | None = None,
    path: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[Forecast | None, str]:
    """(the forecast of a job's deciding rig, "") or (None, why there is none): the search then goes without.

    `prepared.model` holds the dense weights; `dense` is its ONNX file and `measure` measures against that (None: made
    here). `path` is where the measured figures are kept: taken up if they are of this space, network and device.
    Raises `RigUnavailable` for a rig that this machine lacks, and `StoreError` where `path` cannot be written.
    """
    job = prepared.job
    if "fp32" not in job.precisions:
        return None, f"no forecast of latency: files are quantised to {job.quantize}, which no predictor was made for"
    if measures_modules(job.deciding_rig.name):
        return None, f"no forecast of latency: {job.deciding_rig.name} measures modules"
    try:
        block = device_block(job.deciding_rig)
        works = plan_work(prepared, block)
        points = _measured(prepared, block, dense, measure, path, say)
    except EvaluationError as error:
        return None, f"no forecast of latency: {error}"
    space = prepared.profile.space
    measured = [(works.dense if not p.plan else works(space.params(p.plan)), p.relative) for p in points]
    predictor, why = fit_predictor(measured, block, open_rig(job.deciding_rig).stamp(job.deciding_rig.batch).to_dict())
    if predictor is None:
        return None, f"no forecast of latency: {why}"
    if not predictor.mean_error <= _USELESS:
        return None, (
            f"no forecast of latency: a line in the work errs by {predictor.mean_error:.0%} on average on "
            f"{job.deciding_rig.name}"
        )
    return Forecast(
        predictor=predictor, works=works, points=tuple(points), inner_error=_inner_error(measured, block)
    ), ""


def _inner_error(measured: Sequence[tuple[Work, float]], block: ChannelBlock) -> float | None:
    """The largest relative error of the networks between the extremes, each left out of the fit in turn."""
    ordered, errors = sorted(measured, key=lambda point: point[0].macs), []
    for i, (work, relative) in enumerate(ordered[1:-1], start=1):
        rest, _ = fit_predictor([*ordered[:i], *ordered[i + 1 :]], block, {})
        if rest is None:
            return None
        errors.append(abs(rest.predict_work(work) / relative - 1.0))
    return max(errors, default=None)


def plan_work(prepared: Prepared, block: ChannelBlock) -> PlanWork:
    """The work of every plan of a job's space. Raises `EvaluationError` for a network that does not run."""
    return PlanWork(
        prepared.model,
        prepared.profile.groups,
        prepared.profile.space,
        prepared.task.example_input,
        align=prepared.job.align,
        block=block.block,
        depthwise=block.depthwise,
        rewritten=lowers(prepared.job),
    )


def _measured(
    prepared: Prepared,
    block: ChannelBlock,
    dense: bytes | None,
    measure: MeasureOn | None,
    path: Path | None,
    say: Callable[[str], None],
) -> list[Point]:
    """Each of the networks to fit on; those in `path` are not measured again."""
    key, plans = _key(prepared), plans_to_measure(prepared)
    points = {} if path is None else _known(path, key, plans, say)
    if missing := set(plans) - set(points):
        forms = DenseForms(file=export_plan(prepared, PruningPlan()) if dense is None else dense)
        measure = local_measure(prepared.job, forms) if measure is None else measure
        known = set(plans) - missing
        for network in measured_networks(prepared, forms, measure, say, block=block, known=known):
            relative = 1.0 / network.measured.speedup
            points[network.name] = Point(name=network.name, plan=network.plan, relative=relative)
            if path is not None:
                kept = [{"name": p.name, "plan": p.plan.digest(), "relative": p.relative} for p in points.values()]
                write_atomic(path, json_text({"schema": SCHEMA, "key": key, "points": kept}))
    return [points[name] for name in plans]


def _key(prepared: Prepared) -> str:
    """What measured figures belong to: space, shapes, form and device."""
    job, spec = prepared.job, prepared.job.deciding_rig
    shapes = [[name, *tensor.shape] for name, tensor in prepared.model.state_dict().items()]
    about = [
        prepared.profile.space.to_dict(),
        shapes,
        list(prepared.task.example_input.shape),
        [job.align, job.lower, job.quantize, prepared.profile.block],
        open_rig(spec).stamp(spec.batch).to_dict(),
        str(spec.precision),
    ]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:32]


def _known(path: Path, key: str, plans: Mapping[str, PruningPlan], say: Callable[[str], None]) -> dict[str, Point]:
    """What `path` holds of the figures of these plans; nothing, with a word, where it cannot be taken up."""
    try:
        content = parse_json(path.read_bytes())
        if content.get("schema") != SCHEMA:
            raise ValueError(f"its schema is {content.get('schema')!r}, not {SCHEMA}")
        if content.get("key") != key:
            raise ValueError("it is of another space, network or device")
        found = {str(p["name"]): (str(p["plan"]), float(p["relative"])) for p in content["points"]}
        if not all(0.0 < relative < math.inf for _, relative in found.values()):
            raise ValueError("it holds a latency that is not positive and finite")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        if isinstance(error, KeyError | TypeError):
            why = f"not what was measured: {type(error).__name__}: {error}"
        say(f"{path}: {why}: measured again")
        return {}
    return {
        name: Point(name=name, plan=plan, relative=found[name][1])
        for name, plan in plans.items()
        if name in found and found[name][0] == plan.digest()
    }
