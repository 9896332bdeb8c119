"""The forecast: finds a line through noise, and survives targets that are constant, tied, few or wild."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.dominance import Figures
from search.judge import Judge
from search.neighbours import Known
from search.ridge import Features, Line
from search.space import Dimension, Space

SPACE = Space(
    tuple(Dimension(layer=f"l{i}", structure="filter", sparsities=(0.0, 0.2, 0.4, 0.6, 0.8)) for i in range(6))
)
FEATURES = Features(SPACE)


def plans(count: int, seed: int = 0) -> list[dict[str, int]]:
    rng = np.random.default_rng(seed)
    return [{d.name: int(rng.integers(5)) for d in SPACE.dimensions} for _ in range(count)]


def kept_log(plan: dict[str, int]) -> float:
    """A line in the features: the first layer counts four times."""
    removed = [d.sparsities[plan[d.name]] for d in SPACE.dimensions]
    return sum((4.0 if i == 0 else 1.0) * math.log(1.0 - s) for i, s in enumerate(removed))


def test_features_are_the_logs_of_what_is_kept() -> None:
    row = FEATURES.of([dict.fromkeys((d.name for d in SPACE.dimensions), 0) | {"l2/filter": 4}])[0]
    assert row.shape == (14,)
    assert row[2] == pytest.approx(-math.log(0.2))
    assert row[8] == pytest.approx(math.log(0.2) ** 2)
    assert np.count_nonzero(row) == 4


def test_a_line_is_found_from_fewer_trials_than_it_has_coefficients_and_better_from_more() -> None:
    rng, unseen = np.random.default_rng(1), plans(200, seed=9)
    truth = np.asarray([kept_log(p) for p in unseen])
    errors = {}
    for count in (10, 200):
        drawn = plans(count)
        line = Line(FEATURES.of(drawn), np.asarray([kept_log(p) for p in drawn]) + 0.05 * rng.standard_normal(count))
        errors[count] = float(np.sqrt(np.mean((line.at(FEATURES.of(unseen), line.draw()) - truth) ** 2)))
    assert errors[10] < 0.8 * truth.std()
    assert errors[200] < 0.05


def test_draws_scatter_around_the_mean_and_less_the_more_is_known() -> None:
    rng, unseen = np.random.default_rng(2), FEATURES.of(plans(20, seed=9))
    spreads = []
    for count in (12, 300):
        drawn = plans(count)
        target = np.asarray([kept_log(p) for p in drawn]) + 0.1 * rng.standard_normal(count)
        line = Line(FEATURES.of(drawn), target)
        seen = np.stack([line.at(unseen, line.draw(rng.standard_normal(14))) for _ in range(300)])
        assert np.allclose(seen.mean(axis=0), line.at(unseen, line.draw()), atol=5 * seen.std(axis=0).max() / 300**0.5)
        spreads.append(float(seen.std(axis=0).mean()))
    assert spreads[1] < 0.3 * spreads[0]


@given(
    st.lists(st.sampled_from([0.0, 1.0, 1.0, -3.0, 1e6]), min_size=1, max_size=20),
    st.booleans(),
)
def test_any_finite_targets_give_finite_forecasts(targets: list[float], same: bool) -> None:
    drawn = [plans(1)[0]] * len(targets) if same else plans(len(targets))
    line = Line(FEATURES.of(drawn), np.asarray(targets))
    normals = np.random.default_rng(0).standard_normal(14)
    assert np.isfinite(line.at(FEATURES.of(plans(5, seed=3)), line.draw(normals))).all()


def test_a_constant_target_is_forecast_everywhere() -> None:
    drawn = plans(30)
    line = Line(FEATURES.of(drawn), np.full(30, 0.25))
    assert line.at(FEATURES.of(plans(5, seed=3)), line.draw(np.ones(14))) == pytest.approx([0.25] * 5)


def _judge(over: float | None = None) -> tuple[Judge, list[Known]]:
    drawn = plans(60)
    known = [
        Known(
            steps=p,
            figures=Figures(accuracy=0.95 - 0.01 * sum(p.values()) / 3, speedup=math.exp(-kept_log(p))),
            excess=None if over is None else over * math.exp(kept_log(p)) - 1.0,
        )
        for p in drawn
    ]
    rows = FEATURES.of(drawn)
    excesses = [k.excess for k in known if k.excess is not None]
    return Judge(FEATURES, known, rows, rows[: len(excesses)], excesses, 0.9, np.random.default_rng(0)), known


def test_scores_are_higher_for_what_the_truth_prefers() -> None:
    judge, known = _judge()
    cheap = dict.fromkeys((d.name for d in SPACE.dimensions), 0) | {"l0/filter": 4}
    dear = dict.fromkeys((d.name for d in SPACE.dimensions), 0) | {"l3/filter": 4}
    scores = judge.scores([cheap, dear, dict.fromkeys((d.name for d in SPACE.dimensions), 4)])
    assert scores[0] > scores[1] >= scores[2] == 0.0
    assert (judge.scores([k.steps for k in known]) >= 0.0).all()


def test_with_a_budget_plans_over_it_score_nothing_and_those_far_under_it_little() -> None:
    free, _ = _judge()
    bound, _ = _judge(over=math.exp(4.0 * math.log(5.0)))  # in budget: the first layer at 0.8 and more
    first = dict.fromkeys((d.name for d in SPACE.dimensions), 0)
    just, over = first | {"l0/filter": 4, "l1/filter": 1}, first | {"l0/filter": 3}
    assert free.scores([over])[0] > 0.0
    assert bound.scores([over])[0] == 0.0
    assert bound.scores([just])[0] > 0.0


def test_a_plan_that_begins_with_better_weights_is_expected_to_show_more() -> None:
    """One plan was trained on, and is above its forecast by two points: so is what only removes more than it."""
    drawn = plans(60)
    known = [
        Known(steps=p, figures=Figures(accuracy=0.95 - 0.01 * sum(p.values()) / 3, speedup=math.exp(-kept_log(p))))
        for p in drawn
    ]
    base = dict.fromkeys((d.name for d in SPACE.dimensions), 1)
    better = Known(steps=base, figures=Figures(accuracy=0.97, speedup=math.exp(-kept_log(base))), stretch=2.0)
    every = [*known, better]

    def judge(inherit: bool) -> Judge:
        rows = FEATURES.of([k.steps for k in every])
        rng = np.random.default_rng(0)
        return Judge(FEATURES, every, rows, rows[:0], [], 0.9, rng, inherit=inherit)

    deeper, other = base | {"l0/filter": 2}, dict.fromkeys(base, 0) | {"l0/filter": 2}
    lifted, plain = judge(inherit=True), judge(inherit=False)
    assert lifted._lift([deeper, other])[0] == pytest.approx(
        0.97 - float(lifted._accuracy(FEATURES.of([base]))[0]), abs=1e-9
    )
    assert plain._lift([deeper, other]).tolist() == [0.0, 0.0]
