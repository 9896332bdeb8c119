"""What every latency rig must hold to: subclass `RigContract`, give it a rig and two models."""

from __future__ import annotations

import json
import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluators.measurement import CLOCKS, Measurement
from evaluators.rig import LatencyRig, RigError, rig_names


class RigContract:
    """Subclasses provide the fixtures `rig`, `dense` and `small` (ONNX files of one input, batch free), `inputs`."""

    @pytest.fixture
    def rig(self) -> LatencyRig:
        raise NotImplementedError

    @pytest.fixture
    def dense(self) -> Path:
        raise NotImplementedError

    @pytest.fixture
    def small(self) -> Path:
        raise NotImplementedError

    @pytest.fixture
    def inputs(self) -> dict[str, np.ndarray]:
        """One sample that fits both models."""
        raise NotImplementedError

    def test_is_a_known_rig(self, rig: LatencyRig) -> None:
        assert isinstance(rig, LatencyRig)
        assert rig.name in rig_names()

    def test_stamp_says_where_and_how(self, rig: LatencyRig) -> None:
        stamp = rig.stamp(3)
        assert stamp.rig == rig.name
        assert stamp.batch == 3
        assert stamp.clock in CLOCKS
        assert all([stamp.device, stamp.isa, stamp.runtime, stamp.provider, stamp.platform])

    def test_figures_are_consistent(self, rig: LatencyRig, dense: Path, small: Path) -> None:
        result = rig.measure(small, dense)
        assert 0 < result.latency_low_ms <= result.latency_ms <= result.latency_high_ms
        assert 0 < result.speedup_low <= result.speedup <= result.speedup_high
        assert result.pairs >= 1
        assert result.stamp == rig.stamp(1)
        assert result.seconds > 0

    def test_measurement_survives_json(self, rig: LatencyRig, dense: Path, small: Path) -> None:
        result = rig.measure(small, dense)
        assert Measurement.from_dict(json.loads(json.dumps(result.to_dict(), allow_nan=False))) == result

    def test_bytes_and_files_are_both_taken(self, rig: LatencyRig, dense: Path, small: Path) -> None:
        assert rig.measure(small.read_bytes(), dense).stamp == rig.measure(small, dense.read_bytes()).stamp

    def test_a_model_against_itself(self, rig: LatencyRig, small: Path) -> None:
        result = rig.measure(small, small)
        assert math.isfinite(result.speedup)
        assert result.dense_latency_ms > 0

    def test_given_inputs_and_batch(
        self, rig: LatencyRig, dense: Path, small: Path, inputs: dict[str, np.ndarray]
    ) -> None:
        four = {name: np.repeat(value, 4, axis=0) for name, value in inputs.items()}
        assert rig.measure(small, dense, four, batch=4).stamp.batch == 4
        assert rig.measure(small, dense, inputs).stamp.batch == 1

    def test_inputs_that_do_not_fit_are_refused(
        self, rig: LatencyRig, dense: Path, small: Path, inputs: dict[str, np.ndarray]
    ) -> None:
        name, value = next(iter(inputs.items()))
        wrong = [
            {},
            {**inputs, "nobody": value},
            {name: value.astype(np.int16)},
            {name: value[..., None]},
            {name: np.concatenate([value, value])},
        ]
        for given in wrong:
            assert_one_line(lambda given=given: rig.measure(small, dense, given))

    @pytest.mark.parametrize("batch", [0, -1, True, 1.5])
    def test_impossible_batch_is_refused(self, rig: LatencyRig, dense: Path, small: Path, batch: Any) -> None:
        assert_one_line(lambda: rig.measure(small, dense, batch=batch), "batch")

    def test_broken_models_are_refused(
        self, rig: LatencyRig, dense: Path, small: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        whole = small.read_bytes()
        for broken in (b"", b"not ONNX at all", whole[: len(whole) // 2], b"\xff" * 4096):
            assert_one_line(lambda broken=broken: rig.measure(broken, dense))
            assert_one_line(lambda broken=broken: rig.measure(small, broken))
        assert_one_line(lambda: rig.measure(tmp_path / "absent.onnx", dense), "absent.onnx")
        assert_one_line(lambda: rig.measure(tmp_path, dense), tmp_path.name)
        assert capfd.readouterr() == ("", "")

    def test_works_in_another_thread(self, rig: LatencyRig, dense: Path, small: Path) -> None:
        results: list[Measurement] = []
        worker = threading.Thread(target=lambda: results.append(rig.measure(small, dense)))
        worker.start()
        worker.join()
        assert [result.stamp for result in results] == [rig.stamp(1)]


def assert_one_line(call: object, *words: str) -> None:
    """`call` raises `RigError` with one line that holds all `words`."""
    assert callable(call)
    with pytest.raises(RigError) as caught:
        call()
    message = str(caught.value)
    assert message
    assert "\n" not in message
    for word in words:
        assert word in message
