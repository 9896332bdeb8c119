"""A job file: what it gives, and what each mistake in it says."""

# ruff: noqa: E501  (one case a line: the file beside the message)

from __future__ import annotations

import re
import typing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from admm.plan import N_OF_M, STRUCTURES
from search.errors import BudgetUnreachable, UserError
from search.job import Budget, Job, LayerSelection, RigSpec, Structure, match_layers
from search.job_file import dump_yaml, load_job, read_yaml
from search.spelling import suggest

EXAMPLES = Path(__file__).parents[2] / "examples"
#: Among the files are some that start clusters.
JOBS = [path for path in sorted(EXAMPLES.rglob("*.yaml")) if re.search("^task:", path.read_text(), re.MULTILINE)]


def write(folder: Path, text: str, name: str = "job.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_job(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message.removeprefix(str(path))


@pytest.mark.parametrize("path", JOBS, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_every_example_loads_and_survives_being_written_out(path: Path, tmp_path: Path) -> None:
    job = load_job(path)
    assert job.folder == path.parent.resolve()
    assert load_job(write(tmp_path, job.to_yaml())) == job


def test_defaults_are_those_of_the_documentation(tmp_path: Path) -> None:
    job = load_job(write(tmp_path, "task: a:b\n"))
    assert job.structures == ("filter",)
    assert job.rigs == (RigSpec(name="onnxruntime-cpu", threads=1, batch=1),)
    assert job.deciding_rig.name == "onnxruntime-cpu"
    assert job.budget is None
    assert (job.sparsity.min, job.sparsity.max, job.sparsity.step, job.sparsity.align) == (0.0, 0.9, 0.05, "auto")
    assert (job.search.trials, job.search.sampler, job.search.seed, job.search.study) == (32, "tpe", 0, "sqlite")
    assert job.storage == "runs"
    assert job.opset == 20


def test_structures_are_those_of_a_plan() -> None:
    assert typing.get_args(Structure) == (*STRUCTURES, N_OF_M)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task: a:b\nsearch:\n  trails: 3\n", ":3: search.trails: unknown key; did you mean 'trials'?"),
        ("task: a:b\nserach:\n  trials: 3\n", ":2: serach: unknown key; did you mean 'search'?"),
        ("tsk: a:b\n", ":1: tsk: unknown key; did you mean 'task'? (and 1 more mistake)"),
        ("search: {}\n", ": task: is missing"),
        ("task: a:b\nsearch:\n  trials: 0\n", ":3: search.trials: must be at least 1, got 0"),
        ("task: a:b\nsearch: {trials: 1.5}\n", ":2: search.trials: must be a whole number, got 1.5"),
        ("task: a:b\nsearch: {trials: true}\n", ":2: search.trials: must be a whole number, got true"),
        ("task: a:b\nsearch: {trials: '3'}\n", ":2: search.trials: must be a whole number, got '3'"),
        ("task: a:b\nsearch:\n  seed: -1\n", ":3: search.seed: must lie in [0, 4.29497e+09), got -1"),
        ("task: a:b\nsearch: {early_stopping: yes}\n", ":2: search.early_stopping: must be true or false, got 'yes'"),
        ("task: a:b\nsearch: {study: redis://x}\n", ":2: search.study: must be sqlite, sqlite:///FILE, journal:FILE or postgresql://HOST/DB, got 'redis://x'"),
        ("task: a:b\nsearch:\n  sampler: tpee\n", ":3: search.sampler: must be tpe, nsga2 or random, got 'tpee'; did you mean 'tpe'?"),
        ("task: a:b\nsparsity:\n  max: 1.2\n", ":3: sparsity.max: must lie in [0, 1), got 1.2"),
        ("task: a:b\nsparsity: {max: .nan}\n", ":2: sparsity.max: must be a finite number, got nan"),
        ("task: a:b\nsparsity: {min: 0.5, max: 0.3}\n", ":2: sparsity: min 0.5 is above max 0.3: swap them"),
        ("task: a:b\nstructures: [filter, fliter]\n", ":2: structures.1: must be filter, channel, shape, unstructured or n:m, got 'fliter'; did you mean 'filter'?"),
        ("task: a:b\nstructures: []\n", ":2: structures: must name at least one, got []"),
        ("task: a:b\nstructures: filter\n", ":2: structures: must be a list, got 'filter': write [filter]"),
        ("task: a:b\nsearch: {align: 8}\n", ":2: search.align: unknown key; did you mean 'sparsity.align'?"),
        ("task: a:b\nlr: 0.1\n", ":2: lr: unknown key; did you mean 'admm.lr' or 'finetune.lr'?"),
        ("task: a:b\nadmm: {epochs: 3}\n", ":2: admm.epochs: unknown key; did you mean 'epochs_per_iteration' or 'finetune.epochs'?"),
        ("task: a:b\nstructures: [filter, filter]\n", ":2: structures: 'filter' is named twice"),
        ("task: a:b\nrigs: [x, {name: x}]\n", ":2: rigs: 'x' is named twice"),
        ("task: a:b\nrigs:\n  - name: x\n    treads: 2\n", ":4: rigs.0.treads: unknown key; did you mean 'threads'?"),
        ("task: a:b\nrigs: [5]\n", ":2: rigs.0: must be a mapping of keys, got 5"),
        ("task: a:b\nbudget: {}\n", ":2: budget: give latency_ms or speedup, or leave the budget out"),
        ("task: a:b\nbudget: {latency_ms: 1, speedup: 2}\n", ":2: budget: give latency_ms or speedup, not both"),
        ("task: a:b\nbudget:\n  speedup: 0.5\n", ":3: budget.speedup: must be above 1, got 0.5"),
        ("task: a:b\nbudget:\n  latency_ms: 0\n", ":3: budget.latency_ms: must be above 0, got 0"),
        ("task: a:b\nbudget:\n  speedup: 2\n  rig: onnxruntime-cuda\n", ":4: budget.rig: 'onnxruntime-cuda' is not among the rigs; did you mean 'onnxruntime-cpu'?"),
        ("task: a:b\nadmm:\n  rho_end: 0.01\n", ":2: admm: rho_end 0.01 is below rho_start 0.1: rho must rise"),
        ("task: a:b\nadmm:\nstorage: x\n", ":2: admm: is empty: give it a value or remove the line"),
        ("task: a:b\nfinetune: {distillation_weight: 2}\n", ":2: finetune.distillation_weight: must lie in [0, 1], got 2"),
        ("task: a:b\nresources: {gpus_per_trial: 1.5}\n", ":2: resources: gpus_per_trial must be a whole number above 1, got 1.5: try 1"),
        ("task: 3\n", ":1: task: must be text, got 3"),
        ("task: a:b\nstorage: ''\n", ":2: storage: must not be empty, got ''"),
        ("", ": empty: a job names at least a task, such as task: search.tasks.digits:task"),
        ("# only a remark\n", ": empty: a job names at least a task, such as task: search.tasks.digits:task"),
        ("- task\n", ":1: a job is a mapping of keys, such as task: search.tasks.digits:task"),
        ("task: a:b\nsearch:\n\ttrials: 3\n", ":3: not valid YAML: found character '\\t' that cannot start any token: indent with spaces"),
        ("task: [a\n", ":2: not valid YAML: expected ',' or ']', but got '<stream end>'"),
        ("task: a:b\ntask: c:d\n", ":2: task: given twice, first in line 1: remove one"),
        ("task: a:b\n1: 2\n", ":2: keys must be words, got 1: put it in quotes"),
        ("task: !!python/object:os.system x\n", ":1: task: tags such as 'tag:yaml.org,2002:python/object:os.system' have no meaning in a job"),
        ("task: a:b\ntask_args: {a: !!set {x}}\n", ":2: task_args.a: tags such as 'tag:yaml.org,2002:set' have no meaning in a job"),
        ("task: a:b\ntask_args: &a\n  b: *a\n", ":2: nested more than 30 deep: too deep for a job"),
        ("task: a:b\n---\ntask: c:d\n", ":2: not valid YAML: expected a single document in the stream, but found another document"),
        ("task: a:b\ntask_args: {n: " + "9" * 5000 + "}\n", ":2: task_args.n: not a number: '" + "9" * 59 + "..."),
    ],
)  # fmt: skip
def test_each_mistake_is_one_line_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    assert refusal(write(tmp_path, text)) == message


def test_aliases_that_expand_without_end_are_refused(tmp_path: Path) -> None:
    lines = ["task: a:b", "task_args:", "  a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"  a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    assert "expands to more than 20,000 values" in refusal(write(tmp_path, "\n".join(lines)))


def test_deep_nesting_is_refused(tmp_path: Path) -> None:
    assert "nested" in refusal(write(tmp_path, "task: " + "[" * 20_000))
    assert "too deep" in refusal(write(tmp_path, "task: " + "[" * 40 + "]" * 40))


def test_files_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_bytes(b"task: \xff\xfe\n")
    assert refusal(path) == ": not UTF-8 text: byte 0xff at 6"
    path.write_bytes(b"task: a\x00b\n")
    assert refusal(path) == ": not a job file: it holds the character #x0000, which no text does"
    path.write_bytes(b"#" * 1_000_001)
    assert refusal(path) == ": larger than 1,000,000 bytes: not a job file"
    assert refusal(tmp_path) == f": a folder, not a job file: try {path}"
    assert refusal(tmp_path / "jab.yaml") == f": no such file; did you mean {path}?"


def test_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_bytes(b"\xef\xbb\xbftask: a:b\n")
    assert load_job(path).task == "a:b"


def test_numbers_as_people_write_them(tmp_path: Path) -> None:
    job = load_job(
        write(tmp_path, "task: a:b\nadmm: {lr: 1e-3, weight_decay: 0, rho_end: 1E+2}\nsparsity: {step: .1}\n")
    )
    assert (job.admm.lr, job.admm.weight_decay, job.admm.rho_end, job.sparsity.step) == (1e-3, 0.0, 100.0, 0.1)


def test_anchors_and_aliases_may_be_used(tmp_path: Path) -> None:
    job = load_job(write(tmp_path, "task: a:b\nadmm: {lr: &lr 0.5}\nfinetune: {lr: *lr}\n"))
    assert job.finetune.lr == 0.5


def test_rigs_by_name_or_in_full(tmp_path: Path) -> None:
    text = "task: a:b\nrigs:\n  - onnxruntime-cpu\n  - name: other\n    threads: 4\n    batch: 8\n"
    job = load_job(write(tmp_path, text))
    assert job.rigs == (RigSpec(name="onnxruntime-cpu"), RigSpec(name="other", threads=4, batch=8))
    assert job.place("rigs.0.name").endswith("job.yaml:3: rigs.0.name")
    assert job.place("rigs.1.batch").endswith("job.yaml:6: rigs.1.batch")
    assert str(job.error("finetune.lr", "too high")) == f"{tmp_path / 'job.yaml'}: finetune.lr: too high"


def test_a_job_is_frozen(tmp_path: Path) -> None:
    job = load_job(write(tmp_path, "task: a:b\n"))
    with pytest.raises(ValueError, match="frozen"):
        job.task = "c:d"
    with pytest.raises(ValueError, match="frozen"):
        job.search.trials = 5


def test_overrides_replace_and_keep(tmp_path: Path) -> None:
    job = load_job(write(tmp_path, "task: a:b\nbudget:\n  speedup: 2\n  rig: onnxruntime-cpu\n"))
    other = job.with_overrides(trials=5, latency_ms=1.5, seed=7, storage="elsewhere")
    assert (other.search.trials, other.search.seed, other.storage) == (5, 7, "elsewhere")
    assert other.budget == Budget(latency_ms=1.5, rig="onnxruntime-cpu")
    assert other.search.sampler == job.search.sampler
    assert other.place("budget") == job.place("budget")
    assert job.with_overrides() == job


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"trials": 0}, "--trials: must be at least 1, got 0"),
        ({"latency_ms": -1.0}, "--latency-ms: must be above 0, got -1.0"),
        ({"speedup": 1.0}, "--speedup: must be above 1, got 1.0"),
        ({"speedup": 2.0, "latency_ms": 1.0}, "--latency-ms and --speedup: give one of them, not both"),
        ({"storage": ""}, "--storage: must not be empty, got ''"),
    ],
)
def test_overrides_are_validated(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        Job(task="a:b").with_overrides(**overrides)
    assert str(caught.value) == message


LAYERS = {"stem": "Conv2d", "block1.conv1": "Conv2d", "block1.conv2": "Conv2d", "head": "Linear"}


@pytest.mark.parametrize(
    ("include", "exclude", "left"),
    [
        ((), (), ["stem", "block1.conv1", "block1.conv2", "head"]),
        (("block1.*",), (), ["block1.conv1", "block1.conv2"]),
        (("type:Conv*",), ("stem",), ["block1.conv1", "block1.conv2"]),
        (("head", "stem"), (), ["stem", "head"]),
        ((), ("type:Conv2d",), ["head"]),
    ],
)
def test_layer_patterns(include: tuple[str, ...], exclude: tuple[str, ...], left: list[str]) -> None:
    assert match_layers(LayerSelection(include=include, exclude=exclude), LAYERS) == left


@pytest.mark.parametrize(
    ("part", "pattern", "message"),
    [
        ("include", "block1.conv3", "no layer matches 'block1.conv3'; did you mean 'block1.conv2'?"),
        ("exclude", "type:Conv3d", "no layer type matches 'Conv3d'; did you mean 'Conv2d'?"),
        ("include", "zzz", "no layer matches 'zzz'; there is stem, block1.conv1, block1.conv2, head"),
    ],
)
def test_a_pattern_that_matches_nothing(tmp_path: Path, part: str, pattern: str, message: str) -> None:
    path = write(tmp_path, f"task: a:b\nlayers:\n  {part}:\n    - '{pattern}'\n")
    with pytest.raises(UserError) as caught:
        load_job(path).match_layers(LAYERS)
    assert str(caught.value) == f"{path}:4: layers.{part}.0: {message}"


def test_excluding_everything_is_refused() -> None:
    with pytest.raises(UserError, match="no layer is left"):
        match_layers(LayerSelection(exclude=("*",)), LAYERS)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.floats(allow_nan=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.dictionaries(st.text(max_size=6), json_values, min_size=1, max_size=4))
def test_what_is_written_is_read_back(tmp_path: Path, content: dict[str, Any]) -> None:
    path = tmp_path / "any.yaml"
    path.write_text(dump_yaml(content), encoding="utf-8", newline="")
    assert read_yaml(path)[0] == content


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=st.binary(max_size=60) | st.text("task: b\n\t-[]{}&*!|>'\"#%@`1.e", max_size=60).map(str.encode))
def test_no_file_content_gives_anything_but_a_job_or_one_line(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "fuzz.yaml"
    path.write_bytes(raw)
    said = str(path)
    try:
        load_job(path)
    except UserError as error:
        said = str(error)
    assert said.startswith(str(path))
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("word", "names", "end"),
    [
        ("trails", ["trials", "seed"], "did you mean 'trials'?"),
        ("DIGITS", ["search.tasks.digits", "x"], "did you mean 'search.tasks.digits'?"),
        ("q", ["alpha", "beta"], "there is alpha, beta"),
        ("q", [f"layer{i}" for i in range(10)], "there is layer0, layer1, layer2, layer3, layer4, layer5, layer6, layer7 and 2 more"),
        ("q", [], "there is nothing to choose from"),
    ],
)  # fmt: skip
def test_suggestions(word: str, names: list[str], end: str) -> None:
    assert suggest(word, names) == end


def test_exit_codes_and_single_lines() -> None:
    assert (UserError("x").exit_code, BudgetUnreachable("x").exit_code) == (2, 3)
    assert str(UserError("  first\n\n   second  \n")) == "first second"
