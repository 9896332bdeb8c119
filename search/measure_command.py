"""`prunefront measure`: the latency of one ONNX file, or of a whole run again, on this machine and a rig of choice."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from evaluators import RigUnavailable, make_rig
from search.atomic import StoreError, json_text
from search.calm import Calm
from search.clocks import clock_words
from search.commands import is_run
from search.errors import UserError
from search.front import complete_trials, front_results
from search.job import Job, RigSpec
from search.job_file import load_job
from search.objectives import Objectives
from search.on_rigs import seen_by
from search.remeasured import (
    Again,
    folder_measure,
    front_remarks,
    measure_again,
    writable_folder,
    write_next,
)
from search.report import print_whole
from search.result import Baseline, TrialResult
from search.store import MODEL_NAME, RunStore

SCHEMA = 1
FOLDER = "measured"


def measure_target(
    target: Path,
    against: Path | None,
    *,
    rig: str | None,
    threads: int | None,
    batch: int | None,
    all_trials: bool,
    trials: Sequence[int] = (),
    as_json: bool,
    console: Console,
) -> None:
    """`prunefront measure`. None: as in the run, and for a file onnxruntime-cpu, one thread, a batch of one."""
    if is_run(target):
        if against is not None:
            raise UserError(
                f"--against goes with an ONNX file: {target} is a run, and is measured against its own dense network"
            )
        measure_run(
            target,
            rig=rig,
            threads=threads,
            batch=batch,
            all_trials=all_trials,
            trials=trials,
            as_json=as_json,
            console=console,
        )
        return
    if all_trials or trials:
        raise UserError(f"--{'all-trials' if all_trials else 'trial'} goes with a run folder: {target} is none")
    measure_models(
        target,
        against,
        rig=rig or "onnxruntime-cpu",
        threads=1 if threads is None else threads,
        batch=1 if batch is None else batch,
        as_json=as_json,
        console=console,
    )


def measure_models(
    model: Path, against: Path | None, *, rig: str, threads: int, batch: int, as_json: bool, console: Console
) -> None:
    """One model, against another or against itself (the A/A control)."""
    for path in (model, against):
        if path is not None and not path.is_file():
            what = "a folder, not an ONNX file" if path.is_dir() else "no such file"
            inside = path / MODEL_NAME
            mend = f": did you mean {inside}?" if inside.is_file() else ""
            raise UserError(f"{path}: {what}{', and no run folder' if path.is_dir() and path is model else ''}{mend}")
    measured = make_rig(rig, threads=threads).measure(model, against or model, batch=batch)
    if as_json:
        sys.stdout.write(json.dumps(measured.to_dict(), indent=2, allow_nan=False) + "\n")
        return
    stamp = measured.stamp
    wall = (
        "all repeats waited for a core"
        if measured.wall_p50_ms is None
        else (f"p50 {measured.wall_p50_ms:.4g}, p95 {measured.wall_p95_ms:.4g}, min {measured.wall_min_ms:.4g} ms")
    )
    other = f"against {against}" if against is not None else "against itself (A/A control)"
    for line in (
        f"latency  {measured.latency_ms:.4g} ms ({measured.latency_low_ms:.4g}-{measured.latency_high_ms:.4g}), "
        f"median of {clock_words(stamp.clock)}",
        f"speed-up {measured.speedup:.3f}x ({measured.speedup_low:.3f}-{measured.speedup_high:.3f}) {other}",
        f"wall     {wall}; {measured.rejected} repeats left out",
        f"on       {stamp_words(stamp.to_dict())}; "
        f"{measured.pairs} pairs{'' if measured.converged else ', interval wider than ±3 %'}",
    ):
        console.print(Text(line), soft_wrap=True)


def stamp_words(stamp: Mapping[str, Any]) -> str:
    """`AMD EPYC (avx512), onnxruntime 1.31.0, CPUExecutionProvider, 1 thread, batch 1`."""
    threads = stamp.get("threads", "?")
    return (
        f"{stamp.get('device', 'an unknown device')} ({stamp.get('isa', '?')}), {stamp.get('runtime', '?')}, "
        f"{stamp.get('provider', '?')}, {threads} thread{'' if threads == 1 else 's'}, batch {stamp.get('batch', '?')}"
    )


@contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """Say on standard error what is being done: one changing line in a terminal, plain lines elsewhere."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield lambda line: console.print(Text(line), soft_wrap=True)
        return
    with console.status("") as status:
        yield lambda line: status.update(Text(line))


def measure_run(
    root: Path,
    *,
    rig: str | None,
    threads: int | None,
    batch: int | None,
    all_trials: bool,
    trials: Sequence[int] = (),
    as_json: bool,
    console: Console,
) -> None:
    """Measure the dense network and the front of a run (or all its complete trials, or these) again; none is trained.

    Each takes turns with the run's dense ONNX file. The record goes to `RUN/measured/<rig>-<n>.json`, whole or not at
    all; results of the search stay as they are.
    """
    if all_trials and trials:
        raise UserError("--all-trials and --trial were given: leave one of them out")
    store = RunStore.open(root)
    job = load_job(store.job_path)
    store.see_through(partial(seen_by, job))
    spec, baseline = _rig_spec(job, rig, threads, batch), store.read_baseline()
    try:
        measure = folder_measure(store, job, spec)
    except RigUnavailable as error:
        raise UserError(f"{error}{'' if rig else '; it is the rig of this run: name another with --rig'}") from None
    results = store.results()
    calm = Calm.of_run(baseline, results, spec.name)
    before = front_results(baseline, results, Objectives.of(job, baseline))
    wanted = _chosen(store, results, trials) if trials else complete_trials(results) if all_trials else before
    with writable_folder(store.root / FOLDER), progress() as say:
        again, skipped = measure_again(
            store, job, baseline, wanted, lambda folder: calm.measured(partial(measure, folder)), spec, say
        )
        if wanted and len(again) == 1:
            raise UserError(
                f"none of the {len(wanted)} networks could be measured: trial {skipped[0][0]}: {skipped[0][1]}"
            )
        remarks = front_remarks(again, [trial.number for trial in before])
        if (busiest := max((a.now for a in again), key=lambda m: m.dense_latency_ms)) and calm.disturbed(busiest):
            remarks.append(calm.remark(busiest))
        content = _record(store, job, baseline, again, skipped, remarks, spec)
        failure: StoreError | None = None
        try:
            written: Path | None = write_next(store.root / FOLDER, spec.name, json_text(content))
        except StoreError as error:  # the figures are shown all the same: they cost minutes
            failure, written = error, None
    if as_json:
        shown = {**content, "written": None if written is None else str(written)}
        sys.stdout.write(json_text(shown))
    else:
        _print(again, content, spec, console)
        if written is not None:
            console.print(Text(f"written to {written}"), soft_wrap=True)
    if failure is not None:
        raise failure


def _chosen(store: RunStore, results: Mapping[int, TrialResult], trials: Sequence[int]) -> list[TrialResult]:
    """The trials of these numbers, each once. Raises `UserError` for one that has no network."""
    complete = {trial.number: trial for trial in complete_trials(results)}
    for number in trials:
        if number not in complete:
            if (why := store.unseen_for(number)) is not None:
                raise UserError(f"--trial {number}: {why}: `prunefront search {store.root}` measures it there")
            ended = f"is {results[number].status}" if number in results else "is not in this run"
            raise UserError(f"--trial {number}: it {ended}, and only complete trials have a network to measure")
    return [complete[number] for number in dict.fromkeys(trials)]


def _rig_spec(job: Job, rig: str | None, threads: int | None, batch: int | None) -> RigSpec:
    """The job's own threads and batch where it names the rig, one and one elsewhere; options go before both."""
    name = rig or job.deciding_rig.name
    known = next((spec for spec in job.rigs if spec.name == name), RigSpec.model_construct(name=name))
    asked = {"threads": threads, "batch": batch}
    return known.model_copy(update={key: value for key, value in asked.items() if value is not None})


def _record(
    store: RunStore,
    job: Job,
    baseline: Baseline,
    again: Sequence[Again],
    skipped: Sequence[tuple[int, str]],
    remarks: Sequence[str],
    spec: RigSpec,
) -> dict[str, Any]:
    then = spec.name if spec.name in baseline.measurements else job.deciding_rig.name
    return {
        "schema": SCHEMA,
        "run": store.name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "stamp": again[0].now.stamp.to_dict(),
        "stamp_then": dict(baseline.measurements.get(then, {}).get("stamp", {})),
        "rig_then": then,
        "budget": job.budget.model_dump() if job.budget is not None else None,
        "networks": [a.to_dict(spec.name) for a in again],
        "skipped": [{"trial": number, "reason": reason} for number, reason in skipped],
        "remarks": list(remarks),
    }


def _print(again: Sequence[Again], content: Mapping[str, Any], spec: RigSpec, console: Console) -> None:
    stamp, before = content["stamp"], content["stamp_then"]
    differs = [key for key in stamp if key in before and before[key] != stamp[key]]
    lines = [f"now  on {spec.name}: {stamp_words(stamp)}"]
    same = f"; differs in {', '.join(differs)}" if differs else ", the same"
    lines.append(f"then on {content['rig_then']}: {stamp_words(before)}{same if 'device' in before else ''}")
    print_lines(console, lines)
    judged = any(a.within_budget is not None for a in again)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    headings = ("trial", "accuracy", "drop\npp", "ms\nthen", "ms\nnow", "speedup\nthen", "speedup\nnow", "interval")
    for heading in (*headings, *(("within\nbudget",) if judged else ())):
        table.add_column(heading, justify="right", no_wrap=True)
    for a in again:
        latency, speedup = a.then(spec.name)
        number, trial = a.trial.number, a.trial
        cells = [
            "dense" if number < 0 else str(number),
            f"{trial.accuracy:.4f}",
            "" if trial.accuracy_drop is None else f"{round(trial.accuracy_drop, 2) + 0.0:.2f}",
            "" if latency is None else figure(latency),
            figure(a.now.latency_ms),
            "" if speedup is None else f"{speedup:.2f}x",
            f"{a.now.speedup:.2f}x",
            f"{a.now.speedup_low:.2f}-{a.now.speedup_high:.2f}",
        ]
        if judged:
            cells.append({True: "yes", False: "no", None: ""}[a.within_budget])
        table.add_row(*cells, style="bold" if number < 0 else None)
    print_whole(console, table)
    lines = [f"ms: median of {clock_words(stamp['clock'])}; interval: 95 %, of the speed-up over the dense network now"]
    lines += [f"trial {skip['trial']} was left out: {skip['reason']}" for skip in content["skipped"]]
    if len(again) == 1:
        lines.append("no trial of this run is on its front: only the dense network was measured")
    if content["budget"] is not None and not judged:
        lines.append("the budget is for another rig, or for other threads or another batch: it was not judged")
    elif judged and not any(a.within_budget for a in again):
        lines.append("none keeps the budget here")
    print_lines(console, [*lines, *(content["remarks"] or ["the front is in the same order, none of it dominated"])])


def figure(ms: float) -> str:
    """Four digits: `0.04883`, `12.30`."""
    return f"{ms:#.4g}".rstrip(".")


def print_lines(console: Console, lines: Sequence[str]) -> None:
    """Lines as they are: wrapped by the terminal, never cut."""
    for line in lines:
        console.print(Text(line), soft_wrap=True)
