"""What is shown while a search runs: lines in a pipe, one live table in a terminal, the same figures in both."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from search import view as view_module
from search.budget import Budget
from search.result import Baseline, Status, TrialResult
from search.tasks.dense import DenseEpoch
from search.view import View

BASELINE = Baseline(accuracy=0.95, accuracy_stderr=0.01, latency_ms=1.0, macs=100, params=50, weights=40)


class Clock:
    """`time.monotonic` of our own."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(view_module, "time", clock)
    return clock


def trial(number: int, status: Status = "complete", accuracy: float = 0.9, latency_ms: float = 0.5) -> TrialResult:
    if status != "complete":
        return TrialResult(number=number, status=status, plan_digest="d", seed=0, reason=f"why {number}")
    return TrialResult(
        number=number, status="complete", plan_digest="d", seed=0, accuracy=accuracy, accuracy_drop=0.0,
        latency_ms=latency_ms, latency_high_ms=latency_ms, speedup=1 / latency_ms, speedup_low=1 / latency_ms,
        compression_x=2.0, macs=5, params=6,
    )  # fmt: skip


def shown(*, terminal: bool) -> tuple[View, io.StringIO]:
    text = io.StringIO()
    return View(Console(file=text, force_terminal=terminal, width=100, highlight=False), interval=15.0), text


def begin(
    view: View, *results: TrialResult, budget: Budget | None = None, trials: int = 4, seconds: float | None = None
) -> None:
    before = {result.number: result for result in results}
    view.begin(BASELINE, before, budget=budget, trials=trials, seconds=seconds, running=lambda: 2)


def test_lines_in_a_pipe(clock: Clock) -> None:
    view, text = shown(terminal=False)
    begin(view, budget=Budget(speedup=1.5))
    clock.now += 62.0
    view.update(trial(0))
    view.update(trial(1, "stopped"))
    view.update(trial(2, "failed"))
    clock.now += 60.0
    view.update(trial(3, accuracy=0.99, latency_ms=0.9))
    view.end()
    assert text.getvalue().splitlines() == [
        "trial 0: accuracy 0.9000, 0.5 ms, 2.00x; 1/4 done, 2 running, front of 1, best within budget 0.9000, "
        "1:02 elapsed, 3:06 left",
        "trial 1: stopped: why 1; 2/4 done, 2 running, 1 stopped early, front of 1, best within budget 0.9000, "
        "1:02 elapsed, 1:02 left",
        "trial 2: failed: why 2; 3/4 done, 2 running, 1 stopped early, 1 failed, front of 1, "
        "best within budget 0.9000, 1:02 elapsed, 0:20 left",
        "trial 3: accuracy 0.9900, 0.9 ms, 1.11x; 4/4 done, 2 running, 1 stopped early, 1 failed, front of 2, "
        "best within budget 0.9000, 2:02 elapsed",
    ]


def test_plans_over_budget_do_not_flood_a_log(clock: Clock) -> None:
    view, text = shown(terminal=False)
    begin(view, budget=Budget(speedup=3.0), trials=1)
    clock.now += 20.0
    for number in range(10):
        view.update(trial(number, "infeasible"))
    clock.now += 20.0
    view.update(trial(10, "infeasible"))
    lines = text.getvalue().splitlines()
    assert [line.partition(":")[0] for line in lines] == ["trial 0", "trial 10"]
    assert lines[1].endswith("0/1 done, 2 running, 11 over budget by shape, front of 0, 0:40 elapsed")


def test_the_time_left_is_that_of_the_pace_and_never_more_than_the_time_budget(clock: Clock) -> None:
    view, _ = shown(terminal=False)
    begin(view, trial(0), trial(1), trials=102, seconds=500.0)
    assert view.summary().endswith("0:00 elapsed, 8:20 left")
    clock.now += 10.0
    view.update(trial(2))
    assert view.summary().endswith("0:10 elapsed, 8:10 left"), "a hundred more at this pace take longer than is allowed"
    for number in range(3, 52):
        view.update(trial(number))
    assert view.summary().endswith("52/102 done, 2 running, front of 52, best 0.9000, 0:10 elapsed, 0:10 left")
    clock.now += 3600.0
    assert view.summary().endswith("1:00:10 elapsed, 0:00 left")


def test_a_table_in_a_terminal(clock: Clock) -> None:
    view, text = shown(terminal=True)
    with view:
        view.say("run runs/digits-001")
        begin(view, trial(0), budget=Budget(speedup=1.5))
        clock.now += 30.0
        view.update(trial(1, "infeasible"))
        view.update(trial(2, accuracy=0.93, latency_ms=0.6))
        view.say("a line above the table")
    written = text.getvalue()
    assert "trial 2:" not in written, "the table says it"
    last = written[written.rindex("prunefront search") :]
    for row in (
        ("done", "2 of 4"),
        ("running", "2"),
        ("stopped early", "0"),
        ("over budget by shape", "1 (not trained)"),
        ("failed", "0"),
        ("dense", "0.9500 at 1 ms"),
        ("front", "2 trials"),
        ("best within budget", "0.9300 at 0.6 ms (1.67x)"),
        ("elapsed", "0:30"),
        ("remaining", "about 1:00"),
    ):
        assert any(row[0] in line and row[1] in line for line in last.splitlines()), row
    assert "a line above the table" in written
    assert written.count("\x1b[?25l") == written.count("\x1b[?25h") == 1, "the cursor is hidden once and comes back"


def test_a_table_without_a_budget_says_best_accuracy(clock: Clock) -> None:
    view, text = shown(terminal=True)
    begin(view)
    view.update(trial(0))
    view.end()
    last = text.getvalue()[text.getvalue().rindex("prunefront search") :]
    assert "best accuracy" in last
    assert "1 trial" in last
    assert "budget" not in last


def test_the_table_ends_with_the_search_however_that_ends(clock: Clock) -> None:
    view, text = shown(terminal=True)

    def search() -> None:
        with view:
            begin(view)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search()
    assert text.getvalue().count("\x1b[?25h") == 1
    view.end()
    assert text.getvalue().count("\x1b[?25h") == 1


@pytest.mark.parametrize(
    ("epochs", "said"), [(2, [1, 2]), (8, [2, 4, 6, 8]), (9, [2, 4, 6, 8, 9]), (100, [25, 50, 75, 100])]
)
def test_dense_training_says_about_four_lines(epochs: int, said: list[int]) -> None:
    view, text = shown(terminal=False)
    for epoch in range(1, epochs + 1):
        view.dense_epoch(DenseEpoch(epoch=epoch, loss=0.5, accuracy=0.9), epochs)
    lines = [f"  epoch {epoch}/{epochs}: loss 0.5000, validation 0.9000" for epoch in said]
    assert text.getvalue().splitlines() == lines
