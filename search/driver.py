"""One search from a prepared run folder to its front, on Ray Tune. May be killed at any instant and started again."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from search.ray_session import Session, own_ray  # isort: skip  # it speaks to Ray before Ray is imported

import ray
from ray import tune
from ray.tune.logger import LoggerCallback
from ray.tune.stopper import Stopper
from ray.widgets.util import in_notebook

import search
from search.atomic import disk_errors
from search.budget import Budget
from search.capacity import concurrency
from search.cluster_watch import ClusterWatch
from search.finals import final_plans
from search.folder_keeper import Where, found
from search.job import Job
from search.loggers import open_loggers
from search.node_data import put_task
from search.nodes import SCRATCH, facts
from search.objectives import Objectives
from search.on_rigs import judged_on
from search.places import Placement
from search.profile import Profile
from search.result import Baseline, TrialResult
from search.rig_actor import start_rigs, stop_rigs, until_ready
from search.rig_keeper import RigKeeper
from search.rungs import RungBoard, RungScheduler, rung_iterations
from search.sampler import StudySampler, study_url
from search.searcher import Halt, PlanSearcher
from search.signals import Interrupt
from search.store import RunStore, write_atomic
from search.study_notes import link_artefacts
from search.tasks.base import PreparedTask
from search.trainable import PruneTrainable
from search.view import View
from search.warmstart import FirstPlans

#: Tried early: the same sparsity everywhere, which is what a user would have tried by hand. One is enough of a control
#: where there are better plans to begin with.
UNIFORM = (0.5, 0.75, 0.25)
CONTROL = UNIFORM[:1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a search ended: `complete` when all trials asked for are done, else why it stopped before."""

    complete: bool
    reason: str | None
    results: dict[int, TrialResult]


class _Ended(BaseException):
    """Leaves Tune's loop between two of its steps.

    Its own way out waits up to a quarter of a minute for the workers, and what they have done is on the disk anyway.
    """


class _End(Stopper):
    """Ends the run when the time budget is spent or the user asks for it; what still runs keeps its checkpoint."""

    def __init__(self, seconds: float | None, interrupt: Interrupt) -> None:
        self._end = None if seconds is None else time.monotonic() + seconds
        self._interrupt = interrupt
        self.reached = False

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    @property
    def interrupted(self) -> bool:
        return self._interrupt.requested

    def check(self) -> None:
        if self._end is not None and time.monotonic() >= self._end:
            self.reached = True
        if self.reached or self._interrupt.requested:
            raise _Ended

    def stop_all(self) -> bool:
        self.check()
        return False


def run_search(
    store: RunStore,
    job: Job,
    baseline: Baseline,
    profile: Profile,
    *,
    view: View,
    last_words: Callable[[], None],
    first: FirstPlans | None = None,
    points: Sequence[Mapping[str, int]] = (),
    session: Session | None = None,
    seconds: float | None = None,
    task: PreparedTask | None = None,
) -> Outcome:
    """Search until the job's trials are done, the time is up or Ctrl-C; the caller holds the driver's lock.

    `points` are tried before all others, then the plans of `first`. `session` is the cluster that was joined; without
    one Ray is started here and stopped after. `task`, where it is at hand, saves the workers loading its data. Raises
    `UserError` where there is less than a trial needs.
    """
    unfinished = store.sweep_partials()
    budget = Budget.of(job)
    objectives = Objectives.of(job, baseline)
    forecast = None if first is None else first.forecast
    cost = None if forecast is None else forecast.relative
    sampler = _open_study(store, job, profile, budget, baseline.accuracy, objectives, cost)
    sampler.enqueue(points, "user")
    space = profile.space
    if first is not None:
        for plan in first.plans:
            sampler.enqueue([space.params(space.plan(plan.params))], plan.source)
    if not store.results():
        controls = CONTROL if first is not None and first.plans else UNIFORM
        sampler.enqueue((space.uniform(sparsity) for sparsity in controls), "uniform")
    results = store.results()
    board = RungBoard(rung_iterations(job.admm.iterations), objectives=objectives)
    board.fill(results)
    interrupt = Interrupt(last_words)
    end = _End(seconds, interrupt)
    searcher = PlanSearcher(
        sampler,
        store,
        trials=job.search.trials,
        seed=job.search.seed,
        max_concurrent=job.resources.max_concurrent or 1,
        stopped=board.stopped,
        on_result=view.update,
        finals=partial(final_plans, baseline, budget=budget, most=job.search.final_trials, objectives=objectives),
        final_stretch=job.search.final_stretch,
        inherit=job.search.inherit,
    )
    for number in set(unfinished) - searcher.offered:
        store.discard_partial(number)  # begun for another budget, or in a study that is lost
    view.begin(
        baseline,
        results,
        budget=budget,
        trials=job.search.trials,
        seconds=seconds,
        running=lambda: searcher.live,
        objectives=objectives,
    )
    try:
        if not searcher.finished():
            with (
                interrupt.heard(),
                open_loggers(store, job, view.say) as loggers,
                _ray(session, store, job, view) as placement,
                _cluster_watch(store, session, view),
            ):
                interrupt.listen()
                shared = (None, None) if task is None else put_task(task)
                if shared[1] is not None:
                    view.say(f"each worker process loads the task's data for itself: {shared[1]}")
                searcher.max_concurrent = concurrency(job)
                joined = session is not None
                with (
                    found(store.root, joined=joined, say=view.say) as where,
                    _rigs(store, job, placement) as rigs,
                ):
                    if session is not None:
                        until_ready(rigs, view.say, end.check)
                    kept = {rigs[place.rigs[0]]: place.resource for place in placement.places}
                    stopping = board if job.search.early_stopping else None
                    with RigKeeper(kept, view.say):
                        _fit(store, job, searcher, stopping, end, rigs, where, loggers, data=shared[0])
    except _Ended:
        pass
    except Halt as halt:
        raise halt.error from None
    finally:
        view.end()
    store.sweep_partials()
    return _outcome(store, job, searcher, end)


def _cluster_watch(store: RunStore, session: Session | None, view: View) -> ClusterWatch:
    """Over the head of the cluster that was joined, and the node of it that this driver is attached to."""
    if session is None:
        return ClusterWatch((), lambda: None)
    context = ray.get_runtime_context()
    host, _, port = context.gcs_address.rpartition(":")
    mine = [node for node in ray.nodes() if node["NodeID"] == context.get_node_id()]
    places = [(host.strip("[]"), int(port)), *((n["NodeManagerAddress"], n["NodeManagerPort"]) for n in mine)]
    last_words = (
        f"the Ray cluster at {context.gcs_address} is gone: nothing finished is lost; once there is one again, go on "
        f"with: prunefront search {store.root} --address {context.gcs_address}"
    )
    return ClusterWatch(places, partial(view.last_words, last_words))


def _open_study(
    store: RunStore,
    job: Job,
    profile: Profile,
    budget: Budget | None,
    dense_accuracy: float,
    objectives: Objectives,
    cost: Callable[[Mapping[str, int]], float] | None,
) -> StudySampler:
    """The run's study; a new one (first start, another budget, rig or objectives, lost file) is filled from the
    results."""
    starts = _count_start(store)
    sampler = StudySampler(
        study_url(job.search.study, store.study_path),
        profile.space,
        sampler=job.search.sampler,
        seed=job.search.seed,
        start=starts,
        budget=budget,
        dense_accuracy=dense_accuracy,
        again=job.search.inherit,
        rig=", ".join([judged_on(job.deciding_rig), *(judged_on(job.rig(name)) for name in objectives.rigs)]),
        objectives=objectives,
        cost=cost,
        run="" if job.search.study == "sqlite" else str(store.root.resolve()),
        place=str(store.root.resolve()),
        artefacts=partial(link_artefacts, store),
    )
    results = store.results()
    for number in results:  # a run that was fetched from a URL has no links
        link_artefacts(store, number)
    sampler.fill(results)
    sampler.reconcile(results, damaged=store.finished() - set(results))
    return sampler


def _count_start(store: RunStore) -> int:
    """How often this run was started before; counted on disk, so that each start draws other numbers."""
    path = store.root / "starts"
    try:
        before = int(path.read_text())
    except (OSError, ValueError):
        before = 0
    write_atomic(path, f"{before + 1}\n")
    return before


def _fit(
    store: RunStore,
    job: Job,
    searcher: PlanSearcher,
    board: RungBoard | None,
    end: _End,
    rigs: Mapping[str, str],
    where: Where,
    loggers: Sequence[LoggerCallback],
    *,
    data: Any | None,
) -> None:
    # a bundle for each process of a trial: near each other where one machine has the room
    resources = tune.PlacementGroupFactory([job.resources.of_a_process()] * job.resources.processes, strategy="PACK")
    shared = {
        "mark": where.mark,
        "keeper": where.keeper,
        "rigs": dict(rigs),
        "packages": facts(),
        "version": search.__version__,
        "cpus": job.resources.of_a_process()["CPU"],
        "gpus": job.resources.gpus_per_trial,
        "cwd": os.getcwd(),
    }
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(PruneTrainable, data=(data,)), resources),
        param_space=shared,
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=RungScheduler(board) if board is not None else None,
            num_samples=-1,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="search",
            storage_path=str((store.root / SCRATCH).resolve()),
            failure_config=tune.FailureConfig(max_failures=0),  # the searcher offers a lost trial again
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            stop=end,
            callbacks=list(loggers),
            verbose=0,
            progress_reporter=_Silent() if in_notebook() else None,
        ),
    )
    end.check()
    tuner.fit()


class _Silent(tune.ProgressReporter):
    """In a notebook Tune reports at any verbosity, and clears what the cell has shown."""

    def should_report(self, trials: object, done: bool = False) -> bool:
        return False

    def report(self, trials: object, done: bool, *sys_info: str) -> None:
        pass


@contextlib.contextmanager
def _rigs(store: RunStore, job: Job, placement: Placement) -> Iterator[dict[str, str]]:
    """The run's rigs for the length of its trials: rig -> actor."""
    rigs = start_rigs(store.name, job, placement.places)
    try:
        yield rigs
    finally:
        with contextlib.suppress(Exception):  # the cluster may be gone already
            stop_rigs(rigs)


def _outcome(store: RunStore, job: Job, searcher: PlanSearcher, end: _End) -> Outcome:
    results = store.results()
    if searcher.finished():
        every = "every plan of the space was tried" if searcher.exhausted else None
        return Outcome(complete=True, reason=every, results=results)
    if end.interrupted:
        reason = "interrupted"
    elif end.reached:
        reason = "the time budget is spent"
    else:
        reason = f"{searcher.infeasible_in_a_row} plans in a row were over budget by their shapes: loosen it, or try on"
    return Outcome(complete=False, reason=reason, results=results)


@contextlib.contextmanager
def _ray(session: Session | None, store: RunStore, job: Job, view: View) -> Iterator[Placement]:
    """Ray for the trials, in a folder of its own that nothing is ever read from again; tells where the rigs are."""
    scratch = store.root / SCRATCH
    shutil.rmtree(scratch, ignore_errors=True)
    with disk_errors("make", scratch):
        scratch.mkdir(parents=True)
    try:
        if session is None:
            with own_ray(scratch, job) as placement:
                yield placement
        else:
            session.rest()
            yield session.placement
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
