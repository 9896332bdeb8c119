"""Kill -9, Ctrl-C and faults of the user's code, on real processes: nothing finished is lost, nothing is done twice.

The instants are drawn from a seed. What they hit differs between days and machines, what must hold does not.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import yaml

from search.cli import run
from search.job_file import load_job
from search.run_dir import next_run_dir
from search.store import RunStore, driver_lock
from tests.search.tiny import attempts, processes
from tests.search.tiny.checks import (
    Ledger,
    require_agreement,
    require_no_epoch_twice,
    require_swept,
    require_whole,
    study_trials,
)
from tests.search.tiny.processes import Process, nap
from tests.search.tiny.storm import ADMM, EPOCHS, FAULTS, Storm, job_file
from tests.search.tiny.tiny_task import HOLD

TRIALS = 7
#: What a search that is cut short has not come to.
LATER = "the long schedule, fresh measurements and test data come after the last trial"
#: Kills of attempts without Ray, beside those of drivers, workers and the rig in `storm`: above twenty in all.
ATTEMPTS_KILLED = 12

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def storm(tmp_path_factory: pytest.TempPathFactory) -> Storm:
    """Eight starts of one run; all but the last are ended before their time, each in another way or place."""
    folder = tmp_path_factory.mktemp("storm")
    job = job_file(folder, pause=0.08, faults=FAULTS)
    root = folder / "runs" / "storm"
    storm = Storm(root=root, log=folder / "epochs.log", random=random.Random(20))
    search = partial(processes.search, cwd=folder)

    (folder / HOLD).touch()
    with search(job, "--storage", root.parent, "--name", root.name, "--trials", 4) as driver:
        driver.wait_for("training the dense network")
        nap(storm.random, 0.6)
        storm.kill_driver(driver, "dense training")
    (folder / HOLD).unlink()
    with search(root) as driver:
        driver.wait_for("exporting and measuring the dense network")
        nap(storm.random, 1.0)
        storm.kill_driver(driver, "baseline")
    with search(root) as driver:
        driver.wait_for("starting Ray")
        nap(storm.random, 4.0, shortest=0.5)
        storm.kill_driver(driver, "start of Ray")
    with search(root, "--trials", TRIALS - 1) as driver:
        driver.wait_for("starting Ray")
        with search(root) as second:
            storm.codes["second driver"] = second.wait()
            storm.said["second driver"] = second.text
            storm.said["first driver"] = f"pid {driver.pid} on host"
        storm.wait_for_epochs(driver, 2, 4)
        storm.kill_worker(driver)
        storm.wait_for_epochs(driver, 1, 4)
        storm.kill_driver(driver, "trials")
    with search(root) as driver:
        storm.wait_for_epochs(driver, 1, 4)
        driver.end(signal.SIGINT, group=True)
        storm.ended(driver, "Ctrl-C")
    with search(root, "--trials", TRIALS, "--time-budget", "6s") as driver:
        storm.ended(driver, "time budget")
    with search(root) as driver:
        # with Ray's own processes there, so that both come to a driver that searches or ends its search
        driver.wait_until(lambda: bool(driver.session("raylet")))
        nap(storm.random, 3.0, shortest=1.0)
        driver.end(signal.SIGINT, group=True)
        nap(storm.random, 0.5, shortest=0.2)
        driver.end(signal.SIGINT, group=True)
        storm.ended(driver, "twice Ctrl-C")
    with search(root) as driver:
        for _ in range(2):
            storm.wait_for_epochs(driver, 2, 4)
            storm.kill_worker(driver, first=len(FAULTS))
        storm.kill_rig(driver)
        storm.ended(driver, "end")
    return storm


def test_all_trials_asked_for_are_there_and_were_run_once(storm: Storm) -> None:
    assert storm.codes["end"] == 0, storm.said["end"]
    results = storm.results
    assert Counter(r.status for r in results.values()) == {"complete": TRIALS - 3, "failed": 3}
    assert set(map(int, storm.ledger.seen)) == set(results)
    # the NaN comes in the first epoch of retraining
    epochs = {number: ADMM + 1 if number == 0 else EPOCHS for number in results}
    repeated = require_no_epoch_twice(storm.log, results, storm.root, epochs)
    # a driver that ends takes two trials with it
    assert repeated <= storm.kills["worker"] + storm.kills["rig"] + 2 * len(storm.codes)
    assert storm.kills == {"driver": 4, "worker": 3, "rig": 1}
    assert storm.kills.total() + ATTEMPTS_KILLED >= 20


def test_the_study_agrees_with_the_record_and_nothing_is_left_over(storm: Storm) -> None:
    (trials,) = study_trials(f"sqlite:///{storm.root / 'study.db'}").values()
    require_agreement(storm.root, trials)
    require_swept(storm.root)
    assert storm.left == []


def test_faults_of_the_users_code_fail_their_trials_alone(storm: Storm, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["front", str(storm.root)]) == 0
    said = capfd.readouterr().out
    assert f"{TRIALS} trials: {TRIALS - 3} complete, 3 failed" in said
    reasons = ("the loss is nan in retraining epoch 1", "this width cannot be traced", "parity breach")
    for number, why in enumerate(reasons):
        result = storm.results[number]
        assert result.status == "failed"
        assert why in str(result.reason)
        assert f"trial {number} failed: {result.reason}" in said
        assert {path.name for path in (storm.root / "trials" / str(number)).iterdir()} == {"result.json"}


def test_a_killed_driver_ends_by_the_signal_and_the_next_goes_on(storm: Storm) -> None:
    killed = ("dense training", "baseline", "start of Ray", "trials")
    assert [storm.codes[when] for when in killed] == [-signal.SIGKILL] * 4
    assert "training the dense network" in storm.said["baseline"]
    assert "training the dense network" not in storm.said["start of Ray"]


def test_a_second_driver_is_refused_by_name_of_the_first(storm: Storm) -> None:
    assert storm.codes["second driver"] == 2
    assert re.fullmatch(
        rf"error: run storm is being driven by {storm.said['first driver']} \S+ since [0-9: -]+: "
        rf"wait for it or stop it",
        storm.said["second driver"].splitlines()[-1],
    )


def test_ctrl_c_once_or_twice_stops_and_says_how_to_go_on(storm: Storm) -> None:
    go_on = f"interrupted: nothing finished is lost; {LATER}; go on with: prunefront search {storm.root}"
    for when in ("Ctrl-C", "twice Ctrl-C"):
        assert storm.said[when].splitlines()[-1] == go_on
        assert "Traceback" not in storm.said[when]
        assert "error:" not in storm.said[when]
    assert storm.codes["Ctrl-C"] == 130
    # the second may come when Python is ending already, which is 130 to a shell too
    assert storm.codes["twice Ctrl-C"] in (130, -signal.SIGINT)


def test_a_time_budget_ends_with_the_front_and_how_to_go_on(storm: Storm) -> None:
    assert storm.codes["time budget"] == 0
    lines = storm.said["time budget"].splitlines()
    ended = "the time budget is spent: nothing finished is lost"
    assert lines[-1] == f"{ended}; {LATER}; go on with: prunefront search {storm.root}"
    assert any(re.match(r" *dense +[01]\.\d{4}", line) for line in lines)


@pytest.fixture
def finished(storm: Storm, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(storm.root, tmp_path / "finished"))


def test_a_new_budget_uses_every_result_again(finished: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ledger = Ledger(finished)
    ledger.look()
    complete = [r for r in RunStore.open(finished).results().values() if r.status == "complete"]
    # what every trial keeps, whatever it was measured to take
    widest = 1000.0 * max(r.latency_high_ms or 0.0 for r in complete)
    assert run(["search", str(finished), "--latency-ms", str(widest)]) == 0
    assert ledger.look() == TRIALS
    studies = list(study_trials(f"sqlite:///{finished / 'study.db'}").values())
    assert len(studies) == 2
    for trials in studies:
        require_agreement(finished, trials, rebuilt=True)
    constrained = [t for t in studies[1] if any(key.startswith("constraints") for key in t.system_attrs)]
    assert len(constrained) == TRIALS - 3
    budget = load_job(finished / "job.yaml").budget
    assert budget is not None
    assert budget.latency_ms == widest
    assert "within" in capfd.readouterr().out
    rows = json.loads((finished / "front.json").read_text())["rows"]
    assert [row["within_budget"] for row in rows] == [True] * len(rows)


@pytest.mark.parametrize("study", ["sqlite", "journal"])
def test_a_lost_study_is_rebuilt_from_the_results(finished: Path, study: str) -> None:
    ledger = Ledger(finished)
    ledger.look()
    (finished / "study.db").unlink()
    url = f"sqlite:///{finished / 'study.db'}"
    if study == "journal":
        url = f"journal:{finished / 'study.log'}"
        job = yaml.safe_load((finished / "job.yaml").read_text())
        job["search"]["study"] = url
        (finished / "job.yaml").write_text(yaml.safe_dump(job))
    assert run(["search", str(finished)]) == 0
    assert ledger.look() == TRIALS
    (trials,) = study_trials(url).values()
    require_agreement(finished, trials, rebuilt=True)
    if study == "journal":
        with open(finished / "study.log", "a") as file:
            file.write('{"op_code": 4, "worker_id": "torn by a ki')
        assert run(["search", str(finished)]) == 0
        (again,) = study_trials(url).values()
        assert again == trials


def test_a_trial_killed_again_and_again_ends_with_the_same_weights(storm: Storm, finished: Path) -> None:
    source = random.Random(21)
    plan = finished / "trials" / str(_complete(finished)[0]) / "plan.json"
    job = finished / "job.yaml"
    job.write_text(job.read_text().replace("pause: 0.08", "pause: 0.02"))
    undisturbed = number = 100
    kills = 0
    with Process(sys.executable, "-m", attempts.__name__, str(finished), cwd=storm.log.parent) as server:
        server.wait_for("ready")
        takes, _ = _attempt(server, undisturbed, plan, 1e6)
        while kills < ATTEMPTS_KILLED:
            number += 1
            while not (finished / "trials" / str(number)).exists():
                _, killed = _attempt(server, number, plan, source.uniform(0.0, takes))
                kills += killed
                require_whole(finished)
    store = RunStore.open(finished)
    results = {n: store.result(n) for n in range(undisturbed, number + 1)}
    assert {r.status for r in results.values()} == {"complete"}
    folders = [store.trial_dir(n) for n in results]
    for name in ("weights.safetensors", "plan.json", "model.onnx", "trace.jsonl"):
        assert len({(folder / name).read_bytes() for folder in folders}) == 1, name
    assert len({(r.accuracy, r.epochs, r.rungs, r.macs) for r in results.values()}) == 1
    repeated = require_no_epoch_twice(storm.log, results, finished, dict.fromkeys(results, EPOCHS))
    assert repeated <= kills
    store.sweep_partials()
    assert list(store.partial_dir.iterdir()) == []


def _attempt(server: Process, number: int, plan: Path, seconds: float) -> tuple[float, bool]:
    """One process at a trial, killed after so many seconds; returns how many it took and whether it was killed."""
    said = len(server.lines)
    server.tell(f"{number} {seconds} {plan}")
    _, code, took = server.wait_for("ended ", after=said).split()
    assert int(code) in (0, -signal.SIGKILL), server.text
    return float(took), int(code) == -signal.SIGKILL


def _complete(root: Path) -> list[int]:
    return [n for n, r in RunStore.open(root).results().items() if r.status == "complete"]


def test_a_trial_of_a_torn_search_is_reproduced_alone(
    storm: Storm, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    processes = {n: {line["pid"] for line in storm.trained() if line["trial"] == n} for n in _complete(finished)}
    number = max(processes, key=lambda n: len(processes[n]))
    assert len(processes[number]) > 1
    trial = finished / "trials" / str(number)
    assert run(["prune", str(finished), "--plan", str(trial / "plan.json"), "--out", str(tmp_path / "alone")]) == 0
    for name in ("weights.safetensors", "model.onnx", "trace.jsonl"):
        assert (tmp_path / "alone" / name).read_bytes() == (trial / name).read_bytes()


@pytest.mark.parametrize("made", range(5))
def test_a_run_killed_while_it_was_made_is_made_again(made: int, tmp_path: Path) -> None:
    folder = next_run_dir(tmp_path, "again", "tiny")
    with driver_lock(folder):
        for name in ("trials", "trials/.partial", "baseline")[:made]:
            (folder / name).mkdir()
        if made > 3:
            (folder / "environment.json").write_text("{}")
            (folder / ".job.yaml.4711.00c0ffee.tmp").write_text("task: ti")
    assert next_run_dir(tmp_path, "again", "tiny") == folder
    with driver_lock(folder):
        store = RunStore.create(folder, "task: tiny\n", {"python": "3"})
    assert RunStore.open(folder).environment() == {"python": "3"}
    assert [path.name for path in folder.glob(".*")] == []
    assert store.results() == {}
