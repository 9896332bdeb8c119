"""The sampler's memory: an Optuna study that asks for plans and is told what became of them.

The study is not the record (`result.json` is): it can be lost and is then filled again from the results, and a new
budget opens a new study in the same database. Trial numbers are the study's: `trials/<n>` is study trial n.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import random
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import IntDistribution
from optuna.samplers import BaseGASampler
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock, JournalStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from admm.errors import PlanError
from admm.plan import PruningPlan
from search.atomic import StoreError
from search.budget import Budget
from search.precision import Precision
from search.result import TrialResult
from search.space import Space

optuna.logging.set_verbosity(optuna.logging.ERROR)

#: Proposals in a row that were seen before, after which a random plan is drawn instead.
PATIENCE = 8
#: Random draws that were all seen before, after which the space is gone through plan by plan.
DRAWS = 200
TWIN_OF = "twin_of"
DIRECTIONS = (StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE)


@contextlib.contextmanager
def _written() -> Iterator[None]:
    try:
        yield
    except (optuna.exceptions.StorageInternalError, SQLAlchemyError, OSError) as error:
        cause = str(error.__cause__ or error).splitlines()[0]
        raise StoreError(f"the study cannot be written ({cause}): mend that, then go on with the run") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A plan to try: its trial number and the steps it was drawn with."""

    number: int
    params: Mapping[str, int]
    plan: PruningPlan
    precision: Precision = "fp32"


class SpaceExhausted(Exception):
    """Every plan of the space was proposed already."""


class StudySampler:
    """Ask for plans, tell results. One instance a driver; `start` counts the driver's starts and moves the seed.

    `run` names the run where several may keep their studies in one place.
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
    ) -> None:
        self.space = space
        self.budget = budget
        self._random = random.Random(f"{seed}/{start}")
        self._distributions = {name: IntDistribution(0, size - 1) for name, size in space.sizes.items()}
        name = _study_name(space, budget, rig, run)
        with _storage_errors(url):
            storage = open_storage(url)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.study = optuna.create_study(
                    storage=storage,
                    study_name=name,
                    sampler=_make_sampler(sampler, seed + start),
                    directions=list(DIRECTIONS),
                    load_if_exists=True,
                )
                self.study.set_metric_names(["accuracy", "relative_latency"])
        self._seen: dict[str, int] = {}
        self._exhausted = False
        for trial in self.study.get_trials(deepcopy=False):
            self._remember(trial)

    def fill(self, results: Mapping[int, TrialResult]) -> None:
        """Add what other studies of this run found; numbers stay the same. Goes on where a kill ended it."""
        for number in range(len(self.study.get_trials(deepcopy=False)), max(results, default=-1) + 1):
            result = results.get(number)
            if result is not None and self.fits_now(result):
                result = None
            self.study.add_trial(self._frozen(result))
            if result is not None:
                self._seen.setdefault(self._identity(result), number)

    def reconcile(self, results: Mapping[int, TrialResult], damaged: Collection[int] = ()) -> int:
        """Tell the study what finished while nobody listened; returns how many. For a driver that starts.

        A number is given up whose record is damaged, or that another study of this run has used for another plan.
        """
        told = 0
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING)):
            result = results.get(trial.number)
            if result is not None and self._digest(trial) == self._identity(result):
                self.tell(result)
                told += 1
            elif result is not None or trial.number in damaged:
                self.give_up(trial.number)
        return told

    def give_up(self, number: int) -> None:
        """File a trial that will never have a result of its own."""
        self.study._storage.set_trial_state_values(self._trial(number)._trial_id, state=TrialState.FAIL)

    def enqueue(self, params: Iterable[Mapping[str, int]]) -> None:
        """Plans to try first; those the study knows already are left out."""
        for steps in params:
            if self._of_steps(steps) not in self._seen:
                self.study.enqueue_trial(dict(steps), skip_if_exists=True)

    def unfinished(self) -> list[Proposal]:
        """Trials that were asked for and never told, by number: to be offered again before any new one."""
        trials = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        proposals = []
        for trial in sorted(trials, key=lambda t: t.number):
            proposal = self._proposal(trial._trial_id)
            first = self._seen.setdefault(self._of_steps(proposal.params), proposal.number)
            if first == proposal.number:
                proposals.append(proposal)
            else:  # a kill came between asking and seeing that the plan was known
                self._tell_duplicate(proposal.number, first)
        return proposals

    @_written()
    def ask(self) -> Proposal:
        """A plan that was not proposed before. Raises `SpaceExhausted`."""
        for attempt in itertools.count():
            if self._exhausted:
                break
            if attempt >= PATIENCE:
                self.study.enqueue_trial(self._unseen())
            with _quiet():
                trial = self.study.ask()
            proposal = self._proposal(trial._trial_id)
            seen = self._of_steps(proposal.params)
            first = self._seen.setdefault(seen, proposal.number)
            if first == proposal.number:
                return proposal
            self._tell_duplicate(proposal.number, first)
        raise SpaceExhausted

    def _unseen(self) -> dict[str, int]:
        """Steps to a plan that was not proposed before. Raises `SpaceExhausted`."""
        sizes = self.space.sizes
        drawn = ({name: self._random.randrange(size) for name, size in sizes.items()} for _ in range(DRAWS))
        # drawn in vain, so nearly all plans are seen and there are few
        listed = (dict(zip(sizes, steps, strict=True)) for steps in itertools.product(*map(range, sizes.values())))
        for steps in itertools.chain(drawn, listed):
            if self._of_steps(steps) not in self._seen:
                return steps
        self._exhausted = True
        raise SpaceExhausted

    @_written()
    def tell(self, result: TrialResult) -> None:
        """File a finished trial: COMPLETE with its values, PRUNED for stopped and infeasible, FAIL for failed."""
        trial = self._trial(result.number)
        if trial.state.is_finished():
            return
        live = optuna.trial.Trial(self.study, trial._trial_id)
        for key, value in self._constraints(result).items():
            # a kill between here and `tell` leaves the constraint set: it is the same value, set it once
            if not any(k.endswith(f":{key}") for k in trial.system_attrs):
                live.set_constraint(key, value)
        self._enqueue_twins(result)
        self.study.tell(result.number, _values(result), state=_STATES[result.status], skip_if_finished=True)

    def _enqueue_twins(self, result: TrialResult) -> None:
        """The other precision of a plan that was trained is next: it takes the weights, and costs seconds."""
        if result.status != "complete" or result.weights_of is not None:
            return
        for precision in self.space.precisions:
            steps = self.space.params(PruningPlan(result.requested), precision)
            if precision != result.precision and self._of_steps(steps) not in self._seen:
                self.study.enqueue_trial(steps, user_attrs={TWIN_OF: result.number}, skip_if_exists=True)

    @property
    def twins_waiting(self) -> bool:
        """Whether trials are left that cost no training, because another one has trained their plan."""
        if len(self.space.precisions) == 1:
            return False
        waiting = self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        return any(TWIN_OF in trial.user_attrs for trial in waiting)

    def _constraints(self, result: TrialResult) -> dict[str, float]:
        excess = None if self.budget is None else self.budget.excess_of(result)
        return {} if excess is None else {"over_budget": excess}

    def _proposal(self, trial_id: int) -> Proposal:
        # A kill in the middle of `ask` leaves parameters unset: suggesting again keeps what is set, draws the rest.
        with _quiet():
            live = optuna.trial.Trial(self.study, trial_id)
            params = {n: live.suggest_int(n, d.low, d.high) for n, d in self._distributions.items()}
        if isinstance(self.study.sampler, BaseGASampler):
            # the sampler itself gives a trial whose parameters were enqueued no place in its population
            self.study.sampler.get_trial_generation(self.study, self.study._storage.get_trial(trial_id))
        precision = self.space.precision(params)
        return Proposal(number=live.number, params=params, plan=self.space.plan(params), precision=precision)

    def _tell_duplicate(self, number: int, first: int) -> None:
        """The same plan again: the same values, nothing is run."""
        original, trial_id = self._trial(first), self._trial(number)._trial_id
        self.study._storage.set_trial_user_attr(trial_id, "duplicate_of", first)
        if original.state == TrialState.COMPLETE:
            with _quiet():
                for key, value in original.constraints.items():
                    optuna.trial.Trial(self.study, trial_id).set_constraint(key, value)
            self.study.tell(number, original.values)
        else:
            self.study.tell(number, state=TrialState.FAIL)

    def _trial(self, number: int) -> FrozenTrial:
        return self.study.get_trials(deepcopy=False)[number]

    def _remember(self, trial: FrozenTrial) -> None:
        digest = self._digest(trial)
        if digest is not None:
            self._seen.setdefault(digest, trial.number)

    def _digest(self, trial: FrozenTrial) -> str | None:
        """The trial's plan, or None while not all of it is drawn."""
        return self._of_steps(trial.params) if set(trial.params) == set(self._distributions) else None

    def _of_steps(self, steps: Mapping[str, Any]) -> str:
        """What tells these steps' plan and precision from all others."""
        return self.space.identity(self.space.plan(steps).digest(), self.space.precision(steps))

    def _identity(self, result: TrialResult) -> str:
        return self.space.identity(result.plan_digest, result.precision)

    def fits_now(self, result: TrialResult) -> bool:
        """Whether another budget kept this plan from being trained: under the present one it may be proposed again."""
        return result.status == "infeasible" and all(excess <= 0.0 for excess in self._constraints(result).values())

    def _steps_to(self, result: TrialResult) -> dict[str, int] | None:
        """By the plan, not by the steps of old: in another space other steps may lead there, or none."""
        try:
            steps = self.space.params(PruningPlan(result.requested), result.precision)
        except (PlanError, ValueError):
            return None
        return steps if self.space.plan(steps).digest() == result.plan_digest else None

    def _frozen(self, result: TrialResult | None) -> FrozenTrial:
        steps = None if result is None else self._steps_to(result)
        if result is None or steps is None:
            return optuna.trial.create_trial(state=TrialState.FAIL, user_attrs={"filled": "no result"})
        attributes: dict[str, Any] = {f"constraints:{k}": v for k, v in self._constraints(result).items()}
        if isinstance(self.study.sampler, BaseGASampler):
            attributes[self.study.sampler._get_generation_key()] = 0
        return optuna.trial.create_trial(
            state=_STATES[result.status],
            values=_values(result),
            params=steps,
            distributions=dict(self._distributions),
            system_attrs=attributes,
        )


_STATES = {
    "complete": TrialState.COMPLETE,
    "infeasible": TrialState.PRUNED,
    "stopped": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}


def _values(result: TrialResult) -> list[float] | None:
    return list(result.dominates_key) if result.status == "complete" else None


def _make_sampler(kind: str, seed: int) -> optuna.samplers.BaseSampler:
    with _quiet():
        if kind == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        if kind == "nsga2":
            return optuna.samplers.NSGAIISampler(population_size=16, seed=seed)
        return optuna.samplers.TPESampler(
            multivariate=True, group=True, constant_liar=True, n_startup_trials=8, seed=seed
        )


def _study_name(space: Space, budget: Budget | None, rig: str, run: str) -> str:
    """One study a question: another space, budget or rig is another question to the same record."""
    searched = space.precisions if len(space.precisions) > 1 else ()
    question = repr((space.to_dict(), str(budget), rig, run, *searched)).encode()
    return f"prunefront-{hashlib.sha256(question).hexdigest()[:12]}"


def study_url(setting: str, default: Path) -> str:
    """The job's `search.study` as a URL: `sqlite` means study.db in the run folder."""
    return f"sqlite:///{default.resolve()}" if setting == "sqlite" else setting


def open_storage(url: str) -> BaseStorage:
    """SQLite by `sqlite:///PATH` (any SQLAlchemy URL works), or a journal file by `journal:PATH`."""
    if url.startswith("journal:"):
        path = Path(url.removeprefix("journal:"))
        path.parent.mkdir(parents=True, exist_ok=True)
        drop_torn_line(path)
        # a lock by O_EXCL works where links do not; it is abandoned after its grace period if its holder was killed
        lock = JournalFileOpenLock(str(path), grace_period=5)
        with _quiet():
            return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))
    return RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 30}} if url.startswith("sqlite") else None)


def drop_torn_line(path: Path) -> None:
    """Cut off a last line that a kill left unfinished: the next append would make it unreadable for good."""
    if not path.exists():
        return
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        with open(path, "r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _storage_errors(url: str) -> Iterator[None]:
    try:
        yield
    except StoreError:
        raise
    except Exception as error:  # SQLAlchemy, Optuna and the file system each have their own
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        where = url.removeprefix("sqlite:///").removeprefix("journal:")
        raise StoreError(
            f"the study {where} cannot be opened ({line}): move it away, it is filled again from the results"
        ) from None
