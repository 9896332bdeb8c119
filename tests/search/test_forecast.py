"""The forecast on a rig whose latencies are a line: exact where the line is, honest about its error, taken up again."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from evaluators import EvaluationError, Measurement, make_rig
from evaluators.work import aligned_macs
from search import calibration, forecast
from search.bench import Prepared
from search.forecast import make_forecast
from search.job_file import load_job
from search.shapes_file import shapes_onnx
from tests.search.test_measure_command import measurement

SMALL = Path(__file__).parent / "small_task"


class CountingRig:
    """A tenth of a millisecond and as long as the MACs in blocks of 16; `wild` shakes it, by the size of the file."""

    name = "onnxruntime-cpu"
    stamp = staticmethod(make_rig("onnxruntime-cpu").stamp)
    wild = 0.0
    asked = 0

    def measure(self, candidate: bytes, reference: bytes, inputs: object = None, *, batch: int = 1) -> Measurement:
        CountingRig.asked += 1
        times = [
            (0.1 + aligned_macs(content, 16) / 1e6) * (1.0 + self.wild * (random.Random(content).random() - 0.5))
            for content in (candidate, reference)
        ]
        return measurement(times[0], times[1], self.stamp(batch))


EXPORTED: dict[tuple[str, int], bytes] = {}


def export(model: Any, groups: Any, plan: Any, example: Any, align: int, **options: Any) -> bytes:
    """`shapes_onnx`, each plan of the small job once: seconds each, and the same for all tests that share it."""
    key = (plan.digest(), align)
    if key not in EXPORTED:
        EXPORTED[key] = shapes_onnx(model, groups, plan, example, align, **options)
    return EXPORTED[key]


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Prepared]:
    (tmp_path / "small.py").write_text((SMALL / "small.py").read_text())
    (tmp_path / "job.yaml").write_text((SMALL / "job.yaml").read_text())
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(calibration, "shapes_onnx", export)
    monkeypatch.setattr("search.alignment.make_rig", lambda name, **options: CountingRig())
    monkeypatch.setattr(CountingRig, "wild", 0.0)
    monkeypatch.setattr(CountingRig, "asked", 0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Prepared.of(load_job(tmp_path / "job.yaml"))
    torch.set_num_threads(threads)
    sys.modules.pop("small", None)


def drawn(prepared: Prepared, seed: int) -> dict[str, int]:
    rng = random.Random(seed)
    return {d.name: rng.randrange(len(d.sparsities)) for d in prepared.profile.space.dimensions}


def test_a_rig_that_is_a_line_is_forecast_exactly(prepared: Prepared) -> None:
    found, why = make_forecast(prepared)
    assert why == ""
    assert found is not None
    assert found.max_error < 1e-6
    rig, space = CountingRig(), prepared.profile.space
    dense = calibration.export_plan(prepared, space.plan({d.name: 0 for d in space.dimensions}))
    for seed in range(4):
        params = drawn(prepared, seed)
        file = calibration.export_plan(prepared, space.plan(params))
        real = rig.measure(file, dense).speedup
        assert found.speedup(params) == pytest.approx(real, rel=1e-6)
        assert found.relative(params) == pytest.approx(found.predictor.predict(file), rel=1e-9)
        assert found.safe_speedup(params) <= found.speedup(params)
    assert [p.name for p in found.points][:3] == ["dense", "middle", "fastest"]
    assert found.to_dict()["predictor"]["count"] == len(found.points) >= 5


def test_a_rig_that_shakes_widens_the_margin(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CountingRig, "wild", 0.2)
    found, _ = make_forecast(prepared)
    assert found is not None
    assert found.inner_error is not None
    assert 0.01 < found.margin == found.inner_error <= found.max_error
    params = drawn(prepared, 1)
    assert found.safe_speedup(params) == pytest.approx(found.speedup(params) / (1.0 + found.margin))


def test_figures_are_kept_and_taken_up(prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, said = tmp_path / "forecast.json", list[str]()
    real, seen = forecast.measured_networks, list[str]()

    def stops(*arguments: Any, **options: Any) -> Iterator[Any]:
        for network in real(*arguments, **options):
            if len(seen) == 3:
                raise KeyboardInterrupt
            seen.append(network.name)
            yield network

    monkeypatch.setattr(forecast, "measured_networks", stops)
    with pytest.raises(KeyboardInterrupt):
        make_forecast(prepared, path=path)
    monkeypatch.setattr(forecast, "measured_networks", real)
    first, _ = make_forecast(prepared, path=path, say=said.append)
    assert not any(name in line.rpartition(": ")[2] for line in said for name in seen)
    assert said
    before, said = CountingRig.asked, list[str]()
    again, _ = make_forecast(prepared, path=path, say=said.append)
    assert first is not None
    assert again is not None
    assert (again.points, again.predictor) == (first.points, first.predictor)
    assert (CountingRig.asked, said) == (before, [])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "not JSON, perhaps torn"),
        ('{"schema": 3}', "its schema is 3, not 1"),
        ('{"schema": 1, "key": "another"}', "it is of another space, network or device"),
        ('{"schema": 1, "key": KEY}', "not what was measured: KeyError: 'points'"),
        ('{"schema": 1, "key": KEY, "points": [3]}', "not what was measured: TypeError"),
        ('{"schema": 1, "key": KEY, "points": [{"name": "dense", "plan": "x", "relative": -1}]}', "not positive and"),
    ],
)
def test_a_damaged_or_foreign_file_is_measured_again_in_one_line(
    prepared: Prepared, tmp_path: Path, content: str, says: str
) -> None:
    path, said = tmp_path / "forecast.json", list[str]()
    path.write_text(content.replace("KEY", f'"{forecast._key(prepared)}"'))
    found, _ = make_forecast(prepared, path=path, say=said.append)
    assert found is not None
    assert says in said[0]
    assert said[0].endswith(": measured again")
    assert "\n" not in said[0]


def test_where_there_is_none_the_reason_is_told(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    int8 = replace(prepared, job=prepared.job.model_copy(update={"quantize": "int8"}))
    assert make_forecast(int8) == (
        None,
        "no forecast of latency: files are quantised to int8, which no predictor was made for",
    )

    def fails(*arguments: Any, **options: Any) -> Iterator[Any]:
        raise EvaluationError("this width cannot be traced")
        yield

    with monkeypatch.context() as patch:
        patch.setattr(forecast, "measured_networks", fails)
        assert make_forecast(prepared) == (None, "no forecast of latency: this width cannot be traced")
    monkeypatch.setattr(CountingRig, "wild", 1.9)
    found, why = make_forecast(prepared)
    assert found is None
    assert "no forecast of latency: a line in the work errs by " in why
    assert "\n" not in why


def test_nothing_is_exported_for_an_answer(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = make_forecast(prepared)
    assert found is not None
    monkeypatch.setattr(onnx, "load_model_from_string", None)
    monkeypatch.setattr(torch.nn.Module, "__call__", None)
    for seed in range(200):
        assert found.relative(drawn(prepared, seed)) > 0.0
