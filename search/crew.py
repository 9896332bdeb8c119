"""A trial in several processes: Ray actors beside the trial's own, in its placement group, that train in step with it.

The trial's own process, the first, asks each of the others for a step and takes its own; within a step they meet in
torch.distributed (`admm.team`), and only there. A process that is lost ends the attempt, not the trial: the searcher
offers it again, and it goes on from its checkpoint.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import ray
import torch
import torch.distributed as dist
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from admm.checkpoint import read_state
from admm.outcome import StepReport
from admm.pipeline import PruneRun
from admm.team import Team
from evaluators import Measurement
from evaluators.errors import one_line
from search.bench import open_bench
from search.errors import AttemptLost
from search.folder_keeper import Where
from search.job_file import load_job
from search.node_data import get_task
from search.training import training_of
from search.trial import TrialSpec

#: How long a process waits for the others within a step before it counts them as lost; the first may be scoring.
PATIENCE = timedelta(minutes=30)
#: After a step that failed here: how long the others have to say why.
LAST_WORDS_S = 20.0


@ray.remote(max_restarts=0)
class Helper:
    """One of the other processes of a trial; stays for the next trial of its worker."""

    def __init__(self, where: Where, cwd: str, threads: int, data: tuple[Any | None]) -> None:
        with contextlib.suppress(OSError):  # on another machine there may be no such folder
            os.chdir(cwd)
        torch.set_num_threads(threads)
        self._where = where
        self._store = where.open()
        job = load_job(self._store.job_path)
        task = None if data[0] is None else get_task(data[0], job)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._bench = open_bench(self._store, job, measure=_nothing_to_measure, device=device, task=task)
        self._run: PruneRun | None = None

    def ready(self) -> None:
        """Answers once this process is open."""

    def join(self, host: str, port: int, rank: int, size: int) -> None:
        """Enter the group that the first process has opened."""
        _join(TCPStore(host, port, size, is_master=False, timeout=PATIENCE), rank, size)
        self._team = Team()

    def begin(self, spec: TrialSpec, resumed: bool) -> None:
        """The trial, at the step that the first process stands at."""
        self._store = self._where.open()
        if spec.start is not None:  # where this process sees those files
            own = self._store.trial_dir(spec.start.number)
            spec = replace(spec, start=replace(spec.start, folder=own))
        self._run, _ = training_of(self._bench, spec)
        self._run.team = self._team
        if resumed:
            self._run.load_state(*read_state(self._store.fetch_checkpoint(spec.number)))

    def step(self) -> None:
        """One step, together. An error here leaves the group, so that nobody waits for this process."""
        assert self._run is not None
        try:
            self._run.step()
        except BaseException:
            _leave()
            raise


class RayCrew:
    """The helpers of one worker; implements `search.trial.Crew`. Must live in an actor with a placement group."""

    def __init__(
        self, where: Where, cwd: str, *, processes: int, of_a_process: Mapping[str, float], data: tuple[Any | None]
    ) -> None:
        self._size = processes
        self._of_a_process = of_a_process
        self._arguments = (where, cwd, max(1, int(of_a_process["CPU"])), data)
        self._helpers: list[Any] = []
        self._team: Team | None = None

    def begin(self, spec: TrialSpec, resumed: bool) -> Team:
        """See `Crew`. Raises `AttemptLost` where a helper cannot be started."""
        try:
            team = self._joined()
            ray.get([helper.begin.remote(spec, resumed) for helper in self._helpers])
        except BaseException as error:
            self.dismiss()
            if isinstance(error, ray.exceptions.RayError):
                raise AttemptLost(f"a process of this trial was lost: {one_line(error)}") from None
            raise
        return team

    def step(self, own: Callable[[], StepReport]) -> StepReport:
        """See `Crew`."""
        theirs = [helper.step.remote() for helper in self._helpers]
        try:
            with _watching(theirs):
                report = own()
            ray.get(theirs)
        except BaseException as error:
            _leave()  # whoever waits for this process in a step need not
            lost, said = self._heard(theirs)
            self.dismiss()
            if lost is not None:
                raise AttemptLost(f"a process of this trial was lost: {lost}") from None
            if said is not None and type(error) is not type(said) and isinstance(error, RuntimeError):
                raise RuntimeError(f"{one_line(error)}; another process: {one_line(said)}") from None
            raise
        return report

    def dismiss(self) -> None:
        """End the helpers and the group; the next trial starts others."""
        for helper in self._helpers:
            with contextlib.suppress(Exception):
                ray.kill(helper)
        self._helpers, self._team = [], None
        _leave()

    def _joined(self) -> Team:
        if self._team is not None:
            return self._team
        group: Any = ray.util.get_current_placement_group()  # Tune starts every trial in one
        actor: Any = Helper  # the decorator made it an actor class, which its annotations do not say
        need = {"num_cpus": self._of_a_process["CPU"], "num_gpus": self._of_a_process["GPU"]}
        self._helpers = [
            actor.options(
                **need,
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    placement_group=group, placement_group_bundle_index=rank
                ),
            ).remote(*self._arguments)
            for rank in range(1, self._size)
        ]
        host = ray.util.get_node_ip_address()
        store = TCPStore(host, 0, self._size, is_master=True, wait_for_workers=False, timeout=PATIENCE)
        ray.get([helper.ready.remote() for helper in self._helpers])  # opening the task takes the longest
        joining = [
            helper.join.remote(host, store.port, rank, self._size) for rank, helper in enumerate(self._helpers, 1)
        ]
        with _watching(joining):
            _join(store, 0, self._size)
        ray.get(joining)
        self._team = Team()
        return self._team

    @staticmethod
    def _heard(theirs: list[Any]) -> tuple[str | None, Exception | None]:
        """(how a helper was lost, None where each has answered; the error that one of them met)."""
        ended, _ = ray.wait(theirs, num_returns=len(theirs), timeout=LAST_WORDS_S)
        said: Exception | None = None
        for answer in ended:
            try:
                ray.get(answer)
            except ray.exceptions.RayTaskError as error:
                said = error.cause
            except ray.exceptions.RayError as error:
                return one_line(error), None
        return None, said


@contextlib.contextmanager
def _watching(theirs: list[Any]) -> Iterator[None]:
    """End this process when one of the others dies and the block, which waits for it, does not notice.

    Sockets tell of a dead peer mostly; NCCL, and a group that is still forming, wait for it to the end.
    """
    over = threading.Event()

    def watch() -> None:
        waiting = list(theirs)
        while waiting and not over.is_set():
            ended, waiting = ray.wait(waiting, timeout=1.0)
            for answer in ended:
                try:
                    ray.get(answer)
                except ray.exceptions.RayTaskError:
                    continue  # it lives, and has left the group
                except ray.exceptions.RayError:
                    if not over.wait(2 * LAST_WORDS_S):
                        os._exit(1)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()


def _leave() -> None:
    if dist.is_initialized():
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()


def _join(store: Any, rank: int, size: int) -> None:
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)


def _nothing_to_measure(rig: str, candidate: bytes, reference: bytes | None = None) -> Measurement:
    """A helper trains; the first process measures."""
    raise NotImplementedError(f"a helper was asked to measure on {rig}")
