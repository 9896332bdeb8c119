"""What a long search costs its driver: 2,000 simulated trials on 256 simulated workers, nothing trained.

The searcher, the sampler and its study, the rung board, the store and the progress lines are the real ones; the
network is the analytic one of `tests/search/simulator.py` and workers only wait (`simulated_cluster.py`). Counted is
the CPU time of the driver's part, from the first trial to the last of the final front. A trial's CPU in each quarter of
the search tells whether anything grows with the trials before it. Ray Tune's own share of the driver is left out here;
`throughput.py` tells it.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import io
import os
import pstats
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))  # the simulator stands with the tests
# Said before Ray is imported, which `simulated_cluster` does: none of it is started here.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

from benchmarks.claim import Claim  # noqa: E402
from benchmarks.proposals import resident_mebibytes  # noqa: E402
from benchmarks.simulated_cluster import Spent, simulate  # noqa: E402
from search.budget import Budget  # noqa: E402
from search.finals import final_plans  # noqa: E402
from search.job_sections import AdmmSettings, FinetuneSettings, SearchSettings  # noqa: E402
from search.keep import folder_bytes  # noqa: E402
from search.rungs import RungBoard, RungScheduler, rung_iterations  # noqa: E402
from search.sampler import StudySampler, study_url  # noqa: E402
from search.searcher import PlanSearcher  # noqa: E402
from search.store import RunStore  # noqa: E402
from search.view import View  # noqa: E402
from tests.search.simulator import DENSE, Simulated  # noqa: E402

BAR = 0.15
#: How much dearer a trial of the last quarter may be than one of the third. Were its cost proportional to the trials
#: before it, that would be 7 / 5. The first quarter is cheap in any case: nothing is known yet that a draw could use.
GROWTH = 1.15
#: MiB that a thousand more trials may take of the driver's memory.
MEMORY = 100.0
PACKAGES = ("prunefront", "optuna", "ray", "sqlalchemy", "numpy")
CONTROLS = (0.5,)


class Driver:
    """What `search.driver` builds for a run, without Ray: opened on a run folder, as often as one likes."""

    def __init__(self, root: Path, network: Simulated, *, trials: int, workers: int, start: int, study: str) -> None:
        asked = SearchSettings(trials=trials)
        self.store = RunStore.open(root)
        self.sampler = StudySampler(
            study_url(study, self.store.study_path),
            network.space,
            sampler=asked.sampler,
            seed=asked.seed,
            start=start,
            budget=network.budget,
            dense_accuracy=DENSE,
            again=asked.inherit,
        )
        results = self.store.results()
        self.sampler.fill(results)
        self.sampler.reconcile(results)
        self.sampler.enqueue((network.space.uniform(s) for s in CONTROLS), "uniform")
        self.board = RungBoard(rung_iterations(AdmmSettings().iterations))
        self.board.fill(results)
        self.view = View(Console(file=io.StringIO()))
        self.searcher = PlanSearcher(
            self.sampler,
            self.store,
            trials=trials,
            seed=asked.seed,
            max_concurrent=workers,
            stopped=self.board.stopped,
            on_result=self.view.update,
            finals=partial(final_plans, network.baseline, budget=network.budget, most=asked.final_trials),
            final_stretch=asked.final_stretch,
            inherit=asked.inherit,
        )
        self.view.begin(
            network.baseline,
            results,
            budget=network.budget,
            trials=trials,
            seconds=None,
            running=lambda: self.searcher.live,
        )


def measure(root: Path, trials: int, workers: int, study: str, profile: cProfile.Profile | None) -> dict[str, Any]:
    """One search in the folder `root`: CPU of the driver by quarters, memory and disk after each, a second start."""
    network = Simulated(budget=Budget(speedup=3.0))
    RunStore.create(root, "task: simulated\n", {})
    driver = Driver(root, network, trials=trials, workers=workers, start=0, study=study)
    spent, began = Spent(), time.perf_counter()
    memory = {0: resident_mebibytes()}

    def look(ended: int) -> None:
        if ended % max(1, trials // 8) == 0:
            gc.collect()
            memory[ended] = resident_mebibytes()

    if profile is not None:
        profile.enable()
    steps = AdmmSettings().iterations, FinetuneSettings().epochs
    simulate(
        driver.searcher,
        RungScheduler(driver.board),
        network,
        driver.store,
        steps=steps,
        spent=spent,
        on_end=look,
    )
    if profile is not None:
        profile.disable()
    wall, ended = time.perf_counter() - began, len(spent.ended)
    memory[ended] = resident_mebibytes()
    results = driver.store.results()
    quarters = spent.by_quarter()
    again = time.process_time()
    Driver(root, network, trials=trials, workers=workers, start=1, study=study)
    again = time.process_time() - again
    return {
        "trials": trials,
        "ended": ended,
        "by_status": {
            s: sum(r.status == s for r in results.values()) for s in sorted({r.status for r in results.values()})
        },
        "workers": workers,
        "study": study,
        "driver_cpu_s_a_trial": spent.driver / ended,
        "ask_cpu_s_a_trial": spent.asking / ended,
        "driver_cpu_s_a_trial_by_quarter": quarters,
        "last_to_third_quarter": quarters[3] / quarters[2],
        "last_to_first_quarter": quarters[3] / quarters[0],
        "worker_cpu_s_a_trial": spent.workers / ended,
        "wall_s": wall,
        "resident_mib": {str(count): round(mib, 1) for count, mib in sorted(memory.items())},
        "mib_a_thousand_trials": 1e3 * (memory[ended] - memory[0]) / ended,
        "study_bytes_a_trial": study_bytes(root) / ended,
        "record_bytes_a_trial": folder_bytes(driver.store.trials_dir) / ended,
        "second_start_cpu_s": again,
    }


def study_bytes(root: Path) -> int:
    """Of the study's file and what its database keeps beside it."""
    return sum(path.stat().st_size for path in root.glob("study.*"))


def rounded(row: dict[str, Any]) -> dict[str, Any]:
    """The row with four decimals."""
    return {
        key: round(value, 4)
        if isinstance(value, float)
        else [round(v, 4) for v in value]
        if isinstance(value, list)
        else value
        for key, value in row.items()
    }


def show(rows: list[dict[str, Any]]) -> None:
    """One row a search."""
    table = Table("trials, workers, study", "ended", "CPU s a trial", "by quarter", "MiB", "second start s")
    for row in rows:
        table.add_row(
            f"{row['trials']:,}, {row['workers']}, {row['study'].partition(':')[0]}",
            f"{row['ended']:,}",
            f"{row['driver_cpu_s_a_trial']:.4f}",
            " ".join(f"{q:.4f}" for q in row["driver_cpu_s_a_trial_by_quarter"]),
            " ".join(f"{mib:.0f}" for mib in row["resident_mib"].values()),
            f"{row['second_start_cpu_s']:.1f}",
        )
    Console(width=120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=256)
    parser.add_argument("--quick", action="store_true", help="300 trials: under a minute")
    parser.add_argument("--tiny", action="store_true", help="two dozen trials on 4 workers: figures mean nothing")
    parser.add_argument("--journal", action="store_true", help="the study in a journal file, not in SQLite")
    parser.add_argument("--profile", action="store_true", help="print where the time goes; its own cost is in it")
    parser.add_argument("--record", action="store_true", help="add the figures to results/scale.json")
    options = parser.parse_args()
    trials, workers = options.trials, options.workers
    if options.quick:
        trials = 300
    if options.tiny:
        trials, workers = 24, 4
    if options.record and (trials, workers, options.profile) != (2000, 256, False):
        parser.error("--record keeps figures of the full benchmark only")
    profile = cProfile.Profile() if options.profile else None
    with tempfile.TemporaryDirectory() as folder:
        study = f"journal:{folder}/run/study.log" if options.journal else "sqlite"
        row = rounded(measure(Path(folder) / "run", trials, workers, study, profile))
    row["study"] = row["study"].partition(":")[0]
    show([row])
    if profile is not None:
        pstats.Stats(profile).sort_stats("cumulative").print_stats(60)
    holds = (
        row["driver_cpu_s_a_trial"] <= BAR
        and row["last_to_third_quarter"] <= GROWTH
        and row["mib_a_thousand_trials"] <= MEMORY
    )
    claim = Claim(
        claim=f"the driver of {trials:,} trials on {workers} workers spends at most {BAR} s of CPU on each, at most "
        f"{GROWTH:g} times as much on one of the last quarter as on one of the third, and at most {MEMORY:g} MiB on a "
        "thousand",
        figure=row["driver_cpu_s_a_trial"],
        unit="s of the driver's CPU a trial, Ray Tune's own left out",
        bar=BAR,
        holds=holds,
        details={"quick": options.quick, "tiny": options.tiny, "growth_bar": GROWTH, "memory_bar": MEMORY, **row},
    )
    if options.record:
        claim.record("scale", packages=PACKAGES)
    print(claim.to_json())


if __name__ == "__main__":
    main()
