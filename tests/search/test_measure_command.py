"""A run measured again: the table, the file it leaves, and what is said where the machine tells another story now."""

# ruff: noqa: E501  (one mistake a line: what was typed beside what is said)

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from evaluators import DeviceStamp, Measurement, RigError
from search.cli import run
from search.result import Baseline, TrialResult
from search.store import RunStore

SMALL = Path(__file__).parent / "small_task"
#: Trial -> (accuracy, latency in ms as searched); 3 is complete and behind the front.
TRIALS = {0: (0.97, 0.5), 1: (0.95, 0.4), 2: (0.90, 0.25), 3: (0.94, 0.45)}


def stamp(**changes: Any) -> DeviceStamp:
    values = {
        "rig": "onnxruntime-cpu", "device": "Abacus 3", "isa": "beads", "runtime": "onnxruntime 1.0", "provider": "CPUExecutionProvider",
        "threads": 1, "batch": 1, "clock": "thread_cpu", "platform": "wood",
    }  # fmt: skip
    return DeviceStamp(**{**values, **changes})


def measurement(latency_ms: float, dense_ms: float, where: DeviceStamp) -> Measurement:
    ratio = dense_ms / latency_ms
    return Measurement(
        latency_ms=latency_ms, latency_low_ms=0.98 * latency_ms, latency_high_ms=1.02 * latency_ms, dense_latency_ms=dense_ms,
        speedup=ratio, speedup_low=0.98 * ratio, speedup_high=1.02 * ratio, wall_p50_ms=None, wall_p95_ms=None, wall_min_ms=None,
        pairs=9, rejected=0, converged=True, seconds=0.1, stamp=where,
    )  # fmt: skip


def model(name: str) -> bytes:
    """relu on [batch, 4], different bytes for each name."""
    ports = [helper.make_tensor_value_info(port, TensorProto.FLOAT, ["batch", 4]) for port in ("input", "output")]
    graph = helper.make_graph([helper.make_node("Relu", ["input"], ["output"])], name, ports[:1], ports[1:])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return bytes(made.SerializeToString())


class FakeRig:
    """Latencies by the model's name; `broken` ones cannot be loaded."""

    def __init__(self, latencies: Mapping[str, float], threads: int = 1) -> None:
        self.latencies, self.threads = latencies, threads
        self.measured: list[str] = []

    def measure(self, candidate: Path, reference: Path, inputs: object = None, *, batch: int = 1) -> Measurement:
        try:
            name, dense = (onnx.load(path).graph.name for path in (candidate, reference))
        except Exception:
            raise RigError(f"ONNX Runtime cannot load {candidate}: torn") from None
        assert dense == "dense"
        self.measured.append(name)
        where = stamp(threads=self.threads, batch=batch, device="Abacus 4")
        return measurement(batch * self.latencies[name], batch * self.latencies["dense"], where)


THEN = {"dense": 1.0, **{str(number): latency for number, (_, latency) in TRIALS.items()}}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with three trials on its front, one behind it, one that failed; none of its code is needed."""
    store = RunStore.create(tmp_path / "runs" / "good", (SMALL / "job.yaml").read_text(), {})
    where = stamp()
    store.write_baseline(
        Baseline(
            accuracy=0.98, accuracy_stderr=0.01, latency_ms=1.0, macs=10, params=12, weights=9,
            measurements={"onnxruntime-cpu": measurement(1.0, 1.0, where).to_dict()},
        )
    )  # fmt: skip
    (store.baseline_dir / "model.onnx").write_bytes(model("dense"))
    for number, (accuracy, latency) in TRIALS.items():
        staged = store.attempt_dir(number, "one")
        (staged / "model.onnx").write_bytes(model(str(number)))
        then = measurement(latency, 1.0, where)
        result = TrialResult(
            number=number, status="complete", plan_digest=f"p{number}", seed=0, accuracy=accuracy, accuracy_drop=100 * (0.98 - accuracy),
            latency_ms=latency, latency_high_ms=then.latency_high_ms, speedup=then.speedup, speedup_low=then.speedup_low,
            compression_x=2.0, macs=5, params=6, measurements={"onnxruntime-cpu": then.to_dict()},
        )  # fmt: skip
        store.commit(number, staged, result)
    failed = TrialResult(number=4, status="failed", plan_digest="p4", seed=0, reason="the loss is nan")
    store.commit(4, store.attempt_dir(4, "one"), failed)
    (tmp_path / "dense.onnx").write_bytes(model("dense"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> FakeRig:
    made = FakeRig(dict(THEN))

    def make(name: str, *, threads: int = 1, precision: str | None = None) -> FakeRig:
        made.threads = threads
        return made

    for module in ("search.measure_command", "search.alignment"):
        monkeypatch.setattr(f"{module}.make_rig", make)
    return made


def said(capfd: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> tuple[str, list[str]]:
    """What a command prints, and the lines it says on standard error."""
    capfd.readouterr()
    assert run([str(argument) for argument in arguments]) == code
    out, err = capfd.readouterr()
    assert "Traceback" not in out + err
    return out, err.splitlines()


def records(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_a_front_is_measured_again_and_filed(folder: Path, rig: FakeRig, capfd: pytest.CaptureFixture[str]) -> None:
    before = records(folder / "runs" / "good")
    out, err = said(capfd, "measure", "runs/good")
    assert rig.measured == ["dense", "0", "1", "2"]
    assert err[0] == "measuring the dense network, then 3 more"
    lines = [line.strip() for line in out.splitlines()]
    assert (
        lines[0]
        == "now  on onnxruntime-cpu: Abacus 4 (beads), onnxruntime 1.0, CPUExecutionProvider, 1 thread, batch 1"
    )
    assert lines[1].endswith(
        "Abacus 3 (beads), onnxruntime 1.0, CPUExecutionProvider, 1 thread, batch 1; differs in device"
    )
    rows = {line.split()[0]: line.split()[1:] for line in lines if line[:1].isdigit() or line.startswith("dense")}
    assert rows["dense"] == ["0.9800", "0.00", "1.000", "1.000", "1.00x", "1.00x", "0.98-1.02", "no"]
    assert rows["1"] == ["0.9500", "3.00", "0.4000", "0.4000", "2.50x", "2.50x", "2.45-2.55", "yes"]
    assert list(rows) == ["dense", "0", "1", "2"]
    assert "the front is in the same order, none of it dominated" in lines
    assert lines[-1] == "written to runs/good/measured/onnxruntime-cpu-1.json"
    assert max(len(line) for line in lines[2:]) <= 100
    after = records(folder / "runs" / "good")
    added = set(after) - set(before)
    assert added == {"measured/onnxruntime-cpu-1.json"}
    assert {name: after[name] for name in before} == before, "results of the search stay as they are"
    content = json.loads(after["measured/onnxruntime-cpu-1.json"])
    assert [n["trial"] for n in content["networks"]] == ["dense", 0, 1, 2]
    assert Measurement.from_dict(content["networks"][2]["now"]).speedup == pytest.approx(2.5)
    assert content["networks"][2]["then"] == {"latency_ms": 0.4, "speedup": 2.5}
    assert content["stamp"]["device"] == "Abacus 4"
    assert content["date"].endswith("+00:00")


def test_every_measuring_has_a_file_of_its_own(folder: Path, rig: FakeRig, capfd: pytest.CaptureFixture[str]) -> None:
    out, _ = said(capfd, "measure", "runs/good", "--json", "--all-trials")
    printed = json.loads(out)
    assert rig.measured == ["dense", "0", "1", "2", "3"]
    assert printed.pop("written") == "runs/good/measured/onnxruntime-cpu-1.json"
    assert printed == json.loads((folder / "runs/good/measured/onnxruntime-cpu-1.json").read_text())
    (folder / "runs/good/measured/onnxruntime-cpu-7.json").write_text("mine")
    said(capfd, "measure", "runs/good")
    names = sorted(path.name for path in (folder / "runs/good/measured").iterdir())
    assert names == ["onnxruntime-cpu-1.json", "onnxruntime-cpu-7.json", "onnxruntime-cpu-8.json"]
    said(capfd, "front", "runs/good")


def test_a_front_in_another_order(folder: Path, rig: FakeRig, capfd: pytest.CaptureFixture[str]) -> None:
    rig.latencies = {**THEN, "1": 0.52, "2": 0.51, "3": 0.1}
    out, _ = said(capfd, "measure", "runs/good")
    assert "the order of the front changed: from slow to fast it was 0, 1, 2, now it is 1, 2, 0" in out
    assert (
        "trial 1 is dominated now by trial 0, at least as accurate and fast (2.00x against 1.92x, within the noise: their intervals overlap)"
        in out
    )
    rig.latencies = {**THEN, "0": 2.0}
    out, _ = said(capfd, "measure", "runs/good", "--all-trials")
    assert "trial 0 is dominated now by the dense network, at least as accurate and fast (1.00x against 0.50x)" in out
    assert "trial 3 " not in out
    rig.latencies = {**THEN, "3": 0.1}
    out, _ = said(capfd, "measure", "runs/good", "--all-trials")
    assert "trial 3 was not on the front and is now, among what was measured" in out
    assert "the order of the front changed" not in out
    assert "trial 2 is dominated now by trial 3" in out


def test_other_threads_and_batches_are_no_matter_of_the_budget(
    folder: Path, rig: FakeRig, capfd: pytest.CaptureFixture[str]
) -> None:
    out, _ = said(capfd, "measure", "runs/good", "--threads", 2, "--batch", 4)
    assert "2 threads, batch 4" in out.splitlines()[0]
    assert out.splitlines()[1].endswith("differs in device, threads, batch")
    assert "the budget is for another rig, or for other threads or another batch: it was not judged" in out
    assert "budget\n" not in out


def test_damaged_models_are_named_and_the_others_measured(
    folder: Path, rig: FakeRig, capfd: pytest.CaptureFixture[str]
) -> None:
    trials = folder / "runs" / "good" / "trials"
    (trials / "0" / "model.onnx").unlink()
    (trials / "1" / "model.onnx").write_bytes(b"torn")
    out, _ = said(capfd, "measure", "runs/good")
    assert "trial 0 was left out: its model.onnx is gone\n" in out
    assert "trial 1 was left out: ONNX Runtime cannot load runs/good/trials/1/model.onnx: torn\n" in out
    content = json.loads((folder / "runs/good/measured/onnxruntime-cpu-1.json").read_text())
    assert [n["trial"] for n in content["networks"]] == ["dense", 2]
    assert [s["trial"] for s in content["skipped"]] == [0, 1]
    shutil.rmtree(folder / "runs" / "good" / "measured")
    (trials / "2" / "model.onnx").unlink()
    _, err = said(capfd, "measure", "runs/good", code=2)
    assert err[-1] == "error: none of the 3 networks could be measured: trial 0: its model.onnx is gone"
    assert not (folder / "runs" / "good" / "measured").exists()


def test_ctrl_c_leaves_nothing(
    folder: Path, rig: FakeRig, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = rig.measure

    def interrupted(*arguments: Any, **options: Any) -> Measurement:
        if len(rig.measured) == 2:
            raise KeyboardInterrupt
        return whole(*arguments, **options)

    monkeypatch.setattr(rig, "measure", interrupted)
    before = records(folder)
    _, err = said(capfd, "measure", "runs/good", code=130)
    assert err[-1] == "error: interrupted: nothing was written"
    assert records(folder) == before
    assert not (folder / "runs" / "good" / "measured").exists()


def test_figures_are_shown_where_the_disk_refuses_them(
    folder: Path, rig: FakeRig, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("search.atomic.os.replace", full)
    out, err = said(capfd, "measure", "runs/good", code=2)
    assert "2.50x" in out
    assert "No space left on device: free some space" in err[-1]


def test_without_hard_links(
    folder: Path, rig: FakeRig, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*arguments: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("search.remeasured.os.link", unknown)
    said(capfd, "measure", "runs/good")
    assert [path.name for path in (folder / "runs/good/measured").iterdir()] == ["onnxruntime-cpu-1.json"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("runs/good --against dense.onnx", "--against goes with an ONNX file: runs/good is a run, and is measured against its own dense network"),
        ("dense.onnx --all-trials", "--all-trials goes with a run folder: dense.onnx is none"),
        ("runs", "runs: a folder, not an ONNX file, and no run folder"),
        ("runs/none", "runs/none: no such file"),
        ("runs/good --rig onnxruntime-gpu", "unknown rig 'onnxruntime-gpu': did you mean 'onnxruntime-cpu'?"),
        ("runs/good --threads 0", "threads must lie in 1.."),
        ("runs/good --threads 999", "got 999"),
        ("runs/good --batch 0", "batch must be an integer >= 1, got 0"),
        ("runs/good --batch 1.5", "Invalid value for '--batch': '1.5' is not a whole number"),
    ],
)  # fmt: skip
def test_mistakes(folder: Path, capfd: pytest.CaptureFixture[str], arguments: str, says: str) -> None:
    before = records(folder)
    out, err = said(capfd, "measure", *arguments.split(), code=2)
    assert out == ""
    assert err[-1].startswith("error: ")
    assert says in err[-1]
    assert records(folder) == before
    assert not (folder / "runs" / "good" / "measured").exists()


def test_a_run_without_its_dense_network(folder: Path, rig: FakeRig, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "runs" / "good" / "baseline" / "model.onnx").unlink()
    _, err = said(capfd, "measure", "runs/good", code=2)
    assert err[-1].endswith(
        "baseline/model.onnx is gone, and every network is measured against it: put it back from a copy"
    )
    (folder / "runs" / "good" / "baseline" / "baseline.json").unlink()
    _, err = said(capfd, "measure", "runs/good", code=2)
    assert "the dense model is not measured yet: `prunefront search runs/good` goes on with it" in err[-1]


def test_on_the_real_rig(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Of figures only the form: the models are one and the same."""
    printed = json.loads(said(capfd, "measure", "runs/good", "--json")[0])
    assert [n["trial"] for n in printed["networks"]] == ["dense", 0, 1, 2]
    assert all(Measurement.from_dict(n["now"]).stamp.rig == "onnxruntime-cpu" for n in printed["networks"])
    out, err = said(capfd, "measure", "dense.onnx")
    assert [line.split()[0] for line in out.splitlines()] == ["latency", "speed-up", "wall", "on"]
    assert err == []
