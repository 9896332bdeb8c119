"""The methods that searches are compared by: ours first, then what a user would do without it.

All propose plans of the same space and are trained, stopped and measured alike. `ours` is the one place that says what
prunefront's own search does before and between trials.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

from quality_lab import Ask, Lab, Method, Trial
from quality_real import RealLab

from search.driver import CONTROL, UNIFORM
from search.inherit import Starts
from search.result import TrialResult
from search.sampler import Proposal, SpaceExhausted, StudySampler
from search.space import Space

#: A study that lives as long as its run.
IN_MEMORY = "sqlite:///:memory:"
#: What lies between the seeds of a ladder's rounds; runs are seeded 0, 1, 2, ...
ROUND = 1_000


class Studied:
    """Plans from a study: Optuna's samplers as the search uses them. `first`, by whose they are, are tried first."""

    def __init__(
        self,
        lab: Lab,
        kind: str,
        seed: int,
        *,
        first: Mapping[str, Sequence[Mapping[str, int]]] | None = None,
        charged: float = 0.0,
        neighbours: bool = False,
        inherit: bool = False,
    ) -> None:
        self._sampler = StudySampler(
            IN_MEMORY,
            lab.space,
            sampler=kind,
            seed=seed,
            neighbours=neighbours,
            again=inherit,
            dense_accuracy=lab.dense_accuracy,
        )
        self._inherit = inherit
        self._trials: dict[int, Trial] = {}
        self._starts = Starts(self._trials.__contains__)
        for source, plans in (first or {}).items():
            self._sampler.enqueue(plans, source)
        self._seed = seed
        self._charged = charged

    @property
    def charged(self) -> float:
        """Epochs spent on finding `first`."""
        return self._charged

    def ask(self) -> Ask | None:
        """None when every plan was proposed."""
        try:
            proposal = self._sampler.ask()
        except SpaceExhausted:
            return None
        start = self._start(proposal)
        trial = Trial(plan=proposal.plan, seed=self._seed, start=start, stretch=proposal.stretch)
        self._trials[proposal.number] = trial
        return Ask(
            number=proposal.number,
            trial=trial,
            params=proposal.params,
            source=proposal.source,
        )

    def _start(self, proposal: Proposal) -> Trial | None:
        """As the driver's searcher chooses it: the plan's own weights, or those of the nearest less pruned plan."""
        if not self._inherit:
            return None
        own = self._starts.same_plan(proposal.plan, proposal.stretch)
        start = own or self._starts.nearest(proposal.plan)
        return None if start is None else self._trials[start.number]

    def tell(self, result: TrialResult) -> None:
        """To the study."""
        self._starts.add(result)
        self._sampler.tell(result)


class Ladder:
    """The same sparsity everywhere, each rung of the ladder once, then again with other batches, for ever."""

    def __init__(self, lab: Lab, seed: int, *, how: str = "admm") -> None:
        self._steps = ladder(lab.space)
        self._space, self._seed, self._how = lab.space, seed, how
        self._numbers = itertools.count()

    @property
    def charged(self) -> float:
        """Nothing is spent before the first trial."""
        return 0.0

    def ask(self) -> Ask | None:
        """The next rung; None in a space whose only uniform plan is the dense one."""
        if not self._steps:
            return None
        number = next(self._numbers)
        again, step = divmod(number, len(self._steps))
        params = self._steps[step]
        trial = Trial(plan=self._space.plan(params), seed=self._seed + ROUND * again, how=self._how)
        return Ask(number=number, trial=trial, params=params)

    def tell(self, result: TrialResult) -> None:
        """A ladder learns nothing."""


def ladder(space: Space) -> list[dict[str, int]]:
    """The distinct uniform plans of a space without the dense one, coarse first: 1/2, 1/4, 3/4, 1/8, ..."""
    found: dict[str, dict[str, int]] = {}
    for power in range(1, 7):
        for odd in range(1, 2**power, 2):
            params = space.uniform(odd / 2**power)
            plan = space.plan(params)
            if len(plan):
                found.setdefault(plan.digest(), params)
    return list(found.values())


def ours(lab: Lab, seed: int, *, inherit: bool = True) -> Method:
    """What `prunefront search` does: plans from sensitivity and forecast, the uniform controls, then TPE mixed with
    plans next to the front; trials go on from the weights of finished ones.

    A surrogate has no network to ask for sensitivities and no weights: it starts with the controls, from dense.
    """
    if not isinstance(lab, RealLab):
        uniform = [lab.space.uniform(sparsity) for sparsity in UNIFORM]
        return Studied(lab, "tpe", seed, first={"uniform": uniform}, neighbours=True)
    warm, charged = lab.first_plans()
    first = {**warm, "uniform": [lab.space.uniform(sparsity) for sparsity in CONTROL]}
    return Studied(lab, "tpe", seed, first=first, charged=charged, neighbours=True, inherit=inherit)


OURS = "ours"
METHODS: dict[str, Callable[[Lab, int], Method]] = {
    OURS: ours,
    "TPE": lambda lab, seed: Studied(lab, "tpe", seed),
    "NSGA-II": lambda lab, seed: Studied(lab, "nsga2", seed),
    "random": lambda lab, seed: Studied(lab, "random", seed),
    "uniform ADMM": lambda lab, seed: Ladder(lab, seed),
    "uniform L1": lambda lab, seed: Ladder(lab, seed, how="l1"),
}
#: Methods whose trials a surrogate of ADMM's trials cannot tell of.
TRAINED_ONLY = frozenset({"uniform L1"})
#: Parts of ours left out, to be named by `--methods`: no baselines.
WITHOUT: dict[str, Callable[[Lab, int], Method]] = {
    "ours without inheriting": lambda lab, seed: ours(lab, seed, inherit=False),
}
