"""ADMM in a training loop of one's own: attach, train as ever, end each epoch, finish.

    admm = attach(model, optimizer, plan, example_input=x)
    for epoch in range(admm.epochs):
        ...                      # forward, backward, optimizer.step(): untouched
        admm.end_epoch()
    small = admm.finish()        # small.model, and small.zeros for hold_zeros(...)

The penalty is taken by a hook after each `optimizer.step()`, so mixed-precision scalers, gradient accumulation and
trainers of other libraries need nothing more; a step that a scaler skips is skipped here too. Models wrapped for DDP or
by `torch.compile` are looked into; parameters split over devices (FSDP) are not supported.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, replace
from itertools import chain
from typing import Any
from weakref import WeakSet

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from admm.agreement import require_agreement
from admm.constraint import constraint, identity
from admm.errors import DivergedError, PruneError
from admm.groupmap import GroupMap
from admm.groups import find_groups
from admm.plan import PruningPlan
from admm.recalibrate import recalibrate
from admm.settings import AdmmSettings
from admm.shrink import Shrunk, shrink
from admm.solver import OBSERVED_STEPS, Admm
from admm.target import Target
from admm.trace import AdmmTrace, TraceRecord
from admm.training import Batch
from admm.unwrap import inner_model, plain_optimizer
from admm.validate import check_model, require_finite

#: What holds a hook: two on one optimiser would pull twice.
_HOOKED: WeakSet[AttachedAdmm] = WeakSet()


class AttachedAdmm:
    """What `attach` returns: counts steps and epochs, keeps the trace, ends in the smaller network."""

    def __init__(
        self,
        model: nn.Module,
        groups: GroupMap,
        admm: Admm,
        optimizer: Optimizer | None,
        wanted: PruningPlan | Target,
    ) -> None:
        self.admm = admm
        self.trace = AdmmTrace()
        self._model = model
        self._groups = groups
        self._optimizer = optimizer
        self._wanted = identity(wanted, admm.projector)
        self._epoch = 0
        self._losses: list[float] = []
        self._steps = 0
        self._gradient_seen = False
        parameters = dict(model.named_parameters())
        self._parameters = [parameters[name] for name in admm.names]
        self._places = [(p.device, p.dtype) for p in self._parameters[:1]]
        self._outcome: dict[str, Any] | None = None
        self._handles: list[RemovableHandle] = []
        self._due = False
        if optimizer is not None:
            if any(other._optimizer is optimizer for other in _HOOKED):
                raise PruneError("this optimiser has ADMM attached already: finish() or detach() that first")
            self._trained = self._trained_ids(optimizer)
            self._rates()
            self._handles = [
                optimizer.register_step_pre_hook(self._before_step),
                optimizer.register_step_post_hook(self._on_step),
            ]
            _HOOKED.add(self)

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return self._epoch

    @property
    def epochs(self) -> int:
        """Epochs that the ADMM phase takes in all."""
        return self.admm.settings.epochs

    @property
    def done(self) -> bool:
        """Whether all iterations are over and `finish` is due; until then W is still held near Z."""
        return self.admm.iteration >= self.admm.settings.iterations

    def after_step(self, lr: float) -> None:
        """The penalty's proximal step at learning rate `lr`, by hand: only where `attach` was given no optimiser."""
        if self._optimizer is not None:
            raise PruneError("the optimiser calls after_step() by itself: leave it out, or attach(model, None, ...)")
        self._pull(lr, lr)

    def end_epoch(self, loss: float | Tensor | None = None) -> TraceRecord | None:
        """Count an epoch; the one that completes an iteration updates Z and U and returns its record.

        `loss`, the epoch's mean, goes into the trace. Raises `DivergedError` for a loss or weights that are not finite,
        `PruneError` where no step or no gradient was seen.
        """
        if self.done:
            return None
        self._require_progress()
        mean = math.nan if loss is None else float(loss)
        if loss is not None and not math.isfinite(mean):
            raise DivergedError(f"the loss is {mean} in ADMM epoch {self._epoch + 1}: lower the lr, or clip gradients")
        self._epoch += 1
        self._losses.append(mean)
        if self._epoch % self.admm.settings.epochs_per_iteration:
            return None
        record = self.admm.end_iteration(sum(self._losses) / len(self._losses))
        self._losses = []
        self._steps = 0
        self.trace.records.append(record)
        if self.done:
            self._outcome = self._found()
        return record

    def finish(self, batches: Iterable[Batch] | None = None) -> Shrunk:
        """Hard prune the model in place, return the smaller copy, and let go of the optimiser.

        `batches` of training data settle the BatchNorm statistics of the small network, and the first one proves that
        it says what the pruned model says. The result's notes tell what was rounded, and whether ADMM has converged.
        Its model wants an optimiser of its own. Raises `PruneError` before the last iteration is over.
        """
        if not self.done:
            raise PruneError(
                f"ADMM has done {self.admm.iteration} of {self.admm.settings.iterations} iterations: call end_epoch() "
                f"after each of the {self.epochs} epochs, then finish()"
            )
        require_finite(self._model, "after ADMM")
        self.detach()
        outcome = self._outcome or self._found()
        small = shrink(
            self._model,
            self._groups,
            self.admm.hard_prune(),
            plan=PruningPlan(outcome["plan"]),
            effective=PruningPlan(outcome["effective"]),
            align=self.admm.projector.align,
            weak=self.admm.settings.nearly_dead,
        )
        if batches is not None:
            left = iter(batches)
            first = next(left, None)
            if first is None:
                raise PruneError("finish() was given no batch: hand over the training data anew")
            inputs = first[0].to(next(self._model.parameters()).device)
            require_agreement(self._model, small.model, inputs)
            recalibrate(small.model, chain([first], left))
        warning = self.trace.warning()
        return replace(small, notes=(*outcome["notes"], *small.notes, *([warning] if warning else [])))

    def detach(self) -> None:
        """Take the hook off the optimiser, finished or not; the model stays as it is."""
        for handle in self._handles:
            handle.remove()
        _HOOKED.discard(self)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, JSON-ready values) for `save_state`, beside your own of model and optimiser.

        Like torch's `state_dict` it refers to live tensors. Saved between iterations, the run continues bit-equal.
        """
        tensors, values = self.admm.state()
        return tensors, {
            "plan": self._wanted,
            "settings": asdict(self.admm.settings),
            "align": self.admm.projector.align,
            "epoch": self._epoch,
            "losses": self._losses,
            "trace": self.trace.to_dict(),
            "outcome": self._outcome,
            "admm": values,
        }

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Take up what `state` gave, on a model whose weights were loaded before `attach`, with any optimiser.

        Raises `PruneError` for the state of another plan or of other settings.
        """
        if values["plan"] != self._wanted:
            raise PruneError(f"the checkpoint is of plan {values['plan']}, this is {self._wanted}")
        if (values["settings"], values["align"]) != (asdict(self.admm.settings), self.admm.projector.align):
            raise PruneError("the checkpoint was made with other settings of ADMM or another alignment")
        self.admm.load_state({name: tensor.clone() for name, tensor in tensors.items()}, values["admm"])
        self.trace = AdmmTrace.from_dict(values["trace"])
        self._epoch = int(values["epoch"])
        self._losses = list(values["losses"])
        self._outcome = values["outcome"]

    def _found(self) -> dict[str, Any]:
        # a target's plan is that of the latest projection, which a run continued after it would not know
        projector = self.admm.projector
        plan, effective = projector.plan.to_dict(), projector.effective().to_dict()
        return {"plan": plan, "effective": effective, "notes": list(projector.notes)}

    def _before_step(self, *_: Any) -> None:
        self._due = True

    def _on_step(self, optimizer: Optimizer, *_: Any) -> None:
        if not self._due:  # torch calls the hooks of a class and of its parent, where its step calls super().step()
            return
        self._due = False
        # a fused optimiser under a GradScaler skips in its kernel: elsewhere nothing calls the hook
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is None or not bool(found_inf):
            self._pull(*self._rates())

    def _pull(self, lr: float, peak: float) -> None:
        """The proximal step; rho's first size is taken at `peak`, for at a warm-up's tiny rate it would be huge."""
        if lr <= 0.0:  # a warm-up may start there: W has not moved
            return
        for before, p in zip(self._places, self._parameters, strict=False):
            if (p.device, p.dtype) != before:
                was, now = (
                    f"{str(dtype).removeprefix('torch.')} on {device}"
                    for device, dtype in (before, (p.device, p.dtype))
                )
                raise PruneError(f"the model was {was} when attach() saw it and is {now}: move it first, then attach")
        if not self._gradient_seen:
            self._gradient_seen = any(p.grad is not None and bool(p.grad.any()) for p in self._parameters)
        starting = self.admm.iteration == 0 and self._steps < OBSERVED_STEPS
        self._steps += 1
        self.admm.after_step(peak if starting else lr)

    def _require_progress(self) -> None:
        epoch = self._epoch + 1
        current = dict(self._model.named_parameters())
        for name, parameter in zip(self.admm.names, self._parameters, strict=True):
            if current.get(name) is not parameter:
                raise PruneError(f"{name} was replaced by another tensor after attach(): attach again to the new model")
        if self._steps == 0:
            raise PruneError(
                f"ADMM saw no step with a learning rate above 0 in epoch {epoch}: train with the optimiser that "
                f"attach() was given, or attach again to the new one"
            )
        if self.admm.names and not self._gradient_seen:
            raise PruneError(
                f"no pruned layer had a gradient after the steps of epoch {epoch}: clear gradients after "
                f"optimizer.step(), not within it, or attach(model, None, ...) and call after_step(lr) before"
            )

    def _trained_ids(self, optimizer: Optimizer) -> set[int]:
        """The pruned parameters that train; frozen ones are pruned by magnitude."""
        given = {id(p) for group in optimizer.param_groups for p in group["params"]}
        wanted = {name: p for name, p in zip(self.admm.names, self._parameters, strict=True) if p.requires_grad}
        missing = [name for name, p in wanted.items() if id(p) not in given]
        if missing:
            raise PruneError(
                f"the optimiser does not train {missing[0]}, which the plan prunes: give attach() the one that does"
            )
        return {id(p) for p in wanted.values()}

    def _rates(self) -> tuple[float, float]:
        """The pruned layers' learning rate now, and the one that a scheduler's warm-up is on its way to."""
        assert self._optimizer is not None
        every = self._optimizer.param_groups
        groups = [group for group in every if any(id(p) in self._trained for p in group["params"])] or every
        found = sorted({float(group["lr"]) for group in groups})
        if len(found) > 1:
            rates = ", ".join(f"{value:g}" for value in found)
            raise PruneError(f"the pruned layers have different learning rates ({rates}): give them one")
        known = [float(group[key]) for group in groups for key in ("initial_lr", "max_lr") if key in group]
        return found[0], max([*found, *known])


def attach(
    model: nn.Module,
    optimizer: Optimizer | None,
    plan: PruningPlan | Target,
    *,
    example_input: Tensor | None = None,
    groups: GroupMap | None = None,
    settings: AdmmSettings | None = None,
    steps_per_epoch: int | None = None,
    align: int = 1,
) -> AttachedAdmm:
    """Prune `model` by `plan`, or to a `Target`, while `optimizer` trains it in a loop of the user's.

    `example_input` [1, ...] is needed unless `groups` (from `find_groups`) is given, and for a MAC fraction;
    `steps_per_epoch`, where it is known, gives the penalty its right size from the first epoch. Of `settings`, the
    iterations, rho, `progressive` and `nearly_dead` count; rates, decay and clipping are your loop's. Attach when the
    model is on its device. Raises `PlanError` for a plan that does not fit, `PruneError` for an optimiser that does not
    train a pruned layer or weights that are not finite.
    """
    model = inner_model(model)
    check_model(model)
    if groups is None:
        if example_input is None:
            raise PruneError("attach() needs example_input, or groups found before")
        groups = find_groups(model, example_input)
    settings = settings or AdmmSettings()
    steps = None if steps_per_epoch is None else steps_per_epoch * settings.epochs_per_iteration
    projector = constraint(model, groups, plan, align=align, example_input=example_input)
    admm = Admm(model, projector, settings, steps_per_iteration=steps)
    return AttachedAdmm(model, groups, admm, None if optimizer is None else plain_optimizer(optimizer), plan)
