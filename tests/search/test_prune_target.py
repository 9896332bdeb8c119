"""`prunefront prune` as a person types it: one number in, sparsities found, convergence seen; and each mistake."""

# ruff: noqa: E501  (one mistake a line: what was typed beside what is said)

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from rich.console import Console

from admm.compact import load_pruned
from admm.plan import PruningPlan
from admm.target import Target
from search.bench import Prepared, prepare_run
from search.cli import run
from search.job_file import load_job
from search.store import RunStore
from search.view import View
from tests.search.small_task.small import Network

HERE = Path(__file__).parent
PROGRAM = [sys.executable, "-c", "from search.cli import main; main()"]

LITTLE = """
import small

def task(epochs=2):
    recipe = small.DenseRecipe(epochs=epochs, lr=0.05)
    return small.Task(
        name="little", model=lambda: small.Network(16), train=small.bars(64, 0), val=small.bars(40, 1), dense=recipe,
        batch_size=16,
    )
"""
JOB = """
task: little:task
structures: [filter, unstructured]
layers: {exclude: [head]}
sparsity: {align: 8}
budget: {speedup: 5000}
admm: {iterations: 3, lr: 0.02, progressive: 0.7}
finetune: {epochs: 2}
"""
#: Weights of stem, first, second and head.
DENSE = 16 * 9 + 2 * 16 * 16 * 9 + 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: a job whose budget nothing could keep, which does not matter here."""
    folder = tmp_path_factory.mktemp("prune")
    shutil.copy(HERE / "small_task" / "small.py", folder)
    (folder / "little.py").write_text(LITTLE)
    (folder / "job.yaml").write_text(JOB)
    return folder


@pytest.fixture(autouse=True, scope="module")
def _there(folder: Path) -> Iterator[None]:
    threads, path, before = torch.get_num_threads(), list(sys.path), Path.cwd()
    torch.set_num_threads(1)
    os.chdir(folder)
    yield
    os.chdir(before)
    torch.set_num_threads(threads)
    sys.path[:] = path
    for name in ("small", "little"):
        sys.modules.pop(name, None)


@pytest.fixture
def quick(found: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the export of the dense network ahead, which `found` has gone through."""
    monkeypatch.setattr(Prepared, "check_shapes", lambda self: None)


def prune(*arguments: object) -> list[str]:
    """Run `prunefront prune`, its output in a pipe; returns the lines, having made sure it complains about nothing."""
    said, complaint = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(complaint):
        code = run(["prune", *map(str, arguments)])
    assert (code, complaint.getvalue()) == (0, ""), complaint.getvalue()
    return [line.rstrip() for line in said.getvalue().splitlines()]


def refused(capfd: pytest.CaptureFixture[str], *arguments: str, code: int = 2) -> str:
    """Run a command that must be refused; returns the one line it says, having left nothing behind."""
    before = sorted(Path().rglob("*"))
    capfd.readouterr()
    assert run(["prune", *arguments]) == code
    said, complaint = capfd.readouterr()
    assert complaint.count("\n") == 1, complaint
    assert "Traceback" not in said + complaint
    assert [p for p in sorted(Path().rglob("*")) if "__pycache__" not in p.parts] == [
        p for p in before if "__pycache__" not in p.parts
    ]
    return complaint.removeprefix("error: ").rstrip("\n")


def plan_of(out: str | Path) -> dict[str, object]:
    content = json.loads((Path(out) / "plan.json").read_text())
    assert isinstance(content, dict)
    return content


@pytest.fixture(scope="module")
def found(_there: None) -> list[str]:
    """What is said by one number, with out/found as its outcome."""
    return prune("job.yaml", "--compression-x", 6, "--structures", "unstructured", "--out", "out/found")


def test_the_number_is_kept_and_recorded(found: list[str]) -> None:
    result = json.loads(Path("out/found/result.json").read_text())
    assert result["compression_x"] >= 6.0
    module = load_pruned(Network(16), "out/found")
    kept = sum(int(p.count_nonzero()) for p in module.parameters() if p.ndim > 1)
    assert kept <= DENSE // 6
    assert result["compression_x"] == pytest.approx(DENSE / kept)

    content = plan_of("out/found")
    target = Target.from_dict(content["target"])
    assert (target.compression_x, target.structures) == (6.0, ("unstructured",))
    assert target.layers == ("stem", "first", "second"), "those that the job selects"
    plan = PruningPlan.from_json(Path("out/found/plan.json").read_text())
    assert set(plan) <= {"stem", "first", "second"}
    assert {structure for layer in plan.values() for structure in layer} == {"unstructured"}
    assert len({layer["unstructured"] for layer in plan.values()}) > 1, "not the same everywhere"
    assert content["digest"] == plan.digest() == result["plan_digest"]
    assert PruningPlan(result["requested"]) == plan


def test_convergence_is_shown_iteration_by_iteration(found: list[str]) -> None:
    assert "\x1b" not in "".join(found)
    assert "target: compression_x=6 by unstructured; sparsities are found on the way" in found
    rows = [re.fullmatch(r"(\d)/3 +([\d.]+) +([\d.]+) +([\d.]+)x +([\d.]+(?: k)?) +([\d.]+)  (\S+)", s) for s in found]
    steps = [match.groups() for match in rows if match]
    assert [step[0] for step in steps] == ["1", "2", "3"]
    compression = [float(step[3]) for step in steps]
    assert compression == sorted(compression), "progressive: it falls to what was asked"
    assert compression[0] < 6.0 <= compression[-1]
    residuals = [json.loads(line) for line in Path("out/found/trace.jsonl").read_text().splitlines()]
    for step, record in zip(steps, residuals[:-1], strict=True):
        name, worst = max(record["primal"].items(), key=lambda item: item[1])
        assert (step[5], step[6]) == (f"{worst:.3f}", name.removesuffix(".weight"))
        assert float(step[3]) == pytest.approx(DENSE / (sum(record["kept"].values()) + 64), abs=0.006)
    assert sum(line.startswith("retraining ") for line in found) == 2
    assert re.fullmatch(
        r"retraining 2/2: loss [\d.]+, accuracy [\d.]+", next(s for s in found if s.startswith("retraining 2/2"))
    )


def test_the_layers_and_the_accuracies_are_told_at_the_end(found: list[str]) -> None:
    start = found.index(next(line for line in found if line.startswith("layer ")))
    assert found[start].split() == ["layer", "filters", "columns", "weights", "sparsity", "primal", "dual", "rho"]
    rows = {line.split()[0]: line.split()[1:] for line in found[start + 1 : start + 6]}
    assert list(rows) == ["stem", "first", "second", "head", "all"]
    assert rows["head"][2:4] == ["64/64", "0.0000"]
    assert rows["head"][-3:] == ["-", "-", "-"], "nothing was asked of it"
    assert rows["first"][0].endswith("/16")
    assert rows["first"][1].endswith("/144")
    last = json.loads(Path("out/found/trace.jsonl").read_text().splitlines()[-2])
    assert float(rows["first"][4]) == pytest.approx(last["primal"]["first.weight"], abs=6e-4)
    assert float(rows["all"][1]) == pytest.approx(1 - 1 / 6, abs=0.02)
    after = found[start + 6 :]
    assert re.fullmatch(r"accuracy: [\d.]+ before the hard prune, [\d.]+ after it, [\d.]+ after retraining", after[0])
    assert re.fullmatch(r"ONNX file: accuracy [\d.]+ \(drop -?[\d.]+ pp\), [\d.]+ ms, [\d.]+x", after[1])
    assert after[2].startswith("compression 6.")
    assert sum(line.startswith("warning: ADMM has not converged: ") for line in after) == 1
    assert not any(line.startswith("note: ADMM") for line in after)
    assert after[-1] == "written to out/found"


def test_lines_fit_a_plain_terminal(found: list[str]) -> None:
    free = ("note: ", "warning: ", "no gain on ")  # as long as what they say; a terminal wraps them
    assert max(len(line) for line in found if not line.startswith(free)) <= 80


@pytest.mark.usefixtures("quick")
def test_the_same_target_and_seed_give_the_same_weights_and_its_plan_alone_is_a_fixed_one(found: list[str]) -> None:
    prune("job.yaml", "--plan", "out/found/plan.json", "--out", "out/again")
    for name in ("weights.safetensors", "plan.json", "model.onnx", "trace.jsonl"):
        assert (Path("out/again") / name).read_bytes() == (Path("out/found") / name).read_bytes(), name

    Path("fixed.json").write_text(json.dumps(plan_of("out/found")["requested"]))
    said = prune("job.yaml", "--plan", "fixed.json", "--out", "out/fixed")
    assert not any(line.startswith("target: ") for line in said)
    fixed = plan_of("out/fixed")
    assert fixed["requested"] == plan_of("out/found")["requested"]
    assert "target" not in fixed


@pytest.mark.usefixtures("quick")
def test_a_mac_fraction_of_a_run_with_the_structures_of_its_job() -> None:
    """The dense weights are the run's; filters come in its blocks."""
    job = load_job(Path("job.yaml")).model_copy(update={"budget": None, "structures": ("filter",)})
    prepared = Prepared.of(job)
    store = RunStore.create(Path("runs/one"), job.to_yaml(), {})
    with contextlib.redirect_stdout(io.StringIO()):
        prepare_run(store, job, prepared, View(Console()))
    weights = (store.baseline_dir / "weights.safetensors").read_bytes()
    said = prune("runs/one", "--mac-fraction", 0.6, "--out", "out/macs")
    assert not any("training the dense network" in line for line in said)
    assert (store.baseline_dir / "weights.safetensors").read_bytes() == weights
    assert store.results() == {}
    result = json.loads(Path("out/macs/result.json").read_text())
    assert result["macs"] <= 0.61 * store.read_baseline().macs  # the head's few are in both
    module = load_pruned(Network(16), "out/macs")
    assert {m.weight.shape[0] % 8 for m in module.modules() if isinstance(m, torch.nn.Conv2d)} == {0}
    assert plan_of("out/macs")["target"] == {
        "mac_fraction": 0.6,
        "structures": ["filter"],
        "layers": ["stem", "first", "second"],
        "min_keep": 1,
    }


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("job.yaml --out new", "say how far to prune by exactly one of --plan, --compression-x, --mac-fraction: nothing was said"),
        ("job.yaml --out new --compression-x 4 --mac-fraction 0.5", "say how far to prune by exactly one of --plan, --compression-x, --mac-fraction: --compression-x and --mac-fraction were given"),
        ("job.yaml --out new --plan p.json --compression-x 4", "exactly one of --plan, --compression-x, --mac-fraction: --plan and --compression-x were given"),
        ("job.yaml --out new --compression-x 0.5", "--compression-x must be finite and at least 1, got 0.5: 4 keeps a quarter of the weights"),
        ("job.yaml --out new --compression-x nan", "--compression-x must be finite and at least 1, got nan"),
        ("job.yaml --out new --compression-x inf", "--compression-x must be finite and at least 1, got inf"),
        ("job.yaml --out new --compression-x many", "Invalid value for '--compression-x': 'many' is not a number: see prunefront prune --help"),
        ("job.yaml --out new --mac-fraction 50", "--mac-fraction must lie in (0, 1], got 50: 0.5 keeps half of the MACs"),
        ("job.yaml --out new --mac-fraction 0", "--mac-fraction must lie in (0, 1], got 0"),
        ("job.yaml --out new --mac-fraction nan", "--mac-fraction must lie in (0, 1], got nan"),
        ("job.yaml --out new --compression-x 4 --structures filters", "--structures: 'filters' is none of filter, channel, shape, unstructured; did you mean 'filter'?"),
        ("job.yaml --out new --compression-x 4 --structures filter,", "--structures: '' is none of filter, channel, shape, unstructured"),
        ("job.yaml --out new --plan p.json --structures filter", "--structures goes with --compression-x or --mac-fraction: a plan names its own"),
        ("job.yaml --out new --compression-x 4 --structure filter", "No such option: --structure"),
        ("job.yaml --out job.yaml --compression-x 4", "--out job.yaml is a file: choose a new folder"),
        ("job.yaml --out job.yaml/new --compression-x 4", "--out job.yaml/new cannot be written ("),
        ("job.yaml --out . --compression-x 4", "--out . exists already and is not empty: choose a new folder"),
        ("job.yaml --compression-x 4", "Missing option '--out': see prunefront prune --help"),
        ("jub.yaml --out new --compression-x 4", "jub.yaml: no such file; did you mean job.yaml?"),
        # the head is excluded, and its 64 weights are more than a hundredth of all
        ("job.yaml --out new --compression-x 100 --structures unstructured", "compression_x=100 is out of reach: with unstructured in the layers allowed compression_x=71.88 is the furthest, 'head' alone then costs 64 of 67"),
        ("job.yaml --out new --mac-fraction 0.001 --structures filter", "mac_fraction=0.001 is out of reach: with filter in the layers allowed mac_fraction="),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_before_anything_is_trained(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: str, says: str
) -> None:
    def never(*given: object, **named: object) -> None:
        raise AssertionError("trained")

    monkeypatch.setattr("search.prune_command.prepare_run", never)
    assert says in refused(capfd, *arguments.split())


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ({"compression_x": 0.5}, "compression_x must be a number at least 1, got 0.5"),
        ({"compression": 4}, "a target has no 'compression'"),
        ([4], "a target maps names to values, got list"),
        ({"compression_x": 4, "layers": ["stom"]}, "the network has no prunable layer 'stom'"),
    ],
)
def test_a_plan_json_with_a_target_that_is_wrong(capfd: pytest.CaptureFixture[str], target: object, says: str) -> None:
    content = {"requested": {}, "kept": {}, "target": target}
    Path("bad.json").write_text(json.dumps(content))
    line = refused(capfd, "job.yaml", "--plan", "bad.json", "--out", "new")
    assert line.startswith("bad.json: ")
    assert says in line


@pytest.mark.usefixtures("quick")
def test_sigterm_leaves_nothing(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch system's way to stop a command; what it was doing is thrown away as after Ctrl-C."""
    before = signal.getsignal(signal.SIGTERM)

    def terminated(*given: object, **named: object) -> None:
        assert list(Path().glob(".new.*"))
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("search.prune_command.prepare_run", terminated)
    line = refused(capfd, "job.yaml", "--compression-x", "4", "--out", "new", code=130)
    assert line == "interrupted: nothing was written"
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_folder_that_cannot_be_written_is_said_before_anything_is_trained(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: object, **named: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("search.prune_command.mkdtemp", full)
    monkeypatch.setattr("search.prune_command.prepare_run", full)
    line = refused(capfd, "job.yaml", "--compression-x", "4", "--out", "new")
    assert line == "--out new cannot be written (No space left on device): choose another folder"


@pytest.mark.usefixtures("quick")
def test_a_training_that_fails_leaves_no_folder(capfd: pytest.CaptureFixture[str]) -> None:
    Path("wild.yaml").write_text(JOB.replace("lr: 0.02", "lr: 1.0e+30"))
    line = refused(capfd, "wild.yaml", "--compression-x", "4", "--out", "new")
    assert line.startswith("pruning failed: ")
    assert not Path("new").exists()


def test_kill_9_leaves_no_half_network(found: list[str]) -> None:
    """In a process of its own, killed while ADMM runs: the folder asked for is not there, and may be asked for again."""
    Path("long.yaml").write_text(JOB.replace("iterations: 3", "iterations: 500"))
    process = subprocess.Popen(
        [*PROGRAM, "prune", "long.yaml", "--mac-fraction", "0.3", "--out", "out/killed"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1]), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    try:
        assert any(re.match(r" +1/500 ", line) for line in iter(process.stdout.readline, ""))
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert not Path("out/killed").exists()
    left = list(Path("out").glob(".killed.*"))
    assert len(left) == 1
    shutil.rmtree(left[0])


def test_the_help_tells_of_the_three_ways(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["prune", "--help"]) == 0
    said = capfd.readouterr().out
    words = " ".join(said.split())
    for option in ("--plan", "--compression-x", "--mac-fraction", "--structures", "--out"):
        assert option in said
    assert "exactly one of --compression-x, --mac-fraction" in words
    assert "[required]" in words
