"""A handful of networks spread over a job's space, measured on its deciding rig: what a latency predictor is fitted on.

Latency is one of shapes: weights are chosen by magnitude, and nothing is trained.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from admm.plan import PruningPlan
from admm.shapes import shaped_by_magnitude
from evaluators import EvaluationError, Measurement, count_macs
from evaluators.blocks import ChannelBlock
from evaluators.predictor import LatencyPredictor
from evaluators.rig import measures_modules
from evaluators.work import Work, module_work
from search.bench import Prepared
from search.module_artefact import DenseForms
from search.module_rigs import Modules
from search.payload import Payload
from search.profile import fastest_plan
from search.shapes_file import shapes_onnx
from search.trial import MeasureOn

#: The networks whose latency is told; the others are there for the predictor.
SHOWN = ("dense", "middle", "fastest")


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A network of the job's space, with weights chosen by magnitude: latency is one of shapes."""

    name: str
    plan: PruningPlan
    macs: int
    content: bytes
    work: bytes | Work | None
    """What a predictor goes by; None for a module with rewritten layers, whose work its shapes do not tell."""
    measured: Measurement
    fitted: bool
    """Whether the predictor of a profile is fitted on it."""
    predicted_ms: float | None = None

    @property
    def error(self) -> float | None:
        """Of the prediction, relative to what was measured."""
        return None if self.predicted_ms is None else self.predicted_ms / self.measured.latency_ms - 1.0


def plans_to_measure(prepared: Prepared, *, seed: int = 0) -> dict[str, PruningPlan]:
    """Networks spread over the job's space, each different: dense, middle and fastest first, then the others.

    The fastest removes most of all that saves time on the rig; the others take a share of its steps in each dimension.
    """
    space = prepared.profile.space
    ends = space.params(fastest_plan(prepared.profile, prepared.job))
    rng = random.Random(seed)

    def share(of: float) -> dict[str, int]:
        return {name: int(of * steps + 0.5) for name, steps in ends.items()}

    wanted: dict[str, Mapping[str, int]] = {"fastest": ends, "middle": share(0.5)}
    wanted |= {"quarter": share(0.25), "three quarters": share(0.75)}
    wanted |= {f"random {i}": {name: rng.randint(0, steps) for name, steps in ends.items()} for i in (1, 2)}
    dense = PruningPlan()
    plans, seen = {"dense": dense}, {dense.digest()}
    for name, params in wanted.items():
        plan = space.plan(params)
        removes = any(sparsity > 0.0 for layer in plan.values() for sparsity in layer.values())
        if removes and plan.digest() not in seen:
            plans[name] = plan
            seen.add(plan.digest())
    order = [*(name for name in SHOWN if name in plans), *(name for name in plans if name not in SHOWN)]
    return {name: plans[name] for name in order}


def export_plan(prepared: Prepared, plan: PruningPlan) -> bytes:
    """The ONNX file of the plan's shapes, before it is rewritten for its rig. Raises `ExportError`."""
    job, example = prepared.job, prepared.task.example_input
    return shapes_onnx(prepared.model, prepared.profile.groups, plan, example, job.align, opset=job.opset)


def measured_networks(
    prepared: Prepared,
    dense: DenseForms,
    measure: MeasureOn,
    say: Callable[[str], None],
    *,
    block: ChannelBlock,
    modules: Modules | None = None,
    known: Collection[str] = (),
) -> Iterator[Network]:
    """Each of `plans_to_measure` in the form that a trial would ship, measured against the dense network, one by one.

    Those named in `known` are left out. Raises `EvaluationError` where one cannot be exported, written or measured.
    """
    plans, rig = plans_to_measure(prepared), prepared.job.deciding_rig.name
    example = prepared.task.example_input
    for i, (name, plan) in enumerate(plans.items()):
        if name in known:
            continue
        say(f"measuring network {i + 1} of {len(plans)}: {name}")
        content = dense.of(rig) if name == "dense" else prepared.shapes(plan, rig, measure, modules, dense=dense)
        small = shaped_by_magnitude(prepared.model, prepared.profile.groups, plan, align=prepared.job.align)
        work: bytes | Work | None = content
        if measures_modules(rig):
            lowered = bool(Payload.from_bytes(content).choices)
            work = None if lowered else module_work(small, example, block.block, depthwise=block.depthwise)
        yield Network(
            name=name,
            plan=plan,
            macs=count_macs(small, example),
            content=content,
            work=work,
            measured=measure(rig, content),
            # int8 files lie on a line of their own, which the dense fp32 file is not on
            fitted=name != "middle" and (name != "dense" or prepared.job.precisions[0] == "fp32"),
        )


def fit_networks(networks: Sequence[Network], block: ChannelBlock) -> tuple[LatencyPredictor | None, str]:
    """`fit_predictor` of measured networks."""
    if any(n.work is None for n in networks):
        return None, "layers run without their zeros there, and what that saves is not known from shapes"
    measured = [(n.work, 1.0 / n.measured.speedup) for n in networks if n.work is not None]
    return fit_predictor(measured, block, networks[0].measured.stamp.to_dict() if networks else {})


def fit_predictor(
    measured: Sequence[tuple[bytes | Path | Work, float]], block: ChannelBlock, stamp: Mapping[str, Any]
) -> tuple[LatencyPredictor | None, str]:
    """(predictor, "") of networks or their works and their relative latencies, or (None, why there is none)."""
    if len(measured) < 3:
        return None, f"the space has {len(measured)} networks only: too few to fit one on"
    try:
        return LatencyPredictor.fit(measured, block=block.block, depthwise=block.depthwise, stamp=stamp), ""
    except EvaluationError as error:
        return None, str(error)
