"""The trials of a run as rows of plain data: figures, plan, what was kept layer by layer, residuals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from admm.trace import AdmmTrace
from evaluators.layer_macs import LayerMacs
from search.budget import Budget
from search.final_measure import Remeasured
from search.front_details import ties
from search.objectives import LATENCY_ALONE, Objectives
from search.reporting.figures import again_of, each_significant, interval_of, significant
from search.reporting.layers import kept_layers
from search.reporting.timing import layer_ms
from search.result import Baseline, TrialResult
from search.store import RunStore

TRACE_NAME = "trace.jsonl"
#: Numbers of residual traces in one page, about 6 bytes each: those of the front first, then by trial number.
MOST_TRACE_NUMBERS = 250_000


def trial_rows(
    store: RunStore,
    results: Mapping[int, TrialResult],
    baseline: Baseline,
    front: list[int],
    budget: Budget | None,
    dense: tuple[LayerMacs, ...],
    times: Mapping[str, Mapping[str, Any]],
    again: Remeasured | None,
    scores: Mapping[str, float],
    objectives: Objectives = LATENCY_ALONE,
) -> list[dict[str, Any]]:
    """A row a finished trial, by number; what only complete ones have is None for the others."""
    tied = ties(results, front, objectives)
    numbers = [*front, *(n for n in sorted(results) if n not in set(front))]
    rows, room = [], MOST_TRACE_NUMBERS
    for number in numbers:
        result = results[number]
        folder = store.trial_dir(number)
        trace = _trace(store, result) if result.status == "complete" else None
        entries = trace.records[-1].kept if trace is not None and trace.records else None
        kept = kept_layers(folder, dense, entries) if result.status == "complete" else None
        shown = None if trace is None else _residuals(trace, [layer.name for layer in dense])
        size = 0 if shown is None else 2 * len(shown["layers"]) * len(shown["iterations"])
        if size > room:
            shown, size = None, 0
        room -= size
        latency = result.latency_ms or 0.0
        rows.append(
            {
                "n": number,
                "status": result.status,
                "reason": result.reason,
                "front": number in front,
                "source": result.source or None,
                "precision": result.precision,
                "accuracy": result.accuracy,
                "drop": significant(result.accuracy_drop),
                "stderr": significant(result.accuracy_stderr),
                "latency": significant(result.latency_ms),
                "interval": interval_of(_of_rig(result, baseline), "latency"),
                "speedup": significant(result.speedup),
                "speedups": interval_of(_of_rig(result, baseline), "speedup"),
                "again": again_of(again, str(number)),
                "compression": significant(result.compression_x),
                "macs": result.macs,
                "params": result.params,
                "within": None if budget is None or result.status != "complete" else budget.holds(result),
                "epochs": significant(result.epochs),
                "stretch": result.stretch,
                "before": significant(result.accuracy_before_prune),
                "after": significant(result.accuracy_after_prune),
                "retrained": None if trace is None else significant(trace.accuracy_after_finetune),
                "rungs": [[step, significant(accuracy)] for step, accuracy in result.rungs],
                "test": scores.get(str(number)),
                "tied": tied.get(number, []),
                "from": result.started_from,
                "weights_of": result.weights_of,
                "notes": list(result.notes),
                "plan": None if kept is None else kept[1],
                "kept": None if kept is None else kept[0],
                "layer_ms": each_significant(
                    layer_ms(shares_of(times, str(number)), [layer.name for layer in dense], latency)
                ),
                "trace": shown,
            }
        )
    return sorted(rows, key=lambda row: int(row["n"]))


def _of_rig(result: TrialResult, baseline: Baseline) -> Mapping[str, Any] | None:
    """The measurement whose figures are the trial's own: the deciding rig's, the first of the dense network's."""
    return next((result.measurements[rig] for rig in baseline.measurements if rig in result.measurements), None)


def shares_of(times: Mapping[str, Mapping[str, Any]], name: str) -> Mapping[str, float] | None:
    return times[name]["layers"] if name in times else None


def _trace(store: RunStore, result: TrialResult) -> AdmmTrace | None:
    """A trial's trace, or that of the trial which trained its weights; None where there is none to be read."""
    for number in (result.number, result.weights_of):
        if number is None:
            continue
        try:
            return AdmmTrace.from_lines((store.trial_dir(number) / TRACE_NAME).read_text())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return None


def _residuals(trace: AdmmTrace, layers: list[str]) -> dict[str, Any] | None:
    """Primal and dual residuals of the layers' weights by iteration; None for a trace of none."""
    known = [name for name in layers if any(f"{name}.weight" in record.primal for record in trace.records)]
    if not trace.records or not known:
        return None
    place = {name: index for index, name in enumerate(layers)}

    def table(which: str) -> list[list[float | None]]:
        return [
            [significant(getattr(record, which).get(f"{name}.weight"), 3) for record in trace.records] for name in known
        ]

    return {
        "iterations": [record.iteration for record in trace.records],
        "loss": [significant(record.loss) for record in trace.records],
        "layers": [place[name] for name in known],
        "primal": table("primal"),
        "dual": table("dual"),
    }
