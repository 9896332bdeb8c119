"""Two workers against one on the same 16 trials, and what a trial costs beyond its own work.

The same plans of the digits, given as points, are run by a search with one worker and by one with two, each worker with
one thread, and once more by `evaluate_plan` alone in this process. Counted from the start of the first trial to the end
of the last, so with warm workers; the overhead is a trial's share of that less what the bare worker takes for it.

Whether a figure counts is decided by the machine: before and after, the same training steps are timed in one process
and in two at once. Where these do not get their cores whole, or the two controls differ, somebody else was at work:
`counted` is false and the claim does not hold, whatever the figures are. CPU seconds are told beside all wall times.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))

from benchmarks.claim import Claim  # noqa: E402
from search.bench import Prepared, open_bench, prepare_run  # noqa: E402
from search.job import Job  # noqa: E402
from search.keep import folder_bytes  # noqa: E402
from search.profile import Profile  # noqa: E402
from search.result import Baseline, TrialResult  # noqa: E402
from search.store import RunStore  # noqa: E402
from search.tasks.base import PreparedTask  # noqa: E402
from search.trial import TrialSpec  # noqa: E402
from search.view import View  # noqa: E402
from search.worker import TrialRun  # noqa: E402

FASTER, OVERHEAD_S = 1.8, 0.3
#: Of a control's wall time, what it must have had of its core; and how far two controls may be apart.
WHOLE, ALIKE = 0.95, 0.05
PACKAGES = ("prunefront", "ray", "torch", "onnxruntime", "numpy")


class Watched(View):
    """When each trial ended, and what all processes below this one had spent until then."""

    def __init__(self) -> None:
        super().__init__(Console(quiet=True))
        self.ended: list[tuple[float, float, float, TrialResult]] = []

    def update(self, result: TrialResult) -> None:
        """Note the times, say nothing."""
        self.ended.append((time.monotonic(), tree_cpu_s(os.getpid()), time.process_time(), result))


def tree_cpu_s(root: int) -> float:
    """CPU seconds so far of a process and all that live below it; 0 where there is no /proc."""
    parents: dict[int, int] = {}
    spent: dict[int, float] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended meanwhile
        parents[int(folder.name)] = int(fields[1])
        spent[int(folder.name)] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def below(pid: int) -> bool:
        while pid not in (0, root):
            pid = parents.get(pid, 0)
        return pid == root

    return sum(seconds for pid, seconds in spent.items() if below(pid))


def made_job(folder: Path, trials: int, workers: int, width: int, epochs: int) -> Job:
    """A search of given plans: nothing is drawn, stopped or looked at twice, so both searches do the same work."""
    content = {
        "task": "search.tasks.digits:task",
        "task_args": {"width": width, "epochs": 2, "min_accuracy": 0.1},
        "structures": ["filter"],
        "layers": {"exclude": ["head"]},
        "sparsity": {"align": 8},
        "admm": {"iterations": epochs},
        "finetune": {"epochs": epochs},
        "search": {
            "trials": trials,
            "sampler": "random",
            "early_stopping": False,
            "warm_start": False,
            "inherit": False,
            "final_stretch": 1.0,
            "remeasure": False,
        },
        "resources": {"cpus_per_trial": 1.0, "max_concurrent": workers},
        "storage": str(folder),
        "base_dir": str(folder),
    }
    return Job.model_validate(content)


def points_of(profile: Profile, count: int) -> list[dict[str, int]]:
    """Different plans, always the same."""
    rng, sizes = random.Random(0), profile.space.sizes
    points: list[dict[str, int]] = []
    while len(points) < count:
        steps = {name: rng.randrange(size) for name, size in sizes.items()}
        if steps not in points:
            points.append(steps)
    return points


def searched(
    store: RunStore,
    job: Job,
    baseline: Baseline,
    profile: Profile,
    points: list[dict[str, int]],
    task: PreparedTask,
) -> Watched:
    """The trials by Ray Tune, with as many workers as the job says."""
    from search.driver import run_search

    view = Watched()
    outcome = run_search(store, job, baseline, profile, view=view, last_words=lambda: None, points=points, task=task)
    broken = [r for r in outcome.results.values() if r.status != "complete"]
    if broken or len(outcome.results) != len(points):
        raise SystemExit(f"{len(broken)} of {len(outcome.results)} trials broke: {[r.reason for r in broken][:1]}")
    return view


def figures(view: Watched) -> dict[str, float]:
    """Wall and CPU seconds from the first trial's start to the last one's end, and the driver's own part."""
    first = view.ended[0]
    began = min(at - result.seconds for at, _, _, result in view.ended)
    last, trials = view.ended[-1], len(view.ended)
    rest = trials - 1
    return {
        "wall_s": last[0] - began,
        "wall_s_a_trial": (last[0] - began) / trials,
        # from the first end on: what came before holds the start of the workers
        "cpu_s_a_trial": (last[1] - first[1]) / rest,
        "driver_cpu_s_a_trial": (last[2] - first[2]) / rest,
        "in_trials_s": sum(result.seconds for *_, result in view.ended),
    }


def bare(store: RunStore, job: Job, points: list[dict[str, int]], folder: Path) -> dict[str, float]:
    """The same plans by the worker alone, as `evaluate_plan` does, and the length of one checkpoint."""
    torch.set_num_threads(1)
    bench = open_bench(store, job)

    def run_of(number: int, steps: Mapping[str, int]) -> TrialRun:
        plan = bench.profile.space.plan(steps)
        spec = TrialSpec(number=number, plan=plan, params=dict(steps), seed=job.search.seed)
        return TrialRun(bench, spec, store=None, artefacts=folder / str(number))

    warm = run_of(len(points), points[0])
    while warm.result is None:
        warm.step()
        if not (folder / "checkpoint").exists():
            warm.save(folder / "checkpoint")  # of a network that is not yet shrunk
    walls, cpus, rigs = [], [], []
    for number, steps in enumerate(points):
        wall, cpu = time.perf_counter(), time.process_time()
        run = run_of(number, steps)
        while run.result is None:
            run.step()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
        rigs.extend(float(m["seconds"]) for m in run.result.measurements.values())
    return {
        "wall_s_a_trial": statistics.mean(walls),
        "cpu_s_a_trial": statistics.mean(cpus),
        "rig_s_a_measurement": statistics.mean(rigs),
        "checkpoint_bytes": float((folder / "checkpoint").stat().st_size),
    }


def _trained(steps: int) -> tuple[float, float]:
    """(wall, CPU) seconds of so many training steps on one thread, after a few that warm up."""
    from search.tasks.digits import DigitsResNet

    torch.set_num_threads(1)
    model, x = DigitsResNet(32), torch.randn(64, 1, 8, 8)
    y = torch.arange(64) % 10
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    wall = cpu = 0.0
    for step in range(steps + 5):
        if step == 5:
            wall, cpu = time.perf_counter(), time.process_time()
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return time.perf_counter() - wall, time.process_time() - cpu


def control(steps: int) -> dict[str, float]:
    """What one process and two at once reach on this machine now, in steps a second, and their share of a core."""
    found: dict[str, float] = {}
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        list(pool.map(_trained, [1, 1]))
        for name, processes in (("one", 1), ("two", 2)):
            times = list(pool.map(_trained, [steps] * processes))
            found[f"{name}_steps_s"] = sum(steps / wall for wall, _ in times)
            found[f"{name}_share"] = min(cpu / wall for wall, cpu in times)
    return found


def trouble(before: Mapping[str, float], after: Mapping[str, float]) -> str | None:
    """Why no figure between these two controls counts; None where the machine was ours."""
    for when, found in (("before", before), ("after", after)):
        for name in ("one", "two"):
            if found[f"{name}_share"] < WHOLE:
                return (
                    f"the control {when} had {found[f'{name}_share']:.0%} of a core ({name} at a time), not {WHOLE:.0%}"
                )
    for name in ("one_steps_s", "two_steps_s"):
        apart = abs(math.log(after[name] / before[name]))
        if apart > ALIKE:
            return f"the controls differ by {apart:.0%} ({name}), more than {ALIKE:.0%}"
    return None


def measure(trials: int, width: int, epochs: int, steps: int) -> dict[str, Any]:
    """All runs, in one folder that is removed."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        prepared = Prepared.of(made_job(root, trials, 1, width, epochs))
        store = RunStore.create(root / "one", prepared.job.to_yaml(), {})
        view = View(Console(quiet=True))
        baseline, profile = prepare_run(store, prepared.job, prepared, view)
        shutil.copytree(root / "one", root / "two")
        points = points_of(profile, trials)
        before = control(steps)
        found: dict[str, Any] = {"bare": bare(store, prepared.job, points, root / "bare")}
        for name, workers in (("one", 1), ("two", 2)):
            resources = prepared.job.resources.model_copy(update={"max_concurrent": workers})
            job = prepared.job.model_copy(update={"resources": resources})
            run = RunStore.open(root / name)
            found[name] = figures(searched(run, job, baseline, profile, points, prepared.task))
            found[name]["record_bytes_a_trial"] = folder_bytes(run.trials_dir) / trials
        after = control(steps)
    return {"before": before, "after": after, "trouble": trouble(before, after), **found}


def show(row: Mapping[str, Any]) -> None:
    """Wall and CPU seconds a trial, then the controls."""
    table = Table("plans of the digits", "wall s a trial", "CPU s a trial", "driver's CPU s")
    for name in ("bare", "one", "two"):
        found = row[name]
        own = found.get("driver_cpu_s_a_trial")
        table.add_row(
            {"bare": "bare worker", "one": "one worker", "two": "two workers"}[name],
            f"{found['wall_s_a_trial']:.3f}",
            f"{found['cpu_s_a_trial']:.3f}",
            "" if own is None else f"{own:.3f}",
        )
    console = Console(width=110)
    console.print(table)
    for when in ("before", "after"):
        console.print(f"control {when}: {', '.join(f'{k} {v:.3g}' for k, v in row[when].items())}")
    console.print(f"not counted: {row['trouble']}" if row["trouble"] else "counted: the machine was idle but for this")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="shorter trials of a narrower network")
    parser.add_argument("--tiny", action="store_true", help="four short trials: figures mean nothing")
    parser.add_argument("--record", action="store_true", help="add the figures to results/throughput.json")
    options = parser.parse_args()
    if options.record and (options.quick or options.tiny):
        parser.error("--record keeps figures of the full benchmark only")
    trials, width, epochs, steps = 16, 48, 3, 300
    if options.quick:
        width, epochs, steps = 16, 1, 60
    if options.tiny:
        trials, width, epochs, steps = 4, 16, 1, 5
    row = measure(trials, width, epochs, steps)
    show(row)
    faster = row["one"]["wall_s"] / row["two"]["wall_s"]
    by_cpu = row["one"]["cpu_s_a_trial"] / row["two"]["cpu_s_a_trial"]
    overhead = row["one"]["wall_s_a_trial"] - row["bare"]["wall_s_a_trial"]
    counted = row["trouble"] is None
    claim = Claim(
        claim=f"two workers finish {trials} trials at least {FASTER} times as fast as one, and a trial costs at most "
        f"{OVERHEAD_S} s more than the bare worker takes for it",
        figure=round(faster, 3),
        unit="times the throughput of one worker" + ("" if counted else ", not counted: the machine was not idle"),
        bar=FASTER,
        holds=counted and faster >= FASTER and overhead <= OVERHEAD_S,
        details={
            "quick": options.quick,
            "tiny": options.tiny,
            "counted": counted,
            "overhead_s": round(overhead, 4),
            "overhead_cpu_s": round(row["one"]["cpu_s_a_trial"] - row["bare"]["cpu_s_a_trial"], 4),
            "overhead_bar_s": OVERHEAD_S,
            "throughput_a_cpu_second": round(by_cpu, 3),
            "two_processes_at_once": round(row["before"]["two_steps_s"] / row["before"]["one_steps_s"], 3),
            **row,
        },
    )
    if options.record:
        claim.record("throughput", packages=PACKAGES)
    print(claim.to_json())


if __name__ == "__main__":
    main()
