"""The commands as a person types them: a search in a pipe and one in a terminal, and what can be done with a run."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file

from admm.compact import load_pruned
from evaluators.measurement import Measurement
from search.budget import Budget
from search.cli import run
from search.front import COLUMNS, dense_result, front_results
from search.job_file import load_job
from search.result import TrialResult
from search.store import RunStore
from tests.pages import blocks, known_commands, typed, unknown
from tests.search.events import parameters, scalars

HERE = Path(__file__).parent
SMALL = HERE / "small_task"
EXAMPLES = HERE.parents[1] / "examples"
PROGRAM = [sys.executable, "-c", "from search.cli import main; main()"]
TIMEOUT_S = 800.0

pytestmark = pytest.mark.ray


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1]), **more}


@dataclass(frozen=True)
class Searched:
    """A finished search, and what it said."""

    root: Path
    out: str
    err: str

    def results(self) -> dict[int, TrialResult]:
        return {n: r for n, r in RunStore.open(self.root).results().items() if r.status == "complete"}


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Searched:
    """One search of four trials, its output in a pipe, started from a folder that has nothing to do with it."""
    folder = tmp_path_factory.mktemp("cli")
    done = subprocess.run(
        [*PROGRAM, "search", str(SMALL / "job.yaml"), "--storage", "runs", "--name", "small"],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return Searched(folder / "runs" / "small", done.stdout, done.stderr)


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    path, threads = list(sys.path), torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    sys.path[:] = path


def succeed(capfd: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command here; returns what it prints, having made sure that it complains about nothing."""
    capfd.readouterr()
    code = run([str(argument) for argument in arguments])
    said, complaint = capfd.readouterr()
    assert (code, complaint) == (0, "")
    return said


def test_a_search_in_a_pipe_says_plain_lines_and_nothing_else(searched: Searched) -> None:
    assert searched.err == ""
    assert "\x1b" not in searched.out
    lines = [line.rstrip() for line in searched.out.splitlines()]
    complete = searched.results()
    # what a loaded machine measured decides whether a trial keeps the budget
    asked = "--speedup 1.1" if any(Budget(speedup=1.1).holds(r) for r in complete.values()) else "--trial N"
    starts = [
        "run runs/small",
        "training the dense network: 4 epochs",
        "exporting and measuring the dense network",
        "dense: accuracy ",
        "starting Ray",
        f"trial {min(complete)}: accuracy ",
        " trial  accuracy",
        " dense ",
        "latency: median of thread CPU time",
        "picture: runs/small/front.png",
        f"export one with: prunefront export runs/small {asked} --out NEW_FOLDER",
    ]
    places = [next(i for i, line in enumerate(lines) if line.startswith(start)) for start in starts]
    assert places == sorted(places)
    assert (
        sum(
            re.match(r"trial \d+: accuracy [\d.]+, [\d.]+ ms, [\d.]+x; \d/4 done, ", line) is not None for line in lines
        )
        == 4
    )
    assert any(re.fullmatch(r"\d+ trials?: 4 complete(, \d+ infeasible)?", line) for line in lines)


def test_a_run_folder_holds_what_it_should(searched: Searched) -> None:
    names = {path.name for path in searched.root.iterdir()}
    assert names >= {
        "job.yaml",
        "environment.json",
        "study.db",
        "baseline",
        "profile.json",
        "trials",
        "front.json",
        "front.csv",
        "front.png",
    }
    assert "ray" not in names, "Ray's folder is scratch"
    assert (searched.root / "front.png").read_bytes().startswith(b"\x89PNG")
    assert len(searched.results()) == 4
    for number in searched.results():
        found = {path.name for path in (searched.root / "trials" / str(number)).iterdir()}
        assert found == {"model.onnx", "plan.json", "result.json", "trace.jsonl", "weights.safetensors"}


def test_tensorboard_was_told_of_every_trial(searched: Searched) -> None:
    folder = searched.root / "tensorboard"
    assert "for TensorBoard: tensorboard --logdir runs/small/tensorboard" in searched.out
    finished = RunStore.open(searched.root).results()
    assert {path.name for path in folder.iterdir()} == {f"trial-{number}" for number in finished}
    for number, result in searched.results().items():
        found = scalars(folder / f"trial-{number}")
        last = {name: values[-1] for name, values in found.items()}
        assert result.accuracy is not None
        assert last["accuracy"] == (5, pytest.approx(result.accuracy))
        assert last["speedup"][1] == pytest.approx(result.speedup)
        assert last["epochs"][1] == pytest.approx(result.epochs)
        trained = result.started_from is None or "training/loss" in found
        assert trained, "a trial from the dense network has epochs"
        assert not [name for name in found if "ray" in name or "time" in name]
        asked = parameters(folder / f"trial-{number}")
        for layer, structures in result.requested.items():
            for structure, sparsity in structures.items():
                assert asked[f"{layer}/{structure}"] == pytest.approx(sparsity)


def test_the_front_as_json_has_the_columns_of_the_table(searched: Searched, capfd: pytest.CaptureFixture[str]) -> None:
    said = json.loads(succeed(capfd, "front", searched.root, "--json"))
    rows = said["front"]
    assert [list(row) for row in rows] == [[*COLUMNS, "tied_with", "latency_again", "speedup_again"]] * len(rows)
    assert list(COLUMNS) == [
        "trial", "accuracy", "accuracy_drop", "latency_ms", "speedup", "compression_x", "macs", "params",
        "within_budget",
        "precision",
    ]  # fmt: skip
    assert rows[0]["trial"] == "dense"
    store, budget = RunStore.open(searched.root), Budget(speedup=1.1)
    front = [dense_result(store.read_baseline()), *front_results(store.read_baseline(), store.results())]
    assert [row["trial"] for row in rows] == ["dense", *(trial.number for trial in front[1:])]
    assert [row["within_budget"] for row in rows] == [budget.holds(trial) for trial in front]
    assert {row["trial"] for row in rows[1:]} <= set(searched.results())
    written = json.loads((searched.root / "front.json").read_text())
    assert rows == written["rows"]
    assert said["progress"] == written["progress"]
    assert [row["trial"] for row in said["progress"]] == sorted(store.results())
    spent = [said["reference"]["epochs_before"], *(row["epochs"] for row in said["progress"])]
    assert spent[0] > 0.0, "what the sensitivity table cost"
    assert spent == sorted(spent)
    assert {row["latency_again"] for row in rows} == {None}, "the job leaves it out"
    # paired with the dense model's: latencies of trials that ran minutes apart need not be in this order
    speedups = [row["speedup"] for row in rows[1:]]
    assert speedups == sorted(speedups)


def test_the_front_as_a_table_fits_a_plain_terminal(
    searched: Searched, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = succeed(capfd, "front", searched.root)
    assert said.splitlines()[2].split() == [
        "trial",
        "accuracy",
        "pp",
        "ms",
        "speedup",
        "compression",
        "MACs",
        "params",
        "budget",
    ]
    table = [line.rstrip() for line in said.splitlines() if not line.startswith(("test accuracy", "note on", "tied, "))]
    assert "…" not in said
    rows = json.loads((searched.root / "front.json").read_text())["rows"]
    if all(row["latency_ms"] >= 0.01 and abs(row["accuracy_drop"]) < 10 for row in rows):
        assert max(len(line) for line in table) <= 80
    assert said.strip() in searched.out
    monkeypatch.setenv("COLUMNS", "50")
    assert succeed(capfd, "front", searched.root) == said, "a narrow terminal wraps the lines, it does not cut figures"


@pytest.mark.parametrize("asked", ["speedup", "latency-ms", "max-drop", "trial"])
def test_export_each_way(searched: Searched, tmp_path: Path, capfd: pytest.CaptureFixture[str], asked: str) -> None:
    """The ONNX file handed over, the module rebuilt from its folder and the card all tell of the same network."""
    complete = [r for r in searched.results().values() if r.status == "complete"]
    order = sorted(complete, key=lambda r: (-(r.speedup or 0.0), -(r.accuracy or 0.0), r.number))
    fastest = order[0]
    assert fastest.latency_ms is not None
    assert fastest.speedup is not None
    value = {
        "speedup": 0.01 * fastest.speedup,
        "latency-ms": 100.0 * fastest.latency_ms,
        "max-drop": 100,
        "trial": fastest.number,
    }[asked]
    if asked in ("speedup", "latency-ms"):  # the most accurate of those within the budget, then the fastest
        budget = Budget(**{asked.replace("-", "_"): value})
        within = [r for r in complete if budget.holds(r)]
        order = sorted(within, key=lambda r: (-(r.accuracy or 0.0), -(r.speedup or 0.0), r.number))
    out = tmp_path / "out"
    said = succeed(capfd, "export", searched.root, f"--{asked}", value, "--out", out)
    # A busy machine may measure a trial beyond the budget now: it is passed over by name, and the next one comes.
    passed = [int(n) for n in re.findall(r"^trial (\d+) was passed over: measured again it takes ", said, re.MULTILINE)]
    assert passed == [r.number for r in order[: len(passed)]]
    assert not passed or asked in ("speedup", "latency-ms")
    fastest = order[len(passed)]
    said = said.splitlines(keepends=True)[-1]
    assert said.startswith(f"exported trial {fastest.number} to {out}: accuracy {fastest.accuracy:.4f} (")
    assert said.endswith("against dense, measured again now\n")
    assert {path.name for path in out.iterdir()} == {
        "model.onnx",
        "plan.json",
        "weights.safetensors",
        "trace.jsonl",
        "card.json",
        "README.md",
    }
    card = json.loads((out / "card.json").read_text())
    assert (card["trial"], card["accuracy"], card["run"]) == (fastest.number, fastest.accuracy, "small")
    measured = Measurement.from_dict(card["measured_at_export"])
    assert measured.stamp.rig == "onnxruntime-cpu"
    assert measured.to_dict() != card["measured_in_search"]["onnxruntime-cpu"], "measured once more"
    onnx.checker.check_model(str(out / "model.onnx"))
    inputs = torch.randn(5, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    session = onnxruntime.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"input": inputs.numpy()})
    module = load_pruned(small_network(), out)
    assert sum(p.numel() for p in module.parameters()) == card["params"] < card["dense"]["params"]
    with torch.no_grad():
        np.testing.assert_allclose(module(inputs).numpy(), expected, atol=1e-5 * np.abs(expected).max())


def small_network() -> torch.nn.Module:
    """The dense network, built as a user would who only has the task's module."""
    from tests.search.small_task.small import Network

    return Network(32)


def test_a_trial_is_reproduced_alone_to_the_last_bit(
    searched: Searched, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    number, trial = min(searched.results().items())
    source = searched.root / "trials" / str(number)
    said = succeed(capfd, "prune", searched.root, "--plan", source / "plan.json", "--out", tmp_path / "again")
    assert (tmp_path / "again" / "weights.safetensors").read_bytes() == (source / "weights.safetensors").read_bytes()
    assert (tmp_path / "again" / "model.onnx").read_bytes() == (source / "model.onnx").read_bytes()
    again = json.loads((tmp_path / "again" / "result.json").read_text())
    assert (again["accuracy"], again["plan_digest"], again["macs"]) == (trial.accuracy, trial.plan_digest, trial.macs)
    for line in (
        "dense: accuracy ",
        "2/2 ",
        "layer ",
        "accuracy: ",
        "ONNX file: accuracy ",
        "compression ",
        "written to ",
    ):
        assert any(said_line.startswith(line) for said_line in said.splitlines()), line
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


def test_one_plan_on_a_job_in_a_process_of_its_own(tmp_path: Path) -> None:
    """No Ray, no run folder: a plan by hand, structures mixed, and a folder that `load_pruned` reads."""
    plan = {"stem": {"filter": 0.5}, "first": {"filter": 0.75, "unstructured": 0.9}}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    done = subprocess.run(
        [*PROGRAM, "prune", str(SMALL / "job.yaml"), "--plan", "plan.json", "--out", "out"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "written to out"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "plan.json"]
    requested = json.loads((tmp_path / "out" / "plan.json").read_text())["requested"]
    assert requested == plan
    module = load_pruned(small_network(), tmp_path / "out")
    weights = load_file(tmp_path / "out" / "weights.safetensors")
    assert tuple(weights["first.weight"].shape[:2]) == (8, 16)
    assert float((weights["first.weight"] == 0).float().mean()) >= 0.55, (
        "nine in ten of the dense layer's, filters included"
    )
    assert module(torch.zeros(2, 1, 12, 12)).shape == (2, 4)


def test_measure_against_itself_and_against_another(searched: Searched, capfd: pytest.CaptureFixture[str]) -> None:
    dense = searched.root / "baseline" / "model.onnx"
    fastest = min(searched.results().values(), key=lambda r: r.latency_ms or 0.0)
    pruned = searched.root / "trials" / str(fastest.number) / "model.onnx"
    same = succeed(capfd, "measure", dense)
    assert [line.split()[0] for line in same.splitlines()] == ["latency", "speed-up", "wall", "on"]
    assert "against itself (A/A control)" in same
    assert "median of thread CPU time" in same
    assert "onnxruntime" in same
    other = succeed(capfd, "measure", pruned, "--against", dense)
    assert f"against {dense}" in other
    measured = Measurement.from_dict(json.loads(succeed(capfd, "measure", pruned, "--against", dense, "--json")))
    assert measured.stamp.batch == 1
    assert measured.speedup_low <= measured.speedup <= measured.speedup_high
    batch = json.loads(succeed(capfd, "measure", dense, "--batch", 4, "--json"))
    assert batch["stamp"]["batch"] == 4


def test_a_reader_that_stops_reading_is_no_mistake(searched: Searched) -> None:
    """`prunefront front RUN --json | head -1`."""
    for more in ([], ["--json"]):
        process = subprocess.Popen(
            [*PROGRAM, "front", str(searched.root), *more],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        complaint = process.stderr.read().decode()
        process.stderr.close()
        process.wait(TIMEOUT_S)
        assert complaint == ""


def in_a_terminal(arguments: list[str], cwd: Path) -> tuple[int, str]:
    """Run the program in a terminal of 40 x 100; returns its exit code and all that was written there."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    env = environment(TERM="xterm-256color")
    for name in ("NO_COLOR", "COLUMNS", "LINES"):
        env.pop(name, None)
    process = subprocess.Popen([*PROGRAM, *arguments], cwd=cwd, env=env, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    written = bytearray()
    try:
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # Linux: the last process of the terminal has closed it
                break
            if not part:
                break
            written += part
        return process.wait(TIMEOUT_S), written.decode(errors="replace")
    finally:
        os.close(ours)
        if process.poll() is None:
            process.kill()


@pytest.mark.slow
def test_the_example_of_a_users_own_network_in_a_terminal(tmp_path: Path) -> None:
    """From the copied example to its front, with one live table that is drawn again and again."""
    shutil.copytree(EXAMPLES / "own_model", tmp_path / "mine", ignore=shutil.ignore_patterns("__pycache__"))
    job = tmp_path / "mine" / "job.yaml"
    text = job.read_text()
    for long, short in (("width: 64", "width: 32"), ("iterations: 3", "iterations: 1"), ("epochs: 2", "epochs: 1")):
        assert long in text
        text = text.replace(long, short)
    job.write_text(text)
    code, written = in_a_terminal(["search", "mine/job.yaml", "--trials", "2", "--latency-ms", "1000"], tmp_path)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written).replace("\r", "")
    assert code == 0, plain
    assert "no validation data given: 10% of the training data (150 samples" in plain
    assert written.count("prunefront search\x1b[0m") > 2, "drawn again while it ran"
    assert "\x1b[?25l" in written
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l"), "the cursor is back"
    assert not re.search(r"(?m)^trial \d", plain), "the table says it"
    last = plain[plain.rindex("prunefront search") :]
    for row in (
        r"done +2 of 2",
        r"running +0",
        r"failed +0",
        r"front +\d trials?",
        r"best within budget +[\d.]+ at [\d.]+ ms",
    ):
        assert re.search(row, last), row
    assert "export one with: prunefront export runs/job-001 --latency-ms 1000 --out NEW_FOLDER" in last
    for noise in ("Traceback", "Warning", "WARNING", "INFO", "ray::", "error:"):
        assert noise not in plain
    rows = json.loads((tmp_path / "runs" / "job-001" / "front.json").read_text())["rows"]
    assert rows[0]["trial"] == "dense"
    # a front of none starts no process
    assert all((row["latency_again"] is None) == (len(rows) == 1) for row in rows)
    assert ("measuring the front again, in a fresh process" in plain) == (len(rows) > 1)
    assert "was not measured again" not in plain


def test_what_the_readme_types_exists(tmp_path: Path) -> None:
    readme = (HERE.parents[1] / "README.md").read_text()
    shutil.copy(EXAMPLES / "own_model" / "my_model.py", tmp_path)
    (tmp_path / "job.yaml").write_text(next(text for language, text in blocks(readme) if language == "yaml"))
    assert load_job(tmp_path / "job.yaml").load_task().name == "waves"
    listed = next(text for _, text in blocks(readme) if "prunefront search JOB.yaml" in text)
    assert {command for command, _ in typed(f"```\n{listed}```")} == set(known_commands())
    assert unknown(readme) == []
