"""From one number to per-layer sparsities: keep the most that a budget allows.

Single weights:     maximise sum_t rho_t ||Z_t||^2
Whole structures:   maximise sum_t log(||Z_t||^2 / ||V_t||^2)
such that           sum_l cost_l(filters, columns, weights kept of layer l) <= B

over Z that keeps whole units of V = W + U. The first is the Euclidean projection onto {Z : cost(Z) <= B} in the
rho-weighted norm. Units of a structure hold nearly the same energy each, so that a sum of energies is spent where
they are cheapest and a layer is starved to its last filter; what passes through the network is a product over its
layers, and the sum of the logarithms is that product. (For sorted single weights it would give the scores of LAMP, Lee
et al., ICLR 2021, which did no better there than the energy.)

Where single weights go and each costs the same, the answer is one threshold over the network. Where each layer's size
hangs on one decision (single weights; columns) the costs are additive over decisions: a multiple-choice knapsack,
solved exactly for a grid of costs and counts. A table in blocks is looked at where its blocks end; elsewhere the grid
of counts is refined around the solution, which may miss the best where value and cost are far from smooth. Where
decisions meet (filters of one layer are input channels of the next) costs and shares multiply: both are
linearised around the present counts, solved, and charged for what they really come to; the step is shortened until no
round keeps more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from admm.cost import WeightCost, layer_sizes
from admm.counts import CountSolver
from admm.errors import DivergedError
from admm.groupmap import GroupMap
from admm.largest import largest_counts
from admm.plan import PruningPlan
from admm.projector import ROUNDS as TURNS
from admm.projector import Masks, Projector
from admm.squares import Squares, energy
from admm.target import Bound, Target
from admm.unit_sets import Chosen, Ranking, UnitSets

#: How far a count may move in one round where decisions meet: from a quarter to four times; shortened where that
#: keeps no more energy, until it is below the last figure.
WIDEST, NARROWEST, ROUNDS = 4.0, 1.03, 12
#: The same where the counts to start from were the answer to nearly the same question.
NEAR = 1.5
#: Rounds that every start is given before the best goes on alone.
SCOUTING = 3
#: What counts as more, in logarithms of shares.
GAIN = 1e-4
#: The least energy that a logarithm is taken of.
TINY = 1e-30


@dataclass(frozen=True, slots=True)
class Allocation:
    """A plan within the bound, the projection it leads to, and what that costs and keeps."""

    counts: tuple[int, ...]
    plan: PruningPlan
    projector: Projector
    masks: Masks
    cost: float
    bound: float
    energy: float
    """sum_t rho_t ||Z_t||^2 over the constrained tensors."""
    shares: Mapping[str, float]
    """Per constrained tensor, the part of its energy that is kept."""

    @property
    def log_shares(self) -> float:
        """What is maximised where whole structures go: the sum of the logarithms of the weights' shares."""
        return _log_shares(self.shares)


@dataclass(frozen=True, slots=True)
class Trial:
    """What counts come to, in the search: as an `Allocation`, without masks."""

    counts: tuple[int, ...]
    cost: float
    shares: Mapping[str, float]
    log_shares: float


Charge = Callable[[Sequence[int]], Trial]


class Allocator:
    """Distributes one bound over a network's layers; `model` gives shapes only.

    `positions` (from `output_positions`) is needed for a MAC fraction. Raises `PlanError` for a bound that cannot be
    kept, naming the furthest that can.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: GroupMap,
        target: Target,
        *,
        align: int = 1,
        positions: Mapping[str, int] | None = None,
    ) -> None:
        self._model, self._groups, self._target, self._align = model, groups, target, align
        self.bound = Bound.of(target, model, positions)
        self.units = UnitSets(model, groups, target, align=align)
        self.variables = self.units.variables
        self._solver = CountSolver(self.units, self.bound.table)
        self._require_reachable(self.bound.most)

    @torch.no_grad()
    def allocate(
        self,
        values: Mapping[str, Tensor],
        rho: Mapping[str, float] | None = None,
        bound: float | None = None,
        *,
        start: Allocation | None = None,
    ) -> Allocation:
        """The allocation for W + U = `values` (name -> tensor, at least `variables`); the same values, the same plan.

        `bound` replaces the target's, for budgets that tighten; `start` is an allocation of nearly these values, near
        which the search then stays where decisions meet. Raises `DivergedError` for values that are not finite.
        """
        bound, rho = self._checked(values, rho, bound)
        squares = self.units.squares(values)
        try:
            if self.units.meet:
                near = start.counts if start is not None and start.cost <= bound else None
                return self._searched(near, values, squares, rho, bound)
            if self._target.structures == ("unstructured",) and type(self.bound.table) is WeightCost:
                counts = self._above_threshold(values, rho, bound)
                return self._charged(counts, values, rho, bound, squares)
            if self._target.structures == ("unstructured",):
                rankings = self._rankings(squares, rho)
            else:
                rankings = self._rankings(squares, {n: 1.0 / max(squares.whole(n), TINY) for n in self.variables})
                rankings = [_logarithmic(ranking, len(ranking.prefix) - 1) for ranking in rankings]
            return self._charged(self._solver.refined(rankings, bound), values, rho, bound, squares)
        finally:
            self._solver.forget()

    @torch.no_grad()
    def uniform(
        self, values: Mapping[str, Tensor], rho: Mapping[str, float] | None = None, bound: float | None = None
    ) -> Allocation:
        """The plan that keeps the same share of the units everywhere."""
        bound, rho = self._checked(values, rho, bound)
        return self._within(lambda b: self._solver.uniform(b, self._target.structures), values, rho, bound)

    @torch.no_grad()
    def by_threshold(
        self, values: Mapping[str, Tensor], rho: Mapping[str, float] | None = None, *, normalise: bool = True
    ) -> Allocation:
        """The plan of one global threshold: on |w| / rms of its layer (units: on energy / mean energy of their set)."""
        bound, rho = self._checked(values, rho, None)
        rankings = self._rankings(self.units.squares(values), rho)
        return self._within(lambda b: self._solver.by_threshold(rankings, b, normalise=normalise), values, rho, bound)

    def _checked(
        self, values: Mapping[str, Tensor], rho: Mapping[str, float] | None, bound: float | None
    ) -> tuple[float, dict[str, float]]:
        for name in self.variables:
            if not bool(values[name].isfinite().all()):
                raise DivergedError(f"{name} holds a NaN or Inf: nothing can be allocated by it, load sound weights")
        bound = self.bound.most if bound is None else bound
        self.units.reset()
        self._require_reachable(bound)
        return bound, {name: 1.0 if rho is None else float(rho[name]) for name in self.variables}

    def _require_reachable(self, bound: float) -> None:
        least = self.units.sizes(self.units.least)
        if self._solver.charge(least) > bound:
            raise self.bound.unreachable(least, bound)

    def _above_threshold(self, values: Mapping[str, Tensor], rho: Mapping[str, float], bound: float) -> list[int]:
        """Counts of single weights that cost the same everywhere: exactly the largest rho w^2 of the network."""
        names = [f"{units.name}.weight" for units in self.units.sets]
        return largest_counts(
            [values[name] for name in names],
            [rho[name] for name in names],
            self.units.least,
            math.floor(bound - self._solver.apart()),
        )

    def _rankings(self, squares: Squares, rho: Mapping[str, float]) -> list[Ranking]:
        return [self.units.rank(i, squares, rho, Chosen()) for i in range(len(self.units.sets))]

    def _within(
        self,
        solve: Callable[[float], list[int]],
        values: Mapping[str, Tensor],
        rho: Mapping[str, float],
        bound: float,
    ) -> Allocation:
        """What `solve(bound)` comes to; where the projection keeps more than its counts foretold, for a lower one."""
        least = self._solver.total(self.units.least)
        found, limit = self._charged(solve(bound), values, rho, bound), bound
        while found.cost > bound and limit > least:
            limit = max(min(limit * bound / found.cost, limit * 0.99), least)
            found = self._charged(solve(limit), values, rho, bound)
        if found.cost > bound:  # the least counts keep more than they foretold
            raise self.bound.unreachable(layer_sizes(self._model, self._groups, found.masks), bound)
        return found

    def _charged(
        self,
        counts: Sequence[int],
        values: Mapping[str, Tensor],
        rho: Mapping[str, float],
        bound: float,
        squares: Squares | None = None,
    ) -> Allocation:
        """Project by the plan of these counts; cost and energy are of what the projection really keeps."""
        squares = squares or self.units.squares(values)
        plan = self.units.plan(counts)
        projector = Projector(self._model, self._groups, plan, align=self._align)
        masks = projector.project(values, rho)
        total, shares = 0.0, {}
        for name in self.variables:
            whole = squares.whole(name)
            kept = energy(values[name], masks.parameters[name]) if name in masks.parameters else whole
            total += rho[name] * kept
            if values[name].ndim > 1:
                shares[name] = kept / whole if whole > 0.0 else 1.0
        cost = self._solver.charge(layer_sizes(self._model, self._groups, masks))
        return Allocation(
            counts=tuple(counts),
            plan=plan,
            projector=projector,
            masks=masks,
            cost=cost,
            bound=bound,
            energy=total,
            shares=shares,
        )

    def _foretold(self, counts: Sequence[int], squares: Squares, rho: Mapping[str, float]) -> Trial:
        """What `_charged` would say, without masks: the projector's turns, on sums over rows and columns alone."""
        chosen = Chosen()
        for _ in range(TURNS):
            before = chosen.copy()
            for number, (units, count) in enumerate(zip(self.units.sets, counts, strict=True)):
                if count < units.units:
                    self.units.flag(number, count, self.units.rank(number, squares, rho, chosen), chosen)
            if chosen.same(before):
                break
        cost, shares = self._solver.charge(self.units.sizes_of(chosen)), {}
        for layer in self.units.shapes:
            name = f"{layer}.weight"
            if name in self.variables:
                whole = squares.whole(name)
                shares[name] = self.units.energy_kept(name, squares, chosen) / whole if whole > 0.0 else 1.0
        return Trial(tuple(counts), cost, shares, _log_shares(shares))

    def _searched(
        self,
        near: Sequence[int] | None,
        values: Mapping[str, Tensor],
        squares: Squares,
        rho: Mapping[str, float],
        bound: float,
    ) -> Allocation:
        """Counts where decisions meet: the best that is reached from those `near`, else from uniform plans.

        The search goes by sums over rows and columns where they foretell what a projection keeps, and by projections
        where single weights, or channels and columns of one layer, go as well. What is found is always projected.
        """

        def charged(counts: Sequence[int]) -> Trial:
            found = self._charged(counts, values, rho, bound, squares)
            return Trial(found.counts, found.cost, found.shares, found.log_shares)

        def foretold(counts: Sequence[int]) -> Trial:
            return self._foretold(counts, squares, rho)

        structures = set(self._target.structures)
        plain = "unstructured" not in structures and not {"channel", "shape"} <= structures
        for charge in (foretold, charged) if plain else (charged,):
            if near is not None:
                best = self._climbed(near, charge, squares, rho, bound, ROUNDS, NEAR)
            else:
                best = self._by_rounds(charge, squares, rho, bound)
            found = self._charged(best.counts, values, rho, bound, squares)
            if found.cost <= bound:  # units that hold the same to the last digit may be ranked otherwise
                return found
        return self.uniform(values, rho, bound)

    def _by_rounds(self, charge: Charge, squares: Squares, rho: Mapping[str, float], bound: float) -> Trial:
        """The best that is reached from the uniform plans of few and many structures."""
        present = tuple(dict.fromkeys(units.structure for units in self.units.sets))
        parts = dict.fromkeys([present, *((structure,) for structure in present)])
        starts = [self._solver.uniform(bound, part) for part in parts]
        starts = [counts for counts in starts if self._solver.total(counts) <= bound]
        found = [self._climbed(counts, charge, squares, rho, bound, SCOUTING) for counts in starts]
        best = max(found, key=lambda trial: (trial.cost <= bound, trial.log_shares))
        return self._climbed(best.counts, charge, squares, rho, bound, ROUNDS)

    def _climbed(
        self,
        counts: Sequence[int],
        charge: Charge,
        squares: Squares,
        rho: Mapping[str, float],
        bound: float,
        rounds: int,
        reach: float = WIDEST,
    ) -> Trial:
        """Linearise, solve, charge; a round that keeps no more energy is taken back and the step shortened."""
        self.units.reset()
        best = charge(counts)
        chosen = Chosen()
        for number, count in enumerate(counts):
            self.units.keep(number, count, self.units.rank(number, squares, rho, chosen), chosen)
        rankings = self._valued(best, squares, chosen)
        limit = bound
        for _ in range(rounds):
            trial = self._solver.linear_step(best.counts, rankings, limit, reach)
            found = charge(trial)
            if found.cost > bound:  # who shares a slot differs from what the ranking foresaw
                limit = max(limit * bound / found.cost, self._solver.total(self.units.least))
            if found.cost <= bound and (found.log_shares > best.log_shares + GAIN or best.cost > bound):
                best = found
                for number, count in enumerate(best.counts):
                    self.units.keep(number, count, rankings[number], chosen)
                rankings = self._valued(best, squares, chosen)
                continue
            reach = 1.0 + (reach - 1.0) / 3.0
            if reach < NARROWEST:
                break
        return best

    def _valued(self, best: Trial, squares: Squares, chosen: Chosen) -> list[Ranking]:
        """Rankings whose prefix tells how `log_shares` changes with one count, the others as they are."""
        relative = dict.fromkeys(self.variables, 0.0)
        for name, share in best.shares.items():
            relative[name] = 1.0 / max(share * squares.whole(name), TINY)
        rankings = [self.units.rank(i, squares, relative, chosen) for i in range(len(best.counts))]
        return [_logarithmic(r, count) for r, count in zip(rankings, best.counts, strict=True)]


def _log_shares(shares: Mapping[str, float]) -> float:
    return sum(math.log(max(s, TINY)) for name, s in shares.items() if name.endswith(".weight"))


def _logarithmic(ranking: Ranking, count: int) -> Ranking:
    """Energy as its logarithm, in units of what is held at `count`: the sum over tensors of d log = dE / E there."""
    now = max(float(ranking.prefix[count]), TINY)
    return replace(ranking, prefix=now * np.log(np.maximum(ranking.prefix, TINY * now) / now))


def allocate(
    model: nn.Module,
    groups: GroupMap,
    target: Target,
    *,
    values: Mapping[str, Tensor] | None = None,
    rho: Mapping[str, float] | None = None,
    sensitivity: Mapping[str, float] | None = None,
    align: int = 1,
    positions: Mapping[str, int] | None = None,
) -> PruningPlan:
    """The plan within the target that keeps the most of `values` (the model's own weights).

    `rho` is per parameter; `sensitivity` per layer, in any unit, multiplies it (see `weighted`). They weigh single
    weights against each other; of whole structures they order the units, how many stay goes by shares alone. Raises
    `PlanError` for a target out of reach.
    """
    allocator = Allocator(model, groups, target, align=align, positions=positions)
    if values is None:
        values = {name: p.detach() for name, p in model.named_parameters()}
    return allocator.allocate(values, weighted(allocator.variables, rho, sensitivity)).plan


def weighted(
    variables: Sequence[str], rho: Mapping[str, float] | None, sensitivity: Mapping[str, float] | None
) -> dict[str, float]:
    """rho x sensitivity per parameter.

    A parameter whose module has no sensitivity (norms, layers not measured) takes the geometric mean of those that
    have, so that the unit of the sensitivities does not matter.
    """
    logs = torch.tensor([s for s in (sensitivity or {}).values() if s > 0.0], dtype=torch.float64).log()
    mean = float(logs.mean().exp()) if logs.numel() else 1.0
    return {
        name: (1.0 if rho is None else rho[name]) * (sensitivity or {}).get(name.rpartition(".")[0], mean)
        for name in variables
    }
