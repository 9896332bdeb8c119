"""Rigs of another machine: opened there wherever a driver would open one here, and nowhere else."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluators import Measurement, ParityReport, RigError, Score
from evaluators.blocks import ChannelBlock
from evaluators.lowering import Lowered
from evaluators.ort_rig import OrtCpuRig
from evaluators.rig import LatencyRig
from search.alignment import device_block, open_rig
from search.bench import local_modules
from search.elsewhere import FarRig, machine_of, measuring_at
from search.errors import UserError
from search.job import Job, RigSpec
from search.module_rigs import EitherModules, LocalModules
from tests.search.conftest import STAMP

BLOCK = ChannelBlock(block=8, depthwise=4, points={}, stamp={})


class Far:
    """A machine that has some rigs, and remembers what it was asked."""

    def __init__(self, *rigs: str) -> None:
        self.rigs = rigs
        self.asked: list[tuple[Any, ...]] = []

    def ask(self, method: str, rig: str, *arguments: Any) -> Any:
        assert rig in self.rigs
        self.asked.append((method, rig, *arguments))
        parity = ParityReport(max_abs=0.0, scale=1.0, tolerance=1e-4, samples=4, ok=True)
        answers: dict[str, Any] = {
            "stamp": lambda: STAMP.to_dict(),
            "block": lambda: json.loads(json.dumps(BLOCK.to_dict())),
            "measure": lambda: MEASURED.to_dict(),
            "lower": lambda: (LOWERED.to_dict(), b"lowered"),
            "judge": lambda: (asdict(parity), asdict(Score(value=0.5, stderr=0.1, samples=4))),
        }
        return answers[method]()


LOWERED = Lowered(content=b"", layers=(), speedup=1.0, changed=False)


def test_a_far_rig_is_a_rig(tmp_path: Path) -> None:
    far, spec = Far("onnxruntime-cpu"), RigSpec(name="onnxruntime-cpu", batch=4)
    with measuring_at(far):
        rig = open_rig(spec)
    assert isinstance(rig, FarRig)
    assert isinstance(rig, LatencyRig)
    assert rig.name == "onnxruntime-cpu"
    assert rig.stamp(4) == STAMP
    (tmp_path / "a.onnx").write_bytes(b"file")
    assert rig.measure(tmp_path / "a.onnx", b"bytes", batch=4) == MEASURED
    assert far.asked[-1] == ("measure", "onnxruntime-cpu", b"file", b"bytes")
    for options in ({"batch": 1}, {"batch": 4, "inputs": {"x": np.zeros(1)}}):
        with pytest.raises(RigError, match="stands on another machine and measures with the job's batch alone"):
            rig.measure(b"", b"", **options)  # type: ignore[arg-type]


def test_it_is_over_with_the_context_and_for_other_rigs() -> None:
    spec = RigSpec(name="onnxruntime-cpu")
    with measuring_at(Far("torch-cpu")):
        assert machine_of("torch-cpu") is not None
        assert isinstance(open_rig(spec), OrtCpuRig)
    assert machine_of("torch-cpu") is None
    with measuring_at(Far("onnxruntime-cpu")):
        assert isinstance(open_rig(spec), FarRig)
    assert isinstance(open_rig(spec), OrtCpuRig)


def test_the_channel_block_is_that_of_the_other_machine() -> None:
    device_block.cache_clear()
    try:
        with measuring_at(Far("onnxruntime-cpu")):
            assert device_block(RigSpec(name="onnxruntime-cpu", threads=3)) == BLOCK
    finally:
        device_block.cache_clear()


def test_modules_are_asked_for_where_their_rig_is() -> None:
    job = Job(task="a:b", rigs=(RigSpec(name="cuda"), RigSpec(name="torch-cpu")))
    far = Far("cuda")
    with measuring_at(far):
        modules = local_modules(job)
    assert isinstance(modules, EitherModules)
    assert modules.measure("cuda", b"a", b"b") == MEASURED
    assert modules.lower("cuda", b"a").content == b"lowered"
    assert modules.judge("cuda", b"a").score.value == 0.5
    assert [method for method, *_ in far.asked] == ["measure", "lower", "judge"]
    with pytest.raises(UserError, match="there is no module 'a'"):
        modules.measure("torch-cpu", b"a", b"b")  # here, where the task is
    assert isinstance(local_modules(Job(task="a:b", rigs=(RigSpec(name="torch-cpu"),))), LocalModules)


MEASURED = Measurement(
    latency_ms=1.0, latency_low_ms=0.9, latency_high_ms=1.1, dense_latency_ms=2.0, speedup=2.0, speedup_low=1.9,
    speedup_high=2.1, wall_p50_ms=None, wall_p95_ms=None, wall_min_ms=None, pairs=9, rejected=0, converged=True,
    seconds=0.0, stamp=STAMP,
)  # fmt: skip
