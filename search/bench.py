"""Open what all trials of a run share, from its folder: the job, the task, the dense network, its figures."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from admm.bounded import read_bounded, weight_bytes
from admm.compute import Compute
from admm.errors import PruneError
from admm.plan import PruningPlan
from evaluators import (
    ExportError,
    Measurement,
    OpsetError,
    RigUnavailable,
    count_macs,
    count_params,
    require_opset,
)
from evaluators.errors import EvaluationError
from evaluators.lowering import LayerTimes
from evaluators.modes import evaluating, module_output
from evaluators.rig import measures_modules
from search.alignment import aligned, device_block, open_rig
from search.atomic import json_text, parse_json
from search.budget import Budget
from search.errors import UserError
from search.job import Job
from search.job_file import load_job
from search.module_artefact import DenseForms, shapes_module, ship_forms
from search.module_rigs import Modules, of_files, of_modules, opened_modules
from search.payload import Payload, dense_payload
from search.precision import Precision
from search.profile import Profile, fastest_plan, profile_network, require_reachable
from search.result import Baseline
from search.second_look import looked_at_again
from search.shapes_file import shapes_onnx
from search.shipped import SHAPE_SAMPLES, Form, calibration_inputs, lowers, shipped_form
from search.store import MODEL_NAME, RunStore, write_atomic
from search.tasks.base import PreparedTask, check_task, prepare
from search.tasks.data import Arrays
from search.tasks.dense import DenseEpoch, build_model, train_dense
from search.tasks.fingerprint import fingerprint, same_data
from search.trial import Bench, Crew, MeasureOn
from search.weights import prunable_weights

WEIGHTS_NAME = "weights.safetensors"
DATA_NAME = "data.json"


class Reporter(Protocol):
    """Where preparation says what it does."""

    def say(self, line: str) -> None:
        """One line for the user."""

    def dense_epoch(self, epoch: DenseEpoch, epochs: int) -> None:
        """One epoch of training the dense network is over."""


def local_measure(job: Job, dense: DenseForms, modules: Modules | None = None) -> MeasureOn:
    """Measure in this process; the rigs are opened once. Raises `RigUnavailable` for a rig this machine lacks.

    `modules` answers for the rigs that measure modules: None where the job has none.
    """
    rigs = {spec.name: (open_rig(spec), spec.batch) for spec in of_files(job)}

    def measure(rig: str, candidate: bytes, reference: bytes | None = None) -> Measurement:
        other = dense.of(rig) if reference is None else reference
        if rig not in rigs:
            assert modules is not None
            return modules.measure(rig, candidate, other)
        opened, batch = rigs[rig]
        return opened.measure(candidate, other, batch=batch)

    return measure


def local_modules(job: Job, task: PreparedTask | None = None) -> Modules | None:
    """Who answers for the job's rigs of modules, None where it has none; its task is loaded unless given."""
    if not of_modules(job):
        return None
    return opened_modules(of_modules(job), lambda: prepare_task(job)[0] if task is None else task)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A job whose task loads, whose rigs are here and whose network can be searched; nothing trained or written."""

    job: Job
    """As given, with `sparsity.align: auto` replaced by the block measured."""
    task: PreparedTask
    model: nn.Module
    profile: Profile

    @classmethod
    def of(cls, job: Job) -> Prepared:
        """Check the job, its data and its network. Raises `UserError`, one line."""
        budget = Budget.of(job)
        judges = {job.deciding_rig.name} | ({budget.rig} if budget is not None else set())
        of_module = next((name for name in sorted(judges) if measures_modules(name)), None)
        if "int8" in job.precisions and of_module is not None:
            raise job.error(
                "quantize", f"int8 is a form of ONNX files, and rig {of_module!r} measures modules: leave it out"
            )
        for i, spec in enumerate(job.rigs):
            try:
                open_rig(spec)
            except RigUnavailable as error:
                raise job.error(f"rigs.{i}", str(error)) from None
        if of_files(job):
            try:
                require_opset(job.opset)
            except OpsetError as error:
                raise job.error("opset", str(error)) from None
        require_compute(job)
        task, model = prepare_task(job)
        require_finite(task, model)
        measured = device_block(job.deciding_rig) if lowers(job) or job.sparsity.align == "auto" else None
        note = None
        if measured is not None:
            job, note = aligned(job, model, measured)
        profile = profile_network(job, model, task.example_input)
        profile = replace(profile, block=job.align if measured is None else measured.block)
        if note is not None:
            profile = replace(profile, notes=(note, *profile.notes))
        return cls(job=job, task=task, model=model, profile=profile)

    def form(self, measure: MeasureOn, precision: Precision | None = None) -> Callable[[bytes], Form]:
        """What turns a file of shapes into the form that a trial of them would ship; the job's first precision unless
        one is named."""
        return partial(
            shipped_form,
            self.job,
            measure=measure,
            precision=precision or self.job.precisions[0],
            block=self.profile.block,
            times=LayerTimes(),
            calibration=partial(calibration_inputs, self.task, SHAPE_SAMPLES),
        )

    def check_shapes(self) -> None:
        """Export the dense network, and measure the smallest one against it where there is a budget.

        A latency is one of shapes: nothing needs to be trained to know it. Raises `UserError`, `BudgetUnreachable`.
        """
        job, name = self.job, self.task.task.name
        dense, modules = self.dense_forms(), local_modules(self.job, self.task)
        budget, measure = Budget.of(job), local_measure(job, dense, modules)
        if "int8" in job.precisions and dense.file is not None:
            try:
                self.form(measure, "int8")(dense.file)
            except EvaluationError as error:
                raise job.error("quantize", f"task {name!r}: {error}: leave it out") from error
        for i, spec in enumerate(job.rigs):
            if measures_modules(spec.name):
                try:
                    measure(spec.name, dense.of(spec.name))
                except EvaluationError as error:
                    raise job.error(f"rigs.{i}", f"task {name!r}: {error}") from error
        if budget is not None:
            require_reachable(budget, self.fastest_for(budget, measure, modules, dense), job)

    def fastest_for(
        self, budget: Budget, measure: MeasureOn, modules: Modules | None, dense: DenseForms
    ) -> Measurement:
        """The smallest shapes on the budget's rig, in the precision that is nearest to keeping it."""
        found = []
        for precision in self.job.precisions:
            content = self.shapes(
                fastest_plan(self.profile, self.job), budget.rig, measure, modules, dense=dense, precision=precision
            )
            found.append(looked_at_again(partial(measure, budget.rig, content), budget))
        return min(found, key=lambda m: budget.excess(m.latency_high_ms, m.speedup_low))

    def dense_forms(self) -> DenseForms:
        """The dense network as each kind of the job's rigs takes it. Raises `UserError` for one that has no export."""
        job, file, module = self.job, None, None
        if of_files(job):
            try:
                file = shapes_onnx(
                    self.model,
                    self.profile.groups,
                    PruningPlan(),
                    self.task.example_input,
                    job.align,
                    opset=job.opset,
                )
            except OpsetError as error:
                raise job.error("opset", f"task {self.task.task.name!r}: {error}") from error
            except ExportError as error:
                raise UserError(
                    f"task {self.task.task.name!r}: {error}: torch.export must follow its forward, or a rig of modules "
                    f"decide (rigs: [torch-cpu]), which needs no ONNX file"
                ) from error
        if of_modules(job):
            module = Payload.of(self.model, {}).to_bytes()
        return DenseForms(file=file, module=module)

    def shapes(
        self,
        plan: PruningPlan,
        rig: str,
        measure: MeasureOn,
        modules: Modules | None,
        *,
        dense: DenseForms,
        precision: Precision | None = None,
    ) -> bytes:
        """The network of a plan's shapes as a trial of it would ship it for this rig; an ONNX file in the job's first
        precision unless one is named. `dense` is this network before."""
        groups, job = self.profile.groups, self.job
        if modules is not None and measures_modules(rig):
            return shapes_module(job, rig, self.model, groups, plan, modules)
        file = shapes_onnx(self.model, groups, plan, self.task.example_input, job.align, dense.file, opset=job.opset)
        return self.form(measure, precision)(file).content


def require_compute(job: Job) -> None:
    """Raises `UserError` where this machine cannot compute as the job asks; a GPU may be another machine's."""
    if job.resources.gpus_per_trial > 0.0 and not torch.cuda.is_available():
        return
    device = torch.device("cuda" if job.resources.gpus_per_trial > 0.0 else "cpu")
    try:
        Compute(**job.compute.model_dump()).require(device)
    except ValueError as error:
        raise job.error("compute.autocast", str(error).removeprefix("compute.autocast ")) from None


def require_resources(job: Job) -> None:
    """Raises `UserError` where one trial needs more than this machine has; a cluster may have it."""
    have = {"cpus": os.cpu_count() or 1, "gpus": torch.cuda.device_count()}
    for kind, need in (("cpus", job.resources.cpus_per_trial), ("gpus", job.resources.gpus_per_trial)):
        if need > have[kind]:
            raise job.error(
                f"resources.{kind}_per_trial",
                f"a trial needs {need:g} {kind[:-1].upper()}s, this machine has {have[kind]}: lower it, or join a "
                f"cluster with --address",
            )


def require_finite(task: PreparedTask, model: nn.Module) -> None:
    """Raises `UserError` for NaN or infinity in the data (resident: all, else a batch) or in the network's outputs."""
    parts = [("train", task.task.train, task.train_batches(0)), ("val", task.task.val, task.val_batches())]
    test = task.test_batches()
    if test is not None:
        parts.append(("test", task.task.test, test))
    for name, whole, batches in parts:
        inputs = whole.x if isinstance(whole, Arrays) else next(iter(batches))[0]
        bad = (~torch.isfinite(inputs)).reshape(len(inputs), -1).any(1).nonzero().flatten()
        if len(bad):
            raise UserError(
                f"task {task.task.name!r}: the {name} inputs hold NaN or infinity in {len(bad)} of {len(inputs)} "
                f"samples, first in sample {int(bad[0])}: clean the data"
            )
    with evaluating(model):
        outputs = module_output(model, task.example_input)
    if not torch.isfinite(outputs).all():
        raise UserError(f"task {task.task.name!r}: the network gives NaN or infinity: are its weights right?")


def prepare_task(job: Job, task: PreparedTask | None = None) -> tuple[PreparedTask, nn.Module]:
    """The job's task, readable, and its freshly built network, both checked with one batch. Raises `UserError`.

    `task` is the job's, where it was prepared before.
    """
    task = task or prepare(job.load_task(), job.search.seed)
    model = build_model(task)
    check_task(task, model)
    return task, model


def prepare_run(store: RunStore, job: Job, prepared: Prepared, reporter: Reporter) -> tuple[Baseline, Profile]:
    """Everything before the first trial: dense network, its figures, profile; each is done once.

    Raises `UserError` for what the user must mend.
    """
    task, model, profile = prepared.task, prepared.model, prepared.profile
    for note in (*task.notes, *profile.notes):
        reporter.say(note)
    require_same_data(store, task)
    if not (store.baseline_dir / DATA_NAME).exists():
        write_atomic(store.baseline_dir / DATA_NAME, json_text(fingerprint(task, repeat=True)))
    dense_weights(store, job, task, model, reporter)
    if not store.has_baseline:
        reporter.say("exporting and measuring the dense network")
        store.write_baseline(_baseline(store, job, task, model))
    baseline = store.read_baseline()
    store.write_profile(profile.to_dict())
    return baseline, profile


def require_same_data(store: RunStore, task: PreparedTask) -> None:
    """Raises `UserError` where the task gives other data than the run began with: a split that was drawn anew."""
    path = store.baseline_dir / DATA_NAME
    if not path.exists():
        return
    try:
        known = parse_json(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path}: {error}: remove it to trust the data as they are now") from None
    if not same_data(known, fingerprint(task)):
        raise UserError(
            f"task {task.task.name!r}: the task gives other data than when the run began (its validation split?): "
            f"seed its split, or start a new run"
        )


def dense_weights(store: RunStore, job: Job, task: PreparedTask, model: nn.Module, reporter: Reporter) -> None:
    """Load the run's dense weights into `model`, or train them by the task's recipe and keep them."""
    path = store.baseline_dir / WEIGHTS_NAME
    if path.exists():
        load_dense(path, model)
        return
    recipe = task.task.dense
    if recipe is not None:
        reporter.say(f"training the dense network: {recipe.epochs} epochs")
        train_dense(
            task,
            model,
            recipe,
            forward=Compute(**job.compute.model_dump()).forward,
            on_epoch=lambda epoch: reporter.dense_epoch(epoch, recipe.epochs),
        )
    state = {n: t.detach().cpu().contiguous().clone() for n, t in model.state_dict().items()}
    write_atomic(path, save(state))


def load_dense(path: Path, model: nn.Module) -> None:
    """Load the dense weights of a run. Raises `UserError` when the task builds another network now."""
    try:
        model.load_state_dict(load(read_bounded(path, weight_bytes(model))))
    except (SafetensorError, RuntimeError, OSError) as error:
        line = str(error).splitlines()[0]
        raise UserError(f"{path} does not fit the task's network ({line}): has the task changed since?") from None


def dense_forms(store: RunStore, job: Job) -> DenseForms:
    """The run's dense network as its rigs take it. Raises `UserError` where a file is gone."""
    try:
        module = dense_payload(store.baseline_dir / WEIGHTS_NAME) if of_modules(job) else None
    except EvaluationError as error:
        raise UserError(f"{error}: put it back from a copy") from None
    return DenseForms(file=dense_onnx(store) if of_files(job) else None, module=module)


def dense_onnx(store: RunStore) -> bytes:
    """The run's dense file. Raises `UserError` where it is gone."""
    path = store.baseline_dir / MODEL_NAME
    try:
        return path.read_bytes()
    except OSError:
        raise UserError(f"{path} is gone, and every network is measured against it: put it back from a copy") from None


def _baseline(store: RunStore, job: Job, task: PreparedTask, model: nn.Module) -> Baseline:
    """Export, check, score and measure the dense network; it is measured against itself."""
    modules = local_modules(job, task)
    try:
        forms = ship_forms(job, task, model, {}, store.baseline_dir / MODEL_NAME, modules)
    except (UserError, PruneError, EvaluationError):
        raise
    except Exception as error:  # the user's network, metric and data are called in there
        raise UserError(
            f"task {task.task.name!r}: scoring the dense network: {type(error).__name__}: {error}"
        ) from error
    measure = local_measure(job, dense_forms(store, job), modules)
    measured = {rig.name: measure(rig.name, forms[rig.name].content) for rig in job.rigs}
    shipped = forms[job.deciding_rig.name]
    recipe = task.task.dense
    return Baseline(
        accuracy=shipped.score.value,
        accuracy_stderr=shipped.score.stderr,
        latency_ms=measured[job.deciding_rig.name].latency_ms,
        macs=count_macs(model, task.example_input),
        params=count_params(model),
        weights=prunable_weights(model),
        measurements={name: m.to_dict() for name, m in measured.items()},
        trained_epochs=float(recipe.epochs) if recipe is not None else 0.0,
        size_bytes=len(shipped.content),
        accuracies={name: form.score.value for name, form in forms.items()},
    )


def open_bench(
    store: RunStore,
    job: Job | None = None,
    measure: MeasureOn | None = None,
    device: torch.device | None = None,
    modules: Modules | None = None,
    task: PreparedTask | None = None,
    crew: Crew | None = None,
) -> Bench:
    """The bench of a prepared run, as a worker opens it: everything is read, nothing is trained or written.

    `task` is the job's, where it was prepared before; `crew` trains with this process.
    """
    job = job or load_job(store.job_path)
    task, model = prepare_task(job, task)
    require_same_data(store, task)
    load_dense(store.baseline_dir / WEIGHTS_NAME, model)
    modules = modules or local_modules(job, task)
    return Bench(
        job=job,
        task=task,
        dense=model.eval(),
        profile=Profile.from_dict(store.read_profile()),
        baseline=store.read_baseline(),
        file=dense_onnx(store) if of_files(job) else None,
        measure=measure or local_measure(job, dense_forms(store, job), modules),
        modules=modules,
        device=device or torch.device("cpu"),
        crew=crew,
    )
