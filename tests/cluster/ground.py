"""A search on a cluster whose plans are fixed, its undisturbed twin, and what must hold after any failure."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from search.store import RunStore
from tests.cluster.nodes import Cluster, Node
from tests.search.tiny import processes
from tests.search.tiny.checks import (
    Ledger,
    require_agreement,
    require_no_epoch_twice,
    require_swept,
    require_whole,
    study_trials,
)
from tests.search.tiny.processes import Process
from tests.search.tiny.storm import EPOCHS, job_file
from tests.search.tiny.tiny_task import HOLD

#: Plans of the user's own, so that a search that is killed and one that is not train the same ones. They are those that
#: a search without a warm start puts in line itself: none is left waiting in the study.
POINTS = [{"stem": {"filter": sparsity}, "conv1": {"filter": sparsity}} for sparsity in (0.5, 0.75, 0.25)]
TRIALS = len(POINTS)
FILES = ("weights.safetensors", "plan.json", "model.onnx", "trace.jsonl")
#: What a start writes anew: a run without it is one whose dense network is trained, and no trial begun.
OF_THE_SEARCH = ("trials", "study.db", "starts", "ray", "front.*", "final.json", "driver.lock")


@dataclass
class Ground:
    """One cluster, one dense network and the results of a search that nobody disturbed, on one machine without it."""

    cluster: Cluster
    folder: Path
    storage: Path | None = None
    """Where runs lie; None: beside what is logged of them."""
    reference: Path = field(init=False)
    begun: int = 0

    def __post_init__(self) -> None:
        job = job_file(self.folder / "job", pause=0.05)
        self.points = self.folder / "points.json"
        self.points.write_text(json.dumps(POINTS))
        self.reference = self.folder / "undisturbed"
        where = ("--storage", self.folder, "--name", self.reference.name)
        with processes.search(
            job, *where, "--points", self.points, "--trials", TRIALS, cwd=self.folder / "job"
        ) as driver:
            assert driver.wait() == 0, driver.text
        assert [r.status for r in RunStore.open(self.reference).results().values()] == ["complete"] * TRIALS

    def begin(self, root: Path | None = None) -> Run:
        """A run whose dense network is trained, at the gate: no trial gets beyond its second epoch."""
        self.cluster.mend()
        self.begun += 1
        folder = self.folder / f"case-{self.begun}"
        root = root or (folder / "run" if self.storage is None else self.storage / folder.name)
        shutil.copytree(
            self.reference, root, ignore=shutil.ignore_patterns(*OF_THE_SEARCH), dirs_exist_ok=root.exists()
        )
        (root / "trials" / ".partial").mkdir(parents=True)
        folder.mkdir(exist_ok=True)
        return Run(ground=self, folder=folder, root=root)


@dataclass
class Run:
    """A search on the cluster that something is done to."""

    ground: Ground
    folder: Path
    root: Path

    def __post_init__(self) -> None:
        self.gate.touch()
        self.ledger = Ledger(self.root)
        self.cluster = self.ground.cluster

    @property
    def gate(self) -> Path:
        """While it is there, no training gets beyond its second epoch."""
        return self.folder / HOLD

    @property
    def log(self) -> Path:
        """A line for each epoch trained."""
        return self.folder / "epochs.log"

    def moved(self, folder: Path) -> Run:
        """The run as another machine sees it: another folder, where nothing is yet, and an open gate."""
        folder.mkdir()
        run = Run(ground=self.ground, folder=folder, root=folder / "runs" / self.root.name)
        run.open_gate()
        return run

    def search(self, target: object | None = None) -> Process:
        """The driver, on the head's machine; `target` where it is not the run folder."""
        return self.cluster.search(
            target or self.root, "--points", self.ground.points, "--trials", TRIALS, cwd=self.folder
        )

    def epochs(self) -> list[dict[str, Any]]:
        """What was trained, in its order."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line for line in map(json.loads, lines) if line["trial"] is not None]

    def held(self, driver: Process, count: int = 2) -> dict[int, int]:
        """Wait until so many trials stand at the gate; the processes that train them, by the trial's number."""
        found: dict[int, int] = {}

        def there() -> bool:
            found.update({line["trial"]: line["pid"] for line in self.epochs() if line["epoch"] == 1})
            return len(found) >= count

        driver.wait_until(there)
        return found

    def open_gate(self) -> float:
        """Let the trials go on; returns the time."""
        self.gate.unlink()
        return time.time()

    def until_trained_on(self, driver: Process, lost: Mapping[int, int]) -> float:
        """The time at which one of these trials was trained on by another process than the one given for it.

        Of any trial, by any process, where none is given.
        """
        found: list[float] = []

        def there() -> bool:
            mine = (e for e in self.epochs() if not lost or e["trial"] in lost)
            found.extend(e["time"] for e in mine if e["pid"] != lost.get(e["trial"]))
            return bool(found)

        driver.wait_until(there)
        return min(found)

    def until_taken_up(self, driver: Process, lost: Mapping[int, int]) -> float:
        """The time at which another attempt at one of these trials has begun; the gate may be closed."""
        found: list[float] = []

        def there() -> bool:
            for number, pid in lost.items():
                for attempt in (self.root / "trials" / ".partial" / str(number)).glob("*-*"):
                    if attempt.name.partition("-")[0] != str(pid):
                        found.append(attempt.stat().st_mtime)
            return bool(found)

        driver.wait_until(there)
        return min(found)

    def until_published(self, driver: Process, trials: Iterable[int] = range(TRIALS), count: int = 1) -> float:
        """The time at which so many of these trials have their record."""
        times: list[float] = []

        def there() -> bool:
            paths = [self.root / "trials" / str(number) / "result.json" for number in trials]
            times[:] = sorted(path.stat().st_mtime for path in paths if path.exists())
            return len(times) >= count

        driver.wait_until(there)
        return times[count - 1]

    def node_and_trials(self, held: Mapping[int, int]) -> tuple[Node, dict[int, int]]:
        """The node that trains the lowest of these trials, and all of them that it trains, with their processes."""
        node = self.cluster.node_of(held[min(held)])
        pids = node.pids()
        return node, {number: pid for number, pid in held.items() if pid in pids}

    def require_whole(self) -> None:
        """What is finished stayed as it was, and no file is torn."""
        self.ledger.look()
        require_whole(self.root)

    def require_undisturbed(self, *, once: bool = True) -> None:
        """All trials are there as if nothing had happened: finished once, with the same weights, filed and swept.

        `once` False where two processes may have trained one trial at the same time: then nothing is said of epochs.
        """
        self.require_whole()
        results = RunStore.open(self.root).results()
        reference = RunStore.open(self.ground.reference).results()
        assert list(results) == list(reference) == list(range(TRIALS))
        for number, expected in reference.items():
            assert results[number].status == "complete", results[number].reason
            assert _repeatable(results[number]) == _repeatable(expected)
            for name in FILES:
                mine, theirs = (root / "trials" / str(number) / name for root in (self.root, self.ground.reference))
                assert mine.read_bytes() == theirs.read_bytes(), f"trial {number}: {name}"
        (trials,) = study_trials(f"sqlite:///{self.root / 'study.db'}").values()
        require_agreement(self.root, trials)
        require_swept(self.root)
        if once:
            require_no_epoch_twice(self.log, results, self.root, dict.fromkeys(results, EPOCHS))


def _repeatable(result: Any) -> tuple[Any, ...]:
    return (result.plan_digest, result.accuracy, result.epochs, result.rungs, result.macs, result.params)


def kill(pids: Sequence[int]) -> float:
    """kill -9; returns the time."""
    now = time.time()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    return now
