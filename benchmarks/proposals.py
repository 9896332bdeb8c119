"""What a proposal costs, and what it is worth: seconds of an ask and a tell, and hypervolume in the simulator.

The first table asks and tells in a study that has 100, 300 and 1,000 trials of 30 parameters already, for each sampler
and storage; `figure` is the worst mean of the default (TPE with neighbours) at 1,000. Wall time, because the
writes wait for the disk; the thread's CPU time stands beside it, which a loaded machine leaves alone. Growth of
memory is told over those thousand trials.

The second (`--worth`) lets samplers search the analytic networks of `tests/search/simulator.py`, alone and mixed with
plans next to the front, with the same first trials and as many trials each. An analytic network's damages add up
(`rough` 0) or do not (`rough` 1); no claim on real training follows from either.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))  # the simulator stands with the tests

from benchmarks.claim import Claim  # noqa: E402
from search.progress_log import log_hypervolume, progress  # noqa: E402
from search.sampler import Proposal, StudySampler  # noqa: E402
from tests.search.simulator import DENSE, Simulated, search  # noqa: E402

BAR = 0.15
PACKAGES = ("prunefront", "optuna", "sqlalchemy", "numpy")
KINDS = (("tpe", True), ("tpe", False), ("nsga2", True), ("nsga2", False), ("random", False))
STORAGES = {"sqlite": "sqlite:///", "journal": "journal:"}
CONTROLS = (0.0, 0.25, 0.5, 0.75)


def name_of(kind: str, mixed: bool) -> str:
    """`tpe + neighbours`."""
    return f"{kind} + neighbours" if mixed else kind


def resident_mebibytes() -> float:
    """Memory of this process now; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def seconds(url: str, kind: str, mixed: bool, counts: Sequence[int], repeats: int) -> dict[int, dict[str, float]]:
    """Mean wall and CPU seconds of an ask and a tell, `repeats` of them after each of the counts, and MiB in use.

    The trials before are those of a search by the same sampler, 60 of them, and then plans by chance near any of
    those: what is timed is timed on a history like a real one.
    """
    network = Simulated()
    sampler = StudySampler(url, network.space, sampler=kind, neighbours=mixed, dense_accuracy=DENSE)
    sampler.enqueue(network.space.uniform(s) for s in CONTROLS)
    results = search(sampler, network.evaluate, trials=min(counts[0], 60))
    rng = random.Random(0)
    found = {}
    for count in counts:
        known = sorted(results)
        for number in range(max(results) + 1, max(results) + 1 + count - len(results)):
            parent = results[rng.choice(known)].params_sampled
            steps = {
                d.name: max(0, min(len(d.sparsities) - 1, parent[d.name] + rng.choice((0, 0, 0, 0, -1, 1))))
                for d in network.space.dimensions
            }
            plan = network.space.plan(steps)
            results[number] = network.evaluate(Proposal(number=number, params=steps, plan=plan))
        sampler.fill(results)
        times = []
        for _ in range(repeats):
            wall, cpu = time.perf_counter(), time.thread_time()
            proposal = sampler.ask()
            asked = time.perf_counter() - wall, time.thread_time() - cpu
            result = network.evaluate(proposal)
            wall, cpu = time.perf_counter(), time.thread_time()
            sampler.tell(result)
            told = time.perf_counter() - wall, time.thread_time() - cpu
            results[proposal.number] = result
            times.append((asked[0] + told[0], asked[1] + told[1]))
        gc.collect()
        walls, cpus = [w for w, _ in times], [c for _, c in times]
        found[count] = {
            "wall_s": round(statistics.mean(walls), 4),
            "wall_worst_s": round(max(walls), 4),
            "cpu_s": round(statistics.mean(cpus), 4),
            "resident_mib": round(resident_mebibytes(), 1),
        }
    return found


def worth(trials: int, networks: int, seeds: int) -> dict[str, Any]:
    """Hypervolume (1e-3) of each sampler after half and all of the trials, on smooth and on rough networks."""
    rows: dict[str, Any] = {}
    for rough, (kind, mixed) in itertools.product((0.0, 1.0), KINDS):
        halves, wholes = [], []
        for net, seed in itertools.product(range(networks), range(seeds)):
            network = Simulated(seed=net, rough=rough)
            with tempfile.TemporaryDirectory() as folder:
                sampler = StudySampler(
                    f"journal:{folder}/journal",
                    network.space,
                    sampler=kind,
                    seed=seed,
                    neighbours=mixed,
                    dense_accuracy=DENSE,
                )
                sampler.enqueue(network.space.uniform(s) for s in CONTROLS)
                results = search(sampler, network.evaluate, trials=trials, workers=2)
            halves.append(1e3 * progress(results, network.baseline)[trials // 2 - 1].hypervolume)
            wholes.append(1e3 * log_hypervolume(results, network.baseline))
        row = {"rough": rough, "half": round(statistics.mean(halves), 3), "all": round(statistics.mean(wholes), 3)}
        rows[f"{name_of(kind, mixed)}, rough {rough:g}"] = row | {"each": [round(w, 2) for w in wholes]}
    return rows


def show_seconds(rows: Mapping[str, Mapping[int, Mapping[str, float]]]) -> None:
    """The first table."""
    table = Table("sampler, storage", "trials", "ask + tell s", "worst s", "CPU s", "resident MiB")
    for name, counts in rows.items():
        for count, row in counts.items():
            values = (row["wall_s"], row["wall_worst_s"], row["cpu_s"], row["resident_mib"])
            table.add_row(name, f"{count:,}", *(f"{v:g}" for v in values))
    Console(width=110).print(table)


def show_worth(rows: Mapping[str, Mapping[str, Any]], trials: int) -> None:
    """The second table."""
    table = Table("sampler, network", f"hypervolume 1e-3 after {trials // 2}", f"after {trials}")
    for name, row in rows.items():
        table.add_row(name, f"{row['half']:.2f}", f"{row['all']:.2f}")
    Console(width=110).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="100 trials and few repeats: under a minute")
    parser.add_argument("--tiny", action="store_true", help="a dozen trials: figures mean nothing")
    parser.add_argument("--worth", action="store_true", help="also let the samplers search the analytic networks")
    parser.add_argument("--record", action="store_true", help="add the figures to results/proposals.json")
    options = parser.parse_args()
    if options.record and (options.quick or options.tiny):
        parser.error("--record keeps figures of the full benchmark only")
    counts: tuple[int, ...] = (100, 300, 1000)
    repeats, trials, networks, seeds = 20, 100, 5, 1
    if options.quick:
        counts, repeats, trials, networks = (40, 100), 3, 30, 1
    if options.tiny:
        counts, repeats, trials, networks = (10, 12), 2, 10, 1
    rows = {}
    for (kind, mixed), (storage, prefix) in itertools.product(KINDS, STORAGES.items()):
        with tempfile.TemporaryDirectory() as folder:
            found = seconds(f"{prefix}{folder}/study", kind, mixed, counts, repeats)
        rows[f"{name_of(kind, mixed)}, {storage}"] = found
    show_seconds(rows)
    details: dict[str, Any] = {"quick": options.quick, "tiny": options.tiny, "seconds": rows}
    if options.worth:
        details["worth"] = worth(trials, networks, seeds)
        show_worth(details["worth"], trials)
    default = [counted[counts[-1]] for name, counted in rows.items() if name.startswith("tpe + neighbours")]
    figure = max(row["wall_s"] for row in default)
    claim = Claim(
        claim=f"a proposal and its result cost at most {BAR} s together at {counts[-1]:,} trials of 30 parameters, "
        "with the default sampler, in SQLite and in a journal file",
        figure=figure,
        unit=f"s of wall time, the worse storage's mean of {repeats}",
        bar=BAR,
        holds=figure <= BAR,
        details=details,
    )
    if options.record:
        claim.record("proposals", packages=PACKAGES)
    print(claim.to_json())


if __name__ == "__main__":
    main()
