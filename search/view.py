"""What a search shows while it runs: one live table in a terminal or a notebook, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from search.budget import Budget
from search.notebook import NotebookLive
from search.objectives import LATENCY_ALONE, Objectives
from search.result import Baseline, Status, TrialResult
from search.tally import Tally
from search.tasks.dense import DenseEpoch


class View:
    """Shows the state of one search; `update` is called with each finished trial.

    `running` gives the number of live trials. Use as a context manager: leaving it leaves the last table on screen.
    """

    def __init__(self, console: Console, *, interval: float = 15.0) -> None:
        self._console = console
        self._interval = interval
        self._live: Live | NotebookLive | None = None
        self._tally = Tally()
        self._baseline: Baseline | None = None
        self._budget: Budget | None = None
        self._objectives = LATENCY_ALONE
        self._trials = 0
        self._before = 0
        self._started = time.monotonic()
        self._deadline: float | None = None
        self._running: Callable[[], int] = lambda: 0
        self._last_line = 0.0

    def say(self, line: str) -> None:
        """One line, above the live table if there is one."""
        self._console.print(Text(line), soft_wrap=True)

    def last_words(self, line: str) -> None:
        """One line from a signal handler whose process is about to end: past every lock and buffer, cursor shown."""
        lead = "\x1b[?25h\n" if self._console.is_terminal else ""
        os.write(sys.stdout.fileno(), f"{lead}{line}\n".encode())

    def dense_epoch(self, epoch: DenseEpoch, epochs: int) -> None:
        """Progress of training the dense network."""
        if epoch.epoch == epochs or epoch.epoch % max(1, epochs // 4) == 0:
            self.say(f"  epoch {epoch.epoch}/{epochs}: loss {epoch.loss:.4f}, validation {epoch.accuracy:.4f}")

    def begin(
        self,
        baseline: Baseline,
        results: dict[int, TrialResult],
        *,
        budget: Budget | None,
        trials: int,
        seconds: float | None,
        running: Callable[[], int],
        objectives: Objectives = LATENCY_ALONE,
    ) -> None:
        """Start showing a search that stands at `results`."""
        self._baseline, self._budget, self._trials = baseline, budget, trials
        self._tally = Tally(baseline, budget, (results[number] for number in sorted(results)), objectives)
        self._before = self._tally.spent
        self._running = running
        self._objectives = objectives
        self._started = time.monotonic()
        self._deadline = None if seconds is None else self._started + seconds
        if self._console.is_jupyter and not self._console.quiet:
            self._live = NotebookLive(self._table)
        elif self._console.is_terminal:
            self._live = Live(get_renderable=self._table, console=self._console, refresh_per_second=2)
        if self._live is not None:
            self._live.start()

    def update(self, result: TrialResult) -> None:
        """A trial is finished: count it, and say it where there is no live table."""
        self._tally.add(result)
        if self._live is not None:
            return
        of_type = "" if result.precision == "fp32" else f" ({result.precision})"
        if result.status == "complete":
            self.say(
                f"trial {result.number}{of_type}: accuracy {result.accuracy:.4f}, {result.latency_ms:.4g} ms, "
                f"{result.speedup:.2f}x; {self.summary()}"
            )
        elif result.status != "infeasible" or time.monotonic() - self._last_line > self._interval:
            self.say(f"trial {result.number}: {result.status}: {result.reason}; {self.summary()}")
        self._last_line = time.monotonic()

    def end(self) -> None:
        """Stop the live table; what it showed last stays."""
        if self._live is not None:
            self._live.refresh()
            self._live.stop()
            self._live = None

    def __enter__(self) -> View:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def _remaining(self) -> float | None:
        """Seconds left: by the pace so far, and no more than the time budget."""
        fresh = self._tally.spent - self._before
        elapsed = time.monotonic() - self._started
        if self._tally.spent >= self._trials:
            return None
        by_pace = elapsed / fresh * (self._trials - self._tally.spent) if fresh else None
        by_clock = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
        known = [seconds for seconds in (by_pace, by_clock) if seconds is not None]
        return min(known) if known else None

    def summary(self) -> str:
        """`12/32 done, 2 running, front of 5, best within budget 0.9867, 1:02 elapsed, 2:10 left`."""
        parts = [f"{self._tally.spent}/{self._trials} done", f"{self._running()} running"]
        words: tuple[tuple[Status, str], ...] = (
            ("stopped", "stopped early"),
            ("infeasible", "over budget by shape"),
            ("failed", "failed"),
        )
        for status, word in words:
            if count := self._tally.count(status):
                parts.append(f"{count} {word}")
        if final := self._tally.finals:
            parts.append(f"{final} of the final front trained on")
        if self._tally.twins:
            parts.append(f"{self._tally.twins} with weights of another")
        if self._baseline is not None:
            parts.append(f"front of {self._tally.front}")
        best = self._tally.best
        if best is not None:
            parts.append(f"best{' within budget' if self._budget else ''} {best.accuracy:.4f}")
        parts.append(f"{clock_time(time.monotonic() - self._started)} elapsed")
        if (left := self._remaining()) is not None:
            parts.append(f"{clock_time(left)} left")
        return ", ".join(parts)

    def _table(self) -> RenderableType:
        table = Table(box=None, pad_edge=False, show_header=False)
        table.add_column(style="dim")
        table.add_column()
        best = self._tally.best
        left = self._remaining()
        table.add_row("done", f"{self._tally.spent} of {self._trials}")
        if final := self._tally.finals:
            table.add_row("of the final front, trained on", str(final))
        if self._tally.twins:
            table.add_row("with weights of another", f"{self._tally.twins} (not trained)")
        table.add_row("running", str(self._running()))
        table.add_row("stopped early", str(self._tally.count("stopped")))
        if self._budget is not None:
            table.add_row("over budget by shape", f"{self._tally.count('infeasible')} (not trained)")
        table.add_row("failed", str(self._tally.count("failed")))
        if self._baseline is not None:
            front = self._tally.front
            table.add_row("front", f"{front} trial{'' if front == 1 else 's'}")
            table.add_row("dense", f"{self._baseline.accuracy:.4f} at {self._baseline.latency_ms:.4g} ms")
        shown = "-" if best is None else f"{best.accuracy:.4f} at {best.latency_ms:.4g} ms ({best.speedup:.2f}x)"
        table.add_row("best within budget" if self._budget else "best accuracy", shown)
        table.add_row("elapsed", clock_time(time.monotonic() - self._started))
        table.add_row("remaining", "-" if left is None else f"about {clock_time(left)}")
        return Group(Text("prunefront search", style="bold"), table)


def clock_time(seconds: float) -> str:
    """`2:05` or `1:02:05`."""
    whole = int(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"
