"""`prunefront profile`: where the dense network's time goes, and what pruned ones would take, before any training."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from admm.cost import layer_shapes, output_positions
from evaluators import EvaluationError, Measurement
from evaluators.blocks import ChannelBlock
from evaluators.layer_times import LayerTime, layer_times
from evaluators.predictor import LatencyPredictor
from evaluators.work import Work
from search.alignment import device_block
from search.atomic import json_text
from search.bench import WEIGHTS_NAME, Prepared, load_dense, local_measure, local_modules
from search.budget import Budget
from search.calibration import Network, fit_networks, measured_networks
from search.commands import is_run
from search.job_file import load_job
from search.measure_command import progress
from search.module_rigs import of_files
from search.profile import require_reachable
from search.profile_view import print_profile
from search.store import RunStore

SCHEMA = 1
#: The rig whose runtime has the profiler that times layers.
_TIMED_ON = "onnxruntime-cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One row of the layer table."""

    time: LayerTime
    weight: tuple[int, ...] | None
    """Shape of the layer's weight, None for a node without one."""
    macs: int | None
    ms: float
    """Its share of the latency that the rig measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """All that `prunefront profile` has to say."""

    task: str
    rig: str
    params: int
    layers: tuple[Layer, ...]
    block: ChannelBlock
    align: int
    predictor: LatencyPredictor | None
    why_no_predictor: str
    networks: tuple[Network, ...]
    """dense, middle and fastest as far as they differ, then the others that the predictor was fitted on."""
    budget: Budget | None
    on_budget_rig: Measurement | None
    """Of the fastest network, None without a budget."""
    notes: tuple[str, ...]

    @property
    def dense(self) -> Network:
        """The dense network, measured against itself."""
        return self.networks[0]

    @property
    def reachable(self) -> bool | None:
        """Whether the fastest network keeps the budget; None without one."""
        if self.budget is None or self.on_budget_rig is None:
            return None
        return self.budget.met_by(self.on_budget_rig)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        predictor = self.predictor
        return {
            "schema": SCHEMA,
            "task": self.task,
            "stamp": self.dense.measured.stamp.to_dict(),
            "params": self.params,
            "layers": [{**asdict(r.time), "ms": r.ms, "profiler_ms": r.time.ms, "weight": r.weight, "macs": r.macs}
                       for r in self.layers],
            "block": self.block.to_dict(),
            "align": self.align,
            "predictor": None if predictor is None else predictor.to_dict(),
            "why_no_predictor": self.why_no_predictor or None,
            "networks": [
                {"name": n.name, "macs": n.macs, "measured": n.measured.to_dict(), "predicted_ms": n.predicted_ms,
                 "error": n.error, "fitted": n.fitted}
                for n in self.networks
            ],
            "budget": None if self.budget is None or self.on_budget_rig is None else {
                **asdict(self.budget), "fastest": self.on_budget_rig.to_dict(), "reachable": self.reachable,
            },
            "notes": list(self.notes),
        }  # fmt: skip


def profile_job(source: Path, *, every: bool, as_json: bool, console: Console) -> None:
    """Check a job as a search does, measure its dense network and a few pruned shapes, and say what that tells.

    `source` is a job file or a run folder. Raises `BudgetUnreachable` when all is said and the budget is out of reach.
    """
    with progress() as say:
        prepared = _prepared(source, say)
        found = profile_prepared(prepared, say)
    if as_json:
        sys.stdout.write(json_text(found.to_dict()))
    else:
        print_profile(found, console, every=every)
    if found.budget is not None and found.on_budget_rig is not None:
        require_reachable(found.budget, found.on_budget_rig, prepared.job)


def _prepared(source: Path, say: Callable[[str], None]) -> Prepared:
    if not is_run(source):
        job = load_job(source)
        say("reading the job and its data")
        if job.sparsity.align == "auto":
            say("checking the job, its data and its network; the device's channel block is measured the first time")
        return Prepared.of(job)
    store = RunStore.open(source)
    job = load_job(store.job_path)
    say("reading the job and its data")
    prepared = Prepared.of(job)
    weights = store.baseline_dir / WEIGHTS_NAME
    if weights.exists():
        load_dense(weights, prepared.model)
    return prepared


def profile_prepared(prepared: Prepared, say: Callable[[str], None]) -> Findings:
    """Everything that is measured; nothing is trained or written."""
    job, task, spec = prepared.job, prepared.task.task, prepared.job.deciding_rig
    modules = local_modules(job, prepared.task)
    say("exporting the dense network" if of_files(job) else "making the dense network ready to be measured")
    dense = prepared.dense_forms()
    measure = local_measure(job, dense, modules)
    say("measuring the device's channel block: some seconds, kept for the next time")
    block = device_block(job.deciding_rig)
    networks = list(measured_networks(prepared, dense, measure, say, modules=modules, block=block))
    times: tuple[LayerTime, ...] = ()
    if spec.name == _TIMED_ON:
        say("timing the layers")
        times = layer_times(networks[0].content, threads=spec.threads, batch=spec.batch)
    budget = Budget.of(job)
    on_budget_rig = None
    if budget is not None:
        say(f"measuring the fastest network on {budget.rig}")
        on_budget_rig = prepared.fastest_for(budget, measure, modules, dense)
    predictor, why = fit_networks([n for n in networks if n.fitted], block)
    return Findings(
        task=task.name,
        rig=spec.name,
        params=sum(p.numel() for p in prepared.model.parameters()),
        layers=_layers(prepared, times, networks[0].measured.latency_ms),
        block=block,
        align=job.align,
        predictor=predictor,
        why_no_predictor=why,
        networks=tuple(_predicted(n, predictor if n.fitted or n.name == "middle" else None) for n in networks),
        budget=budget,
        on_budget_rig=on_budget_rig,
        notes=(*prepared.task.notes, *prepared.profile.notes),
    )


def _predicted(network: Network, predictor: LatencyPredictor | None) -> Network:
    if predictor is None or network.work is None:
        return network
    with suppress(EvaluationError):  # a rewritten file whose shapes cannot be inferred has no prediction
        # dense took this long by the paired speed-up: so the error is one of the ratio, which alone is predicted
        dense_ms = network.measured.latency_ms * network.measured.speedup
        known = network.work
        relative = predictor.predict_work(known) if isinstance(known, Work) else predictor.predict(known)
        return replace(network, predicted_ms=relative * dense_ms)
    return network


def _layers(prepared: Prepared, times: Sequence[LayerTime], latency_ms: float) -> tuple[Layer, ...]:
    """Shapes and MACs beside the times, by the layers' names."""
    if not times:
        return ()
    shapes = layer_shapes(prepared.model)
    positions = output_positions(prepared.model, prepared.task.example_input)
    modules: dict[str, Any] = dict(prepared.model.named_modules())
    known = [time.name in shapes and time.op != "Add" for time in times]
    calls = Counter(time.name for time, weighted in zip(times, known, strict=True) if weighted)
    rows = []
    for time, weighted in zip(times, known, strict=True):
        # a layer that is called twice is two nodes
        macs = shapes[time.name].size.weights * positions[time.name] // calls[time.name] if weighted else None
        weight = tuple(modules[time.name].weight.shape) if weighted else None
        rows.append(Layer(time=time, weight=weight, macs=macs, ms=time.share * latency_ms))
    return tuple(rows)
