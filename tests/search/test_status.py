"""The status of a run, told by one who locks nothing and writes nothing."""

from __future__ import annotations

import fcntl
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from search.cli import run
from search.errors import UserError
from search.job_file import load_job
from search.lock import driver_lock
from search.progress_log import log_hypervolume
from search.run_state import read_driver, run_state
from search.status_command import read_status, show_status
from search.store import RunStore
from tests.search.fabricated_run import add_trial, fabricated_run


def signature(**changes: Any) -> str:
    started = datetime.now().astimezone().isoformat(timespec="seconds")
    return json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "started": started, **changes})


@contextmanager
def driven(root: Path) -> Iterator[None]:
    """A driver in a process of its own, as after `prunefront search`."""
    program = "import sys; from pathlib import Path; from search.lock import driver_lock\n"
    program += "with driver_lock(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        assert process.stdout.readline() == b"held\n"
        yield
    finally:
        process.stdin.close()
        process.wait(60)
        process.stdout.close()


def files(root: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in root.rglob("*")}


def test_a_search_that_runs_is_left_alone(tmp_path: Path) -> None:
    store = fabricated_run(tmp_path / "run", trials=8)
    store.job_path.write_text(store.job_path.read_text().replace("trials: 8", "trials: 20"))
    with driven(store.root):
        store.attempt_dir(9, "worker").joinpath("checkpoint").write_text("")
        before = files(store.root)
        status = read_status(store)
        assert files(store.root) == before
        assert status["state"] == "running"
        assert status["driver"]["alive"] is True
        assert status["driver"]["host"] == socket.gethostname()
        assert (status["asked"], status["running"], status["next"]) == (20, [9], None)
        assert status["done"] == sum(r.spent for r in store.results().values())
        with pytest.raises(UserError, match="is being driven by pid"), driver_lock(store.root):
            pass  # and the driver is as much alone as before
    after = read_status(store)
    assert (after["state"], after["driver"], after["running"]) == ("stopped", None, [])
    assert after["next"] == f"prunefront search {store.root}"


def test_the_figures_are_those_of_the_front(tmp_path: Path) -> None:
    store = fabricated_run(tmp_path / "run", trials=13)
    baseline, results = store.read_baseline(), store.results()
    status = read_status(store)
    assert status["trials"] == {"complete": 9, "infeasible": 1, "stopped": 2, "failed": 1}
    assert status["hypervolume"] == log_hypervolume(results, baseline) > 0.0
    within = [r for r in results.values() if r.status == "complete" and (r.speedup_low or 0.0) >= 2.0]
    assert status["best"]["accuracy"] == max(r.accuracy or 0.0 for r in within)
    assert status["epochs"] == pytest.approx(1.5 + sum(r.epochs for r in results.values()))
    assert status["dense"] == {"accuracy": 0.98, "latency_ms": 2.0}


def test_a_finished_run_and_one_that_has_hardly_begun(tmp_path: Path) -> None:
    store = fabricated_run(tmp_path / "run", trials=3)
    status = read_status(store)
    assert (status["state"], status["next"]) == ("finished", f"prunefront report {store.root}")
    bare = RunStore.create(tmp_path / "bare", "task: mine:task\n", {})
    status = read_status(bare)
    assert (status["state"], status["dense"], status["best"], status["hypervolume"]) == ("stopped", None, None, None)


@pytest.mark.parametrize(
    ("changes", "alive"),
    [
        ({"pid": 2**22 + 1}, False),
        ({}, False),  # this very process, which holds no lock: the pid was used again
        ({"host": "elsewhere.example"}, None),
    ],
)
def test_a_signature_is_no_driver(tmp_path: Path, changes: dict[str, Any], alive: bool | None) -> None:
    """A driver that was killed leaves its signature; on another host nobody can be asked."""
    store = fabricated_run(tmp_path / "run", trials=1)
    (store.root / "driver.lock").write_text(signature(**changes))
    driver = read_driver(store.root)
    assert driver is not None
    assert driver.alive is alive
    state = run_state(store, load_job(store.job_path), store.results())
    assert state.state == ("unknown" if alive is None else "finished")


@pytest.mark.parametrize("torn", ["", "{", "[]", '{"pid": "x"}', "\x00"])
def test_a_torn_signature_is_none(tmp_path: Path, torn: str) -> None:
    store = fabricated_run(tmp_path / "run", trials=1)
    (store.root / "driver.lock").write_text(torn)
    assert read_driver(store.root) is None


def test_what_is_left_goes_by_the_pace_of_this_start(tmp_path: Path) -> None:
    store = fabricated_run(tmp_path / "run", trials=4)  # none of the first four is rejected
    job = load_job(store.job_path).with_overrides(trials=10)
    now = time.time()
    for number, ago in enumerate((1000.0, 60.0, 40.0, 20.0)):  # the first is of an earlier start
        os.utime(store.trial_dir(number) / "result.json", (now - ago, now - ago))
    with (store.root / "driver.lock").open("w+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write(signature(started=datetime.fromtimestamp(now - 100.0).astimezone().isoformat()))
        lock.flush()
        state = run_state(store, job, store.results(), now=now)
        assert state.state == "running"
        assert state.left_s == pytest.approx(6 * 20.0, abs=0.1)
    assert run_state(store, job, store.results()).left_s is None


def test_in_a_log_a_watch_says_what_changes_and_ends_with_the_search(tmp_path: Path) -> None:
    store = fabricated_run(tmp_path / "run", trials=1)
    job = store.job_path.read_text()
    store.job_path.write_text(job.replace("trials: 1", "trials: 2"))
    out = StringIO()

    class Console_(Console):
        """Lets a trial finish, and the driver end, after the first line."""

        lines = 0

        def print(self, *objects: Any, **more: Any) -> None:
            super().print(*objects, **more)
            Console_.lines += 1
            if Console_.lines == 1:
                add_trial(store, 1, random.Random(1))
            if Console_.lines == 2:
                held.close()

    held = (store.root / "driver.lock").open("w+")
    fcntl.flock(held, fcntl.LOCK_EX)
    held.write(signature())
    held.flush()
    show_status(store.root, watch=True, as_json=False, console=Console_(file=out, width=200), interval_s=0.01)
    lines = out.getvalue().splitlines()
    assert [", ".join(line.split(", ")[:2]) for line in lines] == [
        "running, 1/2 done",
        "running, 2/2 done",
        "finished, 2/2 done",
    ]


def test_on_the_command_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    store = fabricated_run(tmp_path / "run", trials=3)
    assert run(["status", str(store.root)]) == 0
    said, complaint = capfd.readouterr()
    assert complaint == ""
    words = [line.split("  ")[0] for line in said.splitlines()]
    assert words[:4] == ["run run", "state", "last sign of life", "done"]
    assert run(["status", str(store.root), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["state"] == "finished"
    assert run(["status", str(store.root), "--json", "--watch"]) == 2
    assert capfd.readouterr().err == "error: --watch and --json: give one of them, not both\n"
    assert run(["status", str(tmp_path)]) == 2
    assert "is not a run folder" in capfd.readouterr().err
