"""What a sampler knows of the finished trials beyond the study: noise, epochs, and what each source gained.

Filled from the results, which have all of it; a trial whose result is not at hand is recalled from the study's values,
as exact and of one epoch.
"""

from __future__ import annotations

import bisect
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from search.dominance import Figures
from search.judge import Judge
from search.neighbours import REACH, Known, Neighbourhood, Steps, parents
from search.objectives import LATENCY_ALONE, Gain, Objectives
from search.progress_log import ACCURACY_SPAN, accuracy_floor
from search.result import TrialResult
from search.ridge import Features, Floats
from search.shares import pick, shares
from search.space import Space
from search.volume import covered

#: Trials with figures before the neighbourhood of the best of them is worth a look.
FIRST = 6
#: Share of the neighbours that the forecast chooses; the others are drawn blindly, should the forecast mislead.
GUIDED = 0.9
#: The source that trains a plan of the front for longer, from its own weights.
AGAIN = "again"
#: Share of the accuracy missing to the dense network that a plan is expected to gain the second time it is trained, and
#: how that share falls from one time to the next.
RISE, FADING_RISE = 0.4, 0.7
#: Trials that a forecast is fitted to, beside those on the front or near it.
LATEST = 600
#: No plan is trained for more than so many times the schedule.
LONGEST_AGAIN = 8.0


@dataclass(frozen=True, slots=True)
class _Told:
    source: str
    epochs: float
    known: Known | None
    row: Floats
    excess: float | None


class Memory:
    """By trial number; proposes plans next to the front when it is their turn.

    The turns are shared with the sampler of this `kind`. `dense_accuracy` None is read from the results.
    """

    def __init__(
        self,
        space: Space,
        kind: str,
        dense_accuracy: float | None,
        cost: Callable[[Steps], float] | None = None,
        *,
        again: bool = False,
        objectives: Objectives = LATENCY_ALONE,
    ) -> None:
        self._objectives = objectives
        self._neighbourhood = Neighbourhood(space, cost=cost, deepen=again)
        self._features = Features(space)
        self._sources = (kind, "neighbour", *([AGAIN] if again else []))
        self._dense_accuracy = dense_accuracy
        self._told: dict[int, _Told] = {}
        self._numbers: list[int] = []
        self._history: list[tuple[str, float, float]] = []
        self._area = covered(0.0, len(objectives.costs))
        self._stale = True
        self._parents: list[tuple[Known, float]] | None = None

    def propose(
        self, seen: Callable[[Steps, float], bool], rng: random.Random
    ) -> tuple[str, dict[str, int], float] | None:
        """(source, steps, stretch) of a plan next to the front or of one on it to be trained on, whose turn it is.

        `seen` tells whether steps were proposed with a stretch. None where it is the sampler's turn, or where there is
        no such plan.
        """
        if sum(t.known is not None and t.known.stretch == 1.0 for t in self._told.values()) < FIRST:
            return None
        source = pick(self.shares(), rng)
        if source == AGAIN:
            return self._again(seen)
        if source != "neighbour":
            return None

        def known(steps: Steps) -> bool:
            return seen(steps, 1.0)

        steps = None
        if rng.random() < GUIDED:
            judge = self.judge(rng.getrandbits(64))
            steps = self._neighbourhood.best(self.parents(), known, rng, judge.scores)
        if steps is None:
            steps = self._neighbourhood.draw(self.parents(), known, rng)
        return None if steps is None else (source, steps, 1.0)

    def _again(self, seen: Callable[[Steps, float], bool]) -> tuple[str, dict[str, int], float] | None:
        """The plan on the front whose further training should add most to it.

        Each time closes a share of what is missing to the dense accuracy, and less the more often that was done.
        """
        dense = self._dense_accuracy if self._dense_accuracy is not None else self.floor + ACCURACY_SPAN
        best, chosen = 0.0, None
        for known, _ in self.parents():
            longer = known.stretch + 1.0
            if longer > LONGEST_AGAIN or seen(known.steps, longer):
                continue
            missing = max(dense - known.figures.accuracy, 0.1 * ACCURACY_SPAN)
            rise = RISE * FADING_RISE ** (known.stretch - 1.0) * missing
            accuracy, *costs = known.figures.point
            gain = self._area.gain(accuracy + rise, *costs)
            if known.excess is not None:
                gain *= math.exp(max(known.excess, -20.0 * REACH) / REACH)
            if gain > best:
                best, chosen = gain, (AGAIN, dict(known.steps), longer)
        return chosen

    def around(self, steps: Steps, seen: Callable[[Steps], bool], rng: random.Random) -> dict[str, int] | None:
        """Steps to an unseen plan next to this one, or None where none was found."""
        return self._neighbourhood.around(steps, seen, rng)

    def learn(self, result: TrialResult, source: str, steps: Steps, excess: float | None) -> None:
        """File a result; told again, it replaces what was recalled."""
        figures = Figures.of(result, self._objectives)
        if self._dense_accuracy is None and result.accuracy is not None and result.accuracy_drop is not None:
            self._dense_accuracy = result.accuracy + result.accuracy_drop / 100.0
            self._stale = True
        known = None
        if figures is not None:
            known = Known(steps=steps, figures=figures, excess=excess, stretch=result.stretch)
        self._file(result.number, self._told_of(source, result.epochs, known, steps, excess))

    def recall(
        self,
        number: int,
        source: str,
        steps: Steps,
        values: Sequence[float],
        excess: float | None,
        stretch: float = 1.0,
    ) -> None:
        """File what the study says of a complete trial, unless the result was learned already."""
        accuracy, *costs = values
        if number in self._told or not all(cost > 0.0 for cost in costs):
            return
        others = tuple(Gain(value=1.0 / cost) for cost in costs[1:])
        figures = Figures(accuracy=accuracy, speedup=1.0 / costs[0], others=others)
        known = Known(steps=steps, figures=figures, excess=excess, stretch=stretch)
        self._file(number, self._told_of(source, 1.0, known, steps, excess))

    def _told_of(self, source: str, epochs: float, known: Known | None, steps: Steps, excess: float | None) -> _Told:
        return _Told(source, epochs, known, self._features.of([steps])[0], excess)

    def _file(self, number: int, told: _Told) -> None:
        late = number in self._told or bool(self._numbers and number < self._numbers[-1])
        if number not in self._told:
            bisect.insort(self._numbers, number)
        self._told[number] = told
        self._parents = None
        if late:
            self._stale = True
        elif not self._stale:
            self._history.append(self._gain(told))

    def _gain(self, told: _Told) -> tuple[str, float, float]:
        counts = told.known is not None and (told.excess is None or told.excess <= 0.0)
        gained = self._area.add(*told.known.figures.point) if told.known is not None and counts else 0.0
        return told.source, gained, told.epochs

    @property
    def floor(self) -> float:
        """The accuracy above which area counts: the hypervolume's, or lower where no plan in the budget reaches it."""
        known = self._known()
        if self._dense_accuracy is not None:
            floor = accuracy_floor(self._dense_accuracy)
        else:
            floor = max((k.figures.accuracy for k in known), default=0.0) - ACCURACY_SPAN
        within = [k.figures.accuracy for k in known if k.excess is not None and k.excess <= 0.0]
        return min(floor, max(within) - ACCURACY_SPAN) if within else floor

    def shares(self) -> dict[str, float]:
        """Each source's share of the proposals, by what its trials gained, in the order of their numbers."""
        floor = self.floor
        if self._stale or self._area.floor != floor:
            self._area = covered(floor, len(self._objectives.costs))
            self._history = [self._gain(self._told[number]) for number in self._numbers]
            self._stale = False
        return shares(self._sources, self._history)

    def parents(self) -> list[tuple[Known, float]]:
        """The plans whose neighbours are worth a trial, with their weights."""
        if self._parents is None:
            self._parents = parents(self._known(), floor=self.floor)
        return self._parents

    def _known(self) -> list[Known]:
        return [known for number in self._numbers if (known := self._told[number].known) is not None]

    def judge(self, seed: int) -> Judge:
        """A judge of untried plans, by one draw of the forecast."""
        # the latest, and what the front is made of: a forecast of the plans to come, which costs the same for ever
        parents = {id(known) for known, _ in self.parents()}
        early, late = self._numbers[:-LATEST], self._numbers[-LATEST:]
        told = [t for n in early if id((t := self._told[n]).known) in parents] + [self._told[n] for n in late]
        known = [(t.known, t.row) for t in told if t.known is not None]
        over = [(t.excess, t.row) for t in told if t.excess is not None and -1.0 < t.excess < math.inf]
        return Judge(
            self._features,
            [k for k, _ in known],
            np.asarray([row for _, row in known]),
            np.asarray([row for _, row in over]),
            [excess for excess, _ in over],
            self.floor,
            np.random.default_rng(seed),
            inherit=AGAIN in self._sources,
        )
