"""`prunefront profile`: what it says of a job before any training, on a rig whose figures are known."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from evaluators import Measurement, make_rig
from evaluators.layer_times import LayerTime
from evaluators.work import aligned_macs
from search import calibration, profile_command
from search.bench import Prepared
from search.cli import run
from search.job_file import load_job
from search.profile_view import layer_table, steps
from search.shapes_file import shapes_onnx
from search.store import RunStore
from tests.search.test_measure_command import measurement

SMALL = Path(__file__).parent / "small_task"


class CountingRig:
    """A rig on which a network takes a tenth of a millisecond and as long as its MACs in blocks of 16."""

    name = "onnxruntime-cpu"
    stamp = staticmethod(make_rig("onnxruntime-cpu").stamp)

    def measure(self, candidate: bytes, reference: bytes, inputs: object = None, *, batch: int = 1) -> Measurement:
        times = [0.1 + aligned_macs(content, 16) / 1e6 for content in (candidate, reference)]
        return measurement(times[0], times[1], self.stamp(batch))


@pytest.fixture(scope="module")
def exported() -> Callable[..., bytes]:
    """`shapes_onnx`, each plan once: seconds each, and the same for all tests."""
    known: dict[tuple[str, int], bytes] = {}

    def export(model: Any, groups: Any, plan: Any, example: Any, align: int, *dense: Any, **options: Any) -> bytes:
        key = (plan.digest(), align)
        if key not in known:
            known[key] = shapes_onnx(model, groups, plan, example, align, *dense, **options)
        return known[key]

    return export


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exported: Callable[..., bytes]) -> Iterator[Path]:
    """A folder with the job, the counting rig, and a layer profile that takes no time."""
    (tmp_path / "small.py").write_text((SMALL / "small.py").read_text())
    (tmp_path / "job.yaml").write_text((SMALL / "job.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr("search.bench.shapes_onnx", exported)
    monkeypatch.setattr("search.alignment.make_rig", lambda name, **options: CountingRig())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(threads)
    sys.modules.pop("small", None)


def said(capfd: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> tuple[str, list[str]]:
    capfd.readouterr()
    assert run([str(argument) for argument in arguments]) == code
    out, err = capfd.readouterr()
    assert "Traceback" not in out + err
    return out, err.splitlines()


def test_a_job_is_profiled(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = sorted(here.iterdir())
    out, err = said(capfd, "profile", "job.yaml")
    assert [p for p in sorted(here.iterdir()) if p.name != "__pycache__"] == before, "nothing was written"
    assert "exporting the dense network" in err
    assert any(line.startswith("measuring network 1 of ") for line in err)
    lines = [line.rstrip() for line in out.splitlines()]
    assert max(len(line) for line in lines if not line.startswith(("rig ", "note "))) <= 105
    assert lines[0].startswith("task       bars: ")
    places = [
        next(i for i, line in enumerate(lines) if line.startswith(start))
        for start in (
            "rig ",
            "dense ",
            "A/A ",
            "layers of the dense",
            "block ",
            "predictor ",
            "within reach",
            "budget ",
        )
    ]
    assert places == sorted(places)
    rows = {line.split()[0]: line for line in lines if line.startswith(" ")}
    assert {"stem", "first", "second", "head"} <= set(rows)
    assert rows["first"].split()[1:3] == ["Conv", "32x32x3x3"]
    assert rows["first"].split()[3:5] == ["1.3", "M"]
    assert "block      16 channels (depthwise 1" in out
    assert "the job's sparsity.align is 8, no multiple of it: auto takes the block" in out
    assert "budget     1.1x on onnxruntime-cpu: within reach" in lines
    assert "times as fast as asked" in lines[lines.index("budget     1.1x on onnxruntime-cpu: within reach") + 1]


def test_the_same_as_json(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    content = json.loads(said(capfd, "profile", "job.yaml", "--json")[0])
    by_name = {network["name"]: network for network in content["networks"]}
    assert list(by_name)[:3] == ["dense", "middle", "fastest"]
    assert len(by_name) >= 5
    speeds = [by_name[name]["measured"]["speedup"] for name in ("dense", "middle", "fastest")]
    assert speeds[0] == 1.0
    assert speeds == sorted(speeds)
    assert by_name["dense"]["macs"] > by_name["middle"]["macs"] > by_name["fastest"]["macs"]
    # the rig is a line in the aligned MACs, which is what the predictor looks for
    assert content["predictor"]["max_error"] < 0.01
    assert all(abs(network["error"]) < 0.01 for network in by_name.values())
    assert not by_name["middle"]["fitted"]
    assert content["budget"]["reachable"] is True
    assert content["stamp"]["rig"] == "onnxruntime-cpu"
    macs = {layer["name"]: layer["macs"] for layer in content["layers"]}
    assert sum(count for count in macs.values() if count) == by_name["dense"]["macs"]
    latency = by_name["dense"]["measured"]["latency_ms"]
    assert sum(layer["ms"] for layer in content["layers"]) == pytest.approx(latency)


def test_a_budget_out_of_reach_is_told_after_all_else(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = (here / "job.yaml").read_text().replace("speedup: 1.1", "speedup: 5000")
    (here / "job.yaml").write_text(text)
    out, err = said(capfd, "profile", "job.yaml", code=3)
    assert "budget     5000x on onnxruntime-cpu: out of reach" in out
    assert " fastest " in out
    assert err[-1].startswith("error: the budget of 5000x on onnxruntime-cpu cannot be met: the fastest reachable")
    assert not any(line.startswith("error: ") for line in err[:-1])
    out, _ = said(capfd, "profile", "job.yaml", "--json", code=3)
    assert json.loads(out)["budget"]["reachable"] is False


def test_a_latency_is_asked_and_none_is(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = (here / "job.yaml").read_text()
    (here / "job.yaml").write_text(text.replace("speedup: 1.1", "latency_ms: 1000"))
    out, _ = said(capfd, "profile", "job.yaml")
    assert "budget     1000 ms on onnxruntime-cpu: within reach" in out
    (here / "job.yaml").write_text(text.replace("budget:\n  speedup: 1.1\n", ""))
    out, _ = said(capfd, "profile", "job.yaml")
    assert "budget     none in this job" in out


def test_a_run_is_profiled_with_its_own_weights(
    here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import save_file

    store = RunStore.create(here / "run", (here / "job.yaml").read_text(), {})
    (store.root / "small.py").write_text((here / "small.py").read_text())
    model = Prepared.of(load_job(store.job_path)).model
    loaded: list[Path] = []
    monkeypatch.setattr(profile_command, "load_dense", lambda path, model: loaded.append(path))
    said(capfd, "profile", "run")
    assert loaded == [], "it has none yet"
    save_file(model.state_dict(), store.baseline_dir / "weights.safetensors")
    before = sorted(p.name for p in store.root.rglob("*") if "__pycache__" not in p.parts)
    said(capfd, "profile", "run")
    assert [path.name for path in loaded] == ["weights.safetensors"]
    assert sorted(p.name for p in store.root.rglob("*") if "__pycache__" not in p.parts) == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("jub.yaml", "jub.yaml: no such file; did you mean job.yaml?"),
        (".", "a folder, not a job file: try job.yaml"),
        ("job.yaml --jsn", "No such option"),
        ("", "Missing argument 'JOB.yaml|RUN'"),
    ],
)
def test_mistakes(here: Path, capfd: pytest.CaptureFixture[str], arguments: str, says: str) -> None:
    out, err = said(capfd, "profile", *arguments.split(), code=2)
    assert out == ""
    assert err[-1].startswith("error: ")
    assert says in err[-1]


def test_plans_differ_and_a_small_space_has_few(here: Path) -> None:
    prepared = Prepared.of(load_job(here / "job.yaml"))
    plans = calibration.plans_to_measure(prepared)
    assert list(plans)[:3] == ["dense", "middle", "fastest"]
    assert len({plan.digest() for plan in plans.values()}) == len(plans)
    assert plans == calibration.plans_to_measure(prepared), "seeded"
    text = (here / "job.yaml").read_text()
    (here / "job.yaml").write_text(text.replace("exclude: [head]", "include: [first]").replace("align: 8", "align: 16"))
    few = calibration.plans_to_measure(Prepared.of(load_job(here / "job.yaml")))
    assert list(few) == ["dense", "fastest"], "one step: there is nothing half-way"


@cache
def many_layers() -> Sequence[Any]:
    """Thirty layers, the first the fastest."""
    times = [LayerTime(name=f"layer{i}", op="Conv", ms=1.0 + i, share=(1.0 + i) / 465) for i in range(30)]
    return [SimpleNamespace(time=time, weight=(8, 8, 3, 3), macs=100, ms=2.0 * time.ms) for time in times]


def test_small_layers_are_summed() -> None:
    found: Any = SimpleNamespace(layers=many_layers())
    assert layer_table(found, every=True).row_count == 30
    table = layer_table(found, every=False)
    assert table.row_count == 20
    names = [str(cell) for cell in table.columns[0].cells]
    assert names == [*(f"layer{i}" for i in range(11, 30)), "11 others"]
    assert list(table.columns[4].cells)[-1] == "132.0"
    assert list(table.columns[3].cells)[-1] == "1.1 k"


def test_a_staircase_in_a_line() -> None:
    widths = dict.fromkeys((17, 18, 20, 24, 32, 33, 35, 40, 48, 49, 56, 64, 80), 1.0)
    assert steps(widths, 16) == [17, 32, 33, 48, 49, 64, 80]
    assert steps({8: 1.0}, 8) == [8]
    assert steps(widths, 1)[:1] + steps(widths, 1)[-1:] == [17, 80]
    assert len(steps(widths, 1)) == 10
