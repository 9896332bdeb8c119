"""How fast `admm.projection.project` is, beside NumPy doing the same with `np.sort` and with `np.partition`.

Both sides go from a weight to its projection: energies of the units, the threshold, the masked weight. The references
are written for speed (`einsum`, one multiplication, no needless copy), and only the threshold differs between them.
They run in alternating blocks of one run on one thread; thread CPU time decides. Sorting is the work where single
weights are selected, and those rows keep the bar. Of filters, channels and columns there are a few thousand, and
reading the weight and writing the result takes the time, whatever finds the threshold: those rows miss the bar, which
is for all rows, so that the claim as a whole does not hold.
"""

from __future__ import annotations

import argparse
import math
import resource
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from claim import Claim
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from admm.plan import STRUCTURES
from admm.projection import keep_count, project
from admm.structures import unit_count, unit_energy
from evaluators.clock import host_clock
from evaluators.host import pinned_to_one_core
from evaluators.timing import TimingSettings, time_pair

Array = NDArray[np.floating[Any]]
Cut = Callable[[Array, int], np.floating[Any]]

SEED = 0
SPARSITY = 0.9
#: Gains over np.sort's and np.partition's threshold, of every row.
BAR_SORT, BAR_PARTITION = 5.0, 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One weight to project."""

    name: str
    shape: tuple[int, ...]


def layers(*, quick: bool, tiny: bool) -> dict[str, Layer]:
    """The layers by key. Reduced forms are narrower, which takes work from sorting and gain from us."""
    conv = Layer(name="convolution", shape=(64, 64, 3, 3) if tiny else (512, 512, 3, 3))
    if tiny:
        return {"conv": conv}
    fc1 = Layer(name="AlexNet's fc1", shape=(1024, 2304) if quick else (4096, 9216))
    return {"fc1": fc1, "conv": conv}


def by_sort(energy: Array, keep: int) -> np.floating[Any]:
    """The keep-th largest of [units]."""
    ranked: Array = np.sort(energy)
    return ranked[energy.size - keep]


def by_partition(energy: Array, keep: int) -> np.floating[Any]:
    """The keep-th largest of [units]."""
    ranked: Array = np.partition(energy, energy.size - keep)
    return ranked[energy.size - keep]


def energies(weight: Array, structure: str) -> Array:
    """Squared norms of the units [units]; of single weights the magnitudes, which rank alike and cost less."""
    matrix = weight.reshape(len(weight), -1)
    if structure == "unstructured":
        return np.abs(weight).reshape(-1)
    if structure == "filter":
        return np.einsum("ij,ij->i", matrix, matrix)
    columns = np.einsum("ij,ij->j", matrix, matrix)
    return columns.reshape(weight.shape[1], -1).sum(1) if structure == "channel" else columns


def reference(weight: Array, structure: str, keep: int, cut: Cut) -> Array:
    """The projection in plain NumPy; the data have no ties at the threshold."""
    energy = energies(weight, structure)
    kept = energy >= cut(energy, keep)
    if structure == "unstructured":
        return weight * kept.reshape(weight.shape)
    # A few flags are cheaper as numbers, and cheapest along whole rows.
    factor = kept.astype(weight.dtype)
    matrix = weight.reshape(len(weight), -1)
    if structure == "filter":
        return (matrix * factor[:, None]).reshape(weight.shape)
    if structure == "channel":
        factor = np.repeat(factor, matrix.shape[1] // factor.size)
    return (matrix * factor).reshape(weight.shape)


def exact(weight: Array, structure: str, keep: int) -> Array:
    """The projection by energies in float64: what both sides have to agree with."""
    return reference(weight.astype(np.float64), structure, keep, by_sort)


def measure(layer: Layer, structure: str, settings: TimingSettings) -> dict[str, Any]:
    """One row: agreement, milliseconds of the three, gains with their spread."""
    weight = torch.randn(layer.shape, generator=torch.Generator().manual_seed(SEED))
    numbers = weight.numpy()
    units = unit_count(layer.shape, structure)
    keep = keep_count(units, SPARSITY)
    ours = partial(project, weight, structure, SPARSITY)
    row: dict[str, Any] = {"layer": layer.name, "shape": list(layer.shape), "structure": structure, "units": units}
    found = ours().numpy()
    row["agrees"] = bool(np.array_equal(found, exact(numbers, structure, keep)))
    for name, cut in (("sort", by_sort), ("partition", by_partition)):
        theirs = partial(reference, numbers, structure, keep, cut)
        row["agrees"] &= bool(np.array_equal(found, theirs()))
        timing = time_pair(ours, theirs, settings=settings, clock=host_clock(threads=1))
        gains = [r / c for r, c in zip(timing.reference_quiet_ns, timing.candidate_quiet_ns, strict=True)]
        row |= {
            "project_ms": round(median(timing.candidate_ns) / 1e6, 3),
            f"{name}_ms": round(median(timing.reference_ns) / 1e6, 3),
            f"gain_over_{name}": round(median(gains), 3),
            f"gain_over_{name}_quartiles": [round(float(q), 3) for q in np.quantile(gains, (0.25, 0.75))],
        }
    row["energy_error"] = energy_error(weight, structure)
    row["holds"] = held(row)
    return row


def energy_error(weight: torch.Tensor, structure: str) -> float:
    """Largest error of an energy against float64, relative to it."""
    truth = energies(weight.double().numpy(), structure)
    truth = truth**2 if structure == "unstructured" else truth
    return float(np.max(np.abs(unit_energy(weight, structure).double().numpy() - truth) / np.maximum(truth, 1e-30)))


def peak_mebibytes() -> float:
    """Peak resident memory of this process; Linux counts in KiB, macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def held(row: dict[str, Any]) -> bool:
    """Whether a row agrees and keeps both bars."""
    return bool(row["agrees"] and row["gain_over_sort"] >= BAR_SORT and row["gain_over_partition"] > BAR_PARTITION)


def gains(rows: Iterable[dict[str, Any]], *, single: bool) -> str:
    """Smallest and largest gain over np.sort, of single weights or of all that is larger, in words."""
    found = [row["gain_over_sort"] for row in rows if (row["structure"] == "unstructured") is single]
    return f"{min(found):.2g}-{max(found):.2g}x"


def show(rows: dict[str, dict[str, Any]]) -> None:
    """The table; times are CPU milliseconds of one thread."""
    table = Table(title=f"a projection at sparsity {SPARSITY}, weight to weight (thread CPU time, one thread)")
    for heading in (
        "layer",
        "structure",
        "units",
        "project ms",
        "sort ms",
        "partition ms",
        "x sort",
        "x partition",
        "bar",
    ):
        table.add_column(heading, justify="left" if heading in ("layer", "structure") else "right")
    for row in rows.values():
        table.add_row(
            row["layer"],
            row["structure"],
            f"{row['units']:,}",
            f"{row['project_ms']:.2f}",
            f"{row['sort_ms']:.2f}",
            f"{row['partition_ms']:.2f}",
            f"{row['gain_over_sort']:.2f}",
            f"{row['gain_over_partition']:.2f}" + ("" if row["agrees"] else "  DIFFERS"),
            "kept" if row["holds"] else "missed",
        )
    Console(width=130).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a sixteenth of fc1 and few pairs: under a minute")
    parser.add_argument("--tiny", action="store_true", help="a small convolution only: figures mean nothing")
    parser.add_argument("--record", action="store_true", help="add the figures to results/projection.json")
    options = parser.parse_args()
    if options.record and (options.quick or options.tiny):
        parser.error("--record keeps figures of the full benchmark only")
    torch.set_num_threads(1)
    full = not (options.quick or options.tiny)
    settings = (
        TimingSettings(warmups=1, max_warmups=2, min_pairs=9, max_pairs=15, bound=0.02)
        if full
        else TimingSettings(warmups=1, max_warmups=1, min_pairs=5, max_pairs=7)
    )
    chosen = layers(quick=options.quick, tiny=options.tiny)
    with pinned_to_one_core():
        rows = {f"{k}_{s}": measure(layer, s, settings) for k, layer in chosen.items() for s in STRUCTURES}
    show(rows)
    single = [row["gain_over_sort"] for row in rows.values() if row["structure"] == "unstructured"]
    peak = peak_mebibytes()
    Console().print(f"peak memory {peak:.0f} MiB; weights of {max(math.prod(v.shape) for v in chosen.values()):,}")
    claim = Claim(
        claim="projections agree with NumPy exactly, are at least 5x as fast as with np.sort's threshold and faster "
        f"than with np.partition's: {sum(row['holds'] for row in rows.values())} of {len(rows)} rows are. Over np.sort "
        f"single weights reach {gains(rows.values(), single=True)}; filters, channels and columns reach "
        f"{gains(rows.values(), single=False)}, since reading the weight is the work there",
        figure=min(row["gain_over_sort"] for row in rows.values()),
        unit="x NumPy with np.sort (thread CPU time), the smallest of all rows",
        bar=BAR_SORT,
        holds=all(row["holds"] for row in rows.values()),
        details={
            "quick": options.quick,
            "tiny": options.tiny,
            "sparsity": SPARSITY,
            "smallest_gain_over_sort_of_single_weights": min(single),
            "smallest_gain_over_partition_of_all": min(row["gain_over_partition"] for row in rows.values()),
            "peak_mebibytes": round(peak, 1),
            **rows,
        },
    )
    if options.record:
        claim.record("projection", packages=("prunefront", "torch", "numpy"))
    print(claim.to_json())


if __name__ == "__main__":
    main()
