"""One search and everything that is done to it, with what must hold each time a driver has ended."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from search.result import TrialResult
from search.store import RunStore
from tests.search.tiny.checks import Ledger, require_whole
from tests.search.tiny.processes import Process

TINY = Path(__file__).parent
ADMM, RETRAINING = 4, 2
EPOCHS = ADMM + RETRAINING
#: The first three plans of a search are the same sparsity everywhere: 0.5, 0.75, 0.25 of 16 filters in steps of 2.
FAULTS = {"8x8": "nan", "4x4": "export", "12x12": "parity"}


def job_file(folder: Path, *, sections: Mapping[str, Mapping[str, object]] | None = None, **task_args: object) -> Path:
    """The tiny job beside a copy of its task; each trained epoch leaves a line in `epochs.log`.

    The name of that file is relative to where the search is started: that must hold in Ray's workers too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(TINY / "tiny_task.py", folder)
    job = yaml.safe_load((TINY / "job.yaml").read_text())
    job["task_args"] = {"log": "epochs.log", **task_args}
    for name, section in (sections or {}).items():
        job[name] = job.get(name, {}) | section
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    return folder / "job.yaml"


@dataclass
class Storm:
    """A run and the kills in it."""

    root: Path
    log: Path
    random: random.Random
    kills: Counter[str] = field(default_factory=Counter)
    hit: Counter[int] = field(default_factory=Counter)
    """How often a worker was killed that trained this trial, since the last start."""
    said: dict[str, str] = field(default_factory=dict)
    codes: dict[str, int] = field(default_factory=dict)
    left: list[int] = field(default_factory=list)
    """Processes that outlived their driver."""

    def __post_init__(self) -> None:
        self.ledger = Ledger(self.root)

    @property
    def results(self) -> dict[int, TrialResult]:
        """The record."""
        return RunStore.open(self.root).results()

    def trained(self) -> list[dict[str, Any]]:
        """The epochs of trials that were trained to their end, in their order."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line for line in map(json.loads, lines) if line["trial"] is not None]

    def wait_for_epochs(self, driver: Process, least: int, most: int) -> None:
        """Wait until a random number of epochs more is trained, and a little longer."""
        goal = len(self.trained()) + self.random.randint(least, most)
        driver.wait_until(lambda: len(self.trained()) >= goal)
        time.sleep(self.random.uniform(0.0, 0.3))

    def kill_worker(self, driver: Process, first: int = 0) -> None:
        """Kill one in the midst of training, of trial `first` or a later one.

        Not one whose trial was hit twice in this start: a third time would be that trial's end.
        """
        choice: dict[int, int] = {}

        def found() -> bool:
            last = {line["pid"]: line for line in self.trained()}
            at = {pid: last[pid] for pid in driver.session("Trainable") if pid in last}
            choice.clear()
            for pid, line in at.items():
                if line["trial"] >= first and line["epoch"] < EPOCHS - 2 and self.hit[line["trial"]] < 2:
                    choice[pid] = line["trial"]
            return bool(choice)

        driver.wait_until(found)
        pid, trial = self.random.choice(list(choice.items()))
        os.kill(pid, signal.SIGKILL)
        self.hit[trial] += 1
        self.kills["worker"] += 1

    def kill_rig(self, driver: Process) -> None:
        """Kill the process that measures."""
        driver.wait_until(lambda: bool(driver.session("RigActor")))
        os.kill(driver.session("RigActor")[0], signal.SIGKILL)
        self.kills["rig"] += 1

    def kill_driver(self, driver: Process, when: str) -> None:
        """kill -9 of the driver, and a look at what it leaves."""
        driver.end(signal.SIGKILL)
        self.kills["driver"] += 1
        self.ended(driver, when)

    def ended(self, driver: Process, when: str) -> None:
        """What must hold after each driver: its processes went with it, what is finished stayed, no file is torn."""
        self.codes[when] = driver.wait()
        self.said[when] = driver.text
        self.left.extend(_left(driver))
        self.hit.clear()
        if (self.root / "job.yaml").exists():
            self.ledger.look()
            require_whole(self.root)


def _left(driver: Process, seconds: float = 60.0) -> list[int]:
    """What lives of a driver's processes; their watcher needs an instant to see that it is gone."""
    deadline = time.monotonic() + seconds
    while (left := driver.session()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left
