"""Hand over one network of a front: the ONNX file, the plan, the weights, and a card with every figure."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import search
from admm.compact import PLAN_FILE
from evaluators import Measurement
from evaluators.errors import EvaluationError
from search.atomic import json_text, parse_json, sync_tree, write_atomic
from search.budget import Budget
from search.conversion import Conversion, Converted
from search.errors import BudgetUnreachable, UserError
from search.final_scores import read_scores
from search.front import front_results
from search.handover import metadata_of, opset_in, readme_text, with_metadata
from search.payload import module_forms
from search.result import Baseline, Status, TrialResult
from search.store import MODEL_NAME, RunStore

FILES = ("model.onnx", "plan.json", "weights.safetensors", "trace.jsonl")
CARD, README = "card.json", "README.md"
SCHEMA = 1
#: Measurements in a row that must keep a budget. A network at its very edge keeps it in one and misses it in the next.
SURE = 3
_ENDED: dict[Status, str] = {"failed": "failed", "stopped": "was stopped early", "infeasible": "was not trained"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What was exported, and how its fresh measurement came out."""

    trial: TrialResult
    measured: Measurement
    """Under a budget the least favourable of several."""
    converted: Converted | None = None
    """Where the file was turned into int8 or fp16 on the way."""
    refused: tuple[tuple[int, str], ...] = ()
    """Better trials whose fresh measurement missed the budget, with that figure."""


def candidates(
    baseline: Baseline,
    results: Mapping[int, TrialResult],
    *,
    budget: Budget | None = None,
    max_drop: float | None = None,
    trial: int | None = None,
    recorded: bool = True,
) -> list[TrialResult]:
    """The trials that fit what is asked, best first; exactly one of the three says what is asked.

    With `recorded` False a budget orders the trials and bars none: their files are still to be changed.

    A budget wants the most accurate trial within it (then the fastest), `max_drop` (percentage points) the fastest one
    that drops no more. Raises `BudgetUnreachable` naming the nearest miss, `UserError` for an unknown trial.
    """
    complete = {n: r for n, r in results.items() if r.status == "complete"}
    if trial is not None:
        if trial in complete:
            return [complete[trial]]
        if trial in results:
            raise UserError(f"trial {trial} {_ENDED[results[trial].status]}: {results[trial].reason}: choose another")
        known = ", ".join(str(r.number) for r in front_results(baseline, results)) or "none"
        raise UserError(f"there is no finished trial {trial}: on the front are {known}")
    if not complete:
        raise UserError("no trial of this run is complete: nothing can be exported yet")
    if budget is not None:
        fitting = [r for r in complete.values() if budget.holds(r) or not recorded]
        if not fitting:
            fastest = min(complete.values(), key=lambda r: r.dominates_key[1])
            # the cautious ends of the intervals, because those are what a budget is compared with
            figures = f"{fastest.latency_high_ms or math.nan:.4g} ms, {fastest.speedup_low or math.nan:.2f}x"
            raise BudgetUnreachable(
                f"no trial keeps the budget of {budget}: the fastest is trial {fastest.number} with {figures}: "
                f"ask for less, or search on with this budget"
            )
        return sorted(fitting, key=lambda r: (-r.dominates_key[0], r.dominates_key[1], r.number))
    assert max_drop is not None
    fitting = [r for r in complete.values() if _drop(r) <= max_drop]
    if not fitting:
        closest = min(complete.values(), key=_drop)
        raise BudgetUnreachable(
            f"no trial drops at most {max_drop:g} pp: the least is {_drop(closest):.2f} pp, by trial {closest.number}"
        )
    return sorted(fitting, key=lambda r: (r.dominates_key[1], -r.dominates_key[0], r.number))


def export_trial(
    store: RunStore,
    chosen: list[TrialResult],
    out: Path,
    *,
    measure: Callable[[bytes], Measurement],
    budget: Budget | None = None,
    conversion: Conversion | None = None,
    max_drop: float | None = None,
    content_of: Callable[[TrialResult], bytes] | None = None,
) -> Exported:
    """Export the first of `chosen` that keeps the budget whenever measured, `SURE` times, now and here.

    `conversion` turns its file into another precision first; one that fails its gate, or drops more than `max_drop`
    percentage points then, is passed over. `content_of` gives what `measure` takes of a trial, its ONNX file unless
    said. `out` must be new or empty; it appears whole or not at all. Raises `BudgetUnreachable` when all of them miss.
    """
    require_new(out)
    refused: list[tuple[int, str]] = []
    for trial in chosen:
        content = store.model_path(trial.number).read_bytes() if content_of is None else content_of(trial)
        converted = None
        if conversion is not None:
            try:
                converted = conversion.make(trial, content)
            except EvaluationError as error:
                refused.append((trial.number, str(error)))
                continue
            content = converted.content
            drop = 100.0 * (store.read_baseline().accuracy - converted.score.value)
            if max_drop is not None and drop > max_drop:
                refused.append((trial.number, f"it drops {drop:.2f} pp in {conversion.precision}"))
                continue
        measured = measure(content) if budget is None else worst_measured(content, measure, budget)
        if budget is not None and not budget.met_by(measured):
            refused.append((trial.number, f"measured again it takes {_figures(measured)}"))
            continue
        if converted is not None and converted.paired is not None:
            converted = replace(converted, over_fp32=converted.paired())
        _write(store, trial, measured, out, converted)
        return Exported(trial=trial, measured=measured, converted=converted, refused=tuple(refused))
    number, why = refused[0]
    if conversion is not None:
        into = conversion.precision
        if budget is None and max_drop is None:
            raise UserError(f"trial {number} cannot be exported in {into}: {why}: export it without --{into}")
        asked = f"keeps the budget of {budget}" if budget is not None else "can be handed over"
        raise BudgetUnreachable(f"no trial {asked} in {into} (trial {number}: {why}): ask for less, or no {into}")
    raise BudgetUnreachable(
        f"{len(refused)} trial{'s' if len(refused) > 1 else ''} kept the budget of {budget} in the search, none does "
        f"now (trial {number}: {why}): is this the machine it was searched on, and is it idle?"
    )


def worst_measured(content: bytes, measure: Callable[[bytes], Measurement], budget: Budget) -> Measurement:
    """The first of `SURE` measurements that misses the budget; where all keep it, the one nearest to it."""
    worst = measure(content)
    for _ in range(SURE - 1):
        if not budget.met_by(worst):
            break
        worst = max(worst, measure(content), key=lambda m: budget.excess(m.latency_high_ms, m.speedup_low))
    return worst


def _figures(measured: Measurement) -> str:
    # the cautious ends of the intervals, because those are what a budget is compared with
    return f"up to {measured.latency_high_ms:.4g} ms, {measured.speedup_low:.2f}x at least"


def require_new(out: Path) -> None:
    """Raises `UserError` unless `out` can become a new folder."""
    with out_errors(out):
        if not out.is_dir() and (out.exists() or out.is_symlink()):
            raise UserError(f"--out {out} is a file: choose a new folder")
        if out.is_dir() and any(out.iterdir()):
            raise UserError(f"--out {out} exists already and is not empty: choose a new folder")


@contextlib.contextmanager
def out_errors(out: Path) -> Iterator[None]:
    """What the disk refuses below `--out`, as one line that names it."""
    try:
        yield
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise UserError(f"--out {out} cannot be written ({why}): choose another folder") from error


def put_in_place(staged: Path, target: Path) -> None:
    """Flush a finished folder and rename it to `target`, which is new or empty: it appears whole or not at all."""
    sync_tree(staged)
    if target.exists():
        target.rmdir()
    os.rename(staged, target)


def _write(store: RunStore, trial: TrialResult, measured: Measurement, out: Path, other: Converted | None) -> None:
    source = store.trial_dir(trial.number)
    target = Path(os.path.abspath(out))
    staged = target.with_name(f".{target.name}.{os.getpid()}.partial")
    with out_errors(out):
        staged.mkdir(parents=True, exist_ok=True)
        try:
            for name in FILES:
                if (source / name).exists():
                    shutil.copyfile(source / name, staged / name)
            model = staged / MODEL_NAME
            content = model.read_bytes() if model.exists() else None
            content = content if other is None else other.content
            card = _card(store, trial, measured, content, other)
            if content is not None:
                content = with_metadata(content, metadata_of(card))
                write_atomic(model, content)
            write_atomic(staged / CARD, json_text(card))
            write_atomic(staged / README, readme_text(card, content))
            put_in_place(staged, target)
        finally:
            shutil.rmtree(staged, ignore_errors=True)


def _card(
    store: RunStore, trial: TrialResult, measured: Measurement, content: bytes | None, other: Converted | None
) -> dict[str, Any]:
    baseline = store.read_baseline()
    return {
        "schema": SCHEMA,
        "prunefront": search.__version__,
        "run": store.name,
        "trial": trial.number,
        "plan_digest": trial.plan_digest,
        "seed": trial.seed,
        "precision": trial.precision if other is None else other.precision,
        "opset": None if content is None else opset_in(content),
        "stretch": trial.stretch,
        "accuracy": trial.accuracy if other is None else other.score.value,
        "accuracy_stderr": trial.accuracy_stderr if other is None else other.score.stderr,
        "accuracy_drop": trial.accuracy_drop if other is None else 100.0 * (baseline.accuracy - other.score.value),
        "int8": _int8_part(trial, other),
        "fp16": _fp16_part(trial, other),
        "accuracy_data": "validation",
        "test": read_scores(store).get(str(trial.number)) if other is None else None,
        "compression_x": trial.compression_x,
        "macs": trial.macs,
        "params": trial.params,
        "measured_in_search": trial.measurements,
        "measured_at_export": measured.to_dict(),
        "dense": {"accuracy": baseline.accuracy, "macs": baseline.macs, "params": baseline.params},
        "lowered": trial.lowered if other is None else other.lowered,
        "notes": list(trial.notes),
        **_how_to_load(store.trial_dir(trial.number)),
        "reproduce": f"prunefront prune {store.root} --plan plan.json --out NEW_FOLDER"
        if other is None
        else f"prunefront export {store.root} --trial {trial.number} --{other.precision} --out NEW_FOLDER",
    }


def _how_to_load(folder: Path) -> dict[str, Any]:
    """For a network that rigs measured as a module: which, in what precision, and the call that gives it back."""
    try:
        forms = module_forms(parse_json((folder / PLAN_FILE).read_bytes()))
    except (OSError, ValueError):  # made by hand or by an earlier version
        return {}
    if not forms:
        return {}
    calls = {rig: f"search.load_measured(build_model(), FOLDER, {rig!r})" for rig in forms}
    return {"modules": forms, "load": {"admm": "admm.load_pruned(build_model(), FOLDER)", **calls}}


def _int8_part(trial: TrialResult, other: Converted | None) -> dict[str, Any] | None:
    """How the int8 file agrees with its fp32 form; None of a file in another precision."""
    if other is None:
        return {"agreement": trial.int8_agreement} if trial.precision == "int8" else None
    return {"agreement": other.agreement, "fp32_accuracy": trial.accuracy} if other.precision == "int8" else None


def _fp16_part(trial: TrialResult, other: Converted | None) -> dict[str, Any] | None:
    """How the fp16 file differs from its fp32 form, and what it gains over it; None of a file in another precision."""
    if other is None or other.precision != "fp16":
        return None
    over = None if other.over_fp32 is None else other.over_fp32.to_dict()
    return {"max_abs": other.max_abs, "fp32_accuracy": trial.accuracy, "measured_over_fp32": over}


def _drop(trial: TrialResult) -> float:
    return trial.accuracy_drop if trial.accuracy_drop is not None else float("inf")
