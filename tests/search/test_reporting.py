"""The report: what it gathers from a run in any state, and that nothing a user named can become part of the page."""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
import shutil
import socket
import tomllib
from datetime import datetime
from fnmatch import fnmatch
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from evaluators.layer_macs import LayerMacs
from evaluators.quantize import quantize_int8
from search import reporting
from search.cli import run
from search.job_file import load_job
from search.reporting.content import report_content
from search.reporting.layers import dense_layers, kept_layers
from search.reporting.page import figure, percent, render, safe_json
from search.reporting.timing import layer_ms, time_layers
from search.result import TrialResult
from search.store import RunStore
from tests.search.fabricated_run import DENSE_MS, LAYERS, SIZE, WIDTH, dense_onnx, fabricated_run

HOSTILE = '</script><img src=x onerror="window.hacked=1"><b>&amp;\u2028'


def content_of(store: RunStore, **more: Any) -> dict[str, Any]:
    baseline, results = store.read_baseline(), store.results()
    return report_content(store, load_job(store.job_path), baseline, results, **{"time_front": False, **more})


class Seen(HTMLParser):
    """The elements of a page, and the texts of its scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self._in = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._in = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._in = ""

    def handle_data(self, data: str) -> None:
        if self._in == "script":
            self.scripts[-1] += data
        elif self._in != "style":
            self.words.append(data)


def test_what_is_gathered_is_what_the_run_holds(tmp_path: Path) -> None:
    store = fabricated_run(tmp_path / "run", trials=13)
    found = content_of(store)
    results = store.results()
    assert [t["n"] for t in found["trials"]] == sorted(results)
    assert {t["status"] for t in found["trials"]} == {"complete", "stopped", "infeasible", "failed"}
    assert found["front"] == [t["n"] for t in sorted(found["trials"], key=lambda t: t["speedup"]) if t["front"]]
    assert found["front"]
    positions = SIZE * SIZE
    assert [layer["macs"] for layer in found["layers"]] == [
        WIDTH * 9 * positions,
        WIDTH * WIDTH * 9 * positions,
        WIDTH * WIDTH * 9 * positions,
        10 * WIDTH,
    ]
    for trial in found["trials"]:
        result = results[trial["n"]]
        assert trial["accuracy"] == result.accuracy
        if result.status != "complete":
            assert (trial["kept"], trial["trace"], trial["plan"]) == (None, None, None)
            assert trial["reason"] == f"made up: {result.status}"
            continue
        assert trial["interval"] == [pytest.approx(f * DENSE_MS / trial["speedup"], rel=1e-4) for f in (0.97, 1.03)]
        assert trial["plan"] == {k: dict(v) for k, v in result.requested.items()}
        widths = [round(WIDTH * (1.0 - result.requested.get(n, {}).get("filter", 0.0))) for n in LAYERS[:-1]]
        assert [kept[0] for kept in trial["kept"]] == [*widths, 10]
        assert [kept[1] for kept in trial["kept"]] == [1, *widths]
        assert trial["trace"]["layers"] == [0, 1, 2, 3]
        assert [len(row) for row in trial["trace"]["primal"]] == [3] * 4
        assert trial["retrained"] == pytest.approx(result.accuracy, abs=1e-6)
    assert found["feasibility"]["asked"] == 2.0
    assert found["feasibility"]["excluded"] == {"head": "its filters are the output"}
    assert [d["name"] for d in found["sensitivity"]["dimensions"]] == [f"{n}/filter" for n in LAYERS[:-1]]
    assert found["missing"] == ["latency layer by layer was not timed: it was not asked for"]


def test_the_page_holds_all_it_shows(tmp_path: Path) -> None:
    store = fabricated_run(tmp_path / "run", trials=13)
    found = content_of(store)
    seen = Seen(render(found))
    assert [tag for tag, _ in seen.tags].count("script") == 3
    assert json.loads(seen.scripts[0]) == found
    links = [v for _, attrs in seen.tags for k, v in attrs.items() if k in ("src", "href") and v]
    assert all(link.startswith(("#", "data:")) for link in links)
    policy = next(a["content"] for t, a in seen.tags if t == "meta" and "http-equiv" in a)
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "unsafe-eval" not in policy
    assert policy.count("sha256-") == 2
    words = " ".join(" ".join(seen.words).split())
    for trial in found["trials"]:
        if trial["status"] == "complete":
            assert percent(trial["accuracy"]) in words
            assert figure(trial["latency"]) in words
        else:
            assert trial["reason"] in words
    headings = [tag for tag, _ in seen.tags if re.fullmatch(r"h[1-6]", tag)]
    assert headings[0] == "h1"
    assert headings.count("h1") == 1
    labelled = [a for t, a in seen.tags if t == "section"]
    names = {a.get("id") for _, a in seen.tags}
    assert all(a["aria-labelledby"] in names for a in labelled)
    assert all(a.get("aria-label") for t, a in seen.tags if a.get("role") in ("figure", "region"))


def test_names_of_users_stay_text(tmp_path: Path) -> None:
    layers = (HOSTILE, "b`${1}", "head")
    store = fabricated_run(tmp_path / '"><img src=x onerror=x>', trials=6, layers=layers, task=HOSTILE)
    found = content_of(store)
    page = render(found)
    seen = Seen(page)
    assert [tag for tag, _ in seen.tags].count("script") == 3
    assert "img" not in [tag for tag, _ in seen.tags]
    assert json.loads(seen.scripts[0])["layers"][0]["name"] == HOSTILE
    assert HOSTILE not in page
    assert found["folder_typed"].startswith("'")


@settings(max_examples=50, deadline=None)
@given(st.recursive(st.none() | st.text() | st.integers(), lambda of: st.lists(of) | st.dictionaries(st.text(), of)))
def test_no_json_can_end_its_element(content: Any) -> None:
    text = safe_json({"content": content})
    assert not re.search("[<>&\u2028\u2029]", text)
    assert json.loads(text) == {"content": content}


def test_no_figure_is_made_up() -> None:
    assert [figure(None), figure(float("nan")), percent(None), figure(12.0, 3)] == ["–", "–", "–", "12.0"]
    with pytest.raises(ValueError, match="not JSON compliant"):
        safe_json({"a": float("nan")})


def reported(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    capfd.readouterr()
    code = run(["report", *map(str, arguments)])
    said, complaint = capfd.readouterr()
    return code, said, complaint


def test_a_run_whose_trials_are_still_to_come(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    store = fabricated_run(tmp_path / "run", trials=0)
    code, said, _ = reported(capfd, store.root, "--no-layer-times")
    assert (code, said.startswith(f"report: {store.root / 'report.html'} (")) == (0, True)
    assert said.endswith("): 0 trials\n")
    page = (store.root / "report.html").read_text()
    assert "No trial is complete yet" in page
    (store.baseline_dir / "baseline.json").unlink()
    code, said, complaint = reported(capfd, store.root)
    assert (code, said) == (2, "")
    assert "the dense model is not measured yet: `prunefront search" in complaint
    assert complaint.count("\n") == 1


def test_a_run_of_which_much_is_missing_or_torn(tmp_path: Path) -> None:
    """As an earlier version left it, or a disk."""
    store = fabricated_run(tmp_path / "run", trials=4)
    for name in ("sensitivity.json", "forecast.json", "profile.json", "environment.json"):
        (store.root / name).write_text('{"torn')
    (store.root / "test.json").write_text('{"0": {}}')
    (store.root / "layers.json").write_text("[]")
    (store.baseline_dir / "model.onnx").write_bytes(b"torn")
    (store.trial_dir(0) / "plan.json").write_text("{}")
    (store.trial_dir(1) / "trace.jsonl").write_text("{}\n")
    (store.trial_dir(2) / "plan.json").unlink()
    (store.trial_dir(3) / "result.json").write_text("{")
    found = content_of(store)
    assert [t["n"] for t in found["trials"]] == [0, 1, 2]
    assert len(found["problems"]) == 1
    assert found["trials"][1]["trace"] is None
    for part in ("sensitivity.json cannot be read", "ONNX file does not tell", "versions are not", "test accuracies"):
        assert any(part in line for line in found["missing"]), part
    seen = Seen(render(found))
    assert "Not measured in this run." in " ".join(seen.words)
    shutil.rmtree(store.trials_dir / "0")
    (store.baseline_dir / "model.onnx").unlink()
    assert render(content_of(store))


def test_a_running_search_is_left_in_peace(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    store = fabricated_run(tmp_path / "run", trials=3)
    with (store.root / "driver.lock").open("w+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        started = datetime.now().astimezone().isoformat(timespec="seconds")
        lock.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "started": started}))
        lock.flush()
        before = {p: p.stat().st_mtime_ns for p in store.root.rglob("*") if p.is_file()}
        code, said, complaint = reported(capfd, store.root, "--out", tmp_path / "now.html")
    assert (code, complaint) == (0, "")
    assert said.endswith("): 3 trials\n")
    assert {p: p.stat().st_mtime_ns for p in store.root.rglob("*") if p.is_file()} == before
    page = (tmp_path / "now.html").read_text()
    assert 'class="chip running">running' in page
    assert "the search is running: its own measurements are not disturbed" in page


@pytest.mark.parametrize(
    ("out", "complaint"),
    [
        (".", "--out . is a folder: name the file, such as report.html"),
        (
            "nowhere/report.html",
            "cannot write nowhere/report.html: No such file or directory: make the folder around it first",
        ),
    ],
)
def test_a_report_that_cannot_be_written(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, out: str, complaint: str
) -> None:
    fabricated_run(tmp_path / "run", trials=1)
    monkeypatch.chdir(tmp_path)
    assert reported(capfd, "run", "--out", out, "--no-layer-times") == (2, "", f"error: {complaint}\n")


def test_what_is_no_run_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, _, complaint = reported(capfd, tmp_path)
    assert (code, complaint) == (
        2,
        f"error: {tmp_path} is not a run folder: give the folder that `prunefront search` made\n",
    )
    code, _, complaint = reported(capfd, tmp_path / "absent")
    assert (code, complaint) == (2, f"error: {tmp_path / 'absent'} is not a run folder: it does not exist\n")


def test_layers_are_timed_once_and_kept(tmp_path: Path) -> None:
    store = fabricated_run(tmp_path / "run", trials=2)
    job = load_job(store.job_path)
    (store.trial_dir(0) / "model.onnx").write_bytes(dense_onnx(width=8))
    (store.trial_dir(1) / "model.onnx").write_bytes(b"torn")
    said: list[str] = []
    asked = {"dense": DENSE_MS, "0": 1.0, "1": 1.0}
    known = time_layers(store, job.deciding_rig, asked, said.append)
    assert set(known) == {"dense", "0"}, "what cannot be loaded is left out"
    assert set(known["dense"]["layers"]) >= set(LAYERS)
    assert sum(known["dense"]["layers"].values()) == pytest.approx(1.0, abs=1e-4)
    del asked["1"]
    assert said[:2] == ["timing the layers of the dense network", "timing the layers of trial 0"]
    said.clear()
    assert time_layers(store, job.deciding_rig, asked, said.append) == known
    assert said == []
    assert content_of(store)["layer_ms"][-1] > 0.0, "a report that times nothing shows what was timed before"
    (store.trial_dir(0) / "model.onnx").write_bytes(dense_onnx(width=4))
    time_layers(store, job.deciding_rig, asked, said.append)
    assert said == ["timing the layers of trial 0"], "it is another file"


def test_shares_become_the_latency_that_was_measured() -> None:
    shares = {"a": 0.5, "b": 0.25, "pool": 0.25}
    assert layer_ms(shares, ["a", "b", "c"], 8.0) == [4.0, 2.0, None, 2.0]
    assert layer_ms(None, ["a"], 8.0) is None


def test_the_parts_of_the_page_are_in_the_package() -> None:
    folder = Path(reporting.__file__).parent
    parts = [path.name for path in folder.iterdir() if path.suffix not in (".py", "") and path.is_file()]
    settings = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    patterns = settings["tool"]["setuptools"]["package-data"]["search.reporting"]
    assert len(parts) > 5
    assert [name for name in parts if not any(fnmatch(name, pattern) for pattern in patterns)] == []


def test_layers_of_an_int8_file_are_known_by_their_names(tmp_path: Path) -> None:
    store = fabricated_run(tmp_path / "run", trials=1)
    inputs = [torch.randn(8, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))]
    (store.trial_dir(0) / "model.onnx").write_bytes(quantize_int8(dense_onnx(), inputs))
    known = time_layers(store, load_job(store.job_path).deciding_rig, {"0": 1.0}, lambda line: None)
    assert set(known["0"]["layers"]) >= set(LAYERS)
    shown = layer_ms(known["0"]["layers"], LAYERS, 1.0)
    assert shown is not None
    assert all(ms is not None and 0.0 < ms < 1.0 for ms in shown)


def test_widths_without_an_onnx_file_come_from_the_weights(tmp_path: Path) -> None:
    """A run whose rig measures modules ships none."""
    store = fabricated_run(tmp_path / "run", trials=1)
    (store.baseline_dir / "model.onnx").unlink()
    shapes = {"stem": (16, 1, 3, 3), "block1.conv": (16, 16, 3, 3), "block2.conv": (16, 16, 3, 3), "head": (10, 16)}
    save_file({f"{n}.weight": torch.zeros(s) for n, s in shapes.items()}, store.baseline_dir / "weights.safetensors")
    layers, why = dense_layers(store, LAYERS)
    assert [(row.name, row.filters, row.channels, row.kernel, row.macs) for row in layers] == [
        ("stem", 16, 1, 9, 0),
        ("block1.conv", 16, 16, 9, 0),
        ("block2.conv", 16, 16, 9, 0),
        ("head", 10, 16, 1, 0),
    ]
    assert why is not None
    assert why.startswith("this run ships modules, not ONNX files")
    found = content_of(store)
    assert [kept[:2] for kept in found["trials"][0]["kept"]][-1][0] == 10
    assert render(found)


def test_what_is_kept_of_a_layer_counts_zeros_and_groups(tmp_path: Path) -> None:
    def layer(name: str, filters: int, channels: int, groups: int = 1) -> LayerMacs:
        return LayerMacs(
            name=name,
            op="Conv",
            filters=filters,
            channels=channels,
            kernel=9,
            groups=groups,
            macs=filters * channels * 9,
        )

    dense = (layer("a", 8, 4), layer("grouped", 8, 2, groups=4), layer("deep", 8, 1, groups=8), layer("left", 4, 4))
    plan = {
        "kept": {
            "a": {"out": [0, 2, 4, 6], "in": [1, 3]},
            "grouped": {"in": [0, 2, 4, 6]},
            "deep": {"out": [0, 1], "in": [0, 1]},
        },
        "effective": {"a": {"filter": 0.5, "shape": 0.5}},
    }
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    found = kept_layers(tmp_path, dense, {"a.weight": 30, "deep.weight": 1000})
    assert found is not None
    assert found == ([[4, 2, 30], [8, 1, 72], [2, 1, 18], [4, 4, 144]], {"a": {"filter": 0.5, "shape": 0.5}})
    assert kept_layers(tmp_path / "absent", dense, None) is None


def test_figures_that_are_not_finite_and_a_budget_elsewhere(tmp_path: Path) -> None:
    """A trial that broke in its first epoch, and a budget on a rig that the plot is not of."""
    store = fabricated_run(tmp_path / "run", trials=2)
    broken = TrialResult(number=2, status="failed", plan_digest="2", seed=0, reason="loss is NaN", epochs=math.nan)
    assert store.commit(2, store.attempt_dir(2, "made-up"), broken)
    store.job_path.write_text(
        store.job_path.read_text().replace("{speedup: 2.0}", "{speedup: 2.0, rig: torch-cpu}")
        + "rigs: [onnxruntime-cpu, torch-cpu]\n"
    )
    found = content_of(store)
    assert found["progress"][2]["epochs"] is None
    assert found["budget"] == {"words": "2x on torch-cpu", "latency_ms": None}
    assert found["feasibility"]["asked"] is None
    words = " ".join(Seen(render(found)).words)
    assert "loss is NaN" in words
    assert "nan" not in words
