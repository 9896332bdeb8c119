"""The long kill test: sixty random instants in one search, for each storage of the study; `make test-soak`."""

from __future__ import annotations

import random
import signal
from functools import partial
from pathlib import Path

import pytest

from tests.search.tiny import processes
from tests.search.tiny.checks import require_agreement, require_no_epoch_twice, require_swept, study_trials
from tests.search.tiny.processes import Process, nap
from tests.search.tiny.storm import EPOCHS, Storm, job_file

KILLS = 60
TRIALS = 40


@pytest.mark.soak
@pytest.mark.ray
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("study", "seed"), [("sqlite", 1), ("journal", 2)])
def test_sixty_kills_lose_nothing_and_repeat_nothing(study: str, seed: int, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'runs' / 'soak' / 'study.db'}"
    sections: dict[str, dict[str, object]] = {"sparsity": {"align": 1}}  # more plans than are needed
    if study == "journal":  # and with trials that are stopped early or over budget
        url = f"journal:{tmp_path / 'study.log'}"
        sections["search"] = {"study": url, "sampler": "tpe", "early_stopping": True}
        sections["budget"] = {"speedup": 1.1}
    job = job_file(tmp_path, sections=sections, pause=0.2)
    root = tmp_path / "runs" / "soak"
    storm = Storm(root=root, log=tmp_path / "epochs.log", random=random.Random(seed))
    search = partial(processes.search, cwd=tmp_path)
    start = 0
    while storm.kills.total() < KILLS:
        start += 1
        # more trials than are done: there is always something to kill
        trials = TRIALS + len(storm.ledger.seen)
        going_on = (root / "job.yaml").exists()
        where = (root,) if going_on else (job, "--storage", root.parent, "--name", root.name)
        with search(*where, "--trials", trials) as driver:
            _harass(storm, driver, f"start {start}")
    counted = sum(r.status != "infeasible" for r in storm.results.values())
    with search(root, "--trials", counted + 4) as driver:
        storm.ended(driver, "end")
    assert storm.codes["end"] == 0, storm.said["end"]
    assert storm.left == []
    results = storm.results
    assert "failed" not in {r.status for r in results.values()}
    epochs = {n: EPOCHS if r.status == "complete" else len(r.rungs) for n, r in results.items()}
    require_no_epoch_twice(storm.log, results, root, epochs)
    (found,) = study_trials(url).values()
    require_agreement(root, found)
    require_swept(root)


def _harass(storm: Storm, driver: Process, when: str) -> None:
    """One start: ended somewhere before the trials, or after workers and the rig were killed a few times."""
    if storm.random.random() < 0.35:
        nap(storm.random, 16.0)
    else:
        driver.wait_for("starting Ray")
        for _ in range(storm.random.randint(1, 4)):
            storm.wait_for_epochs(driver, 1, 6)
            storm.kill_worker(driver)
        if storm.random.random() < 0.3:
            storm.kill_rig(driver)
        nap(storm.random, 4.0)
    if storm.random.random() < 0.2:
        driver.end(signal.SIGTERM if storm.random.random() < 0.5 else signal.SIGINT, group=True)
        storm.ended(driver, when)
    else:
        storm.kill_driver(driver, when)
