"""The scale benchmark runs the real searcher, board and store; its times are not judged here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.simulated_cluster import Spent, simulate
from search.rungs import RungBoard, RungScheduler, rung_iterations
from search.sampler import StudySampler
from search.searcher import PlanSearcher
from search.store import RunStore
from tests.search.simulator import DENSE, Simulated

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "scale.py"
TRIALS, WORKERS = 60, 5


def test_the_simulated_cluster_runs_every_trial_once_on_so_many_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    network = Simulated()
    store = RunStore.create(tmp_path / "run", "task: simulated\n", {})
    sampler = StudySampler("journal:" + str(tmp_path / "study"), network.space, sampler="random", dense_accuracy=DENSE)
    # a crowd of good trials that passed the first rung before: whoever they dominate is stopped there
    crowd = dict.fromkeys(range(1000, 1200), (0.8, 0.2))
    board = RungBoard(rung_iterations(4), points={rung_iterations(4)[0]: crowd})
    most = 0

    class Watched(PlanSearcher):
        def suggest(self, trial_id: str) -> object:
            nonlocal most
            config = super().suggest(trial_id)
            most = max(most, self.live)
            return config

    searcher = Watched(sampler, store, trials=TRIALS, seed=0, max_concurrent=WORKERS, stopped=board.stopped)
    spent, ended = Spent(), []
    simulate(searcher, RungScheduler(board), network, store, steps=(4, 2), spent=spent, on_end=ended.append)
    results = store.results()
    assert len(results) == TRIALS
    assert ended == list(range(1, TRIALS + 1))
    assert most == WORKERS
    assert {r.status for r in results.values()} == {"complete", "stopped"}
    assert {n for n, r in results.items() if r.status == "stopped"} == set(board.stopped)
    assert len(spent.asked) == len(spent.ended) == TRIALS
    assert spent.driver > 0.0
    assert sum(spent.by_quarter()) * TRIALS / 4 == pytest.approx(spent.asked[-1] + spent.ended[-1])


@pytest.mark.slow
def test_last_line_is_the_claim() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--tiny", "--journal"], capture_output=True, text=True, timeout=800
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert set(result) == {"claim", "figure", "unit", "bar", "holds", "details"}
    details = result["details"]
    assert result["figure"] == details["driver_cpu_s_a_trial"] > 0.0
    assert details["ended"] >= details["trials"] == 24
    assert sum(details["by_status"].values()) == details["ended"]
    assert len(details["driver_cpu_s_a_trial_by_quarter"]) == 4
    assert len(details["resident_mib"]) >= 8


@pytest.mark.slow
def test_reduced_figures_are_not_recorded() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--tiny", "--record"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 2
    assert "--record keeps figures of the full benchmark only" in done.stderr
