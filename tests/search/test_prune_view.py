"""What `prunefront prune` prints, on made-up figures: it fits 80 columns, whatever the network is called."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from torch import nn

from admm.compact import compact
from admm.outcome import PruneResult, StepReport
from admm.plan import PruningPlan
from admm.trace import AdmmTrace, TraceRecord
from search.prune_view import LayerRow, PruneView, layer_rows, layer_table
from search.result import TrialResult
from search.trial import Progress
from tests.search.test_worker import make_bench

RESULT = TrialResult(
    number=0, status="complete", plan_digest="d", seed=0, accuracy=0.9, accuracy_drop=-0.004, latency_ms=0.5,
    speedup=2.0, compression_x=4.0, macs=12_000, params=50,
)  # fmt: skip


def record(iteration: int, primal: float, kept: dict[str, int]) -> TraceRecord:
    names = dict.fromkeys(("3.weight", "3.bias"), 0.01)
    return TraceRecord(
        iteration=iteration, loss=0.5, primal={**names, "3.bias": primal}, dual=names, rho=names, kept=kept
    )


def pruned(dense: nn.Module, *records: TraceRecord) -> PruneResult:
    """The second convolution loses half its filters, the last layer all but 3 channels that arrive."""
    model = compact(dense, {"3": {"out": [0, 2, 4, 6]}, "8": {"in": list(range(16)), "select": [1, 5, 9]}})
    with torch.no_grad():
        model.get_submodule("3").weight[:, 0] = 0.0  # type: ignore[index, union-attr]
    trace = AdmmTrace(records=list(records), accuracy_before_prune=0.5, accuracy_after_prune=0.4)
    return PruneResult(
        model=model, requested=PruningPlan(), effective=PruningPlan(), kept={}, trace=trace, epochs=1.0, notes=()
    )


def shown() -> tuple[PruneView, io.StringIO]:
    text = io.StringIO()
    return PruneView(Console(file=text, width=80, highlight=False), make_bench()), text


def test_an_iteration_tells_what_is_kept_and_where_the_residual_is_worst() -> None:
    view, text = shown()
    weights = 8 * 9 + 8 * 8 * 9 + 3 * 32
    for iteration, kept in ((1, 576), (2, 100)):
        report = StepReport(phase="admm", index=iteration, loss=0.5, epochs=1.0, accuracy=0.75)
        step = record(iteration, 0.3, {"3.weight": kept, "3.bias": 4})
        view.step(Progress(step=1, total=9, phase="admm", report=report, record=step))
    view.step(Progress(step=1, total=9, phase="shapes"))
    report = StepReport(phase="finetune", index=2, loss=0.25, epochs=3.0, accuracy=0.875)
    view.step(Progress(step=1, total=9, phase="finetune", report=report))
    lines = text.getvalue().splitlines()
    assert [line.split() for line in lines[1:4]] == [
        ["loss", "accuracy", "compression", "weights", "‖W−Z‖/‖W‖", "worst", "in"],
        ["1/3", "0.5000", "0.7500", "1.00x", str(weights), "0.300", "3.bias"],
        ["2/3", "0.5000", "0.7500", f"{weights / (weights - 476):.2f}x", str(weights - 476), "0.300", "3.bias"],
    ]
    ends = [line.index(word) + len(word) for line, word in zip(lines[1:4], ("weights", "744", "268"), strict=True)]
    assert len(set(ends)) == 1, "figures stand under their headings"
    assert lines[4:] == ["retraining 2/2: loss 0.2500, accuracy 0.8750"]


def test_a_long_name_keeps_its_end() -> None:
    view, text = shown()
    name = "backbone.stages.3.blocks.11.attention.projection.weight"
    report = StepReport(phase="admm", index=1, loss=123.4, epochs=1.0, accuracy=1.0)
    step = TraceRecord(iteration=1, loss=1.0, primal={name: 0.5}, dual={}, rho={}, kept={})
    view.step(Progress(step=1, total=9, phase="admm", report=report, record=step))
    line = text.getvalue().splitlines()[-1]
    assert len(line) == 80
    assert line.endswith("projection.weight")
    assert "  …" in line


def test_layers_are_counted_in_the_network_that_is_shipped() -> None:
    dense = make_bench().dense
    rows = {row.name: row for row in layer_rows(dense, pruned(dense, record(1, 0.0, {})))}
    assert (rows["0"].filters, rows["0"].weights, rows["0"].primal) == ((8, 8), (72, 72), None)
    assert (rows["3"].filters, rows["3"].columns, rows["3"].weights) == ((4, 8), (63, 72), (252, 576))
    assert (rows["8"].filters, rows["8"].columns, rows["8"].weights) == ((3, 3), (3, 32), (9, 96))
    assert rows["3"].sparsity == pytest.approx(1 - 252 / 576)
    assert (rows["3"].dual, rows["3"].rho) == (0.01, 0.01)


def test_a_table_of_a_large_network_cuts_no_figure() -> None:
    row = LayerRow(
        name="backbone.classifier.fully_connected_1", filters=(4095, 4096), columns=(9215, 9216),
        weights=(123_456, 37_748_736), primal=2e-5, dual=0.12345, rho=123.456,
    )  # fmt: skip
    text = io.StringIO()
    rows = [row, replace(row, name="fc", primal=None)]
    Console(file=text, width=80).print(layer_table(rows))
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[1].split()[1:] == [
        "4.1k/4.1k", "9.2k/9.2k", "123.5k/37.7M", "0.9967", "2e-05", "0.123", "123.5",
    ]  # fmt: skip
    assert lines[1].startswith("…")
    assert lines[1].split()[0].endswith("connected_1")
    assert lines[2].split()[5] == "-"
    assert lines[3].split() == ["all", "246.9k/75.5M", "0.9967"]


@pytest.mark.parametrize(("residual", "warned"), [(0.5, 1), (0.01, 0)])
def test_a_residual_that_has_not_fallen_is_one_warning(residual: float, warned: int) -> None:
    view, text = shown()
    result = pruned(make_bench().dense, record(1, 1.0, {}), record(2, residual, {}))
    warning = result.trace.warning()
    notes = ("rounded up", *([warning] if warning else []))
    view.end(replace(RESULT, notes=notes), result)
    lines = text.getvalue().splitlines()
    assert "accuracy: 0.5000 before the hard prune, 0.4000 after it" in lines, "no retraining, no third figure"
    assert "ONNX file: accuracy 0.9000 (drop 0.00 pp), 0.5 ms, 2.00x" in lines, "and no minus zero"
    assert [line for line in lines if line.startswith("note: ")] == ["note: rounded up"]
    warnings = [line for line in lines if "not converged" in line]
    assert len(warnings) == warned
    assert all(line.startswith("warning: ") and "raise admm.iterations" in line for line in warnings)
