from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import evaluators
from evaluators.measurement import CLOCKS, DeviceStamp, Measurement

positive = st.floats(min_value=0, exclude_min=True, allow_nan=False, allow_infinity=False)
waited = st.none() | st.floats(min_value=0, allow_nan=False, allow_infinity=False)
stamps = st.builds(
    DeviceStamp,
    **{name: st.text() for name in ("rig", "device", "isa", "runtime", "provider", "platform")},
    threads=st.integers(1, 64),
    batch=st.integers(1, 64),
    clock=st.sampled_from(CLOCKS),
)
measurements = st.builds(
    Measurement,
    **{
        f.name: positive
        for f in dataclasses.fields(Measurement)
        if f.name.startswith(("latency", "dense", "speedup", "seconds"))
    },
    **dict.fromkeys(("wall_p50_ms", "wall_p95_ms", "wall_min_ms"), waited),
    pairs=st.integers(1, 41),
    rejected=st.integers(0, 1000),
    converged=st.booleans(),
    stamp=stamps,
)


@given(measurements)
@settings(max_examples=60, deadline=None)
def test_json_round_trip_is_exact(measurement: Measurement) -> None:
    text = json.dumps(measurement.to_dict(), allow_nan=False)
    assert Measurement.from_dict(json.loads(text)) == measurement


@pytest.fixture
def content() -> dict[str, Any]:
    figures = {f.name: 1.0 for f in dataclasses.fields(Measurement)}
    stamp = {f.name: "x" for f in dataclasses.fields(DeviceStamp)}
    return {
        **figures,
        "pairs": 9,
        "rejected": 0,
        "converged": True,
        "stamp": {**stamp, "threads": 1, "batch": 1, "clock": "wall"},
    }


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("latency_ms", math.nan),
        ("latency_ms", 0.0),
        ("latency_ms", "1.0"),
        ("latency_ms", True),
        ("latency_ms", None),
        ("speedup", -1.0),
        ("speedup_high", math.inf),
        ("wall_p50_ms", math.nan),
        ("pairs", 0),
        ("pairs", 1.5),
        ("rejected", -1),
        ("converged", 1),
        ("seconds", -1.0),
        ("stamp", "here"),
        ("nobody", 1),
    ],
)
def test_impossible_contents_are_refused_by_name(content: dict[str, Any], key: str, value: object) -> None:
    assert Measurement.from_dict(content).latency_ms == 1.0
    with pytest.raises(ValueError, match=key if key != "stamp" else "DeviceStamp"):
        Measurement.from_dict({**content, key: value})


@pytest.mark.parametrize(
    ("key", "value"), [("clock", "sundial"), ("threads", 0), ("batch", "1"), ("device", None), ("nobody", 1)]
)
def test_impossible_stamps_are_refused_by_name(content: dict[str, Any], key: str, value: object) -> None:
    with pytest.raises(ValueError, match=key):
        DeviceStamp.from_dict({**content["stamp"], key: value})


def test_a_missing_key_is_named(content: dict[str, Any]) -> None:
    del content["speedup"]
    with pytest.raises(ValueError, match="missing key 'speedup'"):
        Measurement.from_dict(content)


def test_figures_are_frozen(content: dict[str, Any]) -> None:
    measurement = Measurement.from_dict(content)
    with pytest.raises(dataclasses.FrozenInstanceError):
        measurement.latency_ms = 2.0  # type: ignore[misc]


def test_every_public_name_can_be_imported() -> None:
    assert sorted(evaluators.__all__) == sorted(evaluators._MODULE_OF)
    assert all(getattr(evaluators, name) is not None for name in evaluators.__all__)
    assert dir(evaluators) == evaluators.__all__
    with pytest.raises(AttributeError, match="nobody"):
        evaluators.nobody  # noqa: B018


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = ("torch", "onnx", "onnxruntime", "ray", "optuna", "admm", "search")
    code = (
        "import sys, evaluators; from evaluators import Measurement, RigError; import evaluators.rig;"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
