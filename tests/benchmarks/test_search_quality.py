"""The comparison of searches: its loop and its score on fake laboratories, and the real one on a few images."""

from __future__ import annotations

import importlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from admm.plan import PruningPlan
from search.errors import UserError
from search.space import Dimension, Space
from tests.search.real_data import real_data

FOLDER = Path(__file__).parents[2] / "benchmarks"
SOURCE = "https://ossci-datasets.s3.amazonaws.com/mnist/"
WIDTHS = (32, 48, 48, 64, 64, 96, 96)
SPACE = Space(
    tuple(
        Dimension(layer=f"conv{i}", structure="filter", sparsities=tuple(round(1 - k / w, 6) for k in range(w, 0, -16)))
        for i, w in enumerate(WIDTHS, start=1)
    )
)


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    """The parts as modules: their imports are those of scripts in their folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        names = ("lab", "methods", "score", "surrogate", "real", "l1", "task")
        yield SimpleNamespace(**{name: importlib.import_module(f"quality_{name}") for name in names})


@dataclass
class FakeLab:
    """A trial takes 4 epochs, with a rung at 2; accuracy and latency fall with the mean sparsity."""

    bench: Any
    worth: list[float] = field(default_factory=lambda: [0.01] * len(WIDTHS))
    space: Space = SPACE
    rungs: tuple[int, ...] = (2,)
    dense_accuracy: float = 0.95
    trained: list[Any] = field(default_factory=list)
    spent: float = 0.0

    def removed(self, plan: PruningPlan) -> list[float]:
        return [plan.sparsity(f"conv{i}", "filter") for i in range(1, len(WIDTHS) + 1)]

    def figures(self, plan: PruningPlan) -> Any:
        latency = 1.0 - 0.8 * sum(self.removed(plan)) / len(WIDTHS)
        return self.bench.lab.Figures(
            latency_ms=latency, relative_latency=latency, macs=1, params=1, compression_x=1.0 / latency
        )

    def stages(self, trial: Any) -> Iterator[Any]:
        self.trained.append(trial)
        lost = sum(w * s for w, s in zip(self.worth, self.removed(trial.plan), strict=True))
        for rung, epochs in ((2, 2.0), (None, 4.0)):
            self.spent += 2.0
            yield self.bench.lab.Stage(rung=rung, epochs=epochs, accuracy=self.dense_accuracy - lost)


class Worse(FakeLab):
    """From the seventh trial on a plan is less accurate than every other."""

    def stages(self, trial: Any) -> Iterator[Any]:
        bad = len(self.trained) >= 6
        for stage in super().stages(trial):
            yield replace(stage, accuracy=0.5) if bad else stage


@dataclass
class Listed:
    """Proposes the plans of a list of steps, and remembers what it was told."""

    bench: Any
    steps: list[int]
    charged: float = 0.0
    told: list[Any] = field(default_factory=list)
    asked: int = 0

    def ask(self) -> Any:
        if self.asked == len(self.steps):
            return None
        params = dict.fromkeys((d.name for d in SPACE.dimensions), 0) | {"conv7/filter": self.steps[self.asked]}
        self.asked += 1
        trial = self.bench.lab.Trial(plan=SPACE.plan(params), seed=0)
        return self.bench.lab.Ask(number=self.asked - 1, trial=trial, params=params)

    def tell(self, result: Any) -> None:
        self.told.append(result)


def test_a_run_spends_its_epochs_and_a_trial_beyond_them_does_not_count(bench: Any) -> None:
    lab, method = FakeLab(bench), Listed(bench, [1, 2, 3, 4], charged=1.0)
    played = bench.lab.play(lab, method, epochs=10.0)
    assert [point.epochs for point in played.points] == [5.0, 9.0]
    assert (played.epochs, played.charged, played.stopped) == (10.0, 1.0, 0)
    assert [result.number for result in method.told] == [0, 1]
    tried = [SPACE.params(trial.plan)["conv7/filter"] for trial in lab.trained]
    assert tried == [1, 2]  # the third would end at 13, as the others tell
    first = bench.lab.play(FakeLab(bench), Listed(bench, [1]), epochs=3.0)
    assert (first.points, first.epochs) == ((), 3.0)  # what a trial takes was not known before
    short = bench.lab.play(FakeLab(bench), Listed(bench, [1]), epochs=100.0)
    assert (short.epochs, len(short.points)) == (4.0, 1)


def test_what_is_dominated_at_a_rung_is_stopped_and_charged_for_that_alone(bench: Any) -> None:
    lab, method = Worse(bench), Listed(bench, [1, 2, 3, 4, 5, 5, 0])
    played = bench.lab.play(lab, method, epochs=100.0)
    assert (len(played.points), played.stopped, played.epochs, lab.spent) == (6, 1, 26.0, 26.0)
    last = method.told[-1]
    assert (last.status, last.epochs, last.rungs) == ("stopped", 2.0, ((2, 0.5),))
    assert last.reason.startswith("dominated at ADMM iteration 2: 6 of 7")
    assert all(result.status == "complete" and result.speedup == 1 / result.latency_ms for result in method.told[:-1])


def test_a_survivor_on_the_long_schedule_is_judged_at_no_rung(bench: Any) -> None:
    class Long(Listed):
        def ask(self) -> Any:
            asked = super().ask()
            return asked and replace(asked, trial=replace(asked.trial, how=bench.lab.LONG))

    lab = Worse(bench)
    played = bench.lab.play(lab, Long(bench, [1, 2, 3, 4, 5, 5, 0]), epochs=100.0)
    assert (len(played.points), played.stopped) == (7, 0)
    assert {trial.how for trial in lab.trained} == {"long"}


def test_all_methods_see_the_same_space_and_studies_are_repeatable(bench: Any) -> None:
    for name, method in bench.methods.METHODS.items():
        runs = []
        for _ in range(2):
            lab = FakeLab(bench)
            runs.append(bench.lab.play(lab, method(lab, 3), epochs=60.0))
            assert {trial.how for trial in lab.trained} == {"l1" if name == "uniform L1" else "admm"}
            assert all(SPACE.plan(SPACE.params(trial.plan)) == trial.plan for trial in lab.trained)
        assert runs[0] == runs[1], name
        assert 15 <= len(runs[0].points) + runs[0].stopped <= 30


def test_a_ladder_is_uniform_without_dense_and_starts_again_with_other_batches(bench: Any) -> None:
    steps = bench.methods.ladder(SPACE)
    plans = [SPACE.plan(s) for s in steps]
    assert len({plan.digest() for plan in plans}) == len(plans)
    assert all(len(plan) for plan in plans)
    assert steps[0] == SPACE.uniform(0.5)
    ladder = bench.methods.Ladder(FakeLab(bench), 3)
    asked = [ladder.ask() for _ in range(len(steps) + 1)]
    assert [a.number for a in asked] == list(range(len(steps) + 1))
    assert asked[-1].trial.plan == asked[0].trial.plan
    assert (asked[0].trial.seed, asked[-1].trial.seed) == (3, 3 + bench.methods.ROUND)


accuracies, latencies = st.floats(0.5, 1.0), st.floats(0.05, 2.0)


@settings(max_examples=100, deadline=None)
@given(points=st.lists(st.tuples(accuracies, latencies), max_size=12), more=st.tuples(accuracies, latencies))
def test_a_volume_is_in_points_and_logarithms_and_grows_with_points(
    bench: Any, points: list[tuple[float, float]], more: tuple[float, float]
) -> None:
    volume = bench.score.volume
    assert volume([*points, more], 0.95) >= volume(points, 0.95) - 1e-9
    accuracy, latency = more
    alone = max(100 * (accuracy - 0.92), 0.0) * max(-math.log(latency), 0.0)
    assert volume([more], 0.95) == pytest.approx(alone, abs=1e-6)


def test_the_share_closed_is_of_the_gap_between_the_best_baseline_and_the_ceiling(bench: Any) -> None:
    def played(*speedups: float) -> Any:
        point = bench.lab.Point
        return bench.lab.Played(
            points=tuple(
                point(epochs=5.0 * i, accuracy=0.94, relative_latency=1 / s, source="", plan={})
                for i, s in enumerate(speedups, 1)
            ),
            stopped=0,
            epochs=20.0,
            charged=0.0,
        )

    runs = {"random": played(math.e), "ours": played(1.5, math.e, math.e**2), "TPE": played(1.2)}
    judge = {"ours": "ours", "dense_accuracy": 0.95, "epochs": 20.0}
    one = bench.score.compare(runs, ceiling=2.0 * 2.5, **judge)
    assert (one.best_baseline, one.passed_at, one.below) == ("random", 0.5, False)
    assert (one.baseline, one.ours) == pytest.approx((2.0, 4.0))
    assert (one.closed, one.ratio) == pytest.approx((2.0 / 3.0, 2.0))
    worse = bench.score.compare({**runs, "ours": played(1.1)}, ceiling=5.0, **judge)
    assert worse.below
    assert worse.passed_at is None
    assert worse.closed < 0.0
    nothing = bench.score.compare({"ours": played(), "TPE": played()}, ceiling=0.0, **judge)
    assert (nothing.closed, nothing.ratio, nothing.passed_at) == (None, None, None)
    verdict = bench.score.Verdict.of([one, one, worse])
    assert verdict.closed == one.closed
    assert (verdict.never_below, verdict.passed_at) == (False, 0.5)
    assert bench.score.Verdict.of([one, worse, worse]).passed_at is None
    assert bench.score.Verdict.of([nothing]).closed == 1.0


def table(bench: Any, count: int = 80) -> dict[str, Any]:
    """Trials of a law that the fit can follow: an error that is a power of each width, a latency linear in MACs."""
    lab = LawLab(bench)
    trials = bench.surrogate.collect(lab, count, seed=0, say=lambda line: None)
    return {"space": SPACE.to_dict(), "dense_accuracy": 0.95, "trials": trials}


class LawLab(FakeLab):
    """log(1 - accuracy) is linear in log kept, latency in kept and in products of neighbours."""

    def figures(self, plan: PruningPlan) -> Any:
        kept = 1.0 - np.array(self.removed(plan))
        latency = float(0.2 + 0.02 * kept.sum() + 0.1 * (kept[:-1] * kept[1:]).sum())
        return self.bench.lab.Figures(
            latency_ms=0.05 * latency, relative_latency=latency, macs=1, params=1, compression_x=1.0
        )

    def stages(self, trial: Any) -> Iterator[Any]:
        logs = np.log(1.0 - np.array(self.removed(trial.plan)))
        for rung, epochs, base in ((2, 2.0, -2.0), (None, 4.0, -3.0)):
            error = math.exp(base - float((logs * np.linspace(0.05, 0.2, len(logs))).sum()))
            yield self.bench.lab.Stage(rung=rung, epochs=epochs, accuracy=1.0 - error)


def test_a_surrogate_follows_a_law_it_was_fitted_to_and_knows_its_own_front(bench: Any) -> None:
    lab = bench.surrogate.SurrogateLab(table(bench))
    assert lab.held_out["held_out"] == 20
    for part in ("iteration 2", "end"):
        assert lab.held_out[part]["rms_pp"] < 0.05 * lab.held_out[part]["spread_pp"]
    assert lab.held_out["latency"]["rms_relative"] < 0.01
    truth, plan = LawLab(bench), SPACE.plan(SPACE.uniform(0.6))
    trial = bench.lab.Trial(plan=plan, seed=0)
    for told, true in zip(lab.stages(trial), truth.stages(trial), strict=True):
        assert (told.rung, told.epochs) == (true.rung, true.epochs)
        assert told.accuracy == pytest.approx(true.accuracy, abs=2e-3)
    assert lab.figures(plan).relative_latency == pytest.approx(truth.figures(plan).relative_latency, rel=0.02)
    assert lab.figures(plan).compression_x > 2.0
    points = lab.every_point()
    assert len(points) == math.prod(len(d.sparsities) for d in SPACE.dimensions)
    ceiling = bench.score.volume(points, lab.dense_accuracy)
    played = bench.lab.play(lab, bench.methods.METHODS["random"](lab, 0), epochs=80.0)
    found = bench.score.volume([(p.accuracy, p.relative_latency) for p in played.points], lab.dense_accuracy)
    assert 0.0 < found <= ceiling
    with pytest.raises(UserError, match="by ADMM only, not by 'l1'"):
        next(lab.stages(bench.lab.Trial(plan=plan, seed=0, how="l1")))


def test_a_table_is_written_with_its_command_and_read_back_alike(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "table.json"
    monkeypatch.setattr(bench.surrogate, "TABLE", path)
    known = table(bench, 20)
    bench.surrogate.write_table(FakeLab(bench), known["trials"], command="the command", conditions={"a": [1]})
    content = json.loads(path.read_text())
    assert (content["command"], content["conditions"], content["trials"]) == (
        "the command",
        {"a": [1]},
        known["trials"],
    )
    assert content["held_out"] == bench.surrogate.SurrogateLab.read(path).held_out
    assert len(path.read_text().splitlines()) < 300


def test_a_table_that_is_small_damaged_or_gone_is_refused(bench: Any, tmp_path: Path) -> None:
    whole = table(bench, 20)
    with pytest.raises(UserError, match="15 trials are too few"):
        bench.surrogate.SurrogateLab({**whole, "trials": whole["trials"][:15]})
    for content in ({"space": []}, {**whole, "trials": [{"stages": 3}]}):
        with pytest.raises(UserError, match=r"cannot be read .* make it with --collect"):
            bench.surrogate.SurrogateLab(content)
    with pytest.raises(UserError, match=r"gone\.json: cannot be read"):
        bench.surrogate.SurrogateLab.read(tmp_path / "gone.json")


def test_trials_collected_are_distinct_and_drawn_by_the_seed_alone(bench: Any) -> None:
    drawn = [table(bench, 40)["trials"] for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert len({json.dumps(trial["params"]) for trial in drawn[0]}) == 40
    steps = [trial["params"]["conv7/filter"] for trial in drawn[0]]
    assert set(steps) == set(range(6))  # uniform over the steps: each of six is drawn in forty


def test_l1_takes_the_weakest_filters_of_each_layer_as_many_as_the_plan_says(bench: Any) -> None:
    torch.manual_seed(0)
    dense = bench.task.SmallNet().eval()
    fake = SimpleNamespace(dense=dense, task=SimpleNamespace(example_input=torch.zeros(1, 1, 14, 14)))
    for sparsity in (0.25, 0.5, 0.75, 0.9):
        plan = SPACE.plan(SPACE.uniform(sparsity))
        small = bench.l1.l1_pruned(fake, plan)
        widths = [small.get_submodule(f"conv{i}").weight.shape[0] for i in range(1, 8)]
        assert widths == bench.task.kept_widths(plan)
        norms = dense.conv1.weight.abs().flatten(1).sum(1)
        strongest = norms.topk(widths[0]).indices.sort().values
        assert torch.equal(small.conv1.weight, dense.conv1.weight[strongest])


@pytest.mark.slow
@pytest.mark.data
def test_a_trial_is_trained_once_goes_on_where_it_was_left_and_differs_by_seed(bench: Any, tmp_path: Path) -> None:
    data = real_data("mnist", SOURCE)
    torch.set_num_threads(1)
    size = bench.real.Size(train=200, val=200, dense_epochs=1, iterations=2, finetune=1, longer=2)
    lab = bench.real.RealLab(size, data, tmp_path)
    plan = lab.space.plan(lab.space.uniform(0.5))
    trial = bench.lab.Trial(plan=plan, seed=0)
    first = next(lab.stages(trial))
    assert (first.rung, lab.rungs) == (1, (2,))
    whole = list(lab.stages(trial))
    assert whole[0] == first
    assert [stage.rung for stage in whole] == [1, 2, None]
    assert whole[-1].epochs >= 3.0
    again = bench.real.RealLab(size, data, tmp_path)
    again._trained = lambda trial: pytest.fail("it was trained again")
    assert list(again.stages(trial)) == whole
    figures = again.figures(plan)
    assert figures == lab.figures(plan)
    assert figures.compression_x > 2.0
    (l1,) = [list(lab.stages(bench.lab.Trial(plan=plan, seed=0, how="l1")))]
    assert [(stage.rung, stage.epochs) for stage in l1] == [(2, 2.0), (None, 3.0)]
    *_, long = lab.stages(bench.lab.Trial(plan=plan, seed=0, how="long"))
    assert 6.0 <= long.epochs < 8.0
    other = list(lab.stages(bench.lab.Trial(plan=plan, seed=1)))
    assert [s.accuracy for s in other] != [s.accuracy for s in whole]
    with pytest.raises(UserError, match="holds trials of another job"):
        bench.real.RealLab(bench.real.QUICK, data, tmp_path)


def run(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(FOLDER / "search_quality.py"), *options],
        capture_output=True,
        text=True,
        timeout=800,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


@pytest.mark.slow
def test_the_surrogate_compares_samplers_and_claims_nothing() -> None:
    done = run("--mode", "surrogate", "--seeds", "0", "1", "--epochs", "60")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert set(result) == {"claim", "figure", "unit", "bar", "holds", "details"}
    assert (result["bar"], result["holds"]) == (0.5, False)
    details = result["details"]
    assert set(details["hypervolume"]) == {"ours", "TPE", "NSGA-II", "random", "uniform ADMM"}
    assert all(value <= details["ceiling"] for values in details["hypervolume"].values() for value in values)
    assert result["figure"] == details["closed"]
    assert details["held_out"]["end"]["rms_pp"] < details["held_out"]["end"]["spread_pp"]


@pytest.mark.slow
def test_without_the_data_it_says_where_they_are_from(tmp_path: Path) -> None:
    done = run("--quick", "--data", str(tmp_path / "none"))
    assert done.returncode == 2
    assert "skipped:" in done.stdout
    assert SOURCE in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--quick", "--record"), "full benchmark only"),
        (("--mode", "surrogate", "--record"), "full benchmark only"),
        (("--collect", "0"), "at least 1"),
        (("--epochs", "nan"), "above 0"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: tuple[str, ...], said: str) -> None:
    done = run(*options)
    assert done.returncode == 2
    assert said in done.stderr
