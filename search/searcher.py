"""Ray Tune asks this `Searcher` for trials; it asks the study and keeps the record straight.

Not Ray's `OptunaSearch`: that one loses constraints, files stopped trials as COMPLETE and leaves NaN trials RUNNING.
The order here is what survives a kill at any instant: the study knows a trial before it runs, `result.json` exists
before the study is told, and a driver that starts tells the study what finished while nobody listened.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

from ray.tune.search import Searcher

from admm.compact import WEIGHTS_FILE
from search.inherit import Starts
from search.nodes import NodeRefused
from search.result import TrialResult
from search.sampler import FINAL, TWIN, Proposal, SpaceExhausted, StudySampler
from search.store import RunStore, StoreError

#: Plans found over budget by their shapes cost seconds and are counted apart; this many in a row, times the trials
#: asked for, say that the budget leaves too little of the space.
INFEASIBLE_PER_TRIAL = 8
#: How often a driver takes a trial up again whose worker was lost at the same step, before it counts as failed.
RESTARTS = 2
#: Whose plans are tried after the search as well.
AFTER = (TWIN, FINAL)


#: Chooses, of all results, those whose plans are trained on the long schedule.
Finals: TypeAlias = Callable[[Mapping[int, TrialResult]], Iterable[TrialResult]]


class Halt(BaseException):
    """Carries an error out of Tune, which would make a traceback of every `Exception`."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


@contextlib.contextmanager
def _halting() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise Halt(error) from error


class PlanSearcher(Searcher):
    """Offers unfinished trials first, then new plans, until `trials` of them were trained (or failed, or stopped).

    `stopped` says which trials the scheduler ended and why; `on_result` is called with each finished trial's record.
    When the search is over, what `finals` chooses of the results is trained on from its own weights, until it has had
    `final_stretch` times the schedule in all. With `inherit` a plan begins with the weights of the nearest finished,
    less pruned one.
    Trials that still run when a driver ends are left for the next one.
    """

    def __init__(
        self,
        sampler: StudySampler,
        store: RunStore,
        *,
        trials: int,
        seed: int,
        max_concurrent: int,
        stopped: Mapping[int, str] | None = None,
        on_result: Callable[[TrialResult], None] = lambda result: None,
        finals: Finals = lambda results: (),
        final_stretch: float = 1.0,
        inherit: bool = False,
    ) -> None:
        super().__init__()
        self._sampler = sampler
        self._store = store
        self._trials = trials
        self._seed = seed
        self.max_concurrent = max_concurrent
        self._stopped = stopped if stopped is not None else {}
        self._on_result = on_result
        self._finals = finals
        self._final_stretch = final_stretch
        self._inherit = inherit
        self._again: list[Proposal] = sampler.unfinished()
        self._live: dict[str, Proposal] = {}
        self._losses: Counter[int] = Counter()
        self._stood_at: dict[int, int | None] = {}
        self.infeasible_in_a_row = 0
        # what another budget kept from being trained says nothing of this one's feasibility
        results = store.results()
        counted = {n: r for n, r in results.items() if not sampler.fits_now(r)}
        self._spent = {n for n, r in counted.items() if r.spent}
        self._infeasible = {n for n, r in counted.items() if r.status == "infeasible"}
        self._starts = Starts(self._has_weights)
        for result in results.values():
            self._starts.add(result)
        self.exhausted = False

    @property
    def spent(self) -> int:
        """Trials that count against the number asked for: trained, stopped or failed ones."""
        return len(self._spent)

    @property
    def searched(self) -> bool:
        """Whether no new plan is drawn: all trials asked for have ended, or every plan was tried."""
        return self.spent >= self._trials or self.exhausted

    def finished(self) -> bool:
        """Whether nothing is left to do; what remains after the search is put in line when its turn comes."""
        if not self.searched or self._live:
            return False
        return not self._left() and not self._enqueue_finals()

    def _left(self) -> bool:
        """Whether plans wait that are tried after the search as well."""
        return self._sampler.waits(*AFTER) or any(p.source in AFTER for p in self._again)

    def _enqueue_finals(self) -> int:
        if self._final_stretch == 1.0:
            return 0
        return self._sampler.enqueue_final(self._finals(self._store.results()), self._final_stretch - 1.0)

    @property
    def infeasible(self) -> int:
        """Plans found over budget before training."""
        return len(self._infeasible)

    @property
    def offered(self) -> set[int]:
        """The trials of earlier starts that are offered again."""
        return {proposal.number for proposal in self._again}

    @property
    def live(self) -> int:
        """Trials that run now."""
        return len(self._live)

    @_halting()
    def suggest(self, trial_id: str) -> Any:
        """The next trial's config, None to be asked again later, or FINISHED."""
        self._file_late()
        if self.searched:
            if not self._left():
                return None if self._live else self._last(trial_id)
            self._again = [p for p in self._again if p.source in AFTER]
        elif self.infeasible_in_a_row >= INFEASIBLE_PER_TRIAL * self._trials:
            return Searcher.FINISHED
        elif self.spent + len(self._live) >= self._trials:
            return None
        if len(self._live) >= self.max_concurrent:
            return None
        proposal = self._again.pop(0) if self._again else self._new()
        if proposal is None:
            return None if self._live else self._last(trial_id)
        self._live[trial_id] = proposal
        return {
            "run_dir": str(self._store.root.resolve()),
            "number": proposal.number,
            "plan": proposal.plan.to_json(),
            "params": dict(proposal.params),
            "seed": self._seed,
            "precision": proposal.precision,
            "stretch": proposal.stretch,
            "source": proposal.source,
            "start": self._start(proposal),
            "twins": list(self._starts.twins(proposal.plan)),
        }

    def _start(self, proposal: Proposal) -> tuple[int, float] | None:
        """(the finished trial whose weights this one begins with, what that trained of this plan); None: dense."""
        if proposal.stretch > 1.0:
            own = self._starts.same_plan(proposal.plan, proposal.stretch)
            if own is not None:
                return own.number, own.stretch
        start = self._starts.nearest(proposal.plan) if self._inherit else None
        return None if start is None else (start.number, 0.0)

    def _has_weights(self, number: int) -> bool:
        return (self._store.trial_dir(number) / WEIGHTS_FILE).exists()

    def _last(self, trial_id: str) -> Any:
        """The first of the final trials, or FINISHED."""
        return self.suggest(trial_id) if not self.finished() else Searcher.FINISHED

    def _file_late(self) -> None:
        """A worker of an earlier driver may live a little longer, and end its trial after this driver has looked."""
        for proposal in [p for p in self._again if self._store.trial_dir(p.number).exists()]:
            self._again.remove(proposal)
            self._file(proposal.number)

    def _new(self) -> Proposal | None:
        try:
            only = AFTER if self.searched else ()
            proposal = self._sampler.ask(*only)
            while self._store.trial_dir(proposal.number).exists():  # such a late end, of another study's trial
                self._sampler.give_up(proposal.number)
                proposal = self._sampler.ask(*only)
        except SpaceExhausted:
            self.exhausted = True
            return None
        return proposal

    @_halting()
    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the study what the record says; a trial without a record failed, or is left for the next start."""
        proposal = self._live.pop(trial_id, None)
        if proposal is None:
            return
        number = proposal.number
        if not self._store.trial_dir(number).exists():
            if error:
                self._count_loss(number)
            said = self._store.last_loss(number) if error else None
            kind, _, line = (said or "").partition(": ")
            if kind == StoreError.__name__:
                raise StoreError(line)  # no fault of any trial: the next would end the same way
            if kind == NodeRefused.__name__:
                raise NodeRefused(f"{line}; take it out of the cluster, then go on with the run")
            if error:
                self._store.require_writable()  # a worker whose disk is full cannot leave such a line
            if error and self._losses[number] <= RESTARTS:
                self._again.append(proposal)  # goes on from its checkpoint
                return
            if error:
                self._publish(self._failure(proposal))
            elif number in self._stopped and result is not None:
                so_far = TrialResult.from_dict(json.loads(result["so_far"]))
                self._publish(replace(so_far, reason=self._stopped[number]))
            else:
                return  # interrupted: it stays RUNNING in the study and goes on from its checkpoint
        self._file(number)

    def _count_loss(self, number: int) -> None:
        """Machines that are taken back again and again are no fault of a trial that gets on between."""
        step = self._store.last_step(number)
        if number in self._stood_at and self._stood_at[number] != step:
            self._losses[number] = 0
        self._losses[number] += 1
        self._stood_at[number] = step

    def _file(self, number: int) -> None:
        if self._store.unseen_for(number) is not None:  # begun for another rig, by a worker that outlived its driver
            self._sampler.give_up(number)
            return
        record = self._store.result(number)
        self._sampler.tell(record)
        self._starts.add(record)
        if record.spent:
            self._spent.add(number)
        self.infeasible_in_a_row += 1
        if record.status == "infeasible":
            self._infeasible.add(number)
        else:
            self.infeasible_in_a_row = 0
        self._on_result(record)

    def _publish(self, record: TrialResult) -> None:
        self._store.commit(record.number, self._store.attempt_dir(record.number, "driver"), record)

    def _failure(self, proposal: Proposal) -> TrialResult:
        """The worker was lost time and again: a fact like any other."""
        said = self._store.last_loss(proposal.number) or "it was killed, perhaps out of memory"
        return TrialResult(
            number=proposal.number,
            status="failed",
            plan_digest=proposal.plan.digest(),
            seed=self._seed,
            reason=f"its worker was lost {RESTARTS + 1} times at the same step: {said}",
            params_sampled=dict(proposal.params),
            precision=proposal.precision,
            source=proposal.source,
            stretch=proposal.stretch,
            requested=proposal.plan.to_dict(),
        )

    def proposal(self, trial_id: str) -> Proposal | None:
        """The plan behind a running Ray trial."""
        return self._live.get(trial_id)

    def __getstate__(self) -> dict[str, Any]:
        """Nothing of ours goes into the pickles that Tune makes for its own restore, which is never used."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study and the results are the state, Ray's own folder is never restored from."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, see `save`."""
