"""`prunefront report`: a run as one HTML file."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from rich.console import Console
from rich.text import Text

from search.atomic import write_atomic
from search.commands import is_run
from search.errors import UserError
from search.job_file import load_job
from search.measure_command import progress
from search.on_rigs import seen_by
from search.recipe import as_begun
from search.reporting.content import report_content
from search.reporting.page import plotly_script, render
from search.store import RunStore

FILE = "report.html"


def write_report(run: Path, out: Path | None, *, time_layers: bool, console: Console) -> None:
    """Write the report of `run` to `out` (RUN/report.html if None); the run may be going on meanwhile.

    With `time_layers` the dense network and the front are timed layer by layer, if this is the machine that measured
    them and nothing is running. Raises `UserError`, one line, for a run whose dense network is not measured yet.
    """
    if run.is_dir() and not is_run(run):
        raise UserError(f"{run} is not a run folder: give the folder that `prunefront search` made")
    store = RunStore.open(run)
    target = store.root / FILE if out is None else out
    if target.is_dir():
        raise UserError(f"--out {target} is a folder: name the file, such as {target / FILE}")
    job = as_begun(store, load_job(store.job_path))
    store.see_through(partial(seen_by, job))
    baseline = store.read_baseline()
    plotly_script()  # missing: said before anything is timed
    with progress() as say:
        content = report_content(store, job, baseline, store.results(), time_front=time_layers, say=say)
    # a folder's name may hold what UTF-8 cannot
    page = render(content).encode("utf-8", "replace")
    write_atomic(target, page)
    trials = len(content["trials"])
    console.print(
        Text(f"report: {target} ({len(page) / 1e6:.1f} MB): {trials} trial{'' if trials == 1 else 's'}"), soft_wrap=True
    )
