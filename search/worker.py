"""One plan becomes one result: prune, shrink, export, check, score, measure. Knows neither Ray nor Optuna.

`TrialRun` steps through it and keeps a checkpoint, so that a Ray worker, `prunefront prune` and the tests run the same
code; `evaluate_plan` is the loop over it. A trial that breaks ends as a result that says why, never as an exception.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from admm.checkpoint import read_state, save_state
from admm.compact import save_pruned
from admm.errors import PruneError
from admm.outcome import PruneResult, StepReport
from admm.pipeline import PruneRun
from admm.plan import PruningPlan
from admm.target import Target
from evaluators import count_macs, count_params
from evaluators.errors import EvaluationError, one_line
from search.artefact import Artefact
from search.budget import Budget
from search.errors import AttemptLost, UserError
from search.module_artefact import accuracy_notes, plan_entry, ship_forms
from search.plan_shapes import Shapes, look_at_shapes
from search.result import Status, TrialResult
from search.shipped import without_gain
from search.store import MODEL_NAME, TRACE_NAME, RunStore, StoreError, write_atomic
from search.training import training_of
from search.trial import Bench, Progress, TrialSpec, epochs_of
from search.twin import epochs_seen, trained_in, twin_of
from search.weights import prunable_weights


class TrialRun:
    """Steps one trial from its plan to its published result.

    `store` is where the result goes; a checkpoint is written there after each training step and taken up by the next
    attempt, whoever makes it. With `store` None nothing is published: `artefacts` holds the files' folder.
    """

    def __init__(self, bench: Bench, spec: TrialSpec, *, store: RunStore | None, artefacts: Path | None = None) -> None:
        self._bench = bench
        self.spec = spec
        self._store = store
        self._started = time.monotonic()
        self._seconds_before = 0.0
        self._rungs: list[tuple[int, float]] = []
        self._shapes: Shapes | None = None
        self._run: PruneRun | None = None
        self._step = 0
        self._resumed = False
        self.result: TrialResult | None = None
        self.pruned: PruneResult | None = None
        self._weights_of: int | None = None
        self._seen = 0
        self._started_from: int | None = None
        self._trained_before = 0.0 if spec.start is None else spec.start.stretch
        if store is not None and store.trial_dir(spec.number).exists():
            # the attempt before this one was killed after it had published, before it could say so
            store.discard_partial(spec.number)
            self.result = store.result(spec.number)
            self.artefacts = store.trial_dir(spec.number)
        elif store is not None:
            attempt = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
            self.artefacts = store.attempt_dir(spec.number, attempt)
        else:
            assert artefacts is not None
            artefacts.mkdir(parents=True, exist_ok=True)
            self.artefacts = artefacts

    @property
    def total_steps(self) -> int:
        """Look at the shapes, train, retrain, measure."""
        job = self.spec.scheduled(self._bench.job, self._trained_before)
        return 2 + job.admm.iterations + job.finetune.epochs

    def step(self) -> Progress:
        """The next step; what goes wrong in this trial ends it as a `failed` result.

        Raises `AttemptLost` when the rig is gone, and `StoreError` when the run folder cannot be written.
        """
        if self.result is not None:
            return replace(self._progress(self.result.status), step=self.total_steps, result=self.result)
        try:
            progress = self._next()
            # what was only taken up is saved already, and its date says when the trial last got on
            saved = self.result is not None or progress.phase == "resumed"
            return progress if saved else self._kept(progress)
        except (AttemptLost, StoreError):
            raise
        except Exception as error:  # the user's network, loss, metric and data are called in there
            return self._end(self._record("failed", reason=_reason(error)))

    def _kept(self, progress: Progress) -> Progress:
        """The progress, its state saved for whoever takes the trial up next."""
        if self._store is None:
            return progress
        try:
            self.save(self._store.checkpoint_path(self.spec.number))
            self._store.keep_checkpoint(self.spec.number)
        except OSError as error:
            if not self._store.trial_dir(self.spec.number).exists():
                raise StoreError(f"trial {self.spec.number}: its state cannot be saved: {error}") from error
            # a worker thought dead that comes back: the trial was finished by its successor meanwhile
            self.result = self._store.result(self.spec.number)
            return replace(progress, result=self.result)
        return progress

    def so_far(self) -> TrialResult:
        """The record of this trial if it were stopped now; whoever stops it says why."""
        known = {} if self._shapes is None else self._shapes.figures()
        return self._record("stopped", reason="stopped early", **known)

    def _next(self) -> Progress:
        if self._run is None:
            self._prepare()
            if self._store is not None and self.load(self._store.fetch_checkpoint(self.spec.number)):
                self._resumed = True
                return self._progress("resumed")
            self._step = 1
            over = self._over_budget()
            return self._progress("shapes") if over is None else self._end(over)
        if self._step == 1:
            self._take_weights_of_twin()
        self._step += 1
        if self.pruned is None and self._run.phase != "done":
            return self._train()
        return self._end(self._finish())

    def _take_weights_of_twin(self) -> None:
        """Nothing is trained where another trial has trained this plan for the other precision."""
        twin = None if self._store is None else twin_of(self._store, self.spec, self._bench.job.align)
        if twin is None:
            return
        assert self._store is not None
        self.pruned = trained_in(self._store, twin, self._bench.dense)
        if self.pruned is not None:
            self._weights_of = twin.number
            self._seen = epochs_seen(self._store.trial_dir(twin.number))

    def _prepare(self) -> None:
        self._run, begun = training_of(self._bench, self.spec)
        self._started_from = None if begun is None else begun.number
        self._trained_before = 0.0 if begun is None else begun.stretch
        job = self.spec.scheduled(self._bench.job, self._trained_before)
        self._seen = (0 if begun is None else epochs_seen(begun.folder)) + epochs_of(job)

    def _over_budget(self) -> TrialResult | None:
        """Measure the plan's shapes before any training; a result when they miss the budget.

        Without a budget they are measured all the same where early stopping needs to know the latency. A target has
        no shapes yet.
        """
        if isinstance(self.spec.plan, Target):
            return None
        bench, job = self._bench, self._bench.job
        budget = Budget.of(job)
        if budget is None and (self._store is None or not job.search.early_stopping):
            return None
        self._shapes = look_at_shapes(bench, self.spec.plan, self.spec.precision, budget)
        judged = self._shapes.judged
        if budget is None or budget.met_by(judged):
            return None
        return self._record(
            "infeasible",
            reason=(
                f"its shapes take up to {judged.latency_high_ms:.4g} ms, {judged.speedup_low:.2f}x at least: over the "
                f"budget of {budget}, so it was not trained"
            ),
            **self._shapes.figures(),
        )

    def _train(self) -> Progress:
        assert self._run is not None
        report = self._step_of_all(self._run)
        progress = replace(self._progress(report.phase), report=report)
        if report.phase != "admm":
            return progress
        progress = replace(progress, record=self._run.trace.records[-1])
        if report.accuracy is None or self.spec.stretch != 1.0:  # rungs compare trials of one schedule
            return progress
        self._rungs.append((report.index, report.accuracy))
        return replace(progress, rung=report.index, accuracy=report.accuracy)

    def _step_of_all(self, run: PruneRun) -> StepReport:
        """The next step of training, in all processes that share it."""
        crew = self._bench.crew
        if crew is None:
            return run.step()
        if run.team is None:
            run.team = crew.begin(self.spec, self._resumed)
        return crew.step(run.step)

    def _finish(self) -> TrialResult:
        """The forms that the rigs measure (exported, lowered, checked, scored), their latencies, then the record."""
        assert self._run is not None
        bench, task = self._bench, self._bench.task
        self.pruned = pruned = self.pruned or self._run.result()
        model = pruned.model.cpu()
        example = task.example_input
        path = self.artefacts / MODEL_NAME
        forms = ship_forms(
            bench.job,
            task,
            model,
            pruned.kept,
            path,
            bench.modules,
            form=partial(bench.form, precision=self.spec.precision),
            lower=bench.job.lower,
        )
        rig = bench.job.deciding_rig.name
        measured = {name: bench.measure(name, form.content) for name, form in forms.items()}
        shipped, deciding = forms[rig], measured[rig]
        extra = {
            "seed": self.spec.seed,
            "align": bench.job.align,
            "precision": self.spec.precision,
            "stretch": self.spec.stretch,
            "seen": self._seen,
            "started_from": self._started_from if self._weights_of is None else None,
            "params": dict(self.spec.params),
        }
        extra |= plan_entry(forms)
        if isinstance(self.spec.plan, Target):
            extra["target"] = self.spec.plan.to_dict()
        save_pruned(self.artefacts, model, pruned.kept, pruned.requested, pruned.effective, extra=extra)
        write_atomic(self.artefacts / TRACE_NAME, pruned.trace.to_lines())
        return self._record(
            "complete",
            accuracy=shipped.score.value,
            accuracy_drop=100.0 * (bench.baseline.accuracy - shipped.score.value),
            accuracy_stderr=shipped.score.stderr,
            latency_ms=deciding.latency_ms,
            latency_high_ms=deciding.latency_high_ms,
            speedup=deciding.speedup,
            speedup_low=deciding.speedup_low,
            compression_x=bench.baseline.weights / max(prunable_weights(model), 1),
            macs=count_macs(model, example),
            params=count_params(model),
            size_bytes=len(shipped.content),
            accuracy_before_prune=pruned.trace.accuracy_before_prune,
            accuracy_after_prune=pruned.trace.accuracy_after_prune,
            primal_residual=pruned.trace.primal_residual,
            parity_max_abs=shipped.parity.max_abs,
            int8_agreement=shipped.agreement if isinstance(shipped, Artefact) else None,
            measurements={name: m.to_dict() for name, m in measured.items()},
            accuracies={name: form.score.value for name, form in forms.items()},
            sizes={name: len(form.content) for name, form in forms.items()},
            lowered=shipped.lowered.to_dict() if shipped.lowered is not None else None,
            notes=(
                *pruned.notes,
                *self._schedule_note(),
                *without_gain(self._plan, shipped.lowered, rig),
                *accuracy_notes(forms, rig),
            ),
        )

    def _schedule_note(self) -> tuple[str, ...]:
        stretch = self.spec.stretch
        return () if stretch == 1.0 else (f"its plan was trained for {stretch:g} times the schedule of a trial",)

    def _record(self, status: Status, **figures: Any) -> TrialResult:
        return TrialResult(
            number=self.spec.number,
            status=status,
            plan_digest=self._plan.digest(),
            seed=self.spec.seed,
            params_sampled=dict(self.spec.params),
            requested=self._plan.to_dict(),
            epochs=self._run.epochs if self._run is not None else 0.0,
            seconds=self._seconds(),
            rungs=tuple(self._rungs),
            precision=self.spec.precision,
            source=self.spec.source,
            stretch=self.spec.stretch,
            weights_of=self._weights_of,
            started_from=self._started_from if self._weights_of is None else None,
            **figures,
        )

    @property
    def _plan(self) -> PruningPlan:
        """The plan asked for; of a target the one found, which is empty until ADMM is over."""
        if isinstance(self.spec.plan, PruningPlan):
            return self.spec.plan
        return self.pruned.requested if self.pruned is not None else PruningPlan()

    def _seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._started

    def _end(self, result: TrialResult) -> Progress:
        self.result = result
        if result.status != "complete":
            # a file that failed its checks must not be found beside the record and used
            (self.artefacts / MODEL_NAME).unlink(missing_ok=True)
        if self._store is not None and not self._store.commit(self.spec.number, self.artefacts, result):
            # another attempt was first: its record stands, this one is thrown away
            self.result = result = self._store.result(self.spec.number)
        return replace(self._progress(result.status), step=self.total_steps, result=result)

    def _progress(self, phase: str) -> Progress:
        return Progress(
            step=self._step,
            total=self.total_steps,
            phase=phase,
            relative_latency=1.0 / self._shapes.deciding.speedup if self._shapes is not None else None,
        )

    def save(self, path: Path) -> None:
        """Write the state between two steps; whoever takes the trial up next goes on from it."""
        if self._run is None:
            return
        tensors, values = self._run.state()
        values["trial"] = {
            "step": self._step,
            "seconds": self._seconds(),
            "rungs": self._rungs,
            "shapes": self._shapes.to_dict() if self._shapes is not None else None,
            "seed": self.spec.seed,
            "started_from": self._started_from,
        }
        save_state(path, tensors, values)

    def load(self, path: Path) -> bool:
        """Take up a state of `save`; False where there is none, it cannot be read, or it is another plan's."""
        if not path.exists():
            return False
        if self._run is None:
            self._prepare()
        assert self._run is not None
        try:
            tensors, values = read_state(path)
            trial = values["trial"]
            if trial["seed"] != self.spec.seed:
                return False
            started_from = trial.get("started_from")
            step, seconds = int(trial["step"]), float(trial["seconds"])
            rungs = [(int(i), float(a)) for i, a in trial["rungs"]]
            shapes = Shapes.from_dict(trial["shapes"]) if trial["shapes"] else None
            self._run.load_state(tensors, values)
        except (PruneError, KeyError, TypeError, ValueError, RuntimeError):
            self._prepare()  # a half-loaded run must not train on
            return False
        self._started_from = started_from
        self._step, self._seconds_before, self._rungs, self._shapes = step, seconds, rungs, shapes
        return True


def evaluate_plan(
    bench: Bench,
    spec: TrialSpec,
    *,
    artefacts: Path,
    on_progress: Callable[[Progress], None] | None = None,
) -> tuple[TrialResult, TrialRun]:
    """One plan from start to end in this process, its files in `artefacts`, nothing published."""
    run = TrialRun(bench, spec, store=None, artefacts=artefacts)
    while run.result is None:
        progress = run.step()
        if on_progress is not None:
            on_progress(progress)
    return run.result, run


def _reason(error: Exception) -> str:
    """The message of an error that says what it is by itself, else with its type before it."""
    named = isinstance(error, PruneError | EvaluationError | UserError)
    return one_line(error) if named or not str(error) else f"{type(error).__name__}: {one_line(error)}"
