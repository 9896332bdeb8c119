"""Mistakes in what is typed: commands, options, files that are not what they are taken for."""

# ruff: noqa: E501  (one mistake a line: what was typed beside what is said)

from __future__ import annotations

from pathlib import Path

import pytest

from search.cli import run
from tests.mistakes.typed import Mistake, refused, typed

COMMANDS = [
    typed("serch job.yaml", "No such command 'serch'", "search"),
    typed("help", "No such command 'help': see prunefront --help"),
    typed("--speedup 2", "No such option", "--speedup", "see prunefront --help"),
    typed("search", "Missing argument 'JOB.yaml|RUN'", "prunefront search --help"),
    typed("search job.yaml job.yaml", "Got unexpected extra argument(s) (job.yaml)", "prunefront search --help"),
    typed("search job.yaml --trails 3", "No such option", "--trials", "prunefront search --help"),
    typed("front", "Missing argument 'RUN'"),
]  # fmt: skip

JOBS = [
    typed("search jub.yaml", "jub.yaml: no such file; did you mean job.yaml?"),
    typed("search ''", ".: a folder, not a job file: try job.yaml"),
    typed("search .", "a folder, not a job file: try job.yaml"),
    typed("search runs", "runs: a folder, not a job file"),
    typed("search text.onnx", "text.onnx:1: a job is a mapping of keys"),
    typed("search four.onnx", "four.onnx: not a job file: it holds the character #x0008, which no text does"),
    typed("profile none.yaml", "none.yaml: no such file; did you mean job.yaml?"),
    typed("init small --out new.yaml", "task: must read module:function, got 'small': for example search.tasks.digits:task"),
    typed("init small:taks --out new.yaml", "holds no function 'taks': did you mean 'task'?"),
    typed("init small:task", "job.yaml exists already: name another file with --out"),
    typed("init small:task --out none/new.yaml", "cannot write none/new.yaml: No such file or directory: make the folder around it first"),
]  # fmt: skip

OPTIONS = [
    typed("search job.yaml --speedup 0", "--speedup: must be above 1, got 0"),
    typed("search job.yaml --speedup -1", "--speedup: must be above 1, got -1"),
    typed("search job.yaml --speedup nan", "--speedup: must be a finite number, got nan"),
    typed("search job.yaml --speedup fast", "Invalid value for '--speedup': 'fast' is not a number", "prunefront search --help"),
    typed("search job.yaml --latency-ms 0", "--latency-ms: must be above 0, got 0"),
    typed("search job.yaml --latency-ms 1 --speedup 2", "--latency-ms and --speedup: give one of them, not both"),
    typed("search job.yaml --trials 0", "--trials: must be at least 1, got 0"),
    typed("search job.yaml --trials many", "Invalid value for '--trials': 'many' is not a whole number"),
    typed("search job.yaml --seed -1", "--seed: must lie in [0, 4.29497e+09), got -1"),
    typed("search job.yaml --time-budget soon", "--time-budget: 'soon' is no duration above 0: write 90s, 10m or 1h30m"),
    typed("search job.yaml --time-budget 1h30", "--time-budget: '1h30' is no duration"),
    typed("search job.yaml --time-budget 0m", "--time-budget: '0m' is no duration above 0"),
    typed("search job.yaml --rig onnxruntime-gpu", "--rig: unknown rig 'onnxruntime-gpu': did you mean 'onnxruntime-cpu'?"),
    typed("search job.yaml --objectives accuracy,lateny", "--objectives: 'lateny' is no objective; did you mean 'latency'?"),
    typed("search job.yaml --objectives accuracy", "--objectives: accuracy goes with one or two of latency, latency:RIG, size, macs, got none"),
    typed("search job.yaml --storage ''", "--storage: must not be empty, got ''"),
]  # fmt: skip

MEASURED = [
    typed("measure none.onnx", "none.onnx: no such file"),
    typed("measure text.onnx", "ONNX Runtime cannot load text.onnx"),
    typed("measure runs", "runs: a folder, not an ONNX file"),
    typed("measure four.onnx --against none.onnx", "none.onnx: no such file"),
    typed("measure four.onnx --against five.onnx", "candidate and reference read different inputs", "(1, 4)", "(1, 5)"),
    typed("measure four.onnx --rig cuda", "rig 'cuda' needs a CUDA device"),
    typed("measure four.onnx --rig torch-cpu", "rig 'torch-cpu' measures torch modules", "or measure the ONNX file on onnxruntime-cpu"),
    typed("measure four.onnx --threads 0", "threads must lie in 1..", "got 0"),
    typed("measure four.onnx --threads 999", "threads must lie in 1..", "got 999"),
    typed("measure four.onnx --batch 0", "batch must be an integer >= 1, got 0"),
    typed("measure four.onnx --batch 1.5", "Invalid value for '--batch': '1.5' is not a whole number"),
]  # fmt: skip

PLANS = [
    typed("prune job.yaml --out new", "exactly one of --plan, --compression-x, --mac-fraction: nothing was said"),
    typed("prune job.yaml --compression-x 5", "Missing option '--out'"),
    typed("prune job.yaml --out new --compression-x 0.5", "--compression-x must be finite and at least 1, got 0.5: 4 keeps a quarter of the weights"),
    typed("prune job.yaml --out new --mac-fraction 2", "--mac-fraction must lie in (0, 1], got 2: 0.5 keeps half of the MACs"),
    typed("prune job.yaml --out new --compression-x 1e9", "is out of reach", "ask for less"),
    typed("prune job.yaml --out new --compression-x 5 --structures filters", "--structures: 'filters' is none of filter, channel, shape, unstructured; did you mean 'filter'?"),
    typed("prune job.yaml --out runs --compression-x 5", "--out runs exists already and is not empty: choose a new folder"),
    typed("prune job.yaml --out new --plan p.json", "--plan p.json cannot be read: No such file or directory"),
    *(
        typed("prune job.yaml --out new --plan p.json", *says, p_json=plan)
        for plan, *says in [
            ("{not json", "p.json: not JSON"),
            ("[1, 2]", "p.json: holds a list, not an object"),
            ('{"stom": {"filter": 0.5}}', "p.json: the network has no prunable layer 'stom'; did you mean 'stem'?"),
            ('{"first": {"filters": 0.5}}', "p.json: layer 'first': unknown structure 'filters': use one of filter, channel"),
            ('{"first": {"filter": 1.0}}', "p.json: layer 'first': sparsity must lie in [0, 1), got 1.0 for 'filter'"),
            ('{"first": {"filter": "half"}}', "p.json: layer 'first': sparsity must be a number in [0, 1), got 'half'"),
            ('{"first": {"filter": NaN}}', "p.json: layer 'first': sparsity must lie in [0, 1), got nan"),
            ('{"second": {"filter": 0.5}}', "layer 'second': its filters are coupled with those of 'stem': put the filter sparsity there"),
            ('{"head": {"filter": 0.5}}', "layer 'head': its filters cannot be removed: ", "output"),
        ]
    ),
    typed("search job.yaml --points p.json", "--points p.json cannot be read: No such file or directory"),
    typed("search job.yaml --points p.json", "--points p.json: it holds no plans: write [{", p_json="[]"),
    typed("search job.yaml --points p.json", "--points p.json: plan 1: stom/filter is not searched by this job; did you mean 'stem/filter'?", p_json='{"stom": {"filter": 0.5}}'),
    typed("search job.yaml --points p.json", "--points p.json: plan 2: layer 'stem': a layer's plan maps structure to sparsity, got 0.5", p_json='[{}, {"stem": 0.5}]'),
]  # fmt: skip


@pytest.mark.parametrize("mistake", [*COMMANDS, *JOBS, *OPTIONS, *MEASURED, *PLANS], ids=str)
def test_a_command_line_that_is_wrong(here: Path, capfd: pytest.CaptureFixture[str], mistake: Mistake) -> None:
    mistake.make(here, capfd)


def test_help_is_no_complaint(capfd: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], ["search", "-h"], ["front", "--help"], ["export", "--help"], ["prune", "-h"]):
        assert run(arguments) == 0
        said, complaint = capfd.readouterr()
        assert said.startswith("Usage: prunefront")
        assert complaint == ""
    assert run([]) == 2
    assert "Usage: prunefront" in "".join(capfd.readouterr())
    assert run(["--version"]) == 0
    assert capfd.readouterr().out.startswith("prunefront 0.")


def test_what_a_file_holds_cannot_write_to_the_terminal(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Escape sequences recolour, move the cursor, or retitle the window: a job file may be somebody else's."""
    (here / "bad.yaml").write_text('"\\e[2J\\u202e\\x07sdrawkcab": 1\n')
    line = refused(here, ["search", "bad.yaml"], capfd)
    assert line.startswith("bad.yaml:1: ?[2J??sdrawkcab: unknown key")
    assert line.isprintable()
