"""One rig for every provider of ONNX Runtime. No accelerator here: the generic path runs on the CPU provider."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import nn

from evaluators.errors import RigError, RigUnavailable
from evaluators.host import allowed_cores
from evaluators.onnx_export import export_onnx
from evaluators.ort_rig import OrtCpuRig, _bound_call
from evaluators.provider_rig import ProviderRig, provider_of, require_only
from evaluators.rig import LatencyRig, make_rig, rig_names
from evaluators.timing import TimingSettings
from tests.contracts.rig_contract import RigContract, assert_one_line

QUICK = TimingSettings(min_pairs=1, max_pairs=1)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("onnx")
    torch.manual_seed(0)
    example = torch.randn(1, 3, 8, 8)

    def conv_net(width: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Flatten(), nn.Linear(width * 36, 4))

    return {
        "dense": export_onnx(conv_net(32), example, folder / "dense.onnx"),
        "small": export_onnx(conv_net(8), example, folder / "small.onnx"),
    }


class TestAnyProvider(RigContract):
    """The contract over the code that every provider shares."""

    @pytest.fixture
    def rig(self) -> LatencyRig:
        return ProviderRig("onnxruntime-cpu")

    @pytest.fixture
    def dense(self, files: dict[str, Path]) -> Path:
        return files["dense"]

    @pytest.fixture
    def small(self, files: dict[str, Path]) -> Path:
        return files["small"]

    @pytest.fixture
    def inputs(self) -> dict[str, np.ndarray]:
        return {"input": np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)}


@pytest.mark.parametrize("threads", [1, 2])
def test_wall_time_decides_with_any_threads_and_batch(threads: int, files: dict[str, Path]) -> None:
    if threads > len(allowed_cores()):
        pytest.skip("one core only")
    rig = ProviderRig("onnxruntime-cpu", threads=threads, settings=QUICK)
    stamp = rig.measure(files["small"], files["dense"], batch=3).stamp
    assert (stamp.threads, stamp.batch, stamp.clock) == (threads, 3, "wall")
    assert stamp.provider == "CPUExecutionProvider fp32"


def test_names_become_providers_whatever_their_case() -> None:
    assert provider_of("onnxruntime-openvino") == "OpenVINOExecutionProvider"
    assert provider_of("onnxruntime-TensorRT") == "TensorrtExecutionProvider"
    assert provider_of("onnxruntime-coreml") == "CoreMLExecutionProvider"
    assert provider_of("onnxruntime-cuda") == "CUDAExecutionProvider"
    assert provider_of("onnxruntime-xnnpack") == "XnnpackExecutionProvider"
    assert provider_of("onnxruntime-gpu") is None
    assert provider_of("openvino") is None


@pytest.mark.parametrize(
    ("name", "package"),
    [("cuda", "onnxruntime-gpu"), ("openvino", "onnxruntime-openvino"), ("rknpu", "a build of onnxruntime")],
)
def test_a_provider_that_is_not_installed_is_one_line(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(RigUnavailable) as caught:
        make_rig(f"onnxruntime-{name}")
    assert "\n" not in str(caught.value)
    assert f"has CPUExecutionProvider: install {package}" in str(caught.value)


def test_every_rig_of_the_table_is_made_or_refused_in_one_line() -> None:
    for name in rig_names():
        try:
            outcome = make_rig(name).name
        except RigUnavailable as error:
            outcome = str(error)
        assert outcome == name or outcome.startswith(f"rig {name!r} needs ")
        assert "\n" not in outcome


def test_names_outside_the_table() -> None:
    assert_one_line(lambda: make_rig("onnxruntime-nothing"), "unknown rig 'onnxruntime-nothing': did you mean")
    assert isinstance(make_rig("ONNXRuntime-CPU"), OrtCpuRig)
    with pytest.raises(RigUnavailable, match="XnnpackExecutionProvider"):
        make_rig("onnxruntime-xnnpack")


def test_a_provider_that_falls_back_is_refused(files: dict[str, Path], capfd: pytest.CaptureFixture[str]) -> None:
    """The stock package has one provider beside the CPU's: Azure, which runs none of our nodes."""
    if "AzureExecutionProvider" not in ort.get_available_providers():
        pytest.skip("no second provider here")
    rig = ProviderRig("onnxruntime-azure", settings=QUICK)
    assert_one_line(lambda: rig.measure(files["small"], files["dense"]), "AzureExecutionProvider cannot run all of")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("used", [[], ["CPUExecutionProvider"], ["CUDAExecutionProvider", "TensorrtExecutionProvider"]])
def test_a_session_on_other_providers_is_refused(used: list[str]) -> None:
    with pytest.raises(RigError, match="CUDAExecutionProvider was asked for"):
        require_only(SimpleNamespace(get_providers=lambda: used), "CUDAExecutionProvider")


def test_the_unused_cpu_provider_may_stand_beside() -> None:
    require_only(
        SimpleNamespace(get_providers=lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]),
        "CUDAExecutionProvider",
    )


def pretended(monkeypatch: pytest.MonkeyPatch, provider: str) -> list[tuple[Any, Any]]:
    """ONNX Runtime claims to have `provider`; what sessions are asked for is recorded, they run on the CPU."""
    asked: list[tuple[Any, Any]] = []
    real = ort.InferenceSession

    def session(source: Any, options: Any, *, providers: Any, enable_fallback: int) -> Any:
        asked.append((providers, options.get_session_config_entry("session.disable_cpu_ep_fallback")))
        made = real(source, providers=["CPUExecutionProvider"])
        monkeypatch.setattr(made, "get_providers", lambda: [providers[0][0], "CPUExecutionProvider"])
        return made

    monkeypatch.setattr(ort, "get_available_providers", lambda: [provider, "CPUExecutionProvider"])
    monkeypatch.setattr(ort, "InferenceSession", session)
    return asked


def test_what_openvino_is_asked_for(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = pretended(monkeypatch, "OpenVINOExecutionProvider")
    rig = make_rig("onnxruntime-openvino")
    assert isinstance(rig, ProviderRig)
    rig.settings = QUICK
    assert rig.measure(files["small"], files["dense"]).stamp.provider == "OpenVINOExecutionProvider fp32"
    assert asked[0] == ([("OpenVINOExecutionProvider", {"device_type": "CPU", "num_of_threads": "1"})], "1")


@pytest.mark.parametrize(("precision", "switch"), [(None, "0"), ("fp32", "0"), ("tf32", "1")])
def test_what_cuda_is_asked_for(
    precision: str | None, switch: str, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = pretended(monkeypatch, "CUDAExecutionProvider")
    rig = ProviderRig("onnxruntime-cuda", precision=precision, settings=QUICK)
    assert rig.memory == "cuda"
    rig.memory = "cpu"  # there is no other here
    rig.measure(files["small"], files["dense"], batch=2)
    assert asked[0] == ([("CUDAExecutionProvider", {"use_tf32": switch})], "1")


def test_precisions_that_a_provider_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    pretended(monkeypatch, "CUDAExecutionProvider")
    assert_one_line(lambda: make_rig("onnxruntime-cuda", precision="fp16"), "fp32 or tf32")
    assert_one_line(lambda: make_rig("onnxruntime-cpu", precision="bf16"), "types of the ONNX file")
    assert make_rig("onnxruntime-cpu", precision="fp32").name == "onnxruntime-cpu"
    pretended(monkeypatch, "TensorrtExecutionProvider")
    assert ProviderRig("onnxruntime-tensorrt").precision == "tf32"
    assert_one_line(lambda: ProviderRig("onnxruntime-tensorrt", precision="fp32"), "tf32 or fp16 or bf16")


def test_a_device_is_waited_for_after_every_run(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory called `cuda` stands in for the device: bound to by name, and synchronised by every call."""
    session = ort.InferenceSession(str(files["small"]), providers=["CPUExecutionProvider"])
    real = ort.OrtValue.ortvalue_from_numpy
    places: list[tuple[str, int]] = []

    def value_at(value: Any, memory: str, index: int) -> Any:
        places.append((memory, index))
        return real(value)

    monkeypatch.setattr(ort.OrtValue, "ortvalue_from_numpy", staticmethod(value_at))
    real_bind = ort.IOBinding.bind_output
    monkeypatch.setattr(ort.IOBinding, "bind_output", lambda self, name, memory: real_bind(self, name, "cpu"))
    waited: list[int] = []
    monkeypatch.setattr(ort.IOBinding, "synchronize_outputs", lambda self: waited.append(1))
    call = _bound_call(session, {"input": np.zeros((1, 3, 8, 8), np.float32)}, "cuda")
    assert places == [("cuda", 0)]
    call()
    call()
    assert len(waited) == 2


def test_shape_arithmetic_folds_away_at_the_batch_that_is_measured(files: dict[str, Path]) -> None:
    """Sizes are fixed before the graph is optimised: a file of a free batch is measured at any."""
    rig = ProviderRig("onnxruntime-cpu", settings=QUICK)
    for batch in (1, 5):
        assert rig.measure(files["small"], files["small"], batch=batch).stamp.batch == batch


@pytest.mark.parametrize("threads", [0, -1, True, 1.5, 100_000])
def test_impossible_thread_counts_are_refused(threads: Any) -> None:
    assert_one_line(lambda: ProviderRig("onnxruntime-cpu", threads=threads), "threads must lie in 1..")
