"""What front.json says beyond the table: ties, fresh measurements, and how the search came to its front."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from search.budget import Budget
from search.final_measure import Remeasured
from search.front import COLUMNS, front_rows
from search.front_details import detailed_rows, missed_lines, progress_content, tied_line, ties
from search.result import TrialResult
from search.sensitivity import epochs_spent
from search.store import RunStore
from tests.search.test_export import BASELINE, STAMP, measurement, trial

#: 0 and 2 are within two standard errors of each other and equally fast; 1 is far from both.
CLOSE = {r.number: r for r in (trial(0, 0.94, 0.5), trial(1, 0.80, 0.25), trial(2, 0.93, 0.5))}
TABLE = {"loss": 1.0, "accuracy": 0.9, "samples": 8, "epochs": 0.25, "points": {}}


def rows_of(results: dict[int, TrialResult], again: Remeasured | None = None, budget: Budget | None = None) -> Any:
    return detailed_rows(front_rows(BASELINE, results, None if budget is None else budget.holds), results, again)


def test_a_trial_off_the_front_that_noise_does_not_tell_from_it_is_tied() -> None:
    rows = rows_of(CLOSE)
    assert [(row["trial"], row["tied_with"]) for row in rows] == [("dense", []), (0, [2]), (1, [])]
    assert tied_line(rows) == "tied, within the noise: trial 0 with 2"


def test_without_a_standard_error_nothing_is_tied_and_nothing_said() -> None:
    sure = {n: replace(r, accuracy_stderr=0.0) for n, r in CLOSE.items()}
    assert {len(row["tied_with"]) for row in rows_of(sure)} == {0}
    assert tied_line(rows_of(sure)) is None


def test_a_failed_trial_is_tied_with_none() -> None:
    assert ties(CLOSE | {3: trial(3, 0.0, 1.0, "failed")}, [0, 1]) == {0: [2], 1: []}


@pytest.mark.parametrize(
    ("pairs", "says"),
    [
        ([(7, [9, 12]), (9, [7, 13])], "trial 7 with 9 and 12, trial 9 with 13"),
        ([(7, [9]), (9, [7])], "trial 7 with 9"),
        ([(1, [2, 3, 4, 5, 6])], "trial 1 with 2, 3, 4, 5 and 6"),
        ([(1, [2, 3, 4, 5, 6, 7, 8])], "trial 1 with 2, 3, 4, 5, 6 and 2 more"),
    ],
)
def test_each_pair_is_told_once_and_a_long_list_is_counted(pairs: Sequence[tuple[int, list[int]]], says: str) -> None:
    rows = [{"trial": number, "tied_with": others} for number, others in pairs]
    assert tied_line(rows) == f"tied, within the noise: {says}"


def test_rows_say_what_was_measured_again_beside_the_columns_of_the_table() -> None:
    again = Remeasured(rig=STAMP.rig, networks={"dense": measurement(1.0), "0": measurement(0.52)})
    rows = rows_of(CLOSE, again)
    assert [tuple(row) for row in rows] == [(*COLUMNS, "tied_with", "latency_again", "speedup_again")] * 3
    assert rows[1]["latency_again"] == pytest.approx({"median": 0.52, "low": 0.98 * 0.52, "high": 1.02 * 0.52})
    assert rows[1]["speedup_again"] == pytest.approx({"median": 1 / 0.52, "low": 0.98 / 0.52, "high": 1.02 / 0.52})
    assert rows[1]["latency_ms"] == 0.5, "the record stays"
    assert (rows[2]["latency_again"], rows[2]["speedup_again"]) == (None, None)


def test_a_budget_kept_in_the_record_and_missed_now_is_told() -> None:
    budget = Budget(latency_ms=0.515)
    again = Remeasured(rig=STAMP.rig, networks={"0": measurement(0.52), "1": measurement(0.26)})
    rows = rows_of(CLOSE, again, budget)
    (line,) = missed_lines(rows, again, budget)
    assert line.startswith("trial 0 keeps the budget of 0.515 ms on onnxruntime-cpu in its record, and missed it when")
    assert line.endswith("up to 0.5304 ms, 1.88x at least")
    assert missed_lines(rows, again, replace(budget, latency_ms=0.54)) == []
    assert missed_lines(rows, again, replace(budget, rig="cuda")) == [], "a budget of another rig is not judged"
    assert missed_lines(rows, None, budget) == []
    slower = rows_of(CLOSE, again, Budget(latency_ms=0.3))
    assert missed_lines(slower, again, Budget(latency_ms=0.3)) == [], "over budget in the record, and no news"


def test_progress_counts_what_was_spent_before_the_first_trial(tmp_path: Path) -> None:
    store = RunStore.create(tmp_path / "run", "task: a:b\n", {})
    results = {n: replace(r, epochs=1.0 + n / 3) for n, r in CLOSE.items()}
    budget = Budget(latency_ms=0.3)
    bare = progress_content(store, BASELINE, results, budget)
    (store.root / "sensitivity.json").write_text(json.dumps({"schema": 1, "key": "k", **TABLE}))
    content = progress_content(store, BASELINE, results, budget)
    assert content["reference"] == {"accuracy": pytest.approx(0.92), "latency_ms": 1.0, "epochs_before": 0.25}
    assert [row["epochs"] for row in bare["progress"]] == [1.0, 2.333, 4.0]
    assert [row["epochs"] for row in content["progress"]] == [1.25, 2.583, 4.25]
    assert [row["trial"] for row in content["progress"]] == [0, 1, 2]
    assert [row["best_accuracy"] for row in content["progress"]] == [None, 0.8, 0.8]
    # ln 2 times 2 pp; trial 1 lies below the reference, trial 2 is dominated
    assert [row["hypervolume"] for row in content["progress"]] == pytest.approx([0.0138629] * 3)
    assert progress_content(store, BASELINE, {}, None)["progress"] == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"epochs": 3}', json.dumps({**TABLE, "epochs": -1})])
def test_a_table_that_cannot_be_read_has_cost_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "sensitivity.json").write_text(text)
    assert epochs_spent(tmp_path) == 0.0
