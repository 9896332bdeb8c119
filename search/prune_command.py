"""`prunefront prune`: one plan or one number, one process, no Ray, the same worker as in a search."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp
from types import FrameType

import torch
from pydantic import ValidationError
from rich.console import Console

from admm.compact import PLAN_FILE, WEIGHTS_FILE
from admm.constraint import constraint
from admm.errors import PlanError
from admm.plan import N_OF_M, STRUCTURES, PruningPlan
from admm.target import Target
from search.atomic import write_atomic
from search.bench import Prepared, open_bench, prepare_run
from search.commands import environment, is_run, read_plan_text
from search.errors import UserError
from search.export import out_errors, put_in_place, require_new
from search.job import Job
from search.job_file import load_job
from search.job_sections import LONGEST, SparsityRange
from search.precision import Precision
from search.prune_view import PruneView
from search.recipe import as_begun
from search.record import RESULT_NAME, result_text
from search.spelling import suggest
from search.store import JOB_NAME, RunStore
from search.trial import Start, TrialSpec
from search.view import View
from search.worker import evaluate_plan


def prune_to_folder(
    source: Path,
    out: Path,
    *,
    plan: Path | None = None,
    compression_x: float | None = None,
    mac_fraction: float | None = None,
    structures: str | None = None,
    align: int | None = None,
    console: Console,
) -> None:
    """Prune by a plan or to a number; leaves model.onnx (where a rig of the job measures it), plan.json, weights, trace
    and result.json in `out`.

    `source` is a run folder, whose dense weights are used (so a trial of it is reproduced), or a job file, whose
    network is built (and trained by its recipe) first. Of a number, the sparsities of the layers that the job selects
    are found while it trains, and plan.json records both. `out` appears whole or not at all.
    """
    number = _number(plan, compression_x, mac_fraction)
    chosen = _structures(structures, plan)
    require_new(out)
    text = read_plan_text(plan) if plan is not None else "{}"
    wanted = _recorded(text, plan) if plan is not None else None
    job = load_job(source / JOB_NAME if is_run(source) else source)
    job = as_begun(RunStore.open(source), job) if is_run(source) else job
    job = as_in_trial(job, text, plan) if plan is not None else job.model_copy(update={"budget": None})
    job = job.with_overrides(align=align)
    chosen = wanted.structures if isinstance(wanted, Target) else chosen
    if chosen is not None:
        job = job.model_copy(update={"structures": chosen})
    start = _start(text, plan, source)
    torch.set_num_threads(max(1, int(job.resources.cpus_per_trial)))
    prepared = Prepared.of(job)
    job = prepared.job
    if wanted is None:
        wanted = _target(number, job, prepared)
    require_possible(wanted, job, prepared, plan)
    prepared.check_shapes()
    view = View(console)
    final = Path(os.path.abspath(out))
    with out_errors(out):
        final.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(mkdtemp(prefix=f".{final.name}.", dir=final.parent))
    with _removed(staging):
        if is_run(source):
            store = RunStore.open(source)
        else:
            store = RunStore.create(staging / "run", job.to_yaml(), environment(job))
            prepare_run(store, job, prepared, view)
        bench = open_bench(store, job)
        spec = TrialSpec(
            number=0,
            plan=wanted,
            params={},
            seed=job.search.seed,
            precision=_precision(job, text),
            stretch=_stretch(text, plan),
            start=start,
        )
        view.say(f"dense: accuracy {bench.baseline.accuracy:.4f}, {bench.baseline.latency_ms:.4g} ms")
        if isinstance(wanted, Target):
            view.say(f"target: {wanted.asked} by {', '.join(wanted.structures)}; sparsities are found on the way")
        artefacts = staging / "out"
        shown = PruneView(console, bench)
        result, run = evaluate_plan(bench, spec, artefacts=artefacts, on_progress=shown.step)
        if result.status != "complete":
            raise UserError(f"pruning failed: {result.reason}")
        write_atomic(artefacts / RESULT_NAME, result_text(result))
        with out_errors(out):
            put_in_place(artefacts, final)
    assert run.pruned is not None
    shown.end(result, run.pruned)
    view.say(f"written to {out}")


def as_in_trial(job: Job, text: str, path: Path) -> Job:
    """The job for one plan: without a budget, since it is measured whatever it costs, and with the seed and alignment
    that a trial's plan.json records, so that the trial comes back whatever the run's job says by now."""
    content = json.loads(text)
    recorded = content if isinstance(content, dict) and "kept" in content else {}
    job = job.model_copy(update={"budget": None})
    try:
        if "align" in recorded:
            sparsity = SparsityRange.model_validate({**job.sparsity.model_dump(), "align": recorded["align"]})
            job = job.model_copy(update={"sparsity": sparsity})
        return job.with_overrides(seed=recorded.get("seed"))
    except (ValidationError, UserError):
        raise UserError(f"{path}: its seed or align is no valid value: take the plan.json that a trial wrote") from None


def _recorded_value(text: str, name: str) -> object:
    """A value of a trial's plan.json beside its plan, None where it says none."""
    content = json.loads(text)
    return content.get(name) if isinstance(content, dict) and "kept" in content else None


def _stretch(text: str, path: Path | None) -> float:
    """How long the trial was trained that a plan.json is of."""
    said = _recorded_value(text, "stretch")
    said = 1.0 if said is None else said
    if not isinstance(said, int | float) or isinstance(said, bool) or not 1.0 <= said <= LONGEST:
        raise UserError(
            f"{path}: its stretch must lie in [1, {LONGEST:g}], got {said!r}: take the plan.json that a trial wrote"
        )
    return float(said)


def _start(text: str, path: Path | None, source: Path) -> Start | None:
    """The trial that a plan.json says its trial began with."""
    number = _recorded_value(text, "started_from")
    if number is None:
        return None
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise UserError(f"{path}: started_from must be a trial's number, got {number!r}: take what a trial wrote")
    folder = RunStore.open(source).trial_dir(number) if is_run(source) else None
    if folder is None or not (folder / WEIGHTS_FILE).exists():
        raise UserError(
            f"{path}: its trial began with the weights of trial {number}, which {source} does not hold: give the run "
            f"folder, or a plan without started_from to begin with the dense network"
        )
    recorded = json.loads((folder / PLAN_FILE).read_text())
    same = isinstance(recorded, dict) and recorded.get("digest") == PruningPlan.from_json(text).digest()
    return Start(number=number, folder=folder, stretch=float(recorded.get("stretch", 1.0)) if same else 0.0)


def _precision(job: Job, text: str) -> Precision:
    """What a trial's plan.json says where the job leaves it open, else the job's first."""
    said = _recorded_value(text, "precision")
    return next((p for p in job.precisions if p == said), job.precisions[0])


def require_possible(wanted: PruningPlan | Target, job: Job, prepared: Prepared, path: Path | None) -> None:
    """Raises `UserError` for a plan that does not fit the network and a target out of its reach; trains nothing."""
    try:
        constraint(
            prepared.model,
            prepared.profile.groups,
            wanted,
            align=job.align,
            example_input=prepared.task.example_input,
        )
    except PlanError as error:
        raise UserError(f"{path}: {error}" if path is not None else str(error)) from None


def _number(plan: Path | None, compression_x: float | None, mac_fraction: float | None) -> dict[str, float]:
    """What a target is made of: `{"compression_x": 30.0}`; empty where a plan is given."""
    asked = {"--plan": plan, "--compression-x": compression_x, "--mac-fraction": mac_fraction}
    given = [option for option, value in asked.items() if value is not None]
    if len(given) != 1:
        said = "nothing was said" if not given else f"{' and '.join(given)} were given"
        raise UserError(f"say how far to prune by exactly one of {', '.join(asked)}: {said}")
    if compression_x is not None:
        if not 1.0 <= compression_x < math.inf:
            got = f"got {compression_x:g}: 4 keeps a quarter of the weights"
            raise UserError(f"--compression-x must be finite and at least 1, {got}")
        return {"compression_x": compression_x}
    if mac_fraction is not None:
        if not 0.0 < mac_fraction <= 1.0:
            raise UserError(f"--mac-fraction must lie in (0, 1], got {mac_fraction:g}: 0.5 keeps half of the MACs")
        return {"mac_fraction": mac_fraction}
    return {}


def _structures(text: str | None, plan: Path | None) -> tuple[str, ...] | None:
    """The names in `unstructured,filter`, in canonical order."""
    if text is None:
        return None
    if plan is not None:
        raise UserError("--structures goes with --compression-x or --mac-fraction: a plan names its own")
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in STRUCTURES:
            raise UserError(f"--structures: {name!r} is none of {', '.join(STRUCTURES)}; {suggest(name, STRUCTURES)}")
    return tuple(name for name in STRUCTURES if name in names)


def _recorded(text: str, path: Path) -> PruningPlan | Target:
    """The plan in a file; of a plan.json that a target led to, the target: so the run is reproduced."""
    try:
        plan = PruningPlan.from_json(text)
        content = json.loads(text)
        if "requested" in content and "kept" in content and content.get("target") is not None:
            return Target.from_dict(content["target"])
    except PlanError as error:
        raise UserError(f"{path}: {error}") from None
    return plan


def _target(number: dict[str, float], job: Job, prepared: Prepared) -> Target:
    if N_OF_M in job.structures:
        raise UserError(
            f"{N_OF_M!r} has patterns and no sparsity that could be found: name others by --structures, or give a plan"
        )
    every, chosen = prepared.profile.groups.layers, prepared.profile.layers
    return Target(
        compression_x=number.get("compression_x"),
        mac_fraction=number.get("mac_fraction"),
        structures=job.structures,
        layers=None if chosen == every else chosen,
    )


@contextlib.contextmanager
def _removed(folder: Path) -> Iterator[None]:
    """The folder goes when the block ends, however it ends; SIGTERM ends it as Ctrl-C does."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    listening = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, stop) if listening else None
    try:
        yield
    finally:
        if listening:
            signal.signal(signal.SIGTERM, before)
        shutil.rmtree(folder, ignore_errors=True)
