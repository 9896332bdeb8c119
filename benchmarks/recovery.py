"""How long a search on a cluster takes to mend after each failure: `docs/reliability.md`.

The scenarios are those of `tests/cluster`: a head and two workers, each a real `ray start` (in network namespaces with
their own addresses where root allows), kill one thing at a time and hold the results to those of an undisturbed run.
`figure` is the longest time of what mends by itself; failures that need the user (a driver, a head, a disk) are told
beside it. A silent node is given up by the health check of Ray's head, which is set short here: its settings are in
`details`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))  # the scenarios stand with the tests

from benchmarks.claim import Claim  # noqa: E402
from tests.cluster.failures import BY_ITSELF, FAILURES, Skipped  # noqa: E402
from tests.cluster.ground import Ground  # noqa: E402
from tests.cluster.nodes import Cluster  # noqa: E402

#: What a user would not think broken.
BAR = 120.0
PACKAGES = ("ray", "optuna", "torch")
QUICK = ("worker_killed",)


def recoveries(names: tuple[str, ...]) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """What each failure took, or why it could not be brought about; and what the cluster was."""
    rows: dict[str, dict[str, Any]] = {}
    with Cluster() as cluster, tempfile.TemporaryDirectory() as folder:
        ground = Ground(cluster, Path(folder))
        for name in names:
            try:
                rows[name] = asdict(FAILURES[name](ground))
            except Skipped as why:
                rows[name] = {"skipped": str(why)}
            except AssertionError as error:  # the others are still worth knowing
                rows[name] = {"failed": str(error)[:2000]}
        made = {"network": type(cluster.network).__name__, "health_check": dict(cluster.health_check)}
    return rows, made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a killed worker only: a minute or two")
    parser.add_argument("--only", nargs="+", choices=FAILURES, help="these failures only")
    parser.add_argument("--record", action="store_true", help="add the figures to results/recovery.json")
    options = parser.parse_args()
    if options.record and (options.quick or options.only):
        parser.error("--record keeps figures of the full benchmark only")
    rows, made = recoveries(QUICK if options.quick else tuple(options.only or FAILURES))
    table = Table("failure", "seconds", "measured")
    for name, row in rows.items():
        table.add_row(
            name, f"{row['seconds']:.1f}" if "seconds" in row else "-", row.get("measured", row.get("skipped"))
        )
    Console(width=110).print(table)
    alone = [row["seconds"] for name, row in rows.items() if name in BY_ITSELF and "seconds" in row]
    figure = max(alone, default=0.0)
    claim = Claim(
        claim=f"after any one failure that mends by itself a search on a cluster goes on within {BAR:g} s, with the "
        "results of an undisturbed run",
        figure=round(figure, 1),
        unit="s, the slowest of them",
        bar=BAR,
        holds=bool(alone) and figure <= BAR and not any("failed" in row for row in rows.values()),
        details={"quick": options.quick or bool(options.only), **made, "failures": rows},
    )
    if options.record:
        claim.record("recovery", packages=PACKAGES)
    print(claim.to_json())


if __name__ == "__main__":
    main()
