"""ADMM for pruning: min f(W) + g(Z) subject to W = Z, where g says which zeros the plan demands.

    W := argmin f(W) + sum_t rho_t/2 ‖W_t − Z_t + U_t‖²      trained with the user's optimiser
    Z := projection of W + U onto the plan's set              `Projector`, weighted by each tensor's gradient scale
    U := U + W − Z

(Zhang et al. 2018, eq. 5-8; scaled form of Boyd et al. 2011, section 3.1.1.) The penalty is applied as a proximal step
after each optimiser step, W := (W + lr rho (Z − U)) / (1 + lr rho): the exact minimiser of the quadratic around the
gradient step. It is stable however large rho gets, untouched by momentum or Adam's scaling, and one fused call.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from admm.errors import DivergedError
from admm.projector import Masks, Projector
from admm.settings import AdmmSettings
from admm.trace import TraceRecord

if TYPE_CHECKING:
    from admm.budgeted import BudgetProjector

#: rho is at least pull / (lr x steps): exp(−pull) of the gap to Z − U survives an
#: iteration that the loss does not resist. It keeps rho alive where a network fits its data and gradients vanish. Where
#: the number of steps is not known, it holds from the second iteration on. Over more than `PULL_ITERATIONS` the same
#: pull is spread: each then need close a part of the gap only, and what Z gave up can still come back.
PULL_FIRST, PULL_LAST, PULL_ITERATIONS = 1.0, 6.0, 6
#: Residual balancing (Boyd et al. 2011, section 3.4.1): factor, trigger and the widest correction. A wider one lets a
#: long run raise rho until W stands still short of its optimum.
BALANCE, TRIGGER, WIDEST = 1.5, 5.0, 4.0
#: What is left of rho, at least, from one iteration to the next. Where gradients vanish, a rho that fell with them
#: would blow up U = y/rho.
LEAST_LEFT = 0.85
#: Steps an iteration whose gradients are looked at. In the first iteration they come before Z: which filters are worth
#: keeping shows in the gradients' scale, and a first choice made without it is never quite undone.
OBSERVED_STEPS = 8
#: Smallest root-mean-square a tensor is credited with: a BatchNorm shift starts at zero.
SMALLEST_RMS = 1e-2


class Admm:
    """The Z and U variables beside a model that somebody trains.

    Three calls make any training loop an ADMM loop: `admm = Admm(model, projector, settings)`, with the steps of an
    iteration where they are known; `admm.after_step(lr)` after each `optimizer.step()`, before gradients are cleared;
    `admm.end_iteration(loss)` when an iteration's epochs are over. Memory: T = Z − U and U, two copies of the
    constrained tensors (Z is T + U), and the masks. Raises `DivergedError` for weights that are not finite.
    """

    def __init__(
        self,
        model: nn.Module,
        projector: Projector | BudgetProjector,
        settings: AdmmSettings,
        *,
        steps_per_iteration: int | None = None,
    ) -> None:
        self.projector = projector
        self._expected_steps = steps_per_iteration
        self.settings = settings
        self.names = projector.variables
        self.iteration = 0
        parameters = dict(model.named_parameters())
        self._parameters = [parameters[name] for name in self.names]
        self._require_finite("before pruning")
        self._u = [torch.zeros_like(w) for w in self._weights]
        self._balance = dict.fromkeys(self.names, 1.0)
        self._rho = dict.fromkeys(self.names, 0.0)
        self._norms: list[Tensor] = []
        self._steps = 0
        self._lr = settings.lr
        self._scale: dict[str, float] = {}
        self._t: list[Tensor] = []
        self._masks: Masks | None = None if self.names else Masks(slots={}, channels={}, parameters={})

    @property
    def masks(self) -> Masks:
        """What the last projection keeps; there once the first iteration has observed its gradients."""
        assert self._masks is not None
        return self._masks

    @property
    def rho(self) -> dict[str, float]:
        """rho per constrained tensor, as used by the last step."""
        return dict(self._rho)

    @torch.no_grad()
    def after_step(self, lr: float) -> None:
        """The proximal step of the penalty on every constrained tensor; `lr` is the optimiser's current one."""
        if not self.names:
            return
        self._steps += 1
        # the largest of the iteration: a schedule may end near zero, which says nothing of how far W can go
        self._lr = lr if self._steps == 1 else max(self._lr, lr)
        if len(self._norms) < OBSERVED_STEPS:
            self._observe()
        if self._masks is None:
            if len(self._norms) < OBSERVED_STEPS:
                return
            self._begin()
        weights = [lr * self._rho[n] / (1.0 + lr * self._rho[n]) for n in self.names]
        torch._foreach_lerp_(self._weights, self._t, weights)

    @torch.no_grad()
    def end_iteration(self, loss: float) -> TraceRecord:
        """Z and U updates, then the next iteration's rho; `loss` is the iteration's mean, for the trace."""
        self._require_finite(f"in ADMM iteration {self.iteration + 1}")
        if not self.names:  # the empty plan: plain training, nothing to project
            record = self._record(loss, torch.zeros(0), torch.zeros(0))
            self.iteration += 1
            return record
        if self._masks is None:
            self._begin()
        self._measure_scale()
        # In place, so that no third copy of the weights is ever held: T becomes Z before, U becomes W + U.
        torch._foreach_add_(self._t, self._u)
        torch._foreach_add_(self._u, self._weights)
        self._tighten(self.iteration + 1)
        self._masks = self.projector.project(self._named(self._u), self._scale)
        primal, dual = self._split_dual()
        record = self._record(loss, primal, dual)
        self.iteration += 1
        if self.iteration < self.settings.iterations:
            self._rebalance(record)
            before = dict(self._rho)
            self._set_rho(self._steps)
            self._rescale_u(before)
        torch._foreach_sub_(self._t, self._u)
        self._steps = 0
        self._norms = []
        return record

    @torch.no_grad()
    def hard_prune(self) -> Masks:
        """Zero in place what the last projection removed; returns the masks.

        Before any step that is what the projection of the weights as they are removes.
        """
        if self._masks is None:
            self._project_first()
        for name, parameter in zip(self.names, self._parameters, strict=True):
            parameter.mul_(self.masks.parameters[name])
        return self.masks

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, JSON-ready values) from which `load_state` continues bit-equal, also within an iteration."""
        values = {
            "iteration": self.iteration,
            "rho": self._rho,
            "balance": self._balance,
            "steps": self._steps,
            "lr": self._lr,
            "norms": [norms.tolist() for norms in self._norms],
        }
        if self._masks is None:  # nothing was trained yet
            return {}, values
        tensors = {f"t.{n}": t for n, t in self._named(self._t).items()}
        tensors |= {f"u.{n}": u for n, u in self._named(self._u).items()}
        for kind in ("slots", "channels", "parameters"):
            tensors |= {f"{kind}.{n}": m for n, m in getattr(self.masks, kind).items()}
        return tensors, values

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Take up what `state` gave, on the model whose weights were saved with it."""
        self.iteration = int(values["iteration"])
        self._rho = {n: float(values["rho"][n]) for n in self.names}
        self._balance = {n: float(values["balance"][n]) for n in self.names}
        self._steps, self._lr = int(values["steps"]), float(values["lr"])
        self._norms = [torch.tensor(norms).to(self._weights[0]) for norms in values["norms"]]
        if not tensors:
            return
        device = self._weights[0].device if self.names else torch.device("cpu")
        parts: dict[str, dict[str, Tensor]] = {k: {} for k in ("t", "u", "slots", "channels", "parameters")}
        for key, tensor in tensors.items():
            kind, _, name = key.partition(".")
            parts[kind][name] = tensor.to(device).clone()  # T and U are changed in place
        self._t = [parts["t"][n] for n in self.names]
        self._u = [parts["u"][n] for n in self.names]
        self._masks = Masks(slots=parts["slots"], channels=parts["channels"], parameters=parts["parameters"])

    @property
    def _weights(self) -> list[Tensor]:
        # read anew each time: `.data` may have been moved by the user since
        return [p.data for p in self._parameters]

    def _named(self, values: list[Tensor]) -> dict[str, Tensor]:
        return dict(zip(self.names, values, strict=True))

    def _begin(self) -> None:
        """Z starts projected, U at zero, rho at its first size."""
        self._project_first()
        self._t = [w * self.masks.parameters[n] for n, w in zip(self.names, self._weights, strict=True)]
        self._set_rho(self._expected_steps)

    def _project_first(self) -> None:
        self._measure_scale()
        self._tighten(0)
        self._masks = self.projector.project(self._named(self._weights), self._scale)

    def _tighten(self, iterations: int) -> None:
        """Where pruning is progressive, the constraint set shrinks from the dense network to what was asked."""
        span = self.settings.progressive * self.settings.iterations
        self.projector.relax(1.0 if span < 1.0 else min((iterations + 1) / span, 1.0))

    def _split_dual(self) -> tuple[Tensor, Tensor]:
        """U holds W + U and T the Z before: leave U in U and the new Z in T; ‖W−Z‖ and ‖Z−Z_before‖ per tensor."""
        primal: list[Tensor] = []
        dual: list[Tensor] = []
        for i, (name, weight) in enumerate(zip(self.names, self._weights, strict=True)):
            z = self._u[i] * self.masks.parameters[name]
            self._u[i] -= z
            # the Z before has said all it has to say: its memory serves both differences
            dual.append(self._t[i].sub_(z).norm())
            primal.append(torch.sub(weight, z, out=self._t[i]).norm())
            self._t[i] = z
        return torch.stack(primal), torch.stack(dual)

    def _measure_scale(self) -> None:
        """‖g_t‖/‖W_t‖ per tensor: the unit of rho, and the metric in which the projection compares tensors.

        The projection's metric is rho without its floor, which would make all tensors alike where gradients are small.
        """
        if not self._norms:  # no step was made: magnitudes alone tell
            self._scale = dict.fromkeys(self.names, 1.0)
            return
        gradient = torch.stack(self._norms).mean(0)
        smallest = torch.tensor([SMALLEST_RMS * w.numel() ** 0.5 for w in self._weights]).to(gradient)
        size = torch.maximum(torch.stack(torch._foreach_norm(self._weights)), smallest)
        scale = (gradient / size).tolist()
        # A tensor without a gradient (frozen, or behind dead units) says nothing of its worth: it is like the others,
        # not worth nothing.
        known = [math.log(s) for s in scale if s > 0.0]
        like = math.exp(sum(known) / len(known)) if known else 1e-12
        self._scale = {name: s if s > 0.0 else like for name, s in zip(self.names, scale, strict=True)}

    def _observe(self) -> None:
        """Keep this step's gradient norms on the device; a tensor without a gradient counts as zero."""
        grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self._parameters]
        self._norms.append(torch.stack(torch._foreach_norm(grads)))

    def _set_rho(self, steps: int | None) -> None:
        """rho_t = balance_t x max(multiplier x ‖g_t‖/‖W_t‖, pull / (lr steps)); it falls slowly, at most 1/lr."""
        lr = self._lr
        last = max(self.settings.iterations - 1, 1)
        progress = min(self.iteration / last, 1.0)
        multiplier = self.settings.rho_start * (self.settings.rho_end / self.settings.rho_start) ** progress
        pull = PULL_FIRST * (PULL_LAST / PULL_FIRST) ** progress
        pull *= min(PULL_ITERATIONS / self.settings.iterations, 1.0)
        floor = 0.0 if steps is None else pull / (lr * max(steps, 1))
        for name, value in self._scale.items():
            wanted = self._balance[name] * max(multiplier * value, floor)
            self._rho[name] = min(max(wanted, LEAST_LEFT * self._rho[name]), 1.0 / lr)

    def _rescale_u(self, before: Mapping[str, float]) -> None:
        """Keep the unscaled dual y = rho U where rho changed (Boyd et al. 2011, section 3.4.1)."""
        changed = [before[n] / self._rho[n] if before[n] > 0.0 and self._rho[n] > 0.0 else 1.0 for n in self.names]
        torch._foreach_mul_(self._u, changed)

    def _rebalance(self, record: TraceRecord) -> None:
        for name in self.names:
            primal, dual = record.primal[name], record.dual[name]
            if primal > TRIGGER * dual:
                self._balance[name] = min(self._balance[name] * BALANCE, WIDEST)
            elif dual > TRIGGER * primal:
                self._balance[name] = max(self._balance[name] / BALANCE, 1.0 / WIDEST)

    def _record(self, loss: float, primal: Tensor, dual: Tensor) -> TraceRecord:
        if self.names:
            size = torch.stack(torch._foreach_norm(self._weights)).clamp_min(1e-12)
            primal, dual = primal / size, dual / size
        return TraceRecord(
            iteration=self.iteration + 1,
            loss=loss,
            primal=dict(zip(self.names, primal.tolist(), strict=True)),
            dual=dict(zip(self.names, dual.tolist(), strict=True)),
            rho=dict(self._rho),
            kept=self._kept(),
        )

    def _kept(self) -> dict[str, int]:
        """Entries that the masks keep; a mask broadcasts to its tensor."""
        if not self.names:
            return {}
        masks = [self.masks.parameters[name] for name in self.names]
        counts = torch.stack([mask.sum() for mask in masks]).tolist()
        return {
            name: count * (parameter.numel() // mask.numel())
            for name, count, parameter, mask in zip(self.names, counts, self._parameters, masks, strict=True)
        }

    def _require_finite(self, when: str) -> None:
        # one norm a tensor and one look at the device; a norm is finite only if every entry is
        norms = torch.stack(torch._foreach_norm(self._weights)) if self.names else torch.zeros(0)
        for name, finite in zip(self.names, norms.isfinite().tolist(), strict=True):
            if not finite:
                raise DivergedError(f"{name} holds a NaN or Inf {when}: lower the lr, or load sound weights")
