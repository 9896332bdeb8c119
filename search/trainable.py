"""What Ray Tune runs on a worker: one `TrialRun`, step by step. All state is in the run folder, seen or served."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune

import search
from admm.plan import PruningPlan
from evaluators.errors import one_line
from search.bench import dense_forms, open_bench
from search.crew import RayCrew
from search.folder_keeper import Where
from search.job_file import load_job
from search.logged import figures_of
from search.module_rigs import of_modules
from search.node_data import get_task
from search.nodes import NodeRefused, facts, mismatch
from search.objectives import Objectives
from search.rig_actor import remote_measure, remote_modules
from search.trial import Bench, Start, TrialSpec
from search.worker import TrialRun

CHECKPOINT = "trial.safetensors"


class PruneTrainable(tune.Trainable):
    """One trial: `config` names the run folder, the number, the plan and the seed.

    An actor is used again for the next trial (`reset_config`); what trials share is opened once a process.
    """

    _bench: Bench | None = None
    _bench_of: tuple[str, float] | None = None

    def setup(self, config: dict[str, Any], data: tuple[Any | None] = (None,)) -> None:
        """Open the bench and the trial; a checkpoint of an earlier attempt is taken up.

        `data` holds where the task lies in the object store, None where each worker loads it for itself.
        """
        with contextlib.suppress(OSError):  # on another machine there may be no such folder
            os.chdir(config["cwd"])  # the user's code may name files relative to where the search was started
        torch.set_num_threads(max(1, int(config["cpus"])))
        self._where = Where(run_dir=config["run_dir"], mark=config["mark"], keeper=config["keeper"])
        self._store = self._where.open(int(config["number"]))
        with self._telling(int(config["number"])):
            self._require_same_package(config)
            self._open(config, data[0])

    def _open(self, config: dict[str, Any], data: Any | None) -> None:
        # a job that changed between two drivers is another bench
        identity = (str(self._store.root), self._store.job_path.stat().st_mtime)
        if PruneTrainable._bench is None or PruneTrainable._bench_of != identity:
            device = torch.device("cuda" if torch.cuda.is_available() and config["gpus"] > 0 else "cpu")
            job = load_job(self._store.job_path)
            measure = remote_measure(config["rigs"], dense_forms(self._store, job))
            modules = remote_modules(config["rigs"]) if of_modules(job) else None
            task = None if data is None else get_task(data, job)
            resources = job.resources
            crew = (
                RayCrew(
                    self._where,
                    config["cwd"],
                    processes=resources.processes,
                    of_a_process=resources.of_a_process(),
                    data=(data,),
                )
                if resources.processes > 1
                else None
            )
            PruneTrainable._bench = open_bench(
                self._store, job, measure=measure, device=device, modules=modules, task=task, crew=crew
            )
            PruneTrainable._bench_of = identity
        bench = PruneTrainable._bench
        self._objectives = Objectives.of(bench.job, bench.baseline)
        start = config["start"]
        spec = TrialSpec(
            number=int(config["number"]),
            plan=PruningPlan.from_json(config["plan"]),
            params=config["params"],
            seed=int(config["seed"]),
            precision=config["precision"],
            stretch=float(config["stretch"]),
            source=config["source"],
            start=None if start is None else self._start(int(start[0]), float(start[1])),
            twins=tuple(config["twins"]),
        )
        self._trial = TrialRun(bench, spec, store=self._store)

    def _start(self, number: int, stretch: float) -> Start:
        return Start(number=number, folder=self._store.trial_dir(number), stretch=stretch)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """The next trial on this actor."""
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """One step of the trial; the last one reports `done`."""
        with self._telling(self._trial.spec.number):
            progress = self._trial.step()
        so_far = self._trial.so_far()
        record = progress.result or so_far
        return {
            "number": self._trial.spec.number,
            "phase": progress.phase,
            "steps": progress.step,
            "rung": progress.rung,
            "rung_accuracy": progress.accuracy,
            "rung_costs": self._objectives.relative(so_far),
            "so_far": json.dumps(so_far.to_dict()),
            "figures": figures_of(progress, record),
            "done": progress.result is not None,
        }

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """For a scheduler that pauses; a worker or driver that dies goes on from the run folder instead."""
        self._trial.save(Path(checkpoint_dir) / CHECKPOINT)

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Take up what `save_checkpoint` wrote."""
        if isinstance(checkpoint, str | os.PathLike):
            self._trial.load(Path(checkpoint) / CHECKPOINT)

    @contextlib.contextmanager
    def _telling(self, number: int) -> Iterator[None]:
        """What ends this attempt, and not the trial, is left in a line for the driver."""
        try:
            yield
        except Exception as error:
            self._store.note_loss(number, f"{type(error).__name__}: {one_line(error)}")
            raise

    @staticmethod
    def _require_same_package(config: dict[str, Any]) -> None:
        """A node that joined later, with other packages, must not get as far as a confusing error or a wrong figure."""
        wrong = None
        if search.__version__ != config["version"]:
            wrong = f"it has prunefront {search.__version__} ({search.__file__}), the driver {config['version']}"
        wrong = wrong or mismatch(facts(), config["packages"], config["version"])
        if wrong is not None:
            address = ray.util.get_node_ip_address()
            raise NodeRefused(f"node {address} cannot work for this search: {wrong}")
