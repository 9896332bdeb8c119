"""What every rig of modules must hold to: subclass `ModuleRigContract` and give it a rig."""

from __future__ import annotations

import json
import math
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from evaluators.measurement import CLOCKS, Measurement
from evaluators.module_form import PRECISIONS
from evaluators.module_lowering import TOLERANCES
from evaluators.rig import ModuleRig, make_module_rig, measures_modules, rig_names
from tests.contracts.rig_contract import assert_one_line


def network(width: int) -> nn.Module:
    """[n, 3, 8, 8] -> [n, 5], with statistics that training mode would change."""
    torch.manual_seed(width)
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(), nn.Linear(64 * width, 5)
    )


class ModuleRigContract:
    """Subclasses provide the fixture `rig`."""

    @pytest.fixture
    def rig(self) -> ModuleRig:
        raise NotImplementedError

    @pytest.fixture
    def dense(self) -> nn.Module:
        return network(32)

    @pytest.fixture
    def small(self) -> nn.Module:
        return network(4)

    @pytest.fixture
    def sample(self) -> Tensor:
        return torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    def test_is_a_known_rig_of_modules(self, rig: ModuleRig) -> None:
        assert isinstance(rig, ModuleRig)
        assert rig.name in rig_names()
        assert measures_modules(rig.name)
        assert type(make_module_rig(rig.name)) is type(rig)
        assert rig.precision in PRECISIONS

    def test_stamp_says_where_and_how(self, rig: ModuleRig) -> None:
        stamp = rig.stamp(3)
        assert (stamp.rig, stamp.batch) == (rig.name, 3)
        assert stamp.clock in CLOCKS
        assert rig.precision in stamp.provider
        assert all([stamp.device, stamp.isa, stamp.runtime, stamp.provider, stamp.platform])

    def test_figures_are_consistent_and_survive_json(
        self, rig: ModuleRig, dense: nn.Module, small: nn.Module, sample: Tensor
    ) -> None:
        result = rig.measure_modules(small, dense, sample)
        assert 0 < result.latency_low_ms <= result.latency_ms <= result.latency_high_ms
        assert 0 < result.speedup_low <= result.speedup <= result.speedup_high
        assert result.stamp == rig.stamp(1)
        assert Measurement.from_dict(json.loads(json.dumps(result.to_dict(), allow_nan=False))) == result

    def test_a_module_against_itself(self, rig: ModuleRig, small: nn.Module, sample: Tensor) -> None:
        assert math.isfinite(rig.measure_modules(small, small, sample).speedup)

    def test_one_sample_or_a_batch_of_them(self, rig: ModuleRig, small: nn.Module, sample: Tensor) -> None:
        for given in (sample, sample.repeat(4, 1, 1, 1)):
            assert rig.measure_modules(small, small, given, batch=4).stamp.batch == 4

    @pytest.mark.parametrize("batch", [0, -1, True, 1.5])
    def test_impossible_batch_is_refused(self, rig: ModuleRig, small: nn.Module, sample: Tensor, batch: Any) -> None:
        assert_one_line(lambda: rig.measure_modules(small, small, sample, batch=batch), "batch")

    def test_inputs_that_do_not_fit_are_refused(self, rig: ModuleRig, small: nn.Module, sample: Tensor) -> None:
        wrong: list[Any] = [sample[..., :7], sample[:, :2], sample.repeat(3, 1, 1, 1), torch.tensor(1.0), "text"]
        for given in wrong:
            assert_one_line(lambda given=given: rig.measure_modules(small, small, given, batch=2))

    def test_modules_stay_as_they_were(
        self, rig: ModuleRig, dense: nn.Module, small: nn.Module, sample: Tensor
    ) -> None:
        dense.train()
        before = {name: value.clone() for name, value in dense.state_dict().items()}
        threads, grad = torch.get_num_threads(), torch.is_grad_enabled()
        rig.measure_modules(small, dense, sample)
        rig.predictor(dense)(sample)
        assert dense.training
        assert (torch.get_num_threads(), torch.is_grad_enabled()) == (threads, grad)
        assert all(p.requires_grad and p.dtype == torch.float32 and not p.is_inference() for p in dense.parameters())
        assert all(torch.equal(value, before[name]) for name, value in dense.state_dict().items())

    def test_predictions_are_those_of_the_module(self, rig: ModuleRig, dense: nn.Module) -> None:
        predict = rig.predictor(dense.train())
        reference = dense.eval()
        for samples in (1, 7):
            x = torch.randn(samples, 3, 8, 8)
            with torch.no_grad():
                want = reference(x)
            got = predict(x)
            assert (got.shape, got.dtype, got.device.type) == (want.shape, torch.float32, "cpu")
            assert float((got - want).abs().max() / want.abs().max()) <= TOLERANCES[rig.precision]

    def test_a_module_that_breaks_off_is_one_line(self, rig: ModuleRig, small: nn.Module, sample: Tensor) -> None:
        class Broken(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                raise ValueError("not\ntoday")

        assert_one_line(lambda: rig.measure_modules(Broken(), small, sample), "not today")
        assert_one_line(lambda: rig.measure_modules(small, Broken(), sample), "not today")

    def test_an_onnx_file_is_sent_elsewhere(self, rig: Any) -> None:
        assert_one_line(lambda: rig.measure(Path("a.onnx"), b""), rig.name, "onnxruntime-")

    def test_works_in_another_thread(self, rig: ModuleRig, small: nn.Module, sample: Tensor) -> None:
        results: list[Measurement] = []
        worker = threading.Thread(target=lambda: results.append(rig.measure_modules(small, small, sample)))
        worker.start()
        worker.join()
        assert [result.stamp for result in results] == [rig.stamp(1)]
