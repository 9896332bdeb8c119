"""What the dense network reads decides whether a measurement counts, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from evaluators import Measurement
from search.calm import FEW, LOOKS, Calm
from tests.search.test_budget import MEASURED

RIG = MEASURED.stamp.rig


def taken(dense_ms: float, speedup: float = 3.0) -> Measurement:
    return replace(
        MEASURED,
        dense_latency_ms=dense_ms,
        speedup=speedup,
        latency_ms=dense_ms / speedup,
        latency_low_ms=0.99 * dense_ms / speedup,
        latency_high_ms=1.01 * dense_ms / speedup,
    )


@pytest.fixture
def calm() -> Calm:
    return Calm.of([taken(1.3).to_dict(), taken(1.0).to_dict(), taken(1.2).to_dict()])


@pytest.mark.parametrize(
    ("dense", "looks", "decides"),
    [
        ([1.05], 1, 1.05),
        ([0.5], 1, 0.5),
        ([1.2, 1.09], 2, 1.09),
        ([1.5, 1.3, 1.4, 1.2, 1.25, 1.6], LOOKS, 1.2),
    ],
    ids=["calm", "calmer than ever", "calm the second time", "never calm"],
)
def test_it_is_measured_until_the_machine_is_calm_and_the_calmest_has_to_do(
    calm: Calm, dense: list[float], looks: int, decides: float
) -> None:
    answers, slept = iter([taken(ms) for ms in dense]), list[float]()
    assert calm.measured(lambda: next(answers), sleep=slept.append).dense_latency_ms == decides
    assert len(slept) == looks - 1
    assert next(answers, None) is None


def test_how_the_candidate_does_is_not_looked_at(calm: Calm) -> None:
    answers = iter([taken(1.05, speedup=0.1), taken(1.0, speedup=9.0)])
    assert calm.measured(lambda: next(answers)).speedup == 0.1


def test_of_another_device_nothing_is_known(calm: Calm) -> None:
    for name, other in (("device", "another processor"), ("threads", 2), ("runtime", "onnxruntime 0.1")):
        there = replace(taken(9.0), stamp=replace(MEASURED.stamp, **{name: other}))
        assert not calm.disturbed(there)
        assert calm.measured(lambda there=there: there) is there


def test_the_remark_has_both_figures(calm: Calm) -> None:
    assert "took 1.5 ms, and has taken 1 ms" in calm.remark(taken(1.5))


@pytest.mark.parametrize(
    "content", [{}, {"stamp": None}, {"stamp": {}}, {**MEASURED.to_dict(), "dense_latency_ms": None}]
)
def test_a_record_that_cannot_be_read_is_passed_over(content: dict[str, object]) -> None:
    assert not Calm.of([content]).known


def test_a_machine_that_is_never_calm_is_not_waited_for_each_time(calm: Calm) -> None:
    def looks(dense: list[float]) -> int:
        slept = list[float]()
        answers = iter([taken(ms) for ms in dense])
        calm.measured(lambda: next(answers), sleep=slept.append)
        return len(slept) + 1

    busy = [2.0] * 9
    assert [looks(busy), looks(busy), looks([2.0, 1.0]), looks(busy)] == [LOOKS, FEW, 2, LOOKS]
