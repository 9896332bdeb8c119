"""The sampler: asks for plans, is told what became of them, and remembers both in an Optuna study.

The study is not the record (`result.json` is): it can be lost and is then filled again from the results, and a new
budget opens a new study in the same database. Trial numbers are the study's: `trials/<n>` is study trial n.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from optuna.distributions import IntDistribution
from optuna.trial import FrozenTrial, TrialState

from admm.plan import PruningPlan
from search.atomic import StoreError
from search.budget import Budget
from search.filed import constraints_of, filed, noted, state_of, steps_to, stretch_of, values_of
from search.memory import Memory
from search.mirror import Mirror
from search.objectives import LATENCY_ALONE, Objectives
from search.precision import Precision
from search.result import TrialResult
from search.space import Space
from search.study import drop_torn_line as drop_torn_line
from search.study import make_sampler, open_study, study_name, study_place, written
from search.study import open_storage as open_storage
from search.study import study_url as study_url
from search.study_notes import Artefacts, about_study, about_trial, artefact_attributes

#: Proposals in a row that were seen before, after which a random plan is drawn instead.
PATIENCE = 8
#: Random draws that were all seen before, after which the space is gone through plan by plan.
DRAWS = 200
#: Sources of trials that nobody draws.
TWIN, FINAL = "twin", "final"


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A plan to try: its trial number, the steps it was drawn with, and who proposed it.

    `source` is the sampler's kind (`tpe`, `nsga2`, `random`), `neighbour`, or what `enqueue` was told: `uniform`,
    `warm start`, `user`; `again` is a plan of the front that is trained for longer, `int8` and `fp32` one that was over
    budget in the other precision, `twin` a plan that was trained already, in the other precision, and `final` one of
    the front when all is over.
    """

    number: int
    params: Mapping[str, int]
    plan: PruningPlan
    source: str = "random"
    precision: Precision = "fp32"
    stretch: float = 1.0


class SpaceExhausted(Exception):
    """Every plan of the space was proposed already."""


class StudySampler:
    """Ask for plans, tell results. One instance a driver; `start` counts the driver's starts and moves the seed.

    `run` names the run where several may keep their studies in one place. With `neighbours` the sampler's own
    proposals are mixed with plans next to the front, in shares that follow what each source gained an epoch;
    `dense_accuracy` is where the gain is counted from (without it, what the results say of it), and `cost` forecasts
    the latency of steps, where there is a forecast: see `search.neighbours`. `objectives` are what trials are told by.
    `place` is the run's folder and `artefacts` the files of its trials, for those who look at the study.
    """

    def __init__(
        self,
        url: str,
        space: Space,
        *,
        sampler: str = "tpe",
        seed: int = 0,
        start: int = 0,
        budget: Budget | None = None,
        rig: str = "onnxruntime-cpu",
        run: str = "",
        neighbours: bool = True,
        dense_accuracy: float | None = None,
        again: bool = False,
        cost: Callable[[Mapping[str, int]], float] | None = None,
        objectives: Objectives = LATENCY_ALONE,
        place: str = "",
        artefacts: Artefacts = lambda number: {},
    ) -> None:
        self.space = space
        self.budget = budget
        self._objectives = objectives
        self._kind = sampler
        self._url = url
        self._random = random.Random(f"{seed}/{start}")
        self._seed = f"{seed}/{start}"
        self._distributions = {name: IntDistribution(0, size - 1) for name, size in space.sizes.items()}
        self._neighbours = neighbours
        self._memory = Memory(space, sampler, dense_accuracy, cost, again=again, objectives=objectives)
        self._artefacts = artefacts
        about = about_study(space, budget, rig, objectives, place)
        self.study = open_study(url, study_name(space, budget, rig, run, objectives), objectives, about)
        self._exhausted = False
        #: The steps of every plan proposed, with its stretch, and the first trial that had it.
        self._seen: dict[tuple[float, ...], int] = {}
        with written():
            # a copy made anew mid-way may not draw the same numbers again
            self._mirror = Mirror(self.study, lambda copies: make_sampler(sampler, seed + start + 1_000_003 * copies))
        self._reread()

    def _reread(self) -> None:
        for trial in self._mirror.trials:
            if self._drawn(trial):
                self._seen.setdefault(self._key(trial.params, stretch_of(trial)), trial.number)
            if trial.state == TrialState.COMPLETE and "duplicate_of" not in trial.user_attrs:
                excess, stretch = trial.constraints.get("over_budget"), stretch_of(trial)
                self._memory.recall(trial.number, _source(trial), trial.params, trial.values, excess, stretch)

    def _fresh(self) -> None:
        if self._mirror.fresh():
            self._reread()

    @written()
    def fill(self, results: Mapping[int, TrialResult]) -> None:
        """Add what other studies of this run found; numbers stay the same. Goes on where a kill ended it.

        Raises `StoreError` for a study that tells of other trials than these results do.
        """
        self._fresh()
        known = self._mirror.trials
        for number, result in sorted(results.items()):
            if number < len(known):
                self._check(known[number], result)
                self._learn(known[number], result)
        for number in range(len(known), max(results, default=-1) + 1):
            found = results.get(number)
            if found is not None and self.fits_now(found):
                found = None
            generation = self._mirror.first_generation()
            self._mirror.insert(
                filed(
                    self.space,
                    self._distributions,
                    found,
                    self.budget,
                    generation,
                    self._objectives,
                    artefact_attributes(self._artefacts(number)),
                )
            )
            self._fresh()
            if found is not None:
                trial = self._mirror.trial(number)
                if self._drawn(trial):
                    self._seen.setdefault(self._key(trial.params, found.stretch), number)
                self._learn(trial, found)

    def _check(self, trial: FrozenTrial, result: TrialResult) -> None:
        """That trial and result are of one plan; where the study gave the number up, it may be any."""
        told = trial.state in (TrialState.COMPLETE, TrialState.PRUNED) and "duplicate_of" not in trial.user_attrs
        if told and self._digest(trial) != self._identity(result):
            raise StoreError(
                f"the study {study_place(self._url)} is of another run (its trial {trial.number} is not the plan of "
                f"trials/{trial.number}): move it away, it is filled again from the results"
            )

    def _learn(self, trial: FrozenTrial, result: TrialResult) -> None:
        """What a proposal gained; a plan whose figures another study of this run used the number for teaches none."""
        if self._digest(trial) == self._identity(result):
            excess = constraints_of(result, self.budget).get("over_budget")
            self._memory.learn(result, _source(trial), trial.params, excess)

    def reconcile(self, results: Mapping[int, TrialResult], damaged: Collection[int] = ()) -> int:
        """Tell the study what finished while nobody listened; returns how many. For a driver that starts.

        A number is given up whose record is damaged, or that another study of this run has used for another plan.
        """
        self._fresh()
        told = 0
        for trial in [t for t in self._mirror.trials if not t.state.is_finished()]:
            result = results.get(trial.number)
            if result is not None and self._digest(trial) == self._identity(result):
                self.tell(result)
                told += 1
            elif result is not None or trial.number in damaged:
                self.give_up(trial.number)
        return told

    @written()
    def give_up(self, number: int) -> None:
        """File a trial that will never have a result of its own."""
        self._fresh()
        self._mirror.finish(number, TrialState.FAIL)

    @written()
    def enqueue(self, params: Iterable[Mapping[str, int]], source: str = "uniform", *, stretch: float = 1.0) -> int:
        """Plans to try first; those the study knows already are left out. `source` says whose they are.

        Returns how many were new. `stretch` is how many times the job's schedule they are trained for.
        """
        added = 0
        for steps in params:
            self._fresh()
            key = self._key(steps, stretch)
            if key not in self._seen:
                trial = self._mirror.place(steps, self._distributions, TrialState.WAITING)
                self._mirror.note(trial.number, noted(source, stretch))
                self._seen[key] = self._mirror.write(trial.number)
                added += 1
        return added

    def enqueue_final(self, results: Iterable[TrialResult], more: float) -> int:
        """The plans of these results, to be trained for so many times the schedule more; returns how many are new."""
        added = 0
        for result in results:
            steps = steps_to(self.space, result)
            if steps is not None:
                added += self.enqueue([steps], FINAL, stretch=result.stretch + more)
        return added

    def _enqueue_twins(self, result: TrialResult) -> None:
        """The other precision of a plan that was trained is next: it takes the weights, and costs seconds."""
        if len(self.space.precisions) == 1 or result.weights_of is not None:
            return
        if result.status not in ("complete", "infeasible"):
            return
        for precision in self.space.precisions:
            steps = steps_to(self.space, result, precision)
            if precision != result.precision and steps is not None:
                # what is over budget in one precision may fit in the other
                source = TWIN if result.status == "complete" else precision
                self.enqueue([steps], source, stretch=result.stretch)

    def waits(self, *sources: str) -> bool:
        """Whether plans of these sources wait to be tried."""
        return any(t.state == TrialState.WAITING and _source(t) in sources for t in self._mirror.trials)

    @written()
    def unfinished(self) -> list[Proposal]:
        """Trials that were asked for and never told, by number: to be offered again before any new one."""
        self._fresh()
        proposals = []
        for trial in [t for t in self._mirror.trials if t.state == TrialState.RUNNING]:
            proposal = self._proposal(self._mirror.complete(trial.number, self._distributions))
            first = self._seen.setdefault(self._key(proposal.params, proposal.stretch), proposal.number)
            if first == proposal.number:
                proposals.append(proposal)
            else:  # half drawn when it was killed, and what was drawn since makes a known plan of it
                self._mirror.finish(proposal.number, **self._like(first))
        return proposals

    @written()
    def ask(self, *only: str) -> Proposal:
        """A plan that was not proposed before, or one that waits of these sources alone. Raises `SpaceExhausted`."""
        self._fresh()
        waiting = self._waiting(only)
        if waiting is not None:
            return waiting
        if self._exhausted or only:
            raise SpaceExhausted
        found = self._at_the_front()
        if found is not None:
            source, steps, stretch = found
            return self._placed(steps, source, stretch)
        for _ in range(PATIENCE):
            trial = self._mirror.draw(self._distributions)
            first = self._seen.get(self._key(trial.params))
            if first is None:
                return self._written_down(trial, self._kind)
            # the same plan again: the same values, nothing is run
            self._mirror.note(trial.number, {"duplicate_of": first, "status": "duplicate"})
            self._mirror.finish(trial.number, **self._like(first), durable=False)
            self._mirror.write(trial.number)
            self._fresh()
            if self._neighbours:  # where the sampler would be, and no further draw of it is waited for
                rng = random.Random(f"{self._seed}/{trial.number}/around")
                near = self._memory.around(trial.params, self._was_seen, rng)
                if near is not None:
                    return self._placed(near, "neighbour")
        return self._placed(self._unseen(), "random")

    def _waiting(self, only: Collection[str]) -> Proposal | None:
        """The first plan that waits (of these sources, where some are named), running now."""
        for waiting in [t for t in self._mirror.trials if t.state == TrialState.WAITING]:
            if only and _source(waiting) not in only:
                continue
            self._mirror.start(waiting.number)
            proposal = self._proposal(self._mirror.complete(waiting.number, self._distributions))
            first = self._seen.setdefault(self._key(proposal.params, proposal.stretch), proposal.number)
            if first == proposal.number:
                return proposal
            self._mirror.finish(proposal.number, **self._like(first))
        return None

    def _at_the_front(self) -> tuple[str, dict[str, int], float] | None:
        """(source, steps, stretch) of a plan next to the front or on it, if it is its turn and there is one."""
        if not self._neighbours:
            return None

        def seen(steps: Mapping[str, int], stretch: float) -> bool:
            return self._key(steps, stretch) in self._seen

        # by the number of the trial to come: what is drawn does not hang on how many draws went before
        return self._memory.propose(seen, random.Random(f"{self._seed}/{len(self._mirror.trials)}"))

    def _was_seen(self, steps: Mapping[str, int]) -> bool:
        return self._key(steps) in self._seen

    def _key(self, steps: Mapping[str, int], stretch: float = 1.0) -> tuple[float, ...]:
        return (*[steps[name] for name in self._distributions], stretch)

    def _placed(self, steps: Mapping[str, int], source: str, stretch: float = 1.0) -> Proposal:
        return self._written_down(self._mirror.place(steps, self._distributions, TrialState.RUNNING), source, stretch)

    def _written_down(self, trial: FrozenTrial, source: str, stretch: float = 1.0) -> Proposal:
        """A new plan that the durable study knows before anybody runs it."""
        self._mirror.note(trial.number, noted(source, stretch))
        number = self._mirror.write(trial.number)
        self._seen[self._key(trial.params, stretch)] = number
        return replace(self._proposal(trial), number=number, source=source, stretch=stretch)

    def _unseen(self) -> dict[str, int]:
        """Steps to a plan that was not proposed before. Raises `SpaceExhausted`."""
        sizes = self.space.sizes
        drawn = ({name: self._random.randrange(size) for name, size in sizes.items()} for _ in range(DRAWS))
        # drawn in vain, so nearly all plans are seen and there are few
        listed = (dict(zip(sizes, steps, strict=True)) for steps in itertools.product(*map(range, sizes.values())))
        for steps in itertools.chain(drawn, listed):
            if not self._was_seen(steps):
                return steps
        self._exhausted = True
        raise SpaceExhausted

    @written()
    def tell(self, result: TrialResult) -> None:
        """File a finished trial: COMPLETE with its values, PRUNED for stopped and infeasible, FAIL for failed."""
        self._fresh()
        trial = self._mirror.trial(result.number)
        if trial.state.is_finished():
            return
        self._mirror.finish(
            result.number,
            state_of(result, self._objectives),
            values_of(result, self._objectives),
            constraints=constraints_of(result, self.budget),
            attributes=about_trial(result),
            artefacts=artefact_attributes(self._artefacts(result.number)),
        )
        self._learn(trial, result)
        self._enqueue_twins(result)

    def _proposal(self, trial: FrozenTrial) -> Proposal:
        params = {name: trial.params[name] for name in self._distributions}
        # what nobody noted and was given all the same was enqueued with Optuna's own tools
        source = trial.user_attrs.get("source", "user" if "fixed_params" in trial.system_attrs else self._kind)
        return Proposal(
            number=trial.number,
            params=params,
            plan=self.space.plan(params),
            source=source,
            precision=self.space.precision(params),
            stretch=stretch_of(trial),
        )

    def _like(self, number: int) -> dict[str, Any]:
        """How a trial ends whose plan an earlier one has: with that one's values where it has any."""
        first = self._mirror.trial(number)
        if first.state != TrialState.COMPLETE:
            return {"state": TrialState.FAIL}
        return {"state": TrialState.COMPLETE, "values": first.values, "constraints": first.constraints}

    def _digest(self, trial: FrozenTrial) -> str | None:
        """What tells the trial from all others, or None while not all of it is drawn."""
        if not self._drawn(trial):
            return None
        digest = self.space.plan(trial.params).digest()
        return self.space.identity(digest, self.space.precision(trial.params), stretch_of(trial))

    def _identity(self, result: TrialResult) -> str:
        return self.space.identity(result.plan_digest, result.precision, result.stretch)

    def _drawn(self, trial: FrozenTrial) -> bool:
        return trial.params.keys() == self._distributions.keys()

    def fits_now(self, result: TrialResult) -> bool:
        """Whether another budget kept this plan from being trained: under the present one it may be proposed again."""
        return result.status == "infeasible" and all(
            excess <= 0.0 for excess in constraints_of(result, self.budget).values()
        )


def _source(trial: FrozenTrial) -> str:
    return str(trial.user_attrs.get("source", "earlier"))
