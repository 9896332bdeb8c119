"""`prunefront search`: a job becomes a run, or a run goes on."""

from __future__ import annotations

import contextlib
import shutil
import signal
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from rich.text import Text

from admm.errors import PruneError
from evaluators.errors import EvaluationError
from evaluators.rig import measures_modules
from search.access import settle_access
from search.address import checked_address
from search.bench import WEIGHTS_NAME, Prepared, dense_onnx, prepare_run, require_resources
from search.budget import Budget
from search.catch_up import catch_up
from search.commands import environment, is_run, print_front, write_reports
from search.copies import copied, fetched, local_storage, names_there
from search.errors import UserError
from search.final_measure import remeasure_front
from search.final_scores import score_front
from search.job import Job
from search.job_file import load_job
from search.keep import disk_line, remove_unwanted
from search.logged import require_logging
from search.outputs import require_inside
from search.points import read_points
from search.recipe import as_begun, require_same_recipe
from search.remote import is_url
from search.result import Baseline, TrialResult
from search.signals import INTERRUPTED
from search.store import RunStore, driver_lock, next_run_dir, write_atomic
from search.tasks.loading import refuse_shadowing
from search.view import View
from search.warmstart import COUNT, FirstPlans, first_plans

if TYPE_CHECKING:
    from search.ray_session import Session


def run_or_resume(
    target: Path | str | Job,
    *,
    name: str | None,
    storage: str | None,
    trials: int | None,
    seconds: float | None,
    latency_ms: float | None,
    speedup: float | None,
    seed: int | None,
    address: str | None,
    console: Console,
    align: int | None = None,
    points: Path | None = None,
    rig: str | None = None,
    objectives: str | None = None,
    insecure: bool = False,
) -> Path:
    """`prunefront search`: a new run of a job or its file, or one more start of a run folder or of its copy at a URL.
    Returns the run's folder.

    Everything that can be wrong with a job is said before a folder is made, a network trained or Ray started.
    """
    target_address = checked_address(address)
    settle_access(target_address, insecure=insecure)
    view = View(console)
    if not isinstance(target, Job):
        target = fetched(target, view.say) if isinstance(target, str) and is_url(target) else Path(target)
    if isinstance(target, Path) and is_run(target):
        if name is not None or storage is not None:
            raise UserError("--name and --storage belong to a new run: leave them out to go on with one")
        store = RunStore.open(target)
        with driver_lock(target), _interruptible(view, target, target_address):
            job = as_begun(store, load_job(store.job_path))
            require_same_recipe(store, job)
            job = job.with_overrides(
                trials=trials,
                latency_ms=latency_ms,
                speedup=speedup,
                seed=seed,
                align=align,
                rig=rig,
                objectives=objectives,
            )
            with copied(store, job, view.say), _cluster(target_address, job, view) as session:
                prepared, own = _checked(job, session, points)
                job = prepared.job
                if job.to_yaml() != store.job_path.read_text():
                    write_atomic(store.job_path, job.to_yaml())
                _drive(store, job, prepared, own, view=view, session=session, seconds=seconds, console=console)
        return target
    job = target if isinstance(target, Job) else load_job(target)
    stem = job.task.partition(":")[0].rpartition(".")[2] if isinstance(target, Job) else target.stem
    require_inside(job, storage=storage)
    job = job.with_overrides(
        trials=trials,
        latency_ms=latency_ms,
        speedup=speedup,
        seed=seed,
        storage=storage,
        align=align,
        rig=rig,
        objectives=objectives,
    )
    elsewhere = names_there(job)
    with _cluster(target_address, job, view) as session:
        prepared, own = _checked(job, session, points)
        job = prepared.job
        root = next_run_dir(local_storage(job), name, stem, elsewhere)
        with driver_lock(root), _only_if_worth_keeping(root):
            store = RunStore.create(root, job.to_yaml(), environment(job))
            with _interruptible(view, root, target_address), copied(store, job, view.say):
                _drive(store, job, prepared, own, view=view, session=session, seconds=seconds, console=console)
    return root


@contextlib.contextmanager
def _cluster(address: str | None, job: Job, view: View) -> Iterator[Session | None]:
    """The cluster at HOST:PORT, joined; None for a Ray of our own, which is started when the first trial is.

    It is joined before the job is looked at: what the job measures is measured on the cluster's rigs.
    """
    if address is None:
        yield None
        return
    for folder in dict.fromkeys((job.folder, Path.cwd())):  # a submitted job's working folder is on its workers' path
        refuse_shadowing(folder)
    from search.ray_session import joined

    view.say(f"joining the Ray cluster at {address}")
    with joined(address, job, view.say) as session:
        yield session


def _checked(job: Job, session: Session | None, points: Path | None) -> tuple[Prepared, list[dict[str, int]]]:
    """The job, ready to be searched, and the user's own plans."""
    if session is None:
        require_resources(job)
    require_logging(job)
    if job.search.study != "sqlite":  # Optuna takes a second to import
        from search.study import require_study

        require_study(job.search.study)
    prepared = Prepared.of(job)
    own = [] if points is None else read_points(points, prepared.profile.space)
    prepared.check_shapes()
    return prepared, own


@contextlib.contextmanager
def _only_if_worth_keeping(root: Path) -> Iterator[None]:
    """A new run that stops at a mistake leaves no folder, unless a network was trained in it already."""
    try:
        yield
    except (UserError, PruneError, EvaluationError) as error:
        if not (root / "baseline" / WEIGHTS_NAME).exists():
            shutil.rmtree(root, ignore_errors=True)
            raise
        code = error.exit_code if isinstance(error, UserError) else UserError.exit_code
        kept = UserError(f"{error}; the dense network is kept: prunefront search {root} goes on with it")
        kept.exit_code = code
        raise kept from error


@contextlib.contextmanager
def _interruptible(view: View, root: Path, address: str | None) -> Iterator[None]:
    """Ctrl-C in a run that has a folder ends with how to go on; the next one must not tear that line."""
    try:
        yield
    except KeyboardInterrupt:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        view.say(_how_to_go_on(root, "interrupted", address))
        signal.signal(signal.SIGINT, before)
        raise SystemExit(INTERRUPTED) from None


def _drive(
    store: RunStore,
    job: Job,
    prepared: Prepared,
    points: list[dict[str, int]],
    *,
    view: View,
    session: Session | None,
    seconds: float | None,
    console: Console,
) -> None:
    """One start of a run, under its lock: what is missing before the first trial, the search, the reports."""
    address = None if session is None else session.address
    view.say(f"run {store.root}")
    with view:
        _, profile = prepare_run(store, job, prepared, view)
        baseline = catch_up(store, job, prepared, profile, view.say)
        view.say(
            f"dense: accuracy {baseline.accuracy:.4f}, {baseline.latency_ms:.4g} ms; "
            f"{len(profile.space.dimensions)} dimensions to search"
        )
        before = len(store.results())
        first = _first_plans(store, job, prepared, baseline, view) if job.search.warm_start else FirstPlans()
        # Seconds of import, before anything is said of Ray: Ctrl-C within it ends like any other.
        from search.driver import run_search

        if session is None:
            view.say("starting Ray")
        outcome = run_search(
            store,
            job,
            baseline,
            profile,
            view=view,
            last_words=partial(view.last_words, _how_to_go_on(store.root, "interrupted", address)),
            first=first,
            points=points,
            session=session,
            seconds=seconds,
            task=prepared.task,
        )
    if session is not None:
        session.training_ended()
    write_reports(store, job, baseline, outcome.results)
    disk = None
    if outcome.complete:
        try:
            score_front(store, prepared.task, baseline, outcome.results)
        except UserError as error:
            view.say(str(error))
        disk = _finish(store, job, baseline, outcome.results, view)
    print_front(store, job, baseline, outcome.results, console)
    console.print(Text(f"picture: {store.root / 'front.png'}"), soft_wrap=True)
    if outcome.complete:
        if outcome.reason is not None:
            view.say(outcome.reason)
        elif len(outcome.results) == before:
            view.say(f"all {job.search.trials} trials were done before: --trials asks for more")
        _say_how_to_export(view, store.root, job, outcome.results)
        if disk is not None:
            view.say(disk)
        return
    view.say(_how_to_go_on(store.root, outcome.reason or "stopped", address))
    if outcome.reason == "interrupted":
        raise SystemExit(INTERRUPTED)


def _finish(
    store: RunStore, job: Job, baseline: Baseline, results: Mapping[int, TrialResult], view: View
) -> str | None:
    """What follows the last trial: the front measured again, weights removed that nothing wants any more.

    Neither may take the end of a search from the user: what goes wrong is one line. Returns what is to be said of the
    disk, if anything.
    """
    try:
        if job.search.remeasure and remeasure_front(store, job, baseline, results, view.say):
            write_reports(store, job, baseline, results)
    except UserError as error:
        view.say(str(error))
    removed = 0
    try:
        removed = remove_unwanted(store, job, baseline, results)
    except UserError as error:
        view.say(str(error))
    return disk_line(store, job, results, removed)


def _first_plans(store: RunStore, job: Job, prepared: Prepared, baseline: Baseline, view: View) -> FirstPlans:
    """Plans from what is known before training, at most a third of the trials; what it costs is kept in the run."""
    gpu = job.resources.gpus_per_trial > 0.0 and torch.cuda.is_available()
    found = first_plans(
        prepared,
        folder=store.root,
        dense_latency_ms=baseline.latency_ms,
        dense=None if measures_modules(job.deciding_rig.name) else dense_onnx(store),
        device=torch.device("cuda" if gpu else "cpu"),
        count=min(COUNT, max(2, job.search.trials // 3)),
        say=view.say,
    )
    for note in found.notes:
        view.say(note)
    if found.forecast is not None:
        view.say(
            f"{len(found.plans)} first plans from sensitivity and forecast latency (off by "
            f"{found.forecast.mean_error:.1%} in the mean), for {found.epochs:.2f} epochs of forward passes"
        )
    return found


def _how_to_go_on(root: Path, reason: str, address: str | None) -> str:
    where = "" if address is None else f" --address {address}"
    return (
        f"{reason}: nothing finished is lost; the long schedule, fresh measurements and test data come after the last "
        f"trial; go on with: prunefront search {root}{where}"
    )


def _say_how_to_export(view: View, root: Path, job: Job, results: Mapping[int, TrialResult]) -> None:
    """The next commands, as they can be typed; none where there is nothing to export."""
    budget = Budget.of(job)
    complete = [r for r in results.values() if r.status == "complete"]
    if not complete:
        return
    if budget is None or not any(budget.holds(r) for r in complete):
        asked = "--trial N"
    elif budget.speedup is not None:
        asked = f"--speedup {budget.speedup:g}"
    else:
        asked = f"--latency-ms {budget.latency_ms:g}"
    view.say(f"as a page for others: prunefront report {root}")
    view.say(f"export one with: prunefront export {root} {asked} --out NEW_FOLDER")
