"""Shares of the sources: equal at first, then after their gains, each with its floor, whatever the history."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.shares import FLOOR, pick, shares

SOURCES = ("tpe", "neighbour")
HISTORY = st.lists(
    st.tuples(st.sampled_from([*SOURCES, "uniform"]), st.floats(0.0, 1.0), st.sampled_from([0.0, 1.0, 8.0])),
    max_size=50,
)


@given(HISTORY)
def test_shares_add_up_and_keep_the_floor(history: list[tuple[str, float, float]]) -> None:
    found = shares(SOURCES, history)
    assert set(found) == set(SOURCES)
    assert sum(found.values()) == pytest.approx(1.0)
    assert min(found.values()) >= FLOOR - 1e-12


@given(HISTORY)
def test_other_sources_change_nothing(history: list[tuple[str, float, float]]) -> None:
    assert shares(SOURCES, history) == shares(SOURCES, [h for h in history if h[0] != "uniform"])


def test_nothing_gained_is_told_apart_from_nobody() -> None:
    equal = {"tpe": 0.5, "neighbour": 0.5}
    assert shares(SOURCES, []) == equal
    assert shares(SOURCES, [("tpe", 0.0, 8.0)] * 10) == equal
    # one that was never tried is given the benefit of the doubt
    assert shares(SOURCES, [("tpe", 0.5, 8.0)]) == equal


def test_the_share_follows_the_gain_an_epoch_not_the_gain() -> None:
    dear, cheap = ("tpe", 0.2, 8.0), ("neighbour", 0.1, 1.0)
    found = shares(SOURCES, [dear, cheap] * 5)
    assert found["neighbour"] > found["tpe"] > FLOOR


def test_what_was_gained_long_ago_fades() -> None:
    early = [("tpe", 1.0, 1.0)] * 5
    late = [("tpe", 0.0, 1.0), ("neighbour", 0.02, 1.0)] * 150
    assert shares(SOURCES, early + late[:2])["tpe"] > 0.5
    assert shares(SOURCES, early + late)["neighbour"] > 0.5


def test_a_pick_is_as_often_as_its_share() -> None:
    rng = random.Random(0)
    drawn = [pick({"tpe": 0.2, "neighbour": 0.8}, rng) for _ in range(2000)]
    assert drawn.count("tpe") / 2000 == pytest.approx(0.2, abs=0.03)
