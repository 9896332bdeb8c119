"""The laboratory that really trains: trials of `search.worker` in this process, each plan measured once.

A trial of the same plan, seed and way always gives the same weights (one thread), so it is trained once, kept in the
cache folder stage by stage, and charged in full to every method that asks for it. So are latencies: all methods and
seeds see one clock. An interrupted run goes on from what the folder holds.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from quality_l1 import l1_stages
from quality_lab import LONG, Figures, Stage, Trial
from quality_task import SmallNet, kept_widths
from silent import Silent

from admm.compact import PLAN_FILE, WEIGHTS_FILE
from admm.plan import PruningPlan
from evaluators import Measurement, count_macs, count_params
from search.atomic import json_text, write_atomic
from search.bench import Prepared, dense_onnx, local_measure, open_bench, prepare_run
from search.errors import UserError
from search.job import Job
from search.module_artefact import DenseForms
from search.rungs import rung_iterations
from search.shapes_file import shapes_onnx
from search.space import Space
from search.store import RunStore
from search.tasks.base import prepare
from search.trial import Bench, Start, TrialSpec
from search.warmstart import first_plans
from search.weights import prunable_weights
from search.worker import TrialRun

#: Kept counts are multiples of this for all methods: the block of AVX-512, and twice that of AVX2.
ALIGN = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much is trained: images, epochs of the dense network, and the schedule of a trial."""

    train: int
    val: int
    dense_epochs: int
    iterations: int
    finetune: int
    longer: int
    """The long schedule has so many times the iterations and the epochs of retraining."""


#: Plans that ours begins with: a third of the trials that its epochs pay for, as in a search.
FIRST_PLANS = 6
FULL = Size(train=2_000, val=3_000, dense_epochs=16, iterations=3, finetune=2, longer=3)
QUICK = Size(train=400, val=500, dense_epochs=4, iterations=2, finetune=1, longer=2)


def quality_job(size: Size, data: Path) -> Job:
    """The job that all methods search: filters of `quality_task` on onnxruntime-cpu."""
    return Job.model_validate(
        {
            "task": "quality_task:task",
            "task_args": {
                "data": str(data.absolute()),
                "train": size.train,
                "val": size.val,
                "epochs": size.dense_epochs,
            },
            "base_dir": str(Path(__file__).parent),
            "structures": ["filter"],
            "layers": {"exclude": ["head"]},
            "sparsity": {"max": 0.95, "align": ALIGN},
            "lower": False,
            "admm": {"iterations": size.iterations, "lr": 0.02},
            "finetune": {"epochs": size.finetune, "lr": 0.02},
        }
    )


class RealLab:
    """Trains in this process; `folder` keeps the dense network, the latencies and every trial's stages.

    Raises `UserError` for a folder that holds another job's trials.
    """

    def __init__(self, size: Size, data: Path, folder: Path) -> None:
        self._size, self._folder = size, folder
        job = quality_job(size, data)
        root = folder / "run"
        # What was trained depends on the job and not on where its data lie.
        identity = json_text({**asdict(size), "job": _without_places(job)})
        known = folder / "job.json"
        if known.exists() and known.read_text() != identity:
            raise UserError(f"--cache {folder} holds trials of another job: choose another folder")
        if root.exists() and not known.exists():
            shutil.rmtree(root)  # killed before the dense network was measured
        prepared = Prepared.of(job)
        store = RunStore.open(root) if root.exists() else RunStore.create(root, prepared.job.to_yaml(), {})
        prepare_run(store, prepared.job, prepared, Silent())
        self._dense_onnx = dense_onnx(store)
        self._bench = open_bench(store, prepared.job)
        self._measure = local_measure(prepared.job, DenseForms(file=self._dense_onnx))
        write_atomic(known, identity)

    @property
    def bench(self) -> Bench:
        """What a method may look at before its first trial: the dense network, its data, the profile."""
        return self._bench

    @property
    def space(self) -> Space:
        """Filters of seven layers."""
        return self._bench.profile.space

    @property
    def rungs(self) -> tuple[int, ...]:
        """As in a search."""
        return rung_iterations(self._bench.job.admm.iterations)

    @property
    def dense_accuracy(self) -> float:
        """Of the dense ONNX file."""
        return self._bench.baseline.accuracy

    def first_plans(self) -> tuple[dict[str, list[dict[str, int]]], float]:
        """(steps of the plans that a search would begin with, by what found them, and the epochs that it took).

        Kept in the folder; the epochs are charged to every run that begins with them.
        """
        bench = self._bench
        found = first_plans(
            Prepared(job=bench.job, task=bench.task, model=bench.dense, profile=bench.profile),
            folder=self._folder / "run",
            dense_latency_ms=bench.baseline.latency_ms,
            dense=self._dense_onnx,
            measure=self._measure,
            count=FIRST_PLANS,
        )
        by_source: dict[str, list[dict[str, int]]] = {}
        for plan in found.plans:
            by_source.setdefault(plan.source, []).append(dict(plan.params))
        return by_source, found.epochs

    @cached_property
    def conditions(self) -> dict[str, Any]:
        """For the JSON line."""
        job, baseline = self._bench.job, self._bench.baseline
        return {
            "size": asdict(self._size),
            "align": ALIGN,
            "structures": list(job.structures),
            "dimensions": {d.name: len(d.sparsities) for d in self.space.dimensions},
            "admm": job.admm.model_dump(),
            "finetune": job.finetune.model_dump(),
            "rungs": list(self.rungs),
            "dense_accuracy": baseline.accuracy,
            "dense_accuracy_stderr": baseline.accuracy_stderr,
            "dense_latency_ms": baseline.latency_ms,
            "rig": job.deciding_rig.name,
            "latency": "each plan's shapes measured once; all methods and seeds share the figure",
            "trials": "same plan, seed and way give the same weights: trained once, charged to all who ask",
        }

    def figures(self, plan: PruningPlan) -> Figures:
        """From the plan's shapes, measured in ONNX Runtime the first time that anyone asks."""
        path = self._folder / "clock" / f"{plan.digest()}.json"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            write_atomic(path, json_text(self._clock(plan)))
        known = json.loads(path.read_text())
        measured = Measurement.from_dict(known["measured"])
        return Figures(
            latency_ms=measured.latency_ms,
            relative_latency=1.0 / measured.speedup,
            macs=int(known["macs"]),
            params=int(known["params"]),
            compression_x=float(known["compression_x"]),
        )

    def _clock(self, plan: PruningPlan) -> dict[str, Any]:
        bench = self._bench
        small, example = SmallNet(kept_widths(plan)), bench.task.example_input
        groups = bench.profile.groups
        content = shapes_onnx(bench.dense, groups, plan, example, bench.job.align, bench.file)
        return {
            "plan": plan.to_dict(),
            "measured": self._measure(bench.job.deciding_rig.name, bench.form(content).content).to_dict(),
            "macs": count_macs(small, example),
            "params": count_params(small),
            "compression_x": bench.baseline.weights / prunable_weights(small),
        }

    def stages(self, trial: Trial) -> Iterator[Stage]:
        """What the folder holds of the trial first; it is trained from its start where more is wanted."""
        path = self._folder / "trials" / f"{trial.key}.json"
        known = [Stage(**s) for s in json.loads(path.read_text())["stages"]] if path.exists() else []
        yield from known
        if known and known[-1].rung is None:
            return
        path.parent.mkdir(exist_ok=True)
        seen: list[Stage] = []
        for stage in self._trained(trial):
            seen.append(stage)
            if len(seen) > len(known):
                write_atomic(path, json_text({"plan": trial.plan.to_dict(), "stages": [asdict(s) for s in seen]}))
                yield stage

    def _trained(self, trial: Trial) -> Iterator[Stage]:
        bench = self._bench_of(trial)
        with TemporaryDirectory() as artefacts:
            if trial.how == "l1":
                yield from l1_stages(bench, trial.plan, self.rungs, Path(artefacts) / "model.onnx")
                return
            spec = TrialSpec(
                number=1,
                plan=trial.plan,
                params={},
                seed=trial.seed,
                stretch=trial.stretch,
                start=self._start(trial),
            )
            run = TrialRun(bench, spec, store=None, artefacts=Path(artefacts))
            while run.result is None:
                progress = run.step()
                if progress.rung is not None and progress.accuracy is not None and progress.report is not None:
                    yield Stage(rung=progress.rung, epochs=progress.report.epochs, accuracy=progress.accuracy)
            result = run.result
            if result.status != "complete" or result.accuracy is None:
                raise UserError(f"plan {trial.plan.to_json()}, seed {trial.seed}: {result.status}: {result.reason}")
            self._keep(trial, Path(artefacts))
        yield Stage(rung=None, epochs=result.epochs, accuracy=result.accuracy)

    def _start(self, trial: Trial) -> Start | None:
        start = trial.start
        if start is None:
            return None
        own = start.plan.digest() == trial.plan.digest()
        return Start(number=0, folder=self._weights(start), stretch=start.stretch if own else 0.0)

    def _keep(self, trial: Trial, artefacts: Path) -> None:
        """Its weights, for trials that begin with them."""
        folder = self._folder / "weights" / trial.key
        folder.mkdir(parents=True, exist_ok=True)
        for name in (WEIGHTS_FILE, PLAN_FILE):  # the plan last: it says that both are there
            write_atomic(folder / name, (artefacts / name).read_bytes())

    def _weights(self, trial: Trial) -> Path:
        """The folder of a finished trial's weights; trained again where only its figures were kept."""
        folder = self._folder / "weights" / trial.key
        if not (folder / PLAN_FILE).exists():
            for _ in self._trained(trial):
                pass
        return folder

    def _bench_of(self, trial: Trial) -> Bench:
        """The bench with the batches of the trial's seed, the shared clock, and for `LONG` the long schedule."""
        job = self._bench.job
        if trial.how == LONG:
            size = self._size
            admm = job.admm.model_copy(update={"iterations": size.iterations * size.longer})
            finetune = job.finetune.model_copy(update={"epochs": size.finetune * size.longer})
            job = job.model_copy(update={"admm": admm, "finetune": finetune})
        self.figures(trial.plan)
        path = self._folder / "clock" / f"{trial.plan.digest()}.json"
        shared = Measurement.from_dict(json.loads(path.read_text())["measured"])

        def measure(rig: str, candidate: bytes, reference: bytes | None = None, /) -> Measurement:
            return shared if reference is None else self._measure(rig, candidate, reference)

        task = prepare(self._bench.task.task, trial.seed)
        return replace(self._bench, job=job, task=task, measure=measure)


def _without_places(job: Job) -> dict[str, Any]:
    content = job.model_dump(mode="json")
    content["task_args"].pop("data")
    for part in ("base_dir", "storage", "search", "resources"):  # of none of these does a trial's training depend
        content.pop(part)
    return content
