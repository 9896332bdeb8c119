"""One search from a prepared run folder to its front, on Ray Tune. May be killed at any instant and started again."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

# Said before Ray is imported: strangers on the network stay out, Tune keeps its hands off folders and logs.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_TQDM_PATCH_PRINT", "0")
# A slow machine has its agent of metrics up too late, and each process of Ray complains of that on the terminal.
os.environ.setdefault("RAY_enable_metrics_collection", "0")

import ray
from ray import tune
from ray.tune.stopper import Stopper

import search
from search.atomic import disk_errors
from search.budget import Budget
from search.errors import UserError
from search.finals import final_plans
from search.job import Job
from search.node_data import put_task
from search.orphans import Watcher
from search.profile import Profile
from search.result import Baseline, TrialResult
from search.rig_actor import NAMESPACE, RESOURCE, start_rig, stop_rig
from search.rungs import RungBoard, RungScheduler, rung_iterations
from search.sampler import StudySampler, study_url
from search.searcher import Halt, PlanSearcher
from search.signals import Interrupt
from search.store import RunStore, write_atomic
from search.tasks.base import PreparedTask
from search.trainable import PruneTrainable
from search.view import View
from search.warmstart import FirstPlans

#: Tried early: the same sparsity everywhere, which is what a user would have tried by hand. One is enough of a control
#: where there are better plans to begin with.
UNIFORM = (0.5, 0.75, 0.25)
CONTROL = UNIFORM[:1]
SCRATCH = "ray"


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
    address: str | None = None,
    seconds: float | None = None,
    task: PreparedTask | None = None,
) -> Outcome:
    """Search until the job's trials are done, the time is up or Ctrl-C; the caller holds the driver's lock.

    `points` are tried before all others, then the plans of `first`. `address` None starts Ray here and stops it after;
    `auto` or HOST:PORT joins a cluster. `task`, where it is at hand, saves the workers loading its data. Raises
    `UserError` for a cluster that cannot be reached or lacks what a trial needs.
    """
    unfinished = store.sweep_partials()
    budget = Budget.of(job)
    sampler = _open_study(store, job, profile, budget, baseline.accuracy)
    sampler.enqueue(points, "user")
    space = profile.space
    if first is not None:
        sampler.enqueue((space.params(space.plan(plan.params)) for plan in first.plans), "warm start")
    if not store.results():
        controls = CONTROL if first is not None and first.plans else UNIFORM
        sampler.enqueue((space.uniform(sparsity) for sparsity in controls), "uniform")
    results = store.results()
    board = RungBoard(rung_iterations(job.admm.iterations))
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
        finals=partial(final_plans, baseline, budget=budget, most=job.search.final_trials),
        final_stretch=job.search.final_stretch,
        inherit=job.search.inherit,
    )
    for number in set(unfinished) - searcher.offered:
        store.discard_partial(number)  # begun for another budget, or in a study that is lost
    view.begin(
        baseline, results, budget=budget, trials=job.search.trials, seconds=seconds, running=lambda: searcher.live
    )
    try:
        if not searcher.finished():
            with interrupt.heard(), _ray(address, store.root / SCRATCH):
                interrupt.listen()
                shared = (None, None) if task is None else put_task(task)
                if shared[1] is not None:
                    view.say(f"each worker process loads the task's data for itself: {shared[1]}")
                _fit(store, job, searcher, board if job.search.early_stopping else None, end, shared[0])
    except _Ended:
        pass
    except Halt as halt:
        raise halt.error from None
    finally:
        view.end()
    store.sweep_partials()
    return _outcome(store, job, searcher, end)


def _open_study(
    store: RunStore, job: Job, profile: Profile, budget: Budget | None, dense_accuracy: float
) -> StudySampler:
    """The run's study; a new one (first start, new budget, lost file) is filled from the results."""
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
        rig=job.deciding_rig.name,
        run="" if job.search.study == "sqlite" else str(store.root.resolve()),
    )
    results = store.results()
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
    store: RunStore, job: Job, searcher: PlanSearcher, board: RungBoard | None, end: _End, data: Any | None
) -> None:
    searcher.max_concurrent = _concurrency(job)
    # a bundle for each process of a trial: near each other where one machine has the room
    resources = tune.PlacementGroupFactory([job.resources.of_a_process()] * job.resources.processes, strategy="PACK")
    shared = {
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
            verbose=0,
        ),
    )
    start_rig(store.name, job)
    try:
        end.check()
        tuner.fit()
    finally:
        with contextlib.suppress(Exception):  # the cluster may be gone already
            stop_rig(store.name)


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


def _concurrency(job: Job) -> int:
    """How many trials run at a time. Raises `UserError` when the cluster cannot hold one."""
    have = ray.cluster_resources()
    need = {"CPU": job.resources.cpus_per_trial, "GPU": job.resources.gpus_per_trial}
    fits = job.resources.max_concurrent or 10_000
    for kind, amount in need.items():
        if amount > 0:
            if have.get(kind, 0.0) < amount:
                raise UserError(
                    f"resources: a trial needs {amount:g} {kind}, Ray has {have.get(kind, 0.0):g}: "
                    f"lower resources.{kind.lower()}s_per_trial or add a node"
                )
            fits = min(fits, int(have[kind] / amount))
    if have.get(RESOURCE, 0.0) < 1.0:
        raise UserError(
            f"no node of this cluster offers the resource {RESOURCE!r}: start one with "
            f"ray start --resources='{{\"{RESOURCE}\": 1}}'"
        )
    return max(1, fits)


@contextlib.contextmanager
def _ray(address: str | None, scratch: Path) -> Iterator[None]:
    """Ray for the length of a search, started from an empty folder, because Ray puts the current one on its workers'
    path."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a lost worker is no traceback for the user
    shutil.rmtree(scratch, ignore_errors=True)
    empty = scratch / "empty"
    with disk_errors("make", empty):
        empty.mkdir(parents=True)
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "namespace": NAMESPACE}
    before = os.getcwd()
    with Watcher() as watcher:
        try:
            os.chdir(empty)
            try:
                if address is None:
                    with watcher.marking():
                        # "local": a cluster that RAY_ADDRESS names is joined only when --address says so
                        ray.init(address="local", include_dashboard=False, resources={RESOURCE: 1}, **common)
                else:
                    ray.init(address=address, **common)
            except (ConnectionError, ValueError, RuntimeError) as error:
                why = next(iter(str(error).splitlines()), type(error).__name__)
                if address is None:
                    raise UserError(f"Ray cannot be started here: {why}") from None
                raise UserError(
                    f"--address {address}: no Ray cluster answers there ({why}): "
                    f"start one with `ray start --head`, or leave --address out"
                ) from None
            finally:
                os.chdir(before)
            yield
        finally:
            ray.shutdown()
            shutil.rmtree(scratch, ignore_errors=True)
