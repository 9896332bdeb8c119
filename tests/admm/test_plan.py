"""Plans: frozen, one digest whatever the order, JSON in and out, and nothing but `PlanError` for bad input."""

from __future__ import annotations

import copy
import json
import math
import pickle
import random
from collections.abc import Mapping
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from admm.errors import PlanError, PruneError
from admm.plan import STRUCTURES, LayerPlan, PruningPlan

SPARSITIES = st.floats(0.0, 0.999999, allow_nan=False)
LAYERS = st.dictionaries(st.sampled_from(STRUCTURES), SPARSITIES)
#: Names as JSON knows them: any text, the lone half of a surrogate pair included.
NAMES = st.text(max_size=12)
PLANS = st.dictionaries(NAMES, LAYERS, max_size=6)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)


@settings(deadline=None)
@given(PLANS)
def test_a_plan_survives_json_with_one_digest(layers: dict[str, dict[str, float]]) -> None:
    plan = PruningPlan(layers)
    again = PruningPlan.from_json(plan.to_json())
    assert again == plan
    assert again.digest() == plan.digest()
    assert again.to_json() == plan.to_json()
    assert hash(again) == hash(plan)
    assert PruningPlan(plan.to_dict()) == PruningPlan(plan) == plan


@settings(deadline=None)
@given(PLANS, st.randoms(use_true_random=False))
def test_the_order_of_writing_does_not_count(layers: dict[str, dict[str, float]], rng: random.Random) -> None:
    def shuffled(mapping: Mapping[str, Any]) -> dict[str, Any]:
        items = list(mapping.items())
        rng.shuffle(items)
        return dict(items)

    other = PruningPlan(shuffled({name: shuffled(layer) for name, layer in layers.items()}))
    assert other == PruningPlan(layers)
    assert other.to_json() == PruningPlan(layers).to_json()
    assert list(other) == sorted(other)
    assert all(list(layer) == [s for s in STRUCTURES if s in layer] for layer in other.values())


@settings(deadline=None)
@given(PLANS, PLANS)
def test_digests_tell_different_plans_apart(a: dict[str, dict[str, float]], b: dict[str, dict[str, float]]) -> None:
    assert (PruningPlan(a) == PruningPlan(b)) == (PruningPlan(a).digest() == PruningPlan(b).digest())


def test_the_digest_is_a_recorded_one() -> None:
    plan = PruningPlan({"fc": {"unstructured": 0.9}, "conv1": {"shape": 0.6, "filter": 0.5}})
    assert plan.to_json() == '{"conv1":{"filter":0.5,"shape":0.6},"fc":{"unstructured":0.9}}'
    assert plan.digest() == "09d0999203b8a89a"
    assert PruningPlan().digest() == "44136fa355b3678a"


def test_zeros_and_empty_layers_ask_for_nothing() -> None:
    plan = PruningPlan({"a": {"filter": 0.0, "shape": 0.25}, "b": {"channel": 0}, "c": {}, "d": {"filter": 4e-7}})
    assert plan.to_dict() == {"a": {"shape": 0.25}}
    assert len(plan) == 1
    assert plan.sparsity("a", "shape") == 0.25
    assert plan.sparsity("a", "filter") == plan.sparsity("b", "channel") == plan.sparsity("z", "filter") == 0.0


def test_sparsities_are_kept_to_six_decimals() -> None:
    assert LayerPlan({"filter": 1 / 3})["filter"] == 0.333333
    assert LayerPlan({"filter": 1 / 3}) == LayerPlan({"filter": 0.3333334})
    assert hash(LayerPlan({"filter": 1 / 3})) == hash(LayerPlan({"filter": 0.333333}))


def test_a_plan_is_frozen_and_shares_nothing_with_what_it_was_made_of() -> None:
    layer = {"filter": 0.5}
    layers: dict[str, Any] = {"conv": layer}
    plan = PruningPlan(layers)
    layer["filter"] = 0.9
    layers["other"] = {"filter": 0.9}
    assert plan.to_dict() == {"conv": {"filter": 0.5}}
    plan.to_dict()["conv"]["filter"] = 0.1
    assert plan["conv"]["filter"] == 0.5
    with pytest.raises(FrozenInstanceError):
        plan.layers = {}  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        plan["conv"].sparsity = {}  # type: ignore[misc]
    with pytest.raises(TypeError):
        plan.layers["conv"] = LayerPlan()  # type: ignore[index]
    with pytest.raises(TypeError):
        plan["conv"].sparsity["filter"] = 0.9  # type: ignore[index]


@settings(deadline=None)
@given(PLANS)
def test_copies_and_pickles_are_equal(layers: dict[str, dict[str, float]]) -> None:
    plan = PruningPlan(layers)
    assert copy.deepcopy(plan) == copy.copy(plan) == plan
    assert pickle.loads(pickle.dumps(plan)) == plan


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ({"conv": {"filter": 1.0}}, ["'conv'", "[0, 1)", "1.0", "'filter'", "exclude"]),
        ({"conv": {"shape": 1.2}}, ["'conv'", "1.2", "'shape'"]),
        ({"conv": {"filter": -0.1}}, ["-0.1"]),
        ({"conv": {"filter": 0.9999996}}, ["0.9999996"]),
        ({"conv": {"filter": math.nan}}, ["nan"]),
        ({"conv": {"filter": math.inf}}, ["inf"]),
        ({"conv": {"filter": 10**400}}, ["1000000"]),
        ({"conv": {"filter": "0.5"}}, ["number", "'0.5'"]),
        ({"conv": {"filter": True}}, ["number", "True"]),
        ({"conv": {"filter": None}}, ["number", "None"]),
        ({"conv": {"rows": 0.5}}, ["'rows'", "filter, channel, shape, unstructured"]),
        ({"conv": {3: 0.5}}, ["unknown structure 3"]),
        ({"conv": 0.5}, ["'conv'", "maps structure to sparsity", "0.5"]),
        ({"conv": [("filter", 0.5)]}, ["maps structure"]),
        ({7: {"filter": 0.5}}, ["strings", "7"]),
        ([], ["list"]),
        ("conv", ["str"]),
        (None, ["NoneType"]),
    ],
)
def test_what_cannot_be_is_refused_by_name(layers: Any, words: list[str]) -> None:
    with pytest.raises(PlanError) as caught:
        PruningPlan(layers)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message
    assert isinstance(caught.value, PruneError)


HOSTILE = [
    "",
    "\x00",
    "{",
    '{"a": {"filter": 0.5}',
    "\ufeff{}",
    "[" * 200_000,
    '{"a":' * 100_000,
    '{"a":{"filter":' + "[" * 500 + "]" * 500 + "}}",
    '{"a":{"filter":' + "9" * 400 + "}}",
    '{"a":{"filter":' + "9" * 5000 + "}}",
    '{"a":{"filter":1e999}}',
    '{"a":{"filter":-Infinity}}',
    '{"a":{"filter":NaN}}',
    '{"a":{"filter":"' + "x" * 100_000 + '"}}',
    '{"' + "x" * 100_000 + '":{"filter":2}}',
    '{"a":{"' + "x" * 100_000 + '":0.5}}',
    '{"a\\nb":{"filter":2}}',
    '{"\\ud800":{"filter":2}}',
    '{"a":{"filter":0.5},"a":{"filter":0.25}}',
    '{"a":{"filter":0.5,"filter":0.25}}',
    '{"requested":[],"kept":{}}',
    '{"requested":{"a":{"filter":2}},"kept":{}}',
    '{"requested":{"a":{"filter":0.5}}}',
    "null",
    '"filter"',
    "17",
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_json_is_one_short_line(text: str) -> None:
    with pytest.raises(PlanError) as caught:
        PruningPlan.from_json(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@settings(deadline=None)
@given(JSON)
@example({"a": {"filter": {}}})
def test_any_json_is_a_plan_or_a_plan_error(content: Any) -> None:
    text = json.dumps(content)
    try:
        plan = PruningPlan.from_json(text)
    except PlanError:
        return
    assert isinstance(content, dict)
    assert all(0.0 < value < 1.0 for layer in plan.values() for value in layer.values())
    assert PruningPlan.from_json(plan.to_json()) == plan


@settings(deadline=None)
@given(st.text() | st.binary(max_size=30).map(lambda raw: raw.decode("latin-1")))
def test_any_text_is_a_plan_or_a_plan_error(text: str) -> None:
    try:
        plan = PruningPlan.from_json(text)
    except PlanError:
        return
    assert isinstance(json.loads(text), dict)
    assert PruningPlan.from_json(plan.to_json()) == plan


def test_the_plan_json_of_a_saved_run_is_taken_by_what_was_requested() -> None:
    plan = PruningPlan({"conv": {"filter": 0.5}, "kept": {"shape": 0.25}})
    saved = {
        "schema": 1,
        "requested": plan.to_dict(),
        "effective": {"conv": {"filter": 0.375}},
        "kept": {"conv": {"out": [0, 1]}},
        "digest": plan.digest(),
        "seed": 3,
    }
    assert PruningPlan.from_json(json.dumps(saved)) == plan
    # a network may well have a layer of such a name
    odd = PruningPlan({"requested": {"filter": 0.5}})
    assert PruningPlan.from_json(odd.to_json()) == odd
