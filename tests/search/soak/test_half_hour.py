"""Half an hour of one search with a kill every 20 to 60 seconds: all trials accounted for, disk and memory flat.

`PRUNEFRONT_SOAK_MINUTES` makes it shorter or longer. The last thing printed is its figures, as one line of JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import statistics
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from tests.search.tiny import processes
from tests.search.tiny.checks import require_agreement, require_no_epoch_twice, require_swept, study_trials
from tests.search.tiny.processes import Process
from tests.search.tiny.storm import EPOCHS, Storm, job_file

MINUTES = float(os.environ.get("PRUNEFRONT_SOAK_MINUTES", "30"))
BETWEEN_S = (20.0, 60.0)
KINDS = {"worker": 0.65, "rig": 0.2, "driver": 0.15}
#: A driver has all its code and its first trials after this; what it takes more from then on is growth.
WARM_S = 45.0
#: What counts as flat: the driver's memory from the first to the last third of a start, MiB, beside a tenth.
GROWTH_MIB = 30.0
#: What a run folder holds beside finished trials: study, dense network, checkpoints and files of two running trials.
BESIDE_MIB = 32.0


@dataclass
class Watch:
    """Memory and disk, looked at every few seconds."""

    root: Path
    drivers: list[list[tuple[float, float]]] = field(default_factory=list)
    """For each start: seconds since it began, the driver's MiB."""
    processes: list[float] = field(default_factory=list)
    """All of a start's processes together, MiB; a page that several share counts in parts."""
    beside: list[float] = field(default_factory=list)
    """MiB in the run folder that are no finished trial's."""

    def look(self, driver: Process, began: float) -> None:
        """One sample."""
        self.drivers[-1].append((time.monotonic() - began, _mebibytes(driver.pid)))
        self.processes.append(sum(map(_mebibytes, [driver.pid, *driver.session()])))
        finished = list(self.root.glob("trials/[0-9]*"))
        self.beside.append(_size(self.root) - sum(map(_size, finished)))

    def growth(self) -> list[tuple[float, float]]:
        """Of each start that was long enough: the driver's median MiB in its first and its last third."""
        found = []
        for samples in self.drivers:
            warm = [mib for seconds, mib in samples if seconds > WARM_S and mib > 0.0]
            if len(warm) >= 9:
                third = len(warm) // 3
                found.append((statistics.median(warm[:third]), statistics.median(warm[-third:])))
        return found


@pytest.mark.soak
@pytest.mark.ray
@pytest.mark.timeout(3600 + 120 * MINUTES)
def test_half_an_hour_of_kills(tmp_path: Path) -> None:
    job = job_file(tmp_path, sections={"sparsity": {"align": 1}}, pause=0.3, width=32)
    root = tmp_path / "runs" / "soak"
    storm = Storm(root=root, log=tmp_path / "epochs.log", random=random.Random(30))
    watch = Watch(root)
    search = partial(processes.search, cwd=tmp_path)
    end = time.monotonic() + 60.0 * MINUTES
    while time.monotonic() < end:
        where = (root,) if (root / "job.yaml").exists() else (job, "--storage", root.parent, "--name", root.name)
        with search(*where, "--trials", 100_000) as driver:
            _harass(storm, watch, driver, end)
    counted = len(storm.results)
    with search(root, "--trials", counted + 4) as driver:
        storm.ended(driver, "end")
    results = storm.results
    repeated = require_no_epoch_twice(storm.log, results, root, dict.fromkeys(results, EPOCHS))
    figures = {
        "minutes": MINUTES,
        "kills": dict(storm.kills),
        "starts": len(watch.drivers) + 1,
        "trials": len(results),
        "states": dict(Counter(r.status for r in results.values())),
        "epochs": len(results) * EPOCHS,
        "epochs_repeated": repeated,
        "driver_mib_first_and_last_third": [[round(a, 1), round(b, 1)] for a, b in watch.growth()],
        "all_processes_mib": [round(min(watch.processes)), round(max(watch.processes))],
        "beside_trials_mib": [round(min(watch.beside), 2), round(max(watch.beside), 2)],
        "beside_trials_mib_at_the_end": round(_size(root) - sum(map(_size, root.glob("trials/[0-9]*"))), 2),
        "left_processes": len(storm.left),
    }
    print("\n" + json.dumps(figures))
    assert storm.codes["end"] == 0, storm.said["end"]
    assert storm.left == []
    assert {r.status for r in results.values()} == {"complete"}
    assert len(results) == counted + 4
    (found,) = study_trials(f"sqlite:///{root / 'study.db'}").values()
    require_agreement(root, found)
    require_swept(root)
    assert max(watch.beside) < BESIDE_MIB
    for first, last in watch.growth():
        assert last - first < max(GROWTH_MIB, 0.1 * first)


def _harass(storm: Storm, watch: Watch, driver: Process, end: float) -> None:
    """One start, until its driver is killed or the time is over."""
    began = time.monotonic()
    watch.drivers.append([])
    driver.wait_for("starting Ray")
    while time.monotonic() < end:
        until = min(end, time.monotonic() + storm.random.uniform(*BETWEEN_S))
        while time.monotonic() < until:
            driver.wait_until(lambda: True)  # it must not have ended by itself
            watch.look(driver, began)
            time.sleep(min(3.0, max(0.0, until - time.monotonic())))
        (kind,) = storm.random.choices(list(KINDS), weights=list(KINDS.values()))
        if kind == "driver":
            storm.kill_driver(driver, "killed")
            return
        if kind == "worker":
            storm.kill_worker(driver)
        else:
            storm.kill_rig(driver)
    driver.end(signal.SIGINT, group=True)
    storm.ended(driver, "time over")


def _mebibytes(pid: int) -> float:
    """What a process takes of the memory; 0 where it is gone."""
    with contextlib.suppress(OSError):
        for line in Path("/proc", str(pid), "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024.0
    return 0.0


def _size(folder: Path) -> float:
    """MiB of all files below; what goes away meanwhile counts nothing."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.stat(os.path.join(place, name)).st_size
    return total / 2**20
