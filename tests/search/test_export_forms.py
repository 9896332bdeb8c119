"""A network of a real run handed over in int8 and in fp16, by the command and from Python."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from rich.console import Console

from admm.plan import PruningPlan
from evaluators import Measurement, OnnxPredictor, evaluate
from evaluators.half import half_weights
from evaluators.opset import opset_of
from evaluators.quantize import int8_weights
from search import UserError, export
from search.bench import Prepared, open_bench, prepare_run
from search.cli import run
from search.commands import environment
from search.conversion import fp16_conversion
from search.errors import BudgetUnreachable
from search.job_file import load_job
from search.store import MODEL_NAME, RunStore, write_atomic
from search.trial import TrialSpec
from search.view import View
from search.worker import TrialRun
from tests.search.test_export import measurement

SMALL = Path(__file__).parent / "small_task"
JOB = """
task: small:task
layers: {exclude: [head]}
structures: [filter, shape]
sparsity: {align: 8}
admm: {iterations: 1}
finetune: {epochs: 1}
opset: 18
"""


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunStore]:
    """A run with one trial, half the filters of which are gone."""
    folder = tmp_path_factory.mktemp("forms")
    (folder / "small.py").write_text((SMALL / "small.py").read_text())
    (folder / "job.yaml").write_text(JOB)
    path, threads = list(sys.path), torch.get_num_threads()
    torch.set_num_threads(1)
    prepared = Prepared.of(load_job(folder / "job.yaml"))
    store = RunStore.create(folder / "run", prepared.job.to_yaml(), environment(prepared.job))
    prepare_run(store, prepared.job, prepared, View(Console(quiet=True)))
    plan = PruningPlan({"first": {"filter": 0.5}, "stem": {"filter": 0.5}})
    trial = TrialRun(open_bench(store), TrialSpec(number=0, plan=plan, params={}, seed=0), store=store)
    while trial.result is None:
        trial.step()
    assert trial.result.status == "complete", trial.result.reason
    yield store
    torch.set_num_threads(threads)
    sys.path[:] = path
    sys.modules.pop("small", None)


def handed_over(out: Path) -> tuple[dict[str, Any], bytes, str]:
    """(card, file, README.md) of an export."""
    return json.loads((out / "card.json").read_text()), (out / MODEL_NAME).read_bytes(), (out / "README.md").read_text()


def test_fp16_is_checked_scored_and_measured_as_it_is_shipped(
    searched: RunStore, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "half"
    assert run(["export", str(searched.root), "--trial", "0", "--fp16", "--out", str(out)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    card, content, readme = handed_over(out)
    assert half_weights(content)
    assert (card["precision"], card["opset"]) == ("fp16", 18)
    assert opset_of(onnx.load_model_from_string(content)) == 18
    trial, baseline = searched.result(0), searched.read_baseline()
    fp32 = searched.model_path(0).read_bytes()
    assert len(content) < 0.75 * len(fp32)
    task = open_bench(searched).task
    score = evaluate(OnnxPredictor(content), task.val_batches(), task.task.metric)
    assert (card["accuracy"], card["accuracy_stderr"]) == (score.value, score.stderr)
    assert card["accuracy_drop"] == pytest.approx(100.0 * (baseline.accuracy - score.value))
    assert (card["int8"], card["test"]) == (None, None)
    assert card["fp16"]["fp32_accuracy"] == trial.accuracy
    x = next(iter(task.val_batches()))[0]
    apart = (OnnxPredictor(fp32)(x) - OnnxPredictor(content)(x)).abs().max()
    assert 0.0 < float(apart) <= 2e-2 * float(OnnxPredictor(fp32)(x).abs().max())
    assert 0.0 < card["fp16"]["max_abs"] < 1.0
    over = card["fp16"]["measured_over_fp32"]
    assert 0.2 < over["speedup"] < 5.0
    assert card["reproduce"] == f"prunefront export {searched.root} --trial 0 --fp16 --out NEW_FOLDER"
    assert f"exported trial 0 in fp16 to {out}: accuracy {score.value:.4f}" in said
    figures = f"{over['speedup']:.2f}x, {over['speedup_low']:.2f}-{over['speedup_high']:.2f}"
    assert f"by fp16 on onnxruntime-cpu ({figures}" in said or f"({figures}), and half" in said
    assert figures in readme
    assert "in fp16 with float32 inputs and outputs, ONNX opset 18." in readme
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert "np.float32" in code
    monkeypatch.chdir(out)
    exec(code, {})
    assert capsys.readouterr().out == "(1, 4)\n"
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map["prunefront.precision"] == "fp16"
    assert np.asarray(session.run(None, {"input": x.numpy()})[0]).dtype == np.float32


def test_fp16_is_measured_against_its_own_fp32_form_where_it_is_exported(searched: RunStore) -> None:
    asked: list[tuple[Any, ...]] = []

    def measure(*arguments: Any) -> Measurement:
        asked.append(arguments)
        return measurement(0.5)

    content = searched.model_path(0).read_bytes()
    made = fp16_conversion(searched, load_job(searched.job_path), measure).make(searched.result(0), content)
    assert asked == [], "of trials that are passed over nobody wants to know"
    assert made.paired is not None
    assert made.paired().latency_ms == 0.5
    assert asked == [("onnxruntime-cpu", made.content, content)]


def test_int8_is_made_again_in_the_run_s_operator_set(searched: RunStore, tmp_path: Path) -> None:
    done = export(searched.root, tmp_path / "ints", trial=0, int8=True)
    card, content, _ = handed_over(tmp_path / "ints")
    assert int8_weights(content)
    assert (card["precision"], card["opset"], card["fp16"]) == ("int8", 18, None)
    assert done.converted is not None
    assert card["int8"]["agreement"] == done.converted.agreement
    assert opset_of(onnx.load_model_from_string(content)) == 18


def test_a_rewritten_file_is_converted_as_it_is_and_quantised_anew(
    searched: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one that was lowered the plain form is exported once more, for int8 to choose from."""
    trial = searched.result(0)
    assert trial.lowered is not None
    lowered = {**trial.lowered, "changed": True}
    monkeypatch.setattr(RunStore, "results", lambda self: {0: replace(trial, lowered=lowered)})
    opsets: list[int] = []
    from search import export_command

    real = export_command.export_onnx

    def spy(*arguments: Any, opset: int, **options: Any) -> Path:
        opsets.append(opset)
        return real(*arguments, opset=opset, **options)

    monkeypatch.setattr(export_command, "export_onnx", spy)
    export(searched.root, tmp_path / "half", trial=0, fp16=True)
    assert (opsets, handed_over(tmp_path / "half")[0]["lowered"]["changed"]) == ([], True)
    export(searched.root, tmp_path / "ints", trial=0, int8=True)
    assert opsets == [18]


def test_what_is_asked_is_asked_of_the_fp16_file(
    searched: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        BudgetUnreachable, match=r"no trial keeps the budget of 900x on onnxruntime-cpu in fp16 .*no fp16"
    ):
        export(searched.root, tmp_path / "no", speedup=900.0, fp16=True)
    done = export(searched.root, tmp_path / "slow", latency_ms=900.0, fp16=True)
    assert done.converted is not None
    assert done.converted.precision == "fp16"
    # the fp32 file drops next to nothing; this one is made to say the same class for everything
    from search import conversion

    worst = replace(done.converted.score, value=0.1)
    monkeypatch.setattr(conversion, "evaluate", lambda *_: worst)
    with pytest.raises(
        BudgetUnreachable, match=r"no trial can be handed over in fp16 \(trial 0: it drops [\d.]+ pp in fp16"
    ):
        export(searched.root, tmp_path / "no", max_drop=50.0, fp16=True)
    assert not (tmp_path / "no").exists()


def test_an_fp16_file_that_says_something_else_is_not_handed_over(
    searched: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("search.conversion.check_fp16", lambda a, b, x: _strict(a, b, x))
    asked = ["export", str(searched.root), "--trial", "0", "--fp16", "--out", str(tmp_path / "no")]
    assert run(asked) == 2
    line = capfd.readouterr().err
    assert line.startswith("error: trial 0 cannot be exported in fp16: parity breach: max abs difference")
    assert line.endswith("export it without --fp16\n")
    assert not (tmp_path / "no").exists()


def _strict(reference: bytes, converted: bytes, inputs: Any) -> Any:
    from evaluators.half import check_fp16

    return check_fp16(reference, converted, inputs, tolerance=1e-9)


def test_one_precision_at_a_time_and_of_fp32_files_alone(
    searched: RunStore, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = ["export", str(searched.root), "--trial", "0", "--out", str(tmp_path / "no")]
    assert run([*asked, "--int8", "--fp16"]) == 2
    assert capfd.readouterr().err == "error: --int8 and --fp16: give one of them, not both\n"
    text = searched.job_path.read_text()
    try:
        write_atomic(
            searched.job_path,
            text.replace("quantize: 'off'", "quantize: int8").replace("quantize: off", "quantize: int8"),
        )
        assert run([*asked, "--fp16"]) == 2
        assert "--fp16: the trials of this run are int8 files already: leave it out" in capfd.readouterr().err
        write_atomic(searched.job_path, re.sub("name: onnxruntime-cpu", "name: torch-cpu", text))
        assert run([*asked, "--fp16"]) == 2
        line = "--fp16: fp16 is a form of ONNX files, and this run decides on torch-cpu: leave it out"
        assert line in capfd.readouterr().err
    finally:
        write_atomic(searched.job_path, text)
    assert not (tmp_path / "no").exists()


def test_an_int8_trial_of_a_mixed_run_stays_what_it_is(
    searched: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = searched.result(0)
    monkeypatch.setattr(RunStore, "results", lambda self: {0: replace(trial, precision="int8")})
    with pytest.raises(UserError, match="--fp16: trial 0 is an int8 file already: leave it out"):
        export(searched.root, tmp_path / "no", trial=0, fp16=True)
    with pytest.raises(UserError, match="no trial of this run is complete"):
        export(searched.root, tmp_path / "no", max_drop=5.0, fp16=True)
