"""Which of many untried plans is worth a trial: the one that by forecast adds most to the front."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from search.neighbours import REACH, Known
from search.progress_log import ACCURACY_SPAN
from search.ridge import Features, Floats, Line
from search.volume import covered

#: Accuracy lost, in units of what the hypervolume counts, from which on a trial says little of the front's damage.
FAR = 2.0


@dataclass(frozen=True)
class _Target:
    line: Line
    coefficients: Floats

    def at(self, features: Floats) -> Floats:
        return self.line.at(features, self.coefficients)


class Judge:
    """Scores plans by what one draw of the forecast makes of them.

    `known` are the finished plans with both figures and `rows` their features; `over_rows` and `excesses` those of
    all plans whose excess over the budget is known. `floor` is the hypervolume's least accuracy. With `inherit` plans
    begin with the weights of known ones and are worth what they add to all that is known; without, to what plans showed
    at first.
    """

    def __init__(
        self,
        features: Features,
        known: Sequence[Known],
        rows: Floats,
        over_rows: Floats,
        excesses: Sequence[float],
        floor: float,
        rng: np.random.Generator,
        *,
        inherit: bool = False,
    ) -> None:
        self._features = features
        self._floor = floor

        def drawn(line: Line, columns: int) -> _Target:
            return _Target(line, line.draw(rng.standard_normal(columns)))

        # what a plan shows at first is told by what others showed at first, and worth what it adds to that
        at_first = [i for i, k in enumerate(known) if k.stretch == 1.0]
        first_rows = rows[at_first]
        loss = np.asarray([floor + ACCURACY_SPAN - known[i].figures.accuracy for i in at_first])
        weights = 1.0 / (1.0 + np.square(np.maximum(loss, 0.0) / (FAR * ACCURACY_SPAN)))
        self._loss = drawn(Line(first_rows, loss, weights), rows.shape[1])
        self._costs = [
            drawn(Line(rows, np.asarray([-math.log(gain) for gain in of_one])), rows.shape[1])
            for of_one in zip(*(k.figures.gains for k in known), strict=True)
        ]
        self._excess = drawn(Line(over_rows, np.log1p(np.asarray(excesses))), rows.shape[1]) if len(excesses) else None
        self._area = covered(floor, len(self._costs))
        for k in known if inherit else [known[i] for i in at_first]:
            if k.excess is None or k.excess <= 0.0:
                self._area.add(*k.figures.point)
        self._starts: tuple[Floats, Floats, Floats] | None = None
        if inherit and known:
            above = np.asarray([k.figures.accuracy for k in known]) - self._accuracy(rows)
            latency = np.asarray([1.0 / k.figures.speedup for k in known])
            self._starts = features.steps([k.steps for k in known]), above, latency

    def scores(self, plans: Sequence[Mapping[str, int]]) -> Floats:
        """The hypervolume that each plan would add; with a budget the more, the nearer it ends under it."""
        rows = self._features.of(plans)
        accuracy = self._accuracy(rows) + self._lift(plans)
        costs = [np.exp(np.clip(line.at(rows), -30.0, 30.0)) for line in self._costs]
        gains = np.asarray([self._area.gain(*map(float, point)) for point in zip(accuracy, *costs, strict=True)])
        if self._excess is not None:
            excess = self._excess.at(rows)
            gains *= np.where(excess <= 0.0, np.exp(np.clip(excess / REACH, -20.0, 0.0)), 0.0)
        return gains

    def _accuracy(self, rows: Floats) -> Floats:
        return np.asarray(self._floor + ACCURACY_SPAN - self._loss.at(rows))

    def _lift(self, plans: Sequence[Mapping[str, int]]) -> Floats:
        """How far the weights that each plan would begin with are above what their own plan was forecast to show.

        Those are the weights of the fastest known plan that removes no more anywhere.
        """
        lift = np.zeros(len(plans))
        if self._starts is None:
            return lift
        steps, above, latency = self._starts
        for i, wanted in enumerate(self._features.steps(plans)):
            inside = (steps <= wanted).all(axis=1) & (steps < wanted).any(axis=1)
            if inside.any():
                lift[i] = above[np.where(inside, latency, np.inf).argmin()]
        return lift
