"""The constraint set is the budget itself: Z is projected onto {Z : cost(Z) <= B}, and ADMM finds the sparsities.

The same interface as `Projector`, whose place it takes in `Admm`: per-layer sparsities are allocated anew in every
projection, from W + U in the rho-weighted norm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from admm.allocate import Allocation, Allocator, weighted
from admm.groupmap import GroupMap
from admm.plan import PruningPlan
from admm.projector import Masks
from admm.target import Target

#: Allocations of one projection at most, where weights without use are found between two of them. At the largest
#: compressions about ten are needed until none is left, each with more live energy than the one before.
ROUNDS = 12


class BudgetProjector:
    """Projects named tensors (W + U) onto all that costs at most the target's bound.

    `sensitivity` (layer -> weight) multiplies rho, see `allocate`. `dead` takes masks and gives them back without what
    serves nothing (`functools.partial(purify, model, groups)`): what it finds loses its energy, and the budget that it
    frees goes elsewhere.
    `positions` is needed for a MAC fraction. `plan`, `notes` and `effective()` are of the latest projection, before the
    first one of a uniform allocation. Raises `PlanError` for a target out of reach.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: GroupMap,
        target: Target,
        *,
        align: int = 1,
        positions: Mapping[str, int] | None = None,
        sensitivity: Mapping[str, float] | None = None,
        dead: Callable[[Masks], Masks] | None = None,
    ) -> None:
        self.target = target
        self.align = align
        self._allocator = Allocator(model, groups, target, align=align, positions=positions)
        self._sensitivity = sensitivity
        self._dead = dead
        self._share = 1.0
        self._axes = {name: p.ndim for name, p in model.named_parameters()}
        self.variables: tuple[str, ...] = self._allocator.variables
        parameters = dict(model.named_parameters())
        start = {name: parameters[name].detach() for name in self.variables}
        self._latest: Allocation = self._allocator.uniform(start)

    @property
    def plan(self) -> PruningPlan:
        """The per-layer sparsities of the latest projection."""
        return self._latest.plan

    @property
    def notes(self) -> list[str]:
        """What was rounded or clamped in the latest projection, and what it came to."""
        unit = "weights" if self.target.compression_x is not None else "MACs" if self.target.mac_fraction else "cost"
        what = f"{self.target.asked}: keeps {self._latest.cost:.10g} of at most {self._bound:.10g} {unit}"
        return [*self._latest.projector.notes, what]

    @property
    def cost(self) -> float:
        """What the latest projection costs; at most `bound`."""
        return self._latest.cost

    @property
    def dense_cost(self) -> float:
        """What the dense network costs."""
        return self._allocator.bound.dense

    @property
    def bound(self) -> float:
        """The most it may cost at the present share."""
        return self._bound

    @property
    def _bound(self) -> float:
        return self._allocator.bound.at(self._share)

    def relax(self, share: float) -> None:
        """Ask for less for now: the bound is dense cost^(1 - share) x target^share; 1.0 is the target.

        For budgets that tighten while ADMM runs; `share` lies in (0, 1].
        """
        if not 0.0 < share <= 1.0:
            raise ValueError(f"share must lie in (0, 1], got {share}: 1.0 is the whole target")
        self._share = share

    def effective(self) -> PruningPlan:
        """The latest plan after rounding: what is really removed."""
        return self._latest.projector.effective()

    @torch.no_grad()
    def project(self, values: Mapping[str, Tensor], rho: Mapping[str, float] | None = None) -> Masks:
        """Masks of the projection of `values` (name -> tensor, at least `variables`) in the norm weighted by `rho`.

        Every name of `variables` has a mask; of a tensor that the allocation leaves alone it is a single True.
        """
        weight = weighted(self.variables, rho, self._sensitivity)
        self._latest = self._allocator.allocate(values, weight, self._bound)
        for _ in range(ROUNDS - 1 if self._dead is not None else 0):
            useful = self._without_dead(values, self._latest.masks)
            if useful is None:
                break
            values = useful
            self._latest = self._allocator.allocate(values, weight, self._bound, start=self._latest)
        masks = self._latest.masks
        device = next(iter(values.values())).device
        return Masks(
            slots=masks.slots,
            channels=masks.channels,
            parameters={
                name: masks.parameters.get(name, torch.ones((1,) * self._axes[name], dtype=torch.bool, device=device))
                for name in self.variables
            },
        )

    def _without_dead(self, values: Mapping[str, Tensor], masks: Masks) -> dict[str, Tensor] | None:
        """`values` with zeros where a kept weight serves nothing; None where there is no such weight."""
        assert self._dead is not None
        after = self._dead(masks).parameters
        lost = {
            name: kept & ~after[name]
            for name in self.variables
            if name in after and (kept := masks.parameters.get(name, torch.ones_like(after[name]))) is not after[name]
        }
        lost = {name: flags for name, flags in lost.items() if bool(flags.any())}
        if not lost:
            return None
        return {name: v.masked_fill(lost[name], 0.0) if name in lost else v for name, v in values.items()}
