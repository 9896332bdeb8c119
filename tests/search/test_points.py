"""A user's own plans: read, rounded to the space, or refused in one line before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.errors import UserError
from search.points import read_points
from search.space import Space
from tests.search.fabricated import MIXED, SPACE

HALF = {"conv1": {"filter": 0.5}, "fc": {"channel": 0.4}}


def _file(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "plans.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize(
    "content",
    [HALF, [HALF], {"plans": [HALF, HALF]}, {"requested": HALF, "kept": {}, "schema": 1, "precision": "fp32"}],
    ids=["plan", "list", "plans", "plan.json"],
)
def test_every_form_of_the_file(content: Any, tmp_path: Path) -> None:
    steps = {"conv1/filter": 2, "conv2/filter": 0, "fc/channel": 2}
    assert read_points(_file(tmp_path, content), SPACE) == [steps]


@given(steps=st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 4)), more=st.floats(0.0, 0.049))
def test_a_plan_is_rounded_to_the_space_and_never_removes_more(
    steps: tuple[int, int, int], more: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    params = dict(zip((d.name for d in SPACE.dimensions), steps, strict=True))
    plan = SPACE.plan(params).to_dict()
    asked = {layer: {s: min(v + more, 0.99) for s, v in of.items()} for layer, of in plan.items()}
    assert read_points(_file(tmp_path_factory.mktemp("points"), [asked]), SPACE) == [params]


def test_a_trials_plan_keeps_its_precision_where_both_are_searched(tmp_path: Path) -> None:
    recorded = {"requested": {"conv": {"filter": 0.5}}, "kept": {}, "precision": "int8"}
    assert read_points(_file(tmp_path, recorded), MIXED) == [{"conv/filter": 2, "precision": 1}]
    only = Space(MIXED.dimensions)
    assert read_points(_file(tmp_path, recorded), only) == [{"conv/filter": 2}]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ([], "it holds no plans"),
        ({"plans": {}}, "it holds no plans"),
        (3, "it holds no plans"),
        ([HALF, 3], "plan 2: a plan maps layers to sparsities, got 3"),
        ([{"conv1": {"filter": 1.5}}], "plan 1: layer 'conv1'"),
        ([{"conv1": {"fliter": 0.5}}], "plan 1: layer 'conv1'"),
        ([{"conv9": {"filter": 0.5}}], "plan 1: conv9/filter is not searched by this job; did you mean 'conv"),
        ([{"conv1": {"channel": 0.5}}], "conv1/channel is not searched by this job"),
    ],
)
def test_anything_else_is_one_line(content: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read_points(_file(tmp_path, content), SPACE)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"--points {tmp_path / 'plans.json'}")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_points(tmp_path / "none.json", SPACE)
