"""What the user reads after a search: the table, `front.json`, `front.csv` and `front.png`."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from search.atomic import json_text, write_atomic
from search.clocks import clock_words
from search.front import COLUMNS, failures, front_results, front_rows, status_counts, status_line
from search.plot import plot_front
from search.store import RunStore

__all__ = [
    "COLUMNS",
    "failures",
    "front_results",
    "front_rows",
    "plot_front",
    "print_whole",
    "rich_table",
    "short_count",
    "status_counts",
    "status_line",
    "write_front",
]

SCHEMA = 1
SIZE_KEY = "size_bytes"
#: Characters beyond which no table of figures grows.
WIDEST = 1000


def rich_table(rows: Sequence[Mapping[str, Any]], clock: str) -> Table:
    """The rows of `front_rows` for a terminal; the clock of the latencies is named under the table."""
    budget = any(row["within_budget"] is not None for row in rows)
    # Nine columns within the 80 characters of a plain terminal: no rules between them.
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        caption=f"latency: median of {escape(clock_words(clock))}",
        caption_justify="left",
    )
    for heading in ("trial", "accuracy", "drop\npp", "latency\nms", "speedup", "compression", "MACs", "params"):
        table.add_column(heading, justify="right", no_wrap=True)
    mixed = any(row["precision"] != "fp32" for row in rows)
    if mixed:
        table.add_column("type", no_wrap=True)
    if budget:
        table.add_column("within\nbudget", justify="center", no_wrap=True)
    more = _more_keys(rows)
    for key in more:
        name, _, rig = key.partition(":")
        table.add_column(f"{name.removesuffix('_ms')}\n{escape(rig)}" if rig else "size", justify="right", no_wrap=True)
    for row in rows:
        cells = [
            str(row["trial"]),
            f"{row['accuracy']:.4f}",
            f"{round(row['accuracy_drop'], 2) + 0.0:.2f}",
            f"{row['latency_ms']:#.4g}".rstrip("."),
            f"{row['speedup']:.2f}x",
            f"{row['compression_x']:.2f}x",
            short_count(row["macs"]),
            short_count(row["params"]),
        ]
        if mixed:
            cells.append(str(row["precision"]))
        if budget:
            cells.append({True: "yes", False: "no", None: ""}[row["within_budget"]])
        cells += [_more_cell(key, row[key]) for key in more]
        table.add_row(*cells, style="bold" if row["trial"] == "dense" else None)
    return table


def _more_keys(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The costs that the rows have beside those of every table, see `more_columns`."""
    return [key for key in (rows[0] if rows else ()) if key == SIZE_KEY or key.startswith(("latency_ms:", "speedup:"))]


def _more_cell(key: str, value: float | None) -> str:
    if value is None:
        return ""
    if key == SIZE_KEY:
        return f"{short_count(round(value))}B"
    return f"{value:.2f}x" if key.startswith("speedup:") else f"{value:#.4g}".rstrip(".")


def print_whole(console: Console, table: Table) -> None:
    """Print a table as wide as its figures are: a narrower terminal wraps its lines, where one cut short would lie."""
    needed = console.measure(table, options=console.options.update(max_width=WIDEST)).maximum
    if needed > console.width:
        console = Console(file=console.file, width=needed, force_terminal=console.is_terminal, highlight=False)
    console.print(table)


def short_count(number: int) -> str:
    """`16.7 M` for 16 740 928."""
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        # 999 950 rounds to 1000.0 k: it is written in the larger unit.
        if number >= size * 0.99995:
            return f"{number / size:.1f} {unit}"
    return str(number)


def write_front(
    store: RunStore,
    rows: Sequence[Mapping[str, Any]],
    *,
    clock: str,
    budget: Mapping[str, Any] | None = None,
    progress: Mapping[str, Any] | None = None,
) -> None:
    """Write `front.json` and `front.csv` into the run folder, each whole or not at all.

    The JSON object holds `schema`, `run`, `clock`, `budget`, `trials` (count by status), `failed` (trial and
    reason), `rows`, those of `detailed_rows` unrounded, and what `progress_content` gives; the CSV holds the columns
    of the table. Raises `StoreError`.
    """
    results = store.results()
    content = {
        "schema": SCHEMA,
        "run": store.name,
        "clock": clock,
        "budget": budget,
        "trials": status_counts(results),
        "failed": [{"trial": number, "reason": reason} for number, reason in failures(results)],
        "rows": list(rows),
        **(progress or {}),
    }
    write_atomic(store.root / "front.json", json_text(content))
    text = io.StringIO()
    columns = [*COLUMNS, *_more_keys(rows)]
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(store.root / "front.csv", text.getvalue())
