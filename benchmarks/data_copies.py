"""A data set on one machine: resident once, however many workers train on it.

Workers of a Ray cluster open a set of float32 images (2 GiB; `--quick` 128 MiB) as a search's workers do, from the
object store, and read every training and validation sample. `figure` is the memory that all together take beyond
a worker without data, in sizes of the set, by PSS of /proc/self/smaps_rollup: a page that four processes share counts a
quarter in each. Ray's own store maps these pages as well, and its share is not counted. Beside it the same for workers
that load the set themselves, on a smaller set, as any run did before.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "token")

import numpy as np
import ray
from rich.console import Console
from rich.table import Table
from torch import nn

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))

from benchmarks.claim import Claim  # noqa: E402
from search.job import Job  # noqa: E402
from search.node_data import get_task, put_task  # noqa: E402
from search.tasks.base import PreparedTask, Task, prepare  # noqa: E402
from search.tasks.data import Arrays  # noqa: E402

#: Sizes of the set that all workers together may take: one, and what batches and bookkeeping cost.
BAR = 1.2
SIDE, CHANNELS = 32, 3
SAMPLE_BYTES = 4 * CHANNELS * SIDE * SIDE
JOB = Job(task="search.tasks.digits:task")
PACKAGES = ("prunefront", "ray", "torch", "numpy")


def made_task(mebibytes: int) -> PreparedTask:
    """Noise in the form of images, with a validation part of its own."""
    samples = mebibytes * 2**20 // SAMPLE_BYTES
    rng = np.random.default_rng(0)
    x = rng.standard_normal((samples, CHANNELS, SIDE, SIDE), dtype=np.float32)
    y = np.arange(samples) % 10
    cut = samples // 10
    task = Task(
        name="noise",
        model=lambda: nn.Sequential(nn.Flatten(), nn.Linear(SAMPLE_BYTES // 4, 10)),
        train=Arrays(x[cut:], y[cut:]),
        val=Arrays(x[:cut], y[:cut]),
        batch_size=128,
    )
    return prepare(task)


def pss_mebibytes() -> float:
    """What this process holds, shared pages by their share."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise SystemExit("/proc/self/smaps_rollup names no Pss: this kernel cannot tell")


@ray.remote(num_cpus=0)
class Worker:
    """Opens the data and reads them through, as a trial does."""

    def pss(self) -> float:
        """MiB now."""
        return pss_mebibytes()

    def read(self, reference: list[Any] | None, mebibytes: int) -> tuple[float, float]:
        """(seconds to open, seconds to read every sample once); the data stay open."""
        began = time.perf_counter()
        self._task = made_task(mebibytes) if reference is None else get_task(reference[0], JOB)
        opened = time.perf_counter()
        for batches in (self._task.train_batches(0), self._task.val_batches()):
            for x, _ in batches:
                float(x.sum())
        return opened - began, time.perf_counter() - opened


def measure(mebibytes: int, workers: int, *, shared: bool) -> dict[str, float]:
    """Memory of all workers beyond their own, in sizes of the set; when all have read it all."""
    reference, why = put_task(made_task(mebibytes)) if shared else (None, None)
    if why is not None:
        raise SystemExit(f"the set cannot be shared here: {why}")
    actor: Any = Worker
    actors = [actor.remote() for _ in range(workers)]
    before = sum(ray.get([a.pss.remote() for a in actors]))
    times = ray.get([a.read.remote(None if reference is None else [reference], mebibytes) for a in actors])
    # at one moment, so that what is shared is divided by all who share it
    after = sum(ray.get([a.pss.remote() for a in actors]))
    for a in actors:
        ray.kill(a)
    return {
        "mib": mebibytes,
        "workers": workers,
        "sizes": round((after - before) / mebibytes, 3),
        "open_s": round(max(opened for opened, _ in times), 3),
        "read_s": round(max(read for _, read in times), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a set of 128 MiB")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--record", action="store_true", help="add the figures to results/data_copies.json")
    options = parser.parse_args()
    if options.record and options.quick:
        parser.error("--record keeps figures of the full benchmark only")
    size, small = (128, 64) if options.quick else (2048, 256)
    ray.init(
        address="local",
        num_cpus=1,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=int(1.5 * size * 2**20) + 2**28,
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}},
    )
    try:
        together = measure(size, options.workers, shared=True)
        apart = measure(small, options.workers, shared=False)
    finally:
        ray.shutdown()
    table = Table(f"{options.workers} workers", "set, MiB", "memory, sets", "open s", "read s")
    for name, row in (("from the object store", together), ("each for itself", apart)):
        table.add_row(name, f"{row['mib']:g}", f"{row['sizes']:g}", f"{row['open_s']:g}", f"{row['read_s']:g}")
    Console(width=100).print(table)
    claim = Claim(
        claim=f"{options.workers} workers on one machine hold a set of {size} MiB at most {BAR} times together",
        figure=together["sizes"],
        unit="sizes of the set, PSS of all workers beyond what they take without it",
        bar=BAR,
        holds=together["sizes"] <= BAR,
        details={"quick": options.quick, "shared": together, "each for itself": apart},
    )
    if options.record:
        claim.record("data_copies", packages=PACKAGES)
    print(claim.to_json())


if __name__ == "__main__":
    main()
