"""What `prunefront prune` shows: convergence iteration by iteration, then what became of every layer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import nn

from admm.compact import SelectedInput
from admm.connections import canonical
from admm.outcome import PruneResult
from admm.slicing import prunable_layers
from admm.trace import TraceRecord
from evaluators.rig import measures_modules
from search.report import short_count
from search.result import TrialResult
from search.trial import Bench, Progress

WIDTH = 80
HEADINGS = ("filters", "columns", "weights", "sparsity", "primal", "dual", "rho")
#: Space and rule between two columns of the table, on the whole.
BETWEEN = 2


class PruneView:
    """Prints one pruning run as it goes; every line fits a terminal of 80 columns and is plain where piped."""

    def __init__(self, console: Console, bench: Bench) -> None:
        self._console = console
        self._bench = bench
        self._job = bench.job
        self._weights = {f"{n}.weight": m.weight.numel() for n, m in prunable_layers(bench.dense).items()}

    def step(self, progress: Progress) -> None:
        """One line for an ADMM iteration or an epoch of retraining."""
        report, record = progress.report, progress.record
        if report is None:
            return
        if record is None:
            scored = "" if report.accuracy is None else f", accuracy {report.accuracy:.4f}"
            self._say(f"retraining {report.index}/{self._job.finetune.epochs}: loss {report.loss:.4f}{scored}")
            return
        iterations = self._job.admm.iterations
        of = f"{report.index}/{iterations}".rjust(2 * len(str(iterations)) + 1)
        if report.index == 1:
            self._say("ADMM; accuracy, compression and weights are those if it were pruned then:")
            self._say(_line(" " * len(of), "loss", "accuracy", "compression", "weights", "‖W−Z‖/‖W‖", "worst in"))
        tensor, residual = record.worst
        kept = self._kept(record)
        self._say(
            _line(
                of,
                f"{report.loss:.4f}",
                "-" if report.accuracy is None else f"{report.accuracy:.4f}",
                f"{self._bench.baseline.weights / max(kept, 1):.2f}x",
                short_count(kept),
                f"{residual:.3f}",
                tensor.removesuffix(".weight") if tensor in self._weights else tensor,
            )
        )

    def end(self, result: TrialResult, pruned: PruneResult) -> None:
        """The layers, the three accuracies, the shipped file, and what the user must know of it."""
        width = max(WIDTH, self._console.width) if self._console.is_terminal else WIDTH
        wide = Console(file=self._console.file, width=width, force_terminal=self._console.is_terminal, highlight=False)
        told = ", with residuals and rho of their weights when ADMM ended" if pruned.trace.records else ""
        self._say(f"layers, kept/dense{told}:")
        wide.print(layer_table(layer_rows(self._bench.dense, pruned), width))
        trace, baseline = pruned.trace, self._bench.baseline
        parts = {
            "before the hard prune": trace.accuracy_before_prune,
            "after it": trace.accuracy_after_prune,
            "after retraining": trace.accuracy_after_finetune,
        }
        self._say("accuracy: " + ", ".join(f"{v:.4f} {k}" for k, v in parts.items() if v is not None))
        self._say(
            f"{self._shipped()}: accuracy {result.accuracy:.4f} "
            f"(drop {round(result.accuracy_drop or 0.0, 2) + 0.0:.2f} pp), "
            f"{result.latency_ms:.4g} ms, {result.speedup:.2f}x"
        )
        self._say(
            f"compression {result.compression_x:.2f}x; {short_count(result.macs or 0)} of "
            f"{short_count(baseline.macs)} MACs as the shapes have them"
        )
        warning = trace.warning()
        for note in result.notes:
            if note != warning:
                self._say(f"note: {note}")
        if warning is not None:
            self._console.print(Text.assemble(("warning: ", "bold yellow"), warning), soft_wrap=True)

    def _kept(self, record: TraceRecord) -> int:
        """Prunable weights that the projection keeps; of a tensor without a constraint all."""
        return sum(record.kept.get(name, count) for name, count in self._weights.items())

    def _shipped(self) -> str:
        """What the figures are of: `ONNX file`, or `module on torch-cpu (bf16)`."""
        rig = self._bench.job.deciding_rig
        if not measures_modules(rig.name):
            return "ONNX file"
        return f"module on {rig.name}" + (f" ({rig.precision})" if rig.precision else "")

    def _say(self, line: str) -> None:
        self._console.print(Text(line), soft_wrap=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRow:
    """One layer in the end: (kept, dense) counts, and the residuals and rho of its weight when ADMM ended."""

    name: str
    filters: tuple[int, int]
    columns: tuple[int, int]
    """GEMM columns, input channel x kernel position, in which a weight is left."""
    weights: tuple[int, int]
    primal: float | None = None
    dual: float | None = None
    rho: float | None = None

    @property
    def sparsity(self) -> float:
        """Share of the dense layer's weights that is gone."""
        return 1.0 - self.weights[0] / self.weights[1]


def layer_rows(dense: nn.Module, pruned: PruneResult) -> list[LayerRow]:
    """The prunable layers in model order, counted in the network that is shipped; without ADMM no residuals."""
    last = pruned.trace.records[-1] if pruned.trace.records else None
    rows = []
    for name, layer in prunable_layers(dense).items():
        found = pruned.model.get_submodule(name)
        small = found.layer if isinstance(found, SelectedInput) else found
        weight = small.get_parameter("weight").detach()
        was, now = canonical(layer, layer.weight.detach()), canonical(small, weight)
        left = now != 0
        residuals = {} if last is None else {"primal": last.primal, "dual": last.dual, "rho": last.rho}
        figures = {key: values.get(f"{name}.weight") for key, values in residuals.items()}
        rows.append(
            LayerRow(
                name=name,
                filters=(len(now), len(was)),
                columns=(int(left.any(0).sum()), was[0].numel()),
                weights=(int(left.sum()), was.numel()),
                **figures,
            )
        )
    return rows


def layer_table(rows: Iterable[LayerRow], width: int = WIDTH) -> Table:
    """`kept/dense` of every layer and the figures of its convergence; a long name loses its beginning."""
    rows = list(rows)
    cells = [
        (
            *(f"{_short(kept)}/{_short(dense)}" for kept, dense in (row.filters, row.columns, row.weights)),
            f"{row.sparsity:.4f}",
            *(_shown(value) for value in (row.primal, row.dual, row.rho)),
        )
        for row in rows
    ]
    kept, dense = sum(row.weights[0] for row in rows), sum(row.weights[1] for row in rows)
    total = ("", "", f"{_short(kept)}/{_short(dense)}", f"{1.0 - kept / max(dense, 1):.4f}", "", "", "")
    taken = sum(max(map(len, column)) + BETWEEN for column in zip(HEADINGS, *cells, total, strict=True))
    table = Table(box=None, pad_edge=False, padding=(0, 0, 0, BETWEEN), collapse_padding=False, show_footer=True)
    table.add_column("layer", footer="all", no_wrap=True)
    for heading, foot in zip(HEADINGS, total, strict=True):
        table.add_column(heading, footer=foot, justify="right", no_wrap=True)
    for row, line in zip(rows, cells, strict=True):
        table.add_row(_end_of(row.name, max(width - taken, 8)), *line)
    return table


def _line(of: str, *figures: str) -> str:
    """One row under the headings of the iterations."""
    widths = (8, 8, 11, 8, 9)
    *numbers, where = figures
    start = of + "".join(f"  {text:>{width}}" for text, width in zip(numbers, widths, strict=True))
    return f"{start}  {_end_of(where, WIDTH - len(start) - 2)}"


def _end_of(name: str, width: int) -> str:
    """The end of a module's name tells more than its beginning."""
    return name if len(name) <= width else f"…{name[len(name) - width + 1 :]}"


def _short(number: int) -> str:
    return short_count(number).replace(" ", "")


def _shown(value: float | None) -> str:
    if value is None:
        return "-"
    if 0.0005 <= value < 1000.0 or value == 0.0:
        return f"{value:.3f}" if value < 10.0 else f"{value:.1f}"
    return f"{value:.0e}"
