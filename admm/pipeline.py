"""One pruning run from dense weights to a smaller plain network: ADMM, hard prune, physical shrink, retraining.

`PruneRun` is the stepping core (one ADMM iteration or one retraining epoch a step, state in plain tensors and JSON), so
that `prune()`, a Ray worker, a user's own loop and the tests drive the same thing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from admm.agreement import require_agreement
from admm.checkpoint import pack_optimizer, unpack_optimizer
from admm.compact import compact
from admm.compute import PLAIN, Compute
from admm.constraint import constraint, identity
from admm.errors import PruneError
from admm.finetune import Finetune
from admm.groupmap import GroupMap
from admm.groups import find_groups
from admm.kept import Kept
from admm.outcome import Phase, PruneResult, StepReport
from admm.plan import PruningPlan
from admm.projector import Masks
from admm.recalibrate import recalibrate
from admm.settings import AdmmSettings, FinetuneSettings
from admm.shrink import as_if_pruned, shrink
from admm.solver import Admm
from admm.target import Target
from admm.trace import AdmmTrace
from admm.training import Batch, Loss, cosine, frozen_teacher, make_optimizer, seed_epoch, train_epoch
from admm.validate import check_model, require_finite

if TYPE_CHECKING:
    from admm.team import Team

#: Where a cosine over the ADMM phase ends: W must go on following Z.
LEAST_LR = 0.1

Evaluate = Callable[[nn.Module], float]


class PruneRun:
    """ADMM for `admm.iterations` steps, then hard prune and shrink, then `finetune.epochs` steps of retraining.

    `model` is trained in place until the shrink. `train_batches(epoch)` must give the same batches for the same epoch;
    then a run continued from `state()` ends with bit-equal weights (one thread). Epochs count from `first_epoch`: a run
    that trains on sees what it has not seen yet, where batches are drawn or augmented anew each epoch. `evaluate` is
    asked once an ADMM iteration (of the network as if pruned then) and around the hard prune. `steps_per_epoch`, where
    it is known, lets rho start at its right size in the first iteration. `plan` may be a `Target`, see `prune()`.
    `teacher` is distilled from instead of the model as it is given. With a `team` every process of it runs the same,
    `evaluate` is asked in the first alone. Raises `PlanError` before any training.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: PruningPlan | Target,
        *,
        train_batches: Callable[[int], Iterable[Batch]],
        groups: GroupMap,
        example_input: Tensor | None = None,
        loss: Loss = F.cross_entropy,
        evaluate: Evaluate | None = None,
        admm: AdmmSettings | None = None,
        finetune: FinetuneSettings | None = None,
        align: int = 1,
        seed: int = 0,
        steps_per_epoch: int | None = None,
        compute: Compute = PLAIN,
        teacher: nn.Module | None = None,
        first_epoch: int = 0,
        team: Team | None = None,
    ) -> None:
        check_model(model)
        self.plan = plan
        self.groups = groups
        self._loss = loss
        self.team = team
        """Who trains with this process; may be set between two steps, in all processes alike."""
        self._evaluate = evaluate
        self._train_batches = train_batches
        self._first_epoch = first_epoch
        self._admm_settings = admm or AdmmSettings()
        self._finetune_settings = finetune or FinetuneSettings()
        if self.total_steps == 0:
            raise PruneError("nothing to train: admm.iterations and finetune.epochs are both 0; raise one of them")
        self._seed = seed
        self._compute = compute
        projector = constraint(model, groups, plan, align=align, example_input=example_input)
        self._settings = {
            "admm": asdict(self._admm_settings),
            "finetune": asdict(self._finetune_settings),
            "align": align,
            "seed": seed,
            "first_epoch": first_epoch,
            "compute": compute.to_dict(),
        }
        self._teacher_model = (
            copy.deepcopy(model if teacher is None else teacher).requires_grad_(False)
            if self._finetune_settings.distillation_weight > 0 and self._finetune_settings.epochs > 0
            else None
        )
        self.model = model
        self.trace = AdmmTrace()
        self.phase: Phase = "admm"
        self.kept: Kept = {}
        self.requested = self.effective = projector.plan
        self._wanted = identity(plan, projector)
        self.notes: tuple[str, ...] = ()
        self._steps_done = 0
        steps = None if steps_per_epoch is None else steps_per_epoch * self._admm_settings.epochs_per_iteration
        self._admm: Admm | None = Admm(model, projector, self._admm_settings, steps_per_iteration=steps)
        self._lr = self._admm_settings.lr
        self._steps_per_epoch = steps_per_epoch
        self._samples = 0.0
        self._samples_per_epoch = 1
        self._finetune: Finetune | None = None
        self._optimizer: Optimizer | None = make_optimizer(
            model.parameters(),
            kind=self._admm_settings.optimizer,
            lr=self._admm_settings.lr,
            momentum=self._admm_settings.momentum,
            weight_decay=self._admm_settings.weight_decay,
        )

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self._admm_settings.iterations + self._finetune_settings.epochs

    @property
    def epochs(self) -> float:
        """Samples run forward and backward so far / samples in an epoch; forward passes alone count a third."""
        return self._samples / self._samples_per_epoch

    def step(self) -> StepReport:
        """One ADMM iteration (the last one prunes and shrinks as well) or one retraining epoch.

        Without ADMM iterations the first epoch of retraining prunes and shrinks before it.
        """
        if self.phase == "admm" and self._admm_settings.iterations == 0:
            self._shrink()
        if self.phase == "admm":
            return self._admm_step()
        if self.phase == "finetune":
            return self._finetune_step()
        raise PruneError("the run is done: there is no further step")

    def result(self) -> PruneResult:
        """The outcome; raises `PruneError` before the last step."""
        if self.phase != "done":
            raise PruneError(f"the run is in phase {self.phase!r}: step() until it is done")
        warning = self.trace.warning()
        return PruneResult(
            model=self.model.eval(),
            requested=self.requested,
            effective=self.effective,
            kept=self.kept,
            trace=self.trace,
            epochs=self.epochs,
            notes=(*self.notes, *([warning] if warning else [])),
        )

    def _admm_step(self) -> StepReport:
        assert self._admm is not None
        assert self._optimizer is not None
        settings = self._admm_settings
        losses = []
        for i in range(settings.epochs_per_iteration):
            epoch = self._admm.iteration * settings.epochs_per_iteration + i
            seed_epoch(self._seed, self._first_epoch + epoch, "admm")
            stats = train_epoch(
                self.model,
                self._batches(epoch),
                self._loss,
                self._optimizer,
                phase=f"ADMM iteration {self._admm.iteration + 1}",
                before_step=partial(self._set_lr, epoch),
                after_step=self._after_step,
                max_grad_norm=settings.max_grad_norm,
                compute=self._compute,
                team=self.team,
            )
            losses.append(stats.loss)
            self._count(stats.samples)
        record = self._admm.end_iteration(sum(losses) / len(losses))
        if self.team is not None:
            self.team.require_same(self._admm.state()[0], f"after ADMM iteration {record.iteration}")
        self.trace.records.append(record)
        self._steps_done += 1
        index = self._admm.iteration
        last = index == settings.iterations
        accuracy = self._shrink() if last else self._accuracy_of_projection(self._admm.masks)
        return StepReport(
            phase="admm",
            index=index,
            loss=record.loss,
            epochs=self.epochs,
            accuracy=accuracy,
            primal_residual=record.worst[1],
        )

    def _set_lr(self, epoch: int, step: int) -> None:
        settings = self._admm_settings
        self._lr = settings.lr
        if settings.schedule == "cosine":
            within = min(step / self._steps_per_epoch, 1.0) if self._steps_per_epoch else 0.0
            self._lr *= LEAST_LR + (1.0 - LEAST_LR) * cosine((epoch + within) / settings.epochs)
        assert self._optimizer is not None
        for group in self._optimizer.param_groups:
            group["lr"] = self._lr

    def _after_step(self) -> None:
        assert self._admm is not None
        self._admm.after_step(self._lr)

    def _finetune_step(self) -> StepReport:
        assert self._finetune is not None
        epoch = self._finetune.epoch
        seed_epoch(self._seed, self._first_epoch + epoch, "finetune")
        stats = self._finetune.step(self._batches(self._admm_settings.epochs + epoch), self.team)
        self._count(stats.samples)
        self._steps_done += 1
        accuracy = None
        if self._finetune.done:
            require_finite(self.model, "after retraining")
            if self.team is not None:
                self.team.require_same(dict(self.model.named_parameters()), "after retraining")
            if self._finetune_settings.ema > 0.0:
                self._recalibrate(self.model)  # the statistics are of the weights that were averaged, not of the mean
            if self._evaluate is not None:
                accuracy = self.trace.accuracy_after_finetune = self._ask(self.model)
            self._finish()
        return StepReport(phase="finetune", index=epoch + 1, loss=stats.loss, epochs=self.epochs, accuracy=accuracy)

    def _accuracy_of_projection(self, masks: Masks) -> float | None:
        """Accuracy as if the hard prune came now; the weights are put back afterwards."""
        if self._evaluate is None:
            return None
        assert self._admm is not None
        projector = self._admm.projector
        pruned = as_if_pruned(self.model, self.groups, masks, projector.plan, projector.align)
        self._recalibrate(pruned)
        return self._ask(pruned)

    def _ask(self, model: nn.Module) -> float | None:
        """The model's accuracy, asked in one process and known to all; None where nobody can tell."""
        evaluate = self._evaluate
        if evaluate is None:
            return None
        return evaluate(model) if self.team is None else self.team.first(lambda: evaluate(model))

    def _recalibrate(self, model: nn.Module) -> None:
        epoch = max(self._admm_settings.epochs - 1, 0)
        seed_epoch(self._seed, self._first_epoch + epoch, "recalibrate")
        self._samples += recalibrate(model, self._batches(epoch)) / 3.0

    def _batches(self, epoch: int) -> Iterable[Batch]:
        return self._train_batches(self._first_epoch + epoch)

    def _count(self, samples: int) -> None:
        self._samples_per_epoch = samples
        self._samples += samples

    def _shrink(self) -> float | None:
        """Hard prune and physical shrink: retraining then runs on the small network, at its speed.

        Returns the small network's accuracy before any retraining.
        """
        assert self._admm is not None
        projector = self._admm.projector
        require_finite(self.model, "after ADMM")
        if self._evaluate is not None:
            before = copy.deepcopy(self.model)
            self._recalibrate(before)  # as after the prune: else the figures tell of statistics that lag behind
            self.trace.accuracy_before_prune = self._ask(before)
        shrunk = shrink(
            self.model,
            self.groups,
            self._admm.hard_prune(),
            plan=projector.plan,
            effective=projector.effective(),
            align=projector.align,
            weak=self._admm_settings.nearly_dead,
        )
        self.kept = shrunk.kept
        self.requested, self.effective = projector.plan, shrunk.effective
        self.notes = (*projector.notes, *shrunk.notes)
        small = shrunk.model
        inputs, _ = next(iter(self._batches(0)))
        require_agreement(self.model, small, inputs.to(next(self.model.parameters()).device))
        self._recalibrate(small)
        if self._evaluate is not None:
            self.trace.accuracy_after_prune = self._ask(small)
        self._enter_finetune(small, shrunk.zeros)
        return self.trace.accuracy_after_prune

    def _enter_finetune(self, model: nn.Module, zeros: dict[str, Tensor]) -> None:
        self.model = model
        self._admm = self._optimizer = None  # they hold on to the dense network and its moments
        teacher = frozen_teacher(self._teacher_model, self._compute) if self._teacher_model is not None else None
        self._finetune = Finetune(
            model,
            zeros,
            self._finetune_settings,
            loss=self._loss,
            teacher=teacher,
            compute=self._compute,
            steps_per_epoch=self._steps_per_epoch,
        )
        self.phase = "finetune"
        if self._finetune.done:
            self.trace.accuracy_after_finetune = self.trace.accuracy_after_prune
            self._finish()

    def _finish(self) -> None:
        self.phase = "done"
        self._teacher_model = None
        self.model.eval()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, JSON-ready values) from which `load_state` on a fresh run continues bit-equal."""
        tensors = {f"model.{n}": t for n, t in self.model.state_dict().items()}
        values: dict[str, Any] = {
            "phase": self.phase,
            "steps_done": self._steps_done,
            "samples": [self._samples, self._samples_per_epoch],
            "plan": self._wanted,
            "settings": self._settings,
            "trace": self.trace.to_dict(),
            "kept": self.kept,
            "outcome": {
                "requested": self.requested.to_dict(),
                "effective": self.effective.to_dict(),
                "notes": list(self.notes),
            },
        }
        if self._admm is not None and self._optimizer is not None:
            part, values["admm"] = self._admm.state()
            tensors |= {f"admm.{n}": t for n, t in part.items()}
            part, values["optimizer"] = pack_optimizer(self._optimizer)
            tensors |= {f"optimizer.{n}": t for n, t in part.items()}
        elif self._finetune is not None:
            part, values["finetune"] = self._finetune.state()
            tensors |= {f"finetune.{n}": t for n, t in part.items()}
        return tensors, values

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Take up what `state` gave. Raises `PruneError` when it belongs to another plan."""
        if values["plan"] != self._wanted:
            raise PruneError(f"the checkpoint is of plan {values['plan']}, this is {self._wanted}")
        if values["settings"] != self._settings:
            raise PruneError("the checkpoint was made with other settings of ADMM, retraining or alignment")
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "admm": {}, "optimizer": {}, "finetune": {}}
        for key, tensor in tensors.items():
            head, _, rest = key.partition(".")
            parts[head][rest] = tensor
        self.trace = AdmmTrace.from_dict(values["trace"])
        self._steps_done = int(values["steps_done"])
        self._samples, self._samples_per_epoch = float(values["samples"][0]), int(values["samples"][1])
        if values["phase"] == "admm":
            assert self._admm is not None
            assert self._optimizer is not None
            self.model.load_state_dict(parts["model"])
            self._admm.load_state(parts["admm"], values["admm"])
            unpack_optimizer(self._optimizer, parts["optimizer"], values["optimizer"])
            return
        self.kept = values["kept"]
        outcome = values["outcome"]
        self.requested, self.effective = PruningPlan(outcome["requested"]), PruningPlan(outcome["effective"])
        self.notes = tuple(outcome["notes"])
        self._enter_finetune(compact(self.model, self.kept), {})
        self.model.load_state_dict(parts["model"])
        assert self._finetune is not None
        if values["phase"] == "finetune":
            self._finetune.load_state(parts["finetune"], values["finetune"])
        else:
            self._finish()


def prune(
    model: nn.Module,
    plan: PruningPlan | Target,
    *,
    train_batches: Callable[[int], Iterable[Batch]],
    example_input: Tensor | None = None,
    groups: GroupMap | None = None,
    loss: Loss = F.cross_entropy,
    evaluate: Evaluate | None = None,
    admm: AdmmSettings | None = None,
    finetune: FinetuneSettings | None = None,
    align: int = 1,
    seed: int = 0,
    steps_per_epoch: int | None = None,
    compute: Compute = PLAIN,
    on_step: Callable[[StepReport], None] | None = None,
) -> PruneResult:
    """Prune a copy of `model` by `plan` and return the smaller network; the model given is left as it is.

    `plan` may be a `Target`: then the plan is found on the way, and is `requested` in the result.
    `train_batches(epoch)` gives one epoch of (inputs, targets); `example_input` [1, ...] is needed unless `groups`
    (from `find_groups`) is given. Raises `PlanError` for a plan that does not fit, `DivergedError` for a NaN loss.
    """
    if groups is None:
        if example_input is None:
            raise PruneError("prune() needs example_input, or groups found before")
        groups = find_groups(model, example_input)
    run = PruneRun(
        copy.deepcopy(model),
        plan,
        train_batches=train_batches,
        groups=groups,
        example_input=example_input,
        loss=loss,
        evaluate=evaluate,
        admm=admm,
        finetune=finetune,
        align=align,
        seed=seed,
        steps_per_epoch=steps_per_epoch,
        compute=compute,
    )
    while run.phase != "done":
        report = run.step()
        if on_step is not None:
            on_step(report)
    return run.result()
