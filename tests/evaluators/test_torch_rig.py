"""The `torch-cpu` rig: the contract in both precisions, its clock and pinning, and what it refuses."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor, nn

from evaluators.errors import RigUnavailable
from evaluators.host import allowed_cores
from evaluators.rig import ModuleRig, make_module_rig, make_rig
from evaluators.timing import TimingSettings
from evaluators.torch_rig import TorchCpuRig
from tests.contracts.module_rig_contract import ModuleRigContract
from tests.contracts.rig_contract import assert_one_line

QUICK = TimingSettings(min_pairs=1, max_pairs=1)


class TestTorchCpu(ModuleRigContract):
    @pytest.fixture(params=["fp32", "bf16"])
    def rig(self, request: pytest.FixtureRequest) -> ModuleRig:
        return TorchCpuRig(precision=request.param, settings=TimingSettings(max_pairs=9))


class Noted(nn.Module):
    """Notes how it is called."""

    seen: list[tuple[torch.dtype, tuple[int, ...], int, int, bool]]

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)
        self.seen = []

    def __deepcopy__(self, memo: object) -> Noted:
        made = Noted()
        made.seen = self.seen
        return made

    def forward(self, x: Tensor) -> Tensor:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        self.seen.append((x.dtype, tuple(x.shape), torch.get_num_threads(), cores, torch.is_inference_mode_enabled()))
        y: Tensor = self.layer(x)
        return y


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_one_thread_is_pinned_and_its_cpu_time_decides(precision: str) -> None:
    noted = Noted()
    before = torch.get_num_threads()
    stamp = TorchCpuRig(precision=precision, settings=QUICK).measure_modules(noted, noted, torch.ones(1, 4), batch=3)
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    assert set(noted.seen) == {(dtype, (3, 4), 1, 1, True)}
    assert torch.get_num_threads() == before
    assert stamp.stamp.clock == "thread_cpu"
    assert stamp.stamp.provider == f"{precision}, eager"


@pytest.mark.skipif(len(allowed_cores()) < 2, reason="one core only")
def test_several_threads_are_timed_by_the_wall() -> None:
    noted = Noted()
    result = TorchCpuRig(threads=2, settings=QUICK).measure_modules(noted, noted, torch.ones(1, 4))
    assert {(threads, cores) for _, _, threads, cores, _ in noted.seen} == {(2, len(allowed_cores()))}
    assert (result.stamp.clock, result.stamp.threads) == ("wall", 2)


def test_what_it_cannot_do_is_one_line() -> None:
    assert_one_line(lambda: make_rig("torch-cpu", precision="fp16"), "precision must be one of fp32, bf16, got 'fp16'")
    assert_one_line(lambda: make_rig("torch-cpu", threads=10**6), "threads must lie in 1..")
    with pytest.raises(RigUnavailable, match=r"'onnxruntime-cpu' measures no modules: use one of cuda, torch-cpu$"):
        make_module_rig("onnxruntime-cpu")
