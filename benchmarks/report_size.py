"""The report of a search of 200 trials is at most 8 MB and can be used within 2 seconds in headless Chromium.

A made-up run of a network as deep as ResNet-56: 200 trials of 55 layers with plans and residual traces of 6 iterations.
"Can be used": from the moment the browser is told to open the file until the front is drawn and takes clicks. Each
opening is in a browser of its own; the median of all counts. Beside the wall time stands the CPU time of the page's
main thread, which other work on the machine changes less.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))  # the made-up run and the browser's driver stand with the tests

from benchmarks.claim import Claim  # noqa: E402
from search.job_file import load_job  # noqa: E402
from search.reporting.content import report_content  # noqa: E402
from search.reporting.page import render  # noqa: E402
from tests.chromium import ABSENT, Page, find_chromium  # noqa: E402
from tests.search.fabricated_run import fabricated_run  # noqa: E402

MOST_MB, MOST_S = 8.0, 2.0
PACKAGES = ("prunefront", "plotly", "jinja2")
LAYERS = ("stem", *(f"layer{s}.{b}.conv{c}" for s in (1, 2, 3) for b in range(9) for c in (1, 2)), "head")


def make(folder: Path, trials: int) -> tuple[Path, dict[str, Any]]:
    """The report, and what it is made of: MB in all, of data and of plotly.js, seconds to gather and to write it."""
    store = fabricated_run(folder / "run", trials=trials, layers=LAYERS, iterations=6)
    began = time.perf_counter()
    content = report_content(store, load_job(store.job_path), store.read_baseline(), store.results(), time_front=False)
    gathered = time.perf_counter()
    page = render(content)
    path = folder / "report.html"
    path.write_text(page)
    done = time.perf_counter()
    data = page.partition('id="data">')[2].partition("</script>")[0]
    return path, {
        "megabytes": round(path.stat().st_size / 1e6, 3),
        "data_megabytes": round(len(data.encode()) / 1e6, 3),
        "traces": sum(trial["trace"] is not None for trial in content["trials"]),
        "complete": sum(trial["status"] == "complete" for trial in content["trials"]),
        "gather_s": round(gathered - began, 2),
        "write_s": round(done - gathered, 2),
    }


def opened(program: str, path: Path, times: int) -> list[dict[str, float]]:
    """Wall and CPU seconds of each opening, and the load of the machine before it."""
    rows = []
    for _ in range(times):
        load = os.getloadavg()[0]
        with Page(program) as page:
            wall, cpu = page.open(path)
            assert page.problems == [], page.problems
        rows.append({"wall_s": round(wall, 3), "cpu_s": round(cpu, 3), "load": round(load, 2)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="opened twice instead of nine times")
    parser.add_argument("--tiny", action="store_true", help="20 trials, opened once: figures mean nothing")
    parser.add_argument("--record", action="store_true", help="add the figures to results/report_size.json")
    options = parser.parse_args()
    if options.record and (options.quick or options.tiny):
        parser.error("--record keeps figures of the full benchmark only")
    program = find_chromium()
    if program is None:
        parser.error(ABSENT)
    trials, times = (20, 1) if options.tiny else (200, 2 if options.quick else 9)
    with tempfile.TemporaryDirectory() as folder:
        path, made = make(Path(folder), trials)
        rows = opened(program, path, times)
    wall, cpu = (statistics.median(row[key] for row in rows) for key in ("wall_s", "cpu_s"))
    table = Table("what", "figure", "bar")
    table.add_row(f"size, {trials} trials of {len(LAYERS)} layers", f"{made['megabytes']:.2f} MB", f"{MOST_MB:g} MB")
    table.add_row("of it data", f"{made['data_megabytes']:.2f} MB", "")
    table.add_row("residual traces in it", f"{made['traces']} of {made['complete']}", "")
    table.add_row("gathered and written", f"{made['gather_s']:.1f} s + {made['write_s']:.1f} s", "")
    table.add_row(f"usable, wall, median of {times}", f"{wall:.2f} s", f"{MOST_S:g} s")
    table.add_row("usable, CPU of the main thread", f"{cpu:.2f} s", "")
    table.add_row("load of the machine", f"{statistics.median(row['load'] for row in rows):.1f}", "")
    Console(width=100).print(table)
    claim = Claim(
        claim=f"the report of {trials} trials is at most {MOST_MB:g} MB and can be used within {MOST_S:g} s of being "
        "opened in headless Chromium",
        figure=wall,
        unit=f"s of wall time, median of {times} openings",
        bar=MOST_S,
        holds=wall <= MOST_S and made["megabytes"] <= MOST_MB,
        details={"quick": options.quick, "tiny": options.tiny, **made, "cpu_s": cpu, "openings": rows},
    )
    if options.record:
        claim.record("report_size", packages=PACKAGES)
    print(claim.to_json())


if __name__ == "__main__":
    main()
