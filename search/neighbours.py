"""Proposals next to the front: a plan that nothing beats so far, changed in few places. No Optuna, no Ray.

In a space of dozens of dimensions a plan is seldom improved by drawing another one, and often by taking a block from
one layer and giving it back to another. Steps are those of `search.space`: 0 is the least removed.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from search.dominance import Figures, contenders
from search.pareto import front
from search.space import Space

Steps = Mapping[str, int]

#: Chance that a change of one dimension goes one step further, again and again: mostly one step, sometimes two.
FURTHER = 0.35
#: Chance that one more dimension is changed.
MORE = 0.6
CROSSOVER = 0.25
SWAP = 0.2
#: Share of the changes that only remove more, where trials begin with the weights of others.
DEEPEN = 0.5
#: Excess (share of the budget) over which a parent's weight falls by e: those just under the budget count.
REACH = 0.1
#: The same for accuracy that lies below what the hypervolume counts.
DEPTH = 0.03
#: What a parent weighs that only may stand on the front.
DOUBT = 0.25
#: Mutations tried before the neighbourhood counts as seen.
TRIES = 64
#: Plans drawn in each round of `best`, rounds, and how many of the best are changed in the next.
POOL = 48
ROUNDS = 6
BREEDERS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A finished plan: its steps, its figures, and how far it is over the budget (None: no budget, or not known)."""

    steps: Steps
    figures: Figures
    excess: float | None = None
    stretch: float = 1.0
    """Times the schedule that it was trained for; 1 is what an untried plan would get."""


def parents(known: Sequence[Known], *, floor: float = -math.inf) -> list[tuple[Known, float]]:
    """The plans to change, with their weights (positive, not normed).

    Those that no other surely dominates: of the feasible ones, or of all where there are none. With a budget,
    those just under it weigh more; plans less accurate than `floor` weigh less, the lower the less.
    """
    feasible = [k for k in known if k.excess is None or k.excess <= 0.0]
    if not feasible and known:  # the way into the budget starts at whoever is least over it
        least = sorted(known, key=lambda k: k.excess if k.excess is not None else math.inf)[:4]
        return [(k, 1.0) for k in least]
    on_front = set(front([k.figures.point for k in feasible]))
    chosen = []
    for index in contenders([k.figures for k in feasible]):
        parent = feasible[index]
        weight = 1.0 if index in on_front else DOUBT
        if parent.excess is not None:
            weight *= math.exp(max(parent.excess, -20.0 * REACH) / REACH)
        if parent.figures.accuracy < floor:
            weight *= math.exp(max((parent.figures.accuracy - floor) / DEPTH, -20.0))
        chosen.append((parent, weight))
    return chosen


class Neighbourhood:
    """Draws changed plans within one space.

    `cost` forecasts a plan's relative latency, to find the structure step that costs the same; without one, what a
    layer keeps is the product of what each of its structures keeps. With `deepen` some plans only remove more than
    their parent, so that they can begin with its weights.
    """

    def __init__(self, space: Space, *, cost: Callable[[Steps], float] | None = None, deepen: bool = False) -> None:
        self._deepen = DEEPEN if deepen else 0.0
        self._dimensions = {d.name: d for d in space.dimensions}
        self._sizes = space.sizes
        self._cost = cost if cost is not None else self._kept
        layers: dict[str, list[str]] = {}
        for d in space.dimensions:
            layers.setdefault(d.layer, []).append(d.name)
        self._mixed = [names for names in layers.values() if len(names) > 1]

    def draw(
        self, chosen: Sequence[tuple[Known, float]], seen: Callable[[Steps], bool], rng: random.Random
    ) -> dict[str, int] | None:
        """An unseen plan next to one of the parents, or None where none was found."""
        return self._first_unseen([k.steps for k, _ in chosen], [w for _, w in chosen], seen, rng)

    def around(self, steps: Steps, seen: Callable[[Steps], bool], rng: random.Random) -> dict[str, int] | None:
        """An unseen plan next to this one, or None where none was found."""
        return self._first_unseen([steps], [1.0], seen, rng)

    def _first_unseen(
        self, plans: Sequence[Steps], weights: Sequence[float], seen: Callable[[Steps], bool], rng: random.Random
    ) -> dict[str, int] | None:
        changed = (self.change(plans, weights, rng) for _ in range(TRIES if plans else 0))
        return next((steps for steps in changed if not seen(steps)), None)

    def best(
        self,
        chosen: Sequence[tuple[Known, float]],
        seen: Callable[[Steps], bool],
        rng: random.Random,
        scores: Callable[[Sequence[Steps]], Iterable[float]],
    ) -> dict[str, int] | None:
        """The unseen plan near the parents that scores highest, after `ROUNDS` of changing the best so far.

        None where none scores above 0.
        """
        if not chosen:
            return None
        plans, weights = [k.steps for k, _ in chosen], [w for _, w in chosen]
        pool: dict[tuple[int, ...], tuple[float, dict[str, int]]] = {}
        ranked: list[tuple[float, dict[str, int]]] = []
        for _ in range(ROUNDS):
            drawn = {self.key(steps): steps for steps in (self.change(plans, weights, rng) for _ in range(POOL))}
            new = {key: steps for key, steps in drawn.items() if key not in pool and not seen(steps)}
            if new:
                scored = scores(list(new.values()))
                pool |= {k: (float(score), steps) for (k, steps), score in zip(new.items(), scored, strict=True)}
            ranked = sorted(pool.values(), key=lambda scored: -scored[0])[:BREEDERS]
            if ranked and ranked[0][0] > 0.0:
                plans, weights = [steps for _, steps in ranked], [1.0] * len(ranked)
        return ranked[0][1] if ranked and ranked[0][0] > 0.0 else None

    def change(self, plans: Sequence[Steps], weights: Sequence[float], rng: random.Random) -> dict[str, int]:
        """A plan next to one of these: two crossed, a structure swapped, or a few dimensions moved."""
        steps = dict(rng.choices(plans, weights)[0])
        if self._deepen > 0.0 and rng.random() < self._deepen:
            return self.mutate(steps, rng, only_up=True)
        kind = rng.random()
        if len(plans) > 1 and kind < CROSSOVER:
            steps = self.cross(steps, rng.choices(plans, weights)[0], rng)
            return self.mutate(steps, rng) if rng.random() < MORE else steps
        if self._mixed and kind < CROSSOVER + SWAP:
            return self.swap(steps, rng)
        return self.mutate(steps, rng)

    def key(self, steps: Steps) -> tuple[int, ...]:
        """The steps in the order of the space: one key a plan."""
        return tuple([steps[name] for name in self._sizes])

    def mutate(self, steps: Steps, rng: random.Random, *, only_up: bool = False) -> dict[str, int]:
        """A few dimensions by one or two steps up or down; at least one changes where one can.

        With `only_up` nothing is given back, and the choice of a precision stays.
        """
        changed = dict(steps)
        movable = [name for name, steps_there in self._sizes.items() if steps_there > 1]
        if only_up:
            movable = [n for n in movable if n in self._dimensions and changed[n] < self._sizes[n] - 1]
        if not movable:
            return changed
        count = 1
        while count < len(movable) and rng.random() < MORE:
            count += 1
        for name in rng.sample(movable, count):
            top, size = self._sizes[name] - 1, 1
            while rng.random() < FURTHER:
                size += 1
            # at an end of the range there is one way only
            way = rng.choice(
                [sign for sign, there in ((1, changed[name] < top), (-1, changed[name] > 0 and not only_up)) if there]
            )
            changed[name] = max(0, min(top, changed[name] + way * size))
        return changed

    def swap(self, steps: Steps, rng: random.Random) -> dict[str, int]:
        """One layer's sparsity moved from one structure to another, to the step whose forecast cost is nearest."""
        changed = dict(steps)
        names = rng.choice(self._mixed)
        pruned = [name for name in names if changed[name] > 0]
        if not pruned:
            return changed
        source = rng.choice(pruned)
        target = rng.choice([name for name in names if name != source])
        before = self._cost(changed)
        changed[source] = 0
        options = [{**changed, target: step} for step in range(len(self._dimensions[target].sparsities))]
        return min(options, key=lambda option: abs(self._cost(option) - before))

    def cross(self, one: Steps, other: Steps, rng: random.Random) -> dict[str, int]:
        """Each layer from one of the two plans: a layer's structures belong together."""
        layers = {name: self._dimensions[name].layer if name in self._dimensions else name for name in self._sizes}
        origin = {layer: rng.random() < 0.5 for layer in dict.fromkeys(layers.values())}
        return {name: (one if origin[layer] else other)[name] for name, layer in layers.items()}

    def _kept(self, steps: Steps) -> float:
        """The log of what is kept, summed over the layers; more than all removed costs as little as can be."""
        return sum(math.log(max(1.0 - d.sparsities[steps[name]], 1e-9)) for name, d in self._dimensions.items())
