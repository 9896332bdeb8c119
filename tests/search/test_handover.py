"""An exported file tells where it comes from and computes what it did; its README runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import search
from evaluators import batch_kind
from evaluators.onnx_export import BATCH_KEY
from search.export import export_trial
from search.handover import metadata_of, readme_text, with_metadata
from search.store import RunStore
from tests.search.fabricated_run import SIZE, dense_onnx, fabricated_run
from tests.search.test_export import measurement


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    store = fabricated_run(tmp_path / "run", trials=1)
    (store.trial_dir(0) / "model.onnx").write_bytes(dense_onnx())
    return store


def outputs(content: bytes) -> np.ndarray:
    inputs = np.random.default_rng(0).standard_normal((3, 1, SIZE, SIZE)).astype(np.float32)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"input": inputs})[0])


def test_metadata_changes_no_byte_of_the_network() -> None:
    content = dense_onnx()
    proto = onnx.load_model_from_string(content)
    onnx.helper.set_model_props(proto, {BATCH_KEY: "dynamic"})
    content = proto.SerializeToString()
    told = with_metadata(content, {"accuracy": "0.5", "device": "größer"})
    assert told.startswith(content)
    onnx.checker.check_model(onnx.load_model_from_string(told), full_check=True)
    entries = {e.key: e.value for e in onnx.load_model_from_string(told).metadata_props}
    assert entries == {BATCH_KEY: "dynamic", "prunefront.accuracy": "0.5", "prunefront.device": "größer"}
    assert batch_kind(told) == "dynamic"
    assert np.array_equal(outputs(told), outputs(content))
    session = onnxruntime.InferenceSession(told, providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map == entries


def test_an_export_tells_its_plan_its_figures_and_its_device(store: RunStore, tmp_path: Path) -> None:
    trial = store.result(0)
    export_trial(store, [trial], tmp_path / "out", measure=lambda content: measurement(0.5))
    content = (tmp_path / "out" / "model.onnx").read_bytes()
    entries = {e.key.removeprefix("prunefront."): e.value for e in onnx.load_model_from_string(content).metadata_props}
    assert BATCH_KEY.removeprefix("prunefront.") not in entries, "it says another thing, and would be there twice"
    assert entries["plan_digest"] == trial.plan_digest
    assert float(entries["accuracy"]) == trial.accuracy
    assert (float(entries["latency_ms"]), entries["device"]) == (0.5, "a processor")
    assert entries["version"] == search.__version__
    assert np.array_equal(outputs(content), outputs(dense_onnx()))


def test_the_lines_of_the_readme_run(
    store: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    export_trial(store, [store.result(0)], tmp_path / "out", measure=lambda content: measurement(0.5))
    text = (tmp_path / "out" / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    lines = [line for line in code.splitlines() if line]
    assert len(lines) == 6
    monkeypatch.chdir(tmp_path / "out")
    exec(code, {})
    assert capsys.readouterr().out == "(1, 10)\n"
    assert "0.5 ms, 2.00 times as fast as dense, on a processor" in text


def test_a_module_is_loaded_by_its_calls_and_an_unreadable_file_by_our_names() -> None:
    card = {
        "trial": 1, "run": "r", "prunefront": "0", "precision": "bf16", "accuracy": 0.5, "accuracy_drop": None,
        "accuracy_data": "validation", "plan_digest": "d", "params": 1, "macs": 2,
        "measured_at_export": measurement(0.5).to_dict(), "fp16": None, "opset": None,
        "load": {"admm": "admm.load_pruned(build_model(), FOLDER)", "cuda": "search.load_measured(build_model(), 'x')"},
    }  # fmt: skip
    text = readme_text(card, None)
    assert "onnxruntime.Inf" not in text
    assert "import admm\nimport search\nnetwork = admm.load_pruned(build_model(), FOLDER)  # admm\n" in text
    assert "np.zeros(SHAPE, np.float32)" in readme_text(card, b"not an ONNX file")
    assert set(metadata_of(card)) >= {"plan_digest", "accuracy", "latency_ms", "device", "version"}
