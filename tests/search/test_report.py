from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread
from rich.console import Console

from search.atomic import StoreError
from search.front import dense_result
from search.report import (
    COLUMNS,
    failures,
    front_results,
    front_rows,
    plot_front,
    print_whole,
    rich_table,
    status_counts,
    status_line,
    write_front,
)
from search.result import Baseline, TrialResult
from search.store import RunStore

BASELINE = Baseline(
    accuracy=0.98,
    accuracy_stderr=0.01,
    latency_ms=1.0,
    macs=15_200_000,
    params=180_000,
    weights=179_000,
    measurements={"onnxruntime-cpu": {"latency_ms": 1.0, "latency_high_ms": 1.02}},
)

BLUE, VERMILION, GREEN = (0, 114, 178), (213, 94, 0), (0, 158, 115)


def trial(number: int, accuracy: float, latency_ms: float) -> TrialResult:
    return TrialResult(
        number=number,
        status="complete",
        plan_digest="d",
        seed=0,
        accuracy=accuracy,
        latency_ms=latency_ms,
        latency_high_ms=latency_ms * 1.02,
        speedup=1.0 / latency_ms,
        compression_x=2.5,
        macs=5_000_000,
        params=999_960,
    )


def ended(number: int, status: Any, reason: str) -> TrialResult:
    return TrialResult(number=number, status=status, plan_digest="d", seed=0, reason=reason)


RESULTS = {
    r.number: r
    for r in (
        trial(9, 0.97, 0.5),
        trial(0, 0.96, 0.6),
        trial(1, 0.99, 0.8),
        trial(2, 0.90, 0.2),
        trial(3, 0.10, 0.1),
        trial(4, 0.97, 1.2),
        trial(5, 0.90, 0.2),
        ended(6, "failed", "parity breach: 0.3 > 1e-5"),
        ended(7, "infeasible", "2.1 ms by its shapes"),
        ended(8, "stopped", "dominated at rung 2"),
        ended(10, "failed", "loss is NaN"),
    )
}


def within(result: TrialResult) -> bool:
    assert result.latency_high_ms is not None
    return result.latency_high_ms <= 0.6


def text_of(table: Any, width: int) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def has_colour(picture: Path, colour: tuple[int, int, int]) -> bool:
    pixels = np.rint(imread(picture)[..., :3] * 255)
    return bool((np.abs(pixels - colour).max(axis=-1) <= 2).any())


class TestFront:
    def test_rows_are_dense_then_the_front_by_falling_latency(self) -> None:
        rows = front_rows(BASELINE, RESULTS, within)
        assert [row["trial"] for row in rows] == ["dense", 1, 9, 2, 5, 3]
        assert all(tuple(row) == COLUMNS for row in rows)
        assert rows[0] == {
            "trial": "dense",
            "accuracy": 0.98,
            "accuracy_drop": 0.0,
            "latency_ms": 1.0,
            "speedup": 1.0,
            "compression_x": 1.0,
            "macs": 15_200_000,
            "params": 180_000,
            "within_budget": False,
            "precision": "fp32",
        }
        assert [row["within_budget"] for row in rows[1:]] == [False, True, True, True, True]
        assert rows[2]["accuracy_drop"] == pytest.approx(1.0)

    def test_without_a_budget_nothing_is_said_of_it(self) -> None:
        assert {row["within_budget"] for row in front_rows(BASELINE, RESULTS)} == {None}

    def test_a_trial_that_the_dense_model_dominates_is_no_offer(self) -> None:
        assert front_results(BASELINE, {0: trial(0, 0.97, 1.3)}) == []
        assert [row["trial"] for row in front_rows(BASELINE, {})] == ["dense"]

    def test_the_dense_model_is_judged_by_the_upper_end_of_its_interval(self) -> None:
        assert dense_result(BASELINE).latency_high_ms == 1.02

    def test_failures_and_counts(self) -> None:
        assert failures(RESULTS) == [(6, "parity breach: 0.3 > 1e-5"), (10, "loss is NaN")]
        assert status_counts(RESULTS) == {"complete": 7, "infeasible": 1, "stopped": 1, "failed": 2}
        assert status_line(RESULTS) == "11 trials: 7 complete, 1 infeasible, 1 stopped, 2 failed"
        assert status_line({0: RESULTS[0]}) == "1 trial: 1 complete"
        assert status_line({}) == "0 trials"


class TestTable:
    def test_says_figures_clock_and_budget_within_eighty_characters(self) -> None:
        text = text_of(rich_table(front_rows(BASELINE, RESULTS, within), "thread_cpu"), 80)
        assert "…" not in text
        lines = [line.split() for line in text.splitlines()]
        assert ["dense", "0.9800", "0.00", "1.000", "1.00x", "1.00x", "15.2", "M", "180.0", "k", "no"] in lines
        assert ["9", "0.9700", "1.00", "0.5000", "2.00x", "2.50x", "5.0", "M", "1.0", "M", "yes"] in lines
        assert "thread CPU time" in text

    def test_no_budget_no_column_and_an_unknown_clock_as_it_is(self) -> None:
        text = text_of(rich_table(front_rows(BASELINE, RESULTS), "[sun]dial"), 80)
        assert "budget" not in text
        assert "[sun]dial" in text

    @given(st.floats(1e-4, 1e5), st.integers(0, 10**13))
    def test_any_figures_fit_a_cell(self, latency_ms: float, count: int) -> None:
        row = front_rows(BASELINE, {0: trial(0, 1.0, latency_ms)})[-1] | {"macs": count, "params": count}
        assert row["trial"] == 0
        assert "…" not in text_of(rich_table([row], "wall"), 110)

    @given(st.floats(1e-4, 1e5), st.integers(0, 10**13), st.floats(-100, 100), st.integers(1, 200))
    def test_a_terminal_of_any_width_gets_every_figure_whole(
        self, latency_ms: float, count: int, drop: float, width: int
    ) -> None:
        row = front_rows(BASELINE, {0: trial(0, 1.0, latency_ms)}, within)[-1]
        console = Console(width=width, file=io.StringIO(), color_system=None)
        print_whole(console, rich_table([row | {"macs": count, "params": count, "accuracy_drop": drop}], "wall"))
        assert isinstance(console.file, io.StringIO)
        text = console.file.getvalue()
        assert "…" not in text
        for figure in ("within", "budget", f"{round(drop, 2) + 0.0:.2f}", f"{latency_ms:#.4g}".rstrip(".")):
            assert figure in text, figure


def test_what_int8_files_stand_on_the_front_is_told() -> None:
    rows = front_rows(BASELINE, RESULTS, within)
    assert "type" not in text_of(rich_table(rows, "wall"), 100)
    assert "int8" in text_of(rich_table([{**row, "precision": "int8"} for row in rows], "wall"), 100)


class TestFiles:
    @pytest.fixture
    def store(self, tmp_path: Path) -> RunStore:
        store = RunStore.create(tmp_path / "digits-001", "task: t\n", {})
        for number, result in RESULTS.items():
            assert store.commit(number, store.attempt_dir(number, "a"), result)
        return store

    def test_json_and_csv_hold_the_same_rows_unrounded(self, store: RunStore) -> None:
        rows = front_rows(BASELINE, store.results(), within)
        progress = {"progress": [{"trial": 0}], "reference": {"accuracy": 0.95}}
        more = [{**row, "tied_with": []} for row in rows]
        write_front(store, more, clock="thread_cpu", budget={"latency_ms": 0.6}, progress=progress)
        content = json.loads((store.root / "front.json").read_text())
        assert content["rows"] == more
        assert (content["progress"], content["reference"]) == (progress["progress"], progress["reference"])
        assert content["run"] == "digits-001"
        assert content["clock"] == "thread_cpu"
        assert content["budget"] == {"latency_ms": 0.6}
        assert content["trials"]["failed"] == 2
        assert content["failed"][1] == {"trial": 10, "reason": "loss is NaN"}
        read = list(csv.DictReader(io.StringIO((store.root / "front.csv").read_text())))
        assert tuple(read[0]) == COLUMNS
        assert [(row["trial"], float(row["latency_ms"]), row["within_budget"]) for row in read] == [
            (str(row["trial"]), row["latency_ms"], str(row["within_budget"])) for row in rows
        ]

    def test_no_budget_is_null_and_empty(self, store: RunStore) -> None:
        write_front(store, front_rows(BASELINE, store.results()), clock="wall")
        content = json.loads((store.root / "front.json").read_text())
        assert content["budget"] is None
        assert content["rows"][0]["within_budget"] is None
        assert (store.root / "front.csv").read_text().splitlines()[1].endswith(",180000,,fp32")


class TestPlot:
    def test_shows_front_dense_and_budget(self, tmp_path: Path) -> None:
        path = tmp_path / "front.png"
        plot_front(path, BASELINE, RESULTS, 0.55, "digits-001", clock="thread_cpu")
        assert all(has_colour(path, colour) for colour in (BLUE, VERMILION, GREEN))
        assert [p.name for p in tmp_path.iterdir()] == ["front.png"]

    def test_draws_only_what_there_is(self, tmp_path: Path) -> None:
        path = tmp_path / "front.png"
        plot_front(path, BASELINE, {6: RESULTS[6]}, None, r"cost $\frac")
        assert has_colour(path, VERMILION)
        assert not has_colour(path, BLUE)
        assert not has_colour(path, GREEN)

    @pytest.mark.parametrize("latencies", [(1.0, 1.0), (0.5, 0.9), (1e-3, 40.0), (0.3, 0.29)])
    def test_any_range_of_latencies_is_drawn(self, tmp_path: Path, latencies: tuple[float, float]) -> None:
        results = {n: trial(n, 0.9 + 0.05 * n, latency) for n, latency in enumerate(latencies)}
        plot_front(tmp_path / "front.png", BASELINE, results, None, "run")
        assert imread(tmp_path / "front.png").shape == (750, 1200, 4)

    def test_the_same_results_give_the_same_file(self, tmp_path: Path) -> None:
        for name in ("a.png", "b.png"):
            plot_front(tmp_path / name, BASELINE, RESULTS, 0.55, "run")
        assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()

    def test_a_folder_that_is_gone_is_one_line(self, tmp_path: Path) -> None:
        with pytest.raises(StoreError, match=r"cannot write .*front\.png: No such file"):
            plot_front(tmp_path / "gone" / "front.png", BASELINE, RESULTS, None, "run")
