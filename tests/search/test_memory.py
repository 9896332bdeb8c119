"""Whose turn it is: a plan of the front trained on, where that should add most, and never one that was."""

from __future__ import annotations

import random
from collections.abc import Mapping

import pytest

from search.memory import AGAIN, FIRST, LONGEST_AGAIN, Memory
from search.sampler import Proposal
from tests.search.fabricated import SPACE, result_of

NAMES = [d.name for d in SPACE.dimensions]


def _told(memory: Memory, number: int, steps: tuple[int, ...], accuracy: float, speedup: float, **more: float) -> None:
    params = dict(zip(NAMES, steps, strict=True))
    result = result_of(
        Proposal(number=number, params=params, plan=SPACE.plan(params)),
        accuracy=accuracy,
        speedup=speedup,
        speedup_low=speedup,
        epochs=5.0,
        **more,
    )
    memory.learn(result, "tpe", params, None)


@pytest.fixture
def memory() -> Memory:
    """A front of three plans: nearly dense, one that lost much, one that is barely faster; and some behind it."""
    made = Memory(SPACE, "tpe", 0.95, again=True)
    front = [((0, 0, 1), 0.95, 1.2), ((1, 1, 1), 0.93, 4.0), ((0, 1, 1), 0.9499, 1.25)]
    behind = [((2 + i // 4, 0, i % 4), 0.921, 1.1) for i in range(FIRST)]
    for number, (steps, accuracy, speedup) in enumerate([*front, *behind]):
        _told(made, number, steps, accuracy, speedup)
    return made


def _again(memory: Memory, seen: Mapping[tuple[int, ...], float] | None = None) -> tuple[str, dict[str, int], float]:
    def known(steps: Mapping[str, int], stretch: float) -> bool:
        return stretch <= (seen or {}).get(tuple(steps[n] for n in NAMES), 1.0)

    memory.shares()
    found = memory._again(known)
    assert found is not None
    return found


def test_it_is_the_plan_whose_accuracy_can_rise_most_where_that_counts(memory: Memory) -> None:
    source, steps, stretch = _again(memory)
    assert (source, tuple(steps[n] for n in NAMES), stretch) == (AGAIN, (1, 1, 1), 2.0)


def test_what_was_trained_on_already_is_left_to_others(memory: Memory) -> None:
    _, steps, _ = _again(memory, {(1, 1, 1): 2.0})
    assert tuple(steps[n] for n in NAMES) != (1, 1, 1)
    # with its figures known it goes on from there, and no further than the longest
    _told(memory, 50, (1, 1, 1), 0.94, 4.0, stretch=2.0)
    assert _again(memory, {(1, 1, 1): 2.0})[1:] != ({}, 2.0)
    _told(memory, 51, (1, 1, 1), 0.945, 4.0, stretch=LONGEST_AGAIN)
    _, steps, _ = _again(memory)
    assert tuple(steps[n] for n in NAMES) != (1, 1, 1)


def test_without_weights_to_go_on_with_it_is_nobodys_turn() -> None:
    plain = Memory(SPACE, "tpe", 0.95)
    for number in range(2 * FIRST):
        _told(plain, number, (number % 4, number // 4, 0), 0.93, 2.0)
    sources = {AGAIN}
    for seed in range(30):
        found = plain.propose(lambda steps, stretch: False, random.Random(seed))
        sources.add(found[0] if found is not None else "tpe")
    assert sources == {AGAIN, "tpe", "neighbour"}
    assert AGAIN not in plain.shares()
