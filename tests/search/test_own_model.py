"""A user's own code: the example that ships, and what is said about code that is wrong."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from search.errors import UserError
from search.job_file import load_job
from search.tasks import check_task, load_task, prepare
from search.tasks.dense import build_model, train_dense

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_model"

GOOD = """
import torch
from search.tasks import Arrays, Task

def task(size: int = 4, deep: bool = False) -> Task:
    x = torch.zeros(20, size)
    return Task(name=NAME, model=lambda: torch.nn.Linear(size, 2), train=Arrays(x, torch.arange(20) % 2))
"""


@pytest.fixture(autouse=True)
def _one_thread_and_clean_imports() -> Iterator[None]:
    path, modules, threads = list(sys.path), set(sys.modules), torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.partition(".")[0] not in ("search", "torch", "numpy", "sklearn", "scipy"):
            del sys.modules[name]


def refusal(spec: str, folder: Path, args: dict[str, Any] | None = None) -> str:
    with pytest.raises(UserError) as caught:
        load_task(spec, args or {}, folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_example_loads_trains_and_says_its_split() -> None:
    job = load_job(EXAMPLE / "job.yaml")
    task = job.load_task()
    prepared = prepare(task, job.search.seed)
    assert prepared.notes == [
        "no validation data given: 10% of the training data (150 samples, stratified by label, seed 0) are held out"
    ]
    model = build_model(prepared)
    check_task(prepared, model)
    types = {name: type(module).__name__ for name, module in model.named_modules()}
    assert job.match_layers(types) == ["0", "3", "6"]
    assert task.dense is not None
    assert train_dense(prepared, model, task.dense) >= 0.9


def test_the_example_is_short() -> None:
    code = [line for line in (EXAMPLE / "my_model.py").read_text().splitlines() if line.strip()]
    assert len(code) <= 35


def test_the_users_folder_goes_to_the_end_of_the_path(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(GOOD.replace("NAME", "'mine'"))
    assert load_task("mine:task", {"size": 3}, tmp_path).name == "mine"
    assert sys.path[-1] == str(tmp_path)


def test_two_jobs_with_a_module_of_the_same_name(tmp_path: Path) -> None:
    for name in ("first", "second"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "helper.py").write_text(f"NAME = {name!r}\n")
        (folder / "mine.py").write_text(
            GOOD.replace("NAME", "NAME").replace("import torch", "import torch\nfrom helper import NAME", 1)
        )
    for name in ("first", "second", "first"):
        assert load_task("mine:task", {}, tmp_path / name).name == name
    assert str(tmp_path / "second") not in sys.path


BAD = """
NUMBER = 3

def other(): return 3

def fails():
    raise ValueError("two\\nlines")

def leaves():
    raise SystemExit(3)
"""


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mine", "task: must read module:function, got 'mine': for example search.tasks.digits:task"),
        (":task", "task: must read module:function, got ':task'"),
        ("mien:task", "there is no module 'mien' in {folder} nor installed: did you mean 'mine'?"),
        ("digits:task", "did you mean 'search.tasks.digits'?"),
        ("search.tasks.digit:task", "did you mean 'search.tasks.digits'?"),
        ("mine:tsak", "({folder}/mine.py) holds no function 'tsak': did you mean 'task'?"),
        ("mine:NUMBER", "holds something that is not a function 'NUMBER'"),
        ("mine:other", "task: mine:other must return a search.tasks.Task, got int"),
        ("mine:fails", "{folder}/mine.py:14: task 'mine:fails' raised ValueError: two lines"),
        ("mine:leaves", "{folder}/mine.py:17: task 'mine:leaves' raised SystemExit: 3"),
        ("needs:task", "{folder}/needs.py:1: importing 'needs' needs the module 'no_such_library'"),
        ("syntax:task", "{folder}/syntax.py:2: SyntaxError: "),
        ("raises:task", "{folder}/raises.py:3: importing 'raises' raised KeyError: 'x'"),
        ("json:task", "holds no function 'task'"),
        ("colorsys:task", "is an installed module"),
        ("..mine:task", "task: must read module:function, got '..mine:task'"),
        ("sub/mine:task", "task: must read module:function"),
        ("mine.py:task", "task: 'mine.py:task' names a file: name its module, mine:task"),
    ],
)
def test_each_mistake_in_the_users_code_is_one_line(tmp_path: Path, spec: str, message: str) -> None:
    (tmp_path / "mine.py").write_text(GOOD.replace("NAME", "'mine'") + BAD)
    (tmp_path / "needs.py").write_text("import no_such_library\n")
    (tmp_path / "syntax.py").write_text("x = 1\ndef task(:\n")
    (tmp_path / "raises.py").write_text("def f():\n    x = {}\n    x['x']\nf()\n")
    (tmp_path / "colorsys.py").write_text(GOOD)
    assert message.format(folder=tmp_path) in refusal(spec, tmp_path)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"sise": 3}, "task_args.sise: mine:task takes no such argument; did you mean 'size'?"),
        ({"zzzz": 3}, "task_args.zzzz: mine:task takes no such argument; it takes size, deep"),
        ({"size": "x"}, "raised TypeError"),
    ],
)
def test_wrong_arguments(tmp_path: Path, args: dict[str, Any], message: str) -> None:
    (tmp_path / "mine.py").write_text(GOOD.replace("NAME", "'mine'"))
    assert message in refusal("mine:task", tmp_path, args)


def test_a_missing_argument_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def task(size): pass\n")
    assert refusal("mine:task", tmp_path) == "task_args: mine:task: missing a required argument: 'size'"


def test_the_place_in_the_job_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(GOOD.replace("NAME", "'mine'"))
    path = tmp_path / "job.yaml"
    path.write_text("task: mine:task\ntask_args:\n  sise: 3\n")
    with pytest.raises(UserError) as caught:
        load_job(path).load_task()
    expected = f"{path}:3: task_args.sise: mine:task takes no such argument; did you mean 'size'?"
    assert str(caught.value) == expected
    path.write_text("\ntask: mien:task\n")
    with pytest.raises(UserError) as caught:
        load_job(path).load_task()
    assert str(caught.value).startswith(f"{path}:2: task: there is no module 'mien'")


@pytest.mark.parametrize("name", ["search.py", "admm.py", "evaluators.py", "search/thing.py", "admm/__init__.py"])
def test_a_users_file_that_would_shadow_ours_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "mine.py").write_text(GOOD.replace("NAME", "'mine'"))
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("")
    message = refusal("mine:task", tmp_path)
    shadow = tmp_path / name.partition("/")[0]
    assert message.startswith(f"{shadow} has the name of a package of prunefront")
    assert message.endswith("rename it")


def test_a_folder_without_code_shadows_nothing(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(GOOD.replace("NAME", "'mine'"))
    (tmp_path / "search").mkdir()
    assert load_task("mine:task", {}, tmp_path).name == "mine"


def test_the_repository_itself_is_no_shadow() -> None:
    assert load_task("search.tasks.digits:task", {"width": 16}, EXAMPLE.parents[1]).name == "digits"
