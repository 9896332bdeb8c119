"""The picture of a search: accuracy against latency, the front, the dense model and the budget."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from search.atomic import write_atomic
from search.clocks import clock_words
from search.front import complete_trials, front_results
from search.objectives import LATENCY_ALONE, Objectives
from search.pareto import front
from search.result import Baseline, TrialResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette: told apart under every common colour blindness; shapes differ as well.
_FRONT, _DENSE, _TRIAL, _BUDGET, _INK = "#0072B2", "#D55E00", "#9A9A9A", "#009E73", "#333333"

#: Beyond this span of latencies a linear axis crowds the fast trials, which are the ones of interest.
_LOG_FROM = 3.0

_Point = tuple[float, float]


def plot_front(
    path: Path,
    baseline: Baseline,
    results: Mapping[int, TrialResult],
    budget_latency_ms: float | None = None,
    title: str = "",
    clock: str | None = None,
    objectives: Objectives = LATENCY_ALONE,
) -> None:
    """Write the plot to `path` as PNG: every complete trial, the front as a step line, dense and budget.

    Latencies are the dense one over the paired speed-up, so that all points are of one moment. The step line is the
    best accuracy to be had within a latency; with other `objectives`, trials of their front lie below it. Points far
    below the front stand as arrows on the lower edge, so that they do not flatten it. Raises `StoreError` when the file
    cannot be written.
    """
    # Only here: importing Matplotlib costs a command that draws nothing half a second.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 5.0), dpi=150, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    chosen = front_results(baseline, results, objectives)
    members = {trial.number for trial in chosen}
    dense = (baseline.accuracy, baseline.latency_ms)

    def point(trial: TrialResult) -> _Point:
        accuracy, relative = trial.dominates_key
        return accuracy, relative * baseline.latency_ms

    others = [point(trial) for trial in complete_trials(results) if trial.number not in members]
    points = [point(trial) for trial in chosen]
    _latency_axis(axes, [latency for _, latency in (*others, *points, dense)], budget_latency_ms, clock)
    _accuracy_axis(axes, [*points, dense], others)
    _draw_trials(axes, others)
    _draw_front(axes, points, dense)
    if budget_latency_ms is not None:
        axes.axvline(
            budget_latency_ms, color=_BUDGET, ls="--", lw=1.4, label=f"budget {budget_latency_ms:.4g} ms", zorder=2
        )
    axes.set_title(title, loc="left", color=_INK, parse_math=False)
    axes.grid(color="#E6E6E6", lw=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    names = [
        f"{trial.number} {trial.precision}" if trial.precision != "fp32" else str(trial.number) for trial in chosen
    ]
    _label_front(axes, dict(zip(names, points, strict=True)))
    if not chosen and not others:
        axes.text(0.5, 0.6, "no complete trial yet", ha="center", transform=axes.transAxes, color=_INK)

    picture = io.BytesIO()
    canvas.print_figure(picture, format="png", metadata={"Software": None})
    write_atomic(path, picture.getvalue())


def _latency_axis(axes: Axes, latencies: Sequence[float], budget_latency_ms: float | None, clock: str | None) -> None:
    from matplotlib import ticker

    shown = [*latencies, budget_latency_ms] if budget_latency_ms is not None else list(latencies)
    low, high = min(shown), max(shown)
    axes.set_xlabel("latency [ms]" + (f", {clock_words(clock)}" if clock else ""), color=_INK)
    if low > 0 and high > _LOG_FROM * low:
        axes.set_xscale("log")
        # Within one decade the powers of ten alone would label a single tick.
        steps = (1, 1.5, 2, 3, 4, 5, 7) if high < 10 * low else (1, 2, 5)
        axes.xaxis.set_major_locator(ticker.LogLocator(subs=steps, numticks=20))
        axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(ticker.NullFormatter())
        edge = (high / low) ** 0.05
        axes.set_xlim(low / edge, high * edge)
    else:
        edge = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
        axes.set_xlim(low - edge, high + edge)


def _accuracy_axis(axes: Axes, main: Sequence[_Point], others: Sequence[_Point]) -> None:
    low, high = min(a for a, _ in main), max(a for a, _ in main)
    span = max(high - low, 0.01)
    # Twice the front's own span is given to what lies below it; the rest is drawn on the edge.
    floor = min([low, *(a for a, _ in others if a >= low - span)])
    height = max(high - floor, 0.01)
    axes.set_ylim(floor - 0.08 * height, high + 0.1 * height)
    axes.set_ylabel("validation accuracy", color=_INK)


def _draw_trials(axes: Axes, others: Sequence[_Point]) -> None:
    edge = axes.get_ylim()[0]
    inside = [point for point in others if point[0] >= edge]
    below = [point for point in others if point[0] < edge]
    if inside:
        axes.scatter(
            [t for _, t in inside], [a for a, _ in inside], s=26, color=_TRIAL, label="trial, dominated", zorder=2
        )
    if below:
        axes.scatter(
            [t for _, t in below],
            [edge] * len(below),
            s=34,
            marker="v",
            color=_TRIAL,
            clip_on=False,
            label="trial, below the axis",
            zorder=2,
        )


def _draw_front(axes: Axes, points: Sequence[_Point], dense: _Point) -> None:
    joined = [*points, dense]
    steps = sorted((joined[index] for index in front(joined)), key=lambda point: (point[1], point[0]))
    if len(steps) > 1:
        axes.step([t for _, t in steps], [a for a, _ in steps], where="post", color=_FRONT, lw=1.4, zorder=3)
    if points:
        axes.scatter([t for _, t in points], [a for a, _ in points], s=44, color=_FRONT, label="front", zorder=4)
    axes.scatter([dense[1]], [dense[0]], s=90, marker="D", color=_DENSE, edgecolor="white", label="dense", zorder=5)


def _label_front(axes: Axes, points: Mapping[str, _Point]) -> None:
    """Trial numbers, with a precision that is not fp32, upper left of the front's points, where the step line never
    runs; none over another."""
    axes.figure.canvas.draw()
    last: tuple[float, float] | None = None
    for name, (accuracy, latency) in points.items():
        x, y = axes.transData.transform((latency, accuracy))
        if last is not None and abs(x - last[0]) < 36 and abs(y - last[1]) < 22:
            continue
        last = (x, y)
        axes.annotate(
            name,
            (latency, accuracy),
            (-5, 5),
            textcoords="offset points",
            fontsize=8,
            color=_INK,
            ha="right",
        )
