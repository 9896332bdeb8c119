"""What `prunefront profile` shows: tables that fit a terminal of 100 columns, and lines that say what they mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from search.clocks import clock_words
from search.measure_command import figure, print_lines, stamp_words
from search.report import print_whole, short_count

if TYPE_CHECKING:
    from evaluators import Measurement
    from search.budget import Budget
    from search.calibration import Network
    from search.profile_command import Findings, Layer

#: Rows of the layer table before the smallest are summed.
MOST_ROWS = 20
#: Points of a staircase that one line holds.
_MOST_POINTS = 10


def print_profile(found: Findings, console: Console, *, every: bool) -> None:
    """All findings, in the order in which they follow from each other."""
    dense = found.dense.measured
    low, high = figure(dense.latency_low_ms), figure(dense.latency_high_ms)
    print_lines(
        console,
        [
            f"task       {found.task}: {short_count(found.params)} parameters, {short_count(found.dense.macs)} MACs",
            f"rig        {found.rig}: {stamp_words(dense.stamp.to_dict())}",
            f"dense      {figure(dense.latency_ms)} ms ({low}-{high}), median of {clock_words(dense.stamp.clock)}",
            f"A/A        {dense.speedup:.3f}x ({dense.speedup_low:.3f}-{dense.speedup_high:.3f}) against itself: "
            f"what noise alone makes",
        ],
    )
    if found.layers:
        print_whole(console, layer_table(found, every=every))
        total = figure(sum(layer.time.ms for layer in found.layers))
        print_lines(
            console,
            [
                f"share: of the wall time that ONNX Runtime's profiler saw, {total} ms in all",
                f"ms:    this share of the {figure(dense.latency_ms)} ms that the rig measured",
                "",
            ],
        )
    else:
        print_lines(
            console,
            [f"layers     not timed: ONNX Runtime's profiler times them on onnxruntime-cpu, not on {found.rig}"],
        )
    print_lines(console, [*block_lines(found), *predictor_lines(found)])
    print_lines(console, [""])
    print_whole(console, network_table(found))
    print_lines(
        console,
        [
            "fastest: the most of all that saves time here; middle: half of the steps to it",
            "speed-ups are over the dense network, intervals of 95 %; weights by magnitude: latency is one of shapes",
            "",
        ],
    )
    if found.budget is not None and found.on_budget_rig is not None:
        print_lines(console, budget_lines(found.budget, found.on_budget_rig))
    else:
        print_lines(console, ["budget     none in this job"])
    print_lines(console, [f"note       {note}" for note in found.notes])


def _table(title: str) -> Table:
    return Table(
        title=Text(title, style="bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )


def layer_table(found: Findings, *, every: bool) -> Table:
    """Layers in the order they run; beyond `MOST_ROWS` the smallest are summed."""
    table = _table("layers of the dense network, in the order they run")
    table.add_column("layer", overflow="fold")
    table.add_column("op")
    for heading in ("weight", "MACs", "ms", "share"):
        table.add_column(heading, justify="right", no_wrap=True)
    shown = set(range(len(found.layers)))
    if len(shown) > MOST_ROWS and not every:
        largest = sorted(shown, key=lambda i: -found.layers[i].ms)
        shown = set(largest[: MOST_ROWS - 1])
    for i in sorted(shown):
        layer = found.layers[i]
        weight = "x".join(str(size) for size in layer.weight) if layer.weight else ""
        macs = short_count(layer.macs) if layer.macs is not None else ""
        table.add_row(Text(layer.time.name), layer.time.op, weight, macs, figure(layer.ms), f"{layer.time.share:.1%}")
    rest = [layer for i, layer in enumerate(found.layers) if i not in shown]
    if rest:
        table.add_row(*_summed(rest))
    return table


def _summed(rest: Sequence[Layer]) -> list[str]:
    macs = sum(layer.macs or 0 for layer in rest)
    share = sum(layer.time.share for layer in rest)
    return [f"{len(rest)} others", "", "", short_count(macs), figure(sum(r.ms for r in rest)), f"{share:.1%}"]


def block_lines(found: Findings) -> list[str]:
    """The channel block, what it was read off, and whether the job's alignment goes with it."""
    block = found.block
    lines = [
        f"block      {block.block} channels (depthwise {block.depthwise}): widths between two multiples cost what the "
        f"next one costs"
    ]
    for kind, times in block.points.items():
        points = "  ".join(f"{width}: {times[width]:.2f}" for width in steps(times, getattr(block, _FIELDS[kind])))
        lines.append(f"           {kind} of width  {points}")
    if block.note:
        lines.append(f"           {block.note}")
    if found.align % block.block:
        lines.append(f"           the job's sparsity.align is {found.align}, no multiple of it: auto takes the block")
    return lines


_FIELDS: Mapping[str, str] = {"conv3x3": "block", "depthwise": "depthwise"}


def steps(widths: Mapping[int, float], block: int) -> list[int]:
    """The first and the last width of each step of a staircase; fewer where that is more than a line holds."""
    ordered = sorted(widths)
    step = [-(-width // block) for width in ordered]
    ends = [
        width
        for i, width in enumerate(ordered)
        if i in (0, len(ordered) - 1) or step[i] != step[i - 1] or step[i] != step[i + 1]
    ]
    if len(ends) <= _MOST_POINTS:
        return ends
    return [ends[round(i * (len(ends) - 1) / (_MOST_POINTS - 1))] for i in range(_MOST_POINTS)]


def predictor_lines(found: Findings) -> list[str]:
    """How well latency is predicted, and on which networks that was seen."""
    if found.predictor is None:
        return [f"predictor  none: {found.why_no_predictor}"]
    fitted = [network.name for network in found.networks if network.fitted]
    lines = [
        f"predictor  off by {found.predictor.mean_error:.1%} in the mean, {found.predictor.max_error:.1%} at most, "
        "where each network is",
        f"           predicted from the others: {', '.join(fitted)}",
    ]
    for network in found.networks:
        if not network.fitted and network.error is not None:
            lines.append(f"           and by {abs(network.error):.1%} on {network.name}, which it was not fitted on")
    return lines


def network_table(found: Findings) -> Table:
    """What is within reach: dense, half-way and fastest, measured and predicted."""
    budget = found.budget if found.budget is not None and found.budget.rig == found.rig else None
    table = _table("within reach, before any training")
    table.add_column("network")
    headings = ("latency\nms", "interval\nms", "speedup", "interval", "MACs", "predicted\nms", "error")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    if budget is not None:
        table.add_column("within\nbudget", justify="center", no_wrap=True)
    for network in found.networks:
        if network.name in ("dense", "middle", "fastest"):
            table.add_row(*_cells(network, budget), style="bold" if network.name == "dense" else None)
    return table


def _cells(network: Network, budget: Budget | None) -> list[str]:
    m = network.measured
    cells = [
        network.name,
        figure(m.latency_ms),
        f"{figure(m.latency_low_ms)}-{figure(m.latency_high_ms)}",
        f"{m.speedup:.2f}x",
        f"{m.speedup_low:.2f}-{m.speedup_high:.2f}",
        short_count(network.macs),
        "" if network.predicted_ms is None else figure(network.predicted_ms),
        "" if network.error is None else f"{network.error:+.1%}",
    ]
    if budget is not None:
        cells.append("yes" if budget.met_by(m) else "no")
    return cells


def budget_lines(budget: Budget, fastest: Measurement) -> list[str]:
    """Whether the budget can be met, by the cautious end of the interval, and with how much to spare."""
    if budget.latency_ms is not None:
        reached = f"{figure(fastest.latency_high_ms)} ms"
        spare = budget.latency_ms / fastest.latency_high_ms
    else:
        assert budget.speedup is not None
        reached = f"{fastest.speedup_low:.2f}x"
        spare = fastest.speedup_low / budget.speedup
    within = "within reach" if budget.met_by(fastest) else "out of reach"
    return [
        f"budget     {budget}: {within}",
        f"           the fastest network has {reached} at the cautious end of its interval, "
        f"{spare:.2f} times as fast as asked",
    ]
