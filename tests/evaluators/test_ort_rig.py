from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import nn

from evaluators.errors import RigError, RigUnavailable
from evaluators.host import allowed_cores, pinned_to_one_core
from evaluators.onnx_export import export_onnx
from evaluators.ort_rig import OrtCpuRig
from evaluators.ort_session import open_session, random_inputs, require_provider
from evaluators.rig import LatencyRig, make_rig, rig_names
from evaluators.timing import TimingSettings
from tests.contracts.rig_contract import RigContract, assert_one_line


def conv_net(width: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Flatten(), nn.Linear(width * 36, 4))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("onnx")
    torch.manual_seed(0)
    example = torch.randn(1, 3, 8, 8)
    return {
        "dense": export_onnx(conv_net(32), example, folder / "dense.onnx"),
        "small": export_onnx(conv_net(8), example, folder / "small.onnx"),
        "fixed": export_onnx(conv_net(8), example.repeat(2, 1, 1, 1), folder / "fixed.onnx", dynamic_batch=False),
        "linear": export_onnx(nn.Linear(4, 2), torch.randn(1, 4), folder / "linear.onnx"),
    }


class TestOnnxRuntimeCpu(RigContract):
    @pytest.fixture
    def rig(self) -> LatencyRig:
        return make_rig("onnxruntime-cpu")

    @pytest.fixture
    def dense(self, files: dict[str, Path]) -> Path:
        return files["dense"]

    @pytest.fixture
    def small(self, files: dict[str, Path]) -> Path:
        return files["small"]

    @pytest.fixture
    def inputs(self) -> dict[str, np.ndarray]:
        return {"input": np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)}


QUICK = TimingSettings(min_pairs=1, max_pairs=1)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_stamp_says_which_clock_decides(threads: int, files: dict[str, Path]) -> None:
    if threads > len(allowed_cores()):
        pytest.skip("one core only")
    result = OrtCpuRig(threads=threads, settings=QUICK).measure(files["small"], files["dense"])
    assert result.stamp.threads == threads
    assert result.stamp.clock == ("thread_cpu" if threads == 1 else "wall")
    assert result.stamp.provider == "CPUExecutionProvider"
    assert result.stamp.runtime == f"onnxruntime {ort.__version__}"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no thread affinity here")
def test_the_thread_is_pinned_and_freed_again(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.sched_getaffinity(0)
    seen: list[set[int]] = []
    real = ort.InferenceSession.run_with_iobinding

    def spy(self: ort.InferenceSession, binding: object) -> object:
        seen.append(os.sched_getaffinity(0))
        return real(self, binding)

    monkeypatch.setattr(ort.InferenceSession, "run_with_iobinding", spy)
    OrtCpuRig(settings=QUICK).measure(files["small"], files["dense"])
    assert {len(cores) for cores in seen} == {1}
    assert os.sched_getaffinity(0) == before
    cores: list[set[int]] = []

    def break_off_while_pinned() -> None:
        with pinned_to_one_core() as core:
            cores.extend([os.sched_getaffinity(0), {core if core is not None else -1}])
            raise KeyError

    with pytest.raises(KeyError):
        break_off_while_pinned()
    assert cores[0] == cores[1]
    assert os.sched_getaffinity(0) == before


def test_a_model_that_breaks_off_is_one_line(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0
    real = ort.InferenceSession.run_with_iobinding

    def breaks(self: ort.InferenceSession, binding: object) -> object:
        nonlocal calls
        calls += 1
        if calls > 5:
            raise RuntimeError("out\nof memory")
        return real(self, binding)

    monkeypatch.setattr(ort.InferenceSession, "run_with_iobinding", breaks)
    before = allowed_cores()
    assert_one_line(lambda: OrtCpuRig().measure(files["small"], files["dense"]), "out of memory")
    assert allowed_cores() == before


@pytest.mark.parametrize("seed", range(40))
def test_flipped_bytes_are_measured_or_refused_in_one_line(
    seed: int, files: dict[str, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(seed)
    content = bytearray(files["small"].read_bytes())
    # The graph stands around the weights, at both ends of the file.
    for place in rng.integers(-600, 600, size=rng.integers(1, 10)):
        content[place] = rng.integers(256)
    rig = OrtCpuRig(settings=QUICK)
    try:
        outcome = rig.measure(bytes(content), files["small"]).stamp.rig
    except RigError as error:
        outcome = str(error)
    assert outcome
    assert "\n" not in outcome
    assert capfd.readouterr() == ("", "")


def test_another_provider_is_refused(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    session = open_session(files["small"])
    require_provider(session, "CPUExecutionProvider")
    for used in ([], ["CUDAExecutionProvider"], ["CUDAExecutionProvider", "CPUExecutionProvider"]):
        elsewhere = SimpleNamespace(get_providers=lambda used=used: used)
        with pytest.raises(RigError, match="CPUExecutionProvider was asked for"):
            require_provider(elsewhere, "CPUExecutionProvider")
    with pytest.raises(RigError, match="CUDAExecutionProvider was asked for"):
        require_provider(session, "CUDAExecutionProvider")
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    with pytest.raises(RigUnavailable, match="CPUExecutionProvider"):
        open_session(files["small"])


def test_a_fixed_batch_is_measured_at_its_own_size_only(files: dict[str, Path]) -> None:
    rig = OrtCpuRig(settings=QUICK)
    assert_one_line(lambda: rig.measure(files["fixed"], files["small"]), "fixed at 2")
    assert rig.measure(files["fixed"], files["small"], batch=2).stamp.batch == 2


def test_models_with_different_inputs_are_not_compared(files: dict[str, Path]) -> None:
    assert_one_line(lambda: OrtCpuRig().measure(files["linear"], files["small"]), "different inputs")


def test_random_inputs_are_seeded_and_follow_the_graph(files: dict[str, Path]) -> None:
    session = open_session(files["small"])
    first, again = random_inputs(session, 3), random_inputs(session, 3)
    assert first["input"].shape == (3, 3, 8, 8)
    assert first["input"].dtype == np.float32
    assert np.array_equal(first["input"], again["input"])
    assert not np.array_equal(first["input"], random_inputs(session, 3, seed=1)["input"])


def test_inputs_of_other_kinds_are_drawn_or_refused() -> None:
    def graph(kind: str, shape: list[int | str]) -> SimpleNamespace:
        return SimpleNamespace(get_inputs=lambda: [SimpleNamespace(name="x", type=kind, shape=shape)])

    tokens = random_inputs(graph("tensor(int64)", ["n", 7]), 2)["x"]
    assert tokens.shape == (2, 7)
    assert set(np.unique(tokens)) <= {0, 1}
    assert random_inputs(graph("tensor(bool)", [2, 3]), 2)["x"].dtype == np.bool_
    assert random_inputs(graph("tensor(float)", []), 2)["x"].shape == ()
    assert_one_line(lambda: random_inputs(graph("tensor(string)", ["n"]), 1), "tensor(string)")
    assert_one_line(lambda: random_inputs(graph("tensor(float)", ["n", "height"]), 1), "height")
    assert_one_line(lambda: random_inputs(graph("tensor(float)", ["n", 2**40]), 1), "too large")
    assert_one_line(lambda: random_inputs(graph("tensor(float)", ["n", -3]), 1), "-3")


@pytest.mark.parametrize("threads", [0, -1, True, 1.5, 100_000])
def test_impossible_thread_counts_are_refused(threads: Any) -> None:
    assert_one_line(lambda: make_rig("onnxruntime-cpu", threads=threads), "threads must lie in 1..")


def test_rig_names() -> None:
    assert rig_names()[:4] == ("onnxruntime-cpu", "cuda", "torch-cpu", "onnxruntime-cuda")


def test_a_misspelt_rig_gets_the_nearest_spelling() -> None:
    with pytest.raises(RigUnavailable, match="did you mean 'onnxruntime-cpu'"):
        make_rig("onnxruntme-cpu")
    with pytest.raises(RigUnavailable, match="unknown rig 'zzz': use one of onnxruntime-cpu"):
        make_rig("zzz")
