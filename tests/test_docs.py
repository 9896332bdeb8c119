"""The documentation: what `mkdocs build --strict` would say, and what it cannot know: commands, paths, figures."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from search.job import Job
from search.job_file import read_yaml
from tests.pages import ROOT, Figure, anchors, blocks, figures, headings, known_commands, links, numbers, prose, typed
from tests.pages import unknown as unknown_commands

DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.rglob("*.md")), ROOT / "README.md"]
#: Where each number in prose names its source in a comment behind it.
SOURCED = [DOCS / "questions.md", DOCS / "how_it_works.md"]
OWN = ("admm", "evaluators", "search")
_PATH = re.compile(r"`((?:docs|examples|tests|benchmarks|admm|evaluators|search)/[\w./*-]*)`")

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


class _Config(yaml.SafeLoader):
    """MkDocs' configuration, which names Python functions."""


_Config.add_multi_constructor("tag:yaml.org,2002:python/name:", lambda loader, suffix, node: suffix)


def config() -> dict[str, Any]:
    made: dict[str, Any] = yaml.load((ROOT / "mkdocs.yml").read_text(), _Config)
    return made


def in_navigation(part: Any) -> list[str]:
    if isinstance(part, str):
        return [part]
    parts = part.values() if isinstance(part, dict) else part
    return [page for inner in parts for page in in_navigation(inner)]


def test_each_page_is_in_the_navigation_once() -> None:
    named = in_navigation(config()["nav"])
    assert sorted(named) == sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))


def test_what_is_no_page_is_left_out_of_the_site() -> None:
    left_out = config()["exclude_docs"].split()
    assert sorted(left_out) == sorted(path.name for path in DOCS.glob("*.py"))


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    """A page of the site may link to files of the site alone: MkDocs knows no others."""
    for link in links(page.read_text()):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.is_file(), f"{page.name}: {link}"
        assert page.parent != DOCS or target.is_relative_to(DOCS), f"{link}: name a file outside docs/ in backticks"
        if anchor:
            there = {anchors(heading) for heading in headings(target.read_text())}
            assert (anchor, anchor) in there, f"{page.name}: {link}: no such heading, on GitHub and in MkDocs alike"


@each_page
def test_headings_are_told_apart(page: Path) -> None:
    text = page.read_text()
    assert re.match(r"# \S", text)
    slugs = [anchors(heading)[1] for heading in headings(text)]
    assert sorted(slugs) == sorted(set(slugs))


@each_page
def test_lists_and_tables_stand_apart(page: Path) -> None:
    """Without an empty line before it Python-Markdown takes a list or a table for text; GitHub does not."""
    lines = prose(page.read_text()).splitlines()
    for above, line in itertools.pairwise(lines):
        for mark in (r"[-*] |\d+\. ", r"\|"):
            if re.match(mark, line) and above.strip():
                assert re.match(rf"{mark}| ", above), f"{page.name}: an empty line is wanted above: {line}"


@each_page
def test_commands_exist_with_their_options(page: Path) -> None:
    assert unknown_commands(page.read_text()) == []


def test_all_commands_are_named_somewhere() -> None:
    assert {command for page in PAGES for command, _ in typed(page.read_text())} == set(known_commands())


def test_a_command_that_is_not_there_is_found() -> None:
    page = "```\nprunefront search a.yaml --trails 3 \\\n    --seed 1  # --not\n```\n`prunefront serch R --seed 2`"
    assert typed(page) == [("search", ["--trails", "--seed"]), ("serch", ["--seed"])]
    assert unknown_commands(page) == ["serch", "search --trails", "serch --seed"]
    assert unknown_commands("`prunefront --version` and `prunefront --verison`") == ["--verison"]


@each_page
def test_yaml_is_that_of_jobs(page: Path, tmp_path: Path) -> None:
    """A whole job, or some of its keys."""
    for language, content in blocks(page.read_text()):
        if language == "yaml" and yaml.safe_load(content) is not None:
            (tmp_path / "job.yaml").write_text(content)
            given, _ = read_yaml(tmp_path / "job.yaml")
            Job.model_validate({"task": "my_model:task", **given})


@each_page
def test_python_imports_what_there_is(page: Path) -> None:
    for language, content in blocks(page.read_text()):
        for node in ast.walk(ast.parse(content)) if language == "python" else ():
            if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] in OWN:
                module = importlib.import_module(node.module)
                for name in node.names:
                    assert hasattr(module, name.name), f"{page.name}: {node.module}.{name.name}"


@each_page
def test_paths_exist(page: Path) -> None:
    text = re.sub(r"`((?:tests|docs)/[\w./]+)::\w+`", r"`\1`", prose(page.read_text()))
    for path in _PATH.findall(text):
        file = re.sub(r"\.[A-Z]\w*$", "", path)
        # a module may be named without its ending, and results before there are any: the benchmark is there
        places = (file, f"{file}.py", re.sub(r"results/(\w+)\.json$", r"\1.py", file))
        assert any(list(ROOT.glob(place)) for place in places), f"{page.name}: {path}"


@each_page
def test_modules_and_targets_exist(page: Path) -> None:
    text = page.read_text()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"(?m)(?:^|`)make ([a-z-]+)", text)) <= targets
    for name in re.findall(r"`((?:admm|evaluators|search)(?:\.[a-zA-Z_]\w*)+)`", prose(text)):
        assert resolves(name), f"{page.name}: {name}"


def resolves(name: str) -> bool:
    """Whether a dotted name is a module, what a module holds, or a key of a job (`search.trials`)."""
    head, *rest = name.split(".")
    field = Job.model_fields.get(head)
    if field is not None and hasattr(field.annotation, "model_fields") and rest[0] in field.annotation.model_fields:
        return True
    module = importlib.import_module(head)
    here: Any = module
    for part in rest:
        if not hasattr(here, part):
            path = f"{getattr(here, '__name__', '')}.{part}"
            if importlib.util.find_spec(path) is None:
                return False
            here = importlib.import_module(path)
        else:
            here = getattr(here, part)
    return True


@pytest.mark.parametrize("page", [*SOURCED, ROOT / "README.md"], ids=lambda page: page.name)
def test_figures_are_those_of_the_results(page: Path) -> None:
    for figure in figures(page.read_text()):
        assert figure.agrees(), f"{page.name}: {figure.shown} is {figure.value():g} in {figure.source}"


@pytest.mark.parametrize("page", SOURCED, ids=lambda page: page.name)
def test_each_number_has_its_source(page: Path) -> None:
    """In its own section, so that a figure which nobody measured does not get in."""
    sections = re.split(r"(?m)^(?=#{1,3} )", page.read_text())
    assert any(figures(section) for section in sections)
    for section in sections:
        known = {figure.shown for figure in figures(section)}
        without = [number for number in numbers(section) if number not in known]
        assert without == [], f"{page.name}: {section.partition(chr(10))[0]}"
        for shown in known:
            visible = re.sub(r"<!--.*?-->", "", section, flags=re.S)
            assert shown in visible, f"{page.name}: {shown} has a source and is not in the text"


def test_a_wrong_figure_is_found() -> None:
    source = "int8.json details/resnet18/int8/speedup"
    value = Figure("1x", source).value()
    assert Figure(f"{value:.1f}x", source).agrees()
    assert not Figure(f"{value + 0.1:.1f}x", source).agrees()
    with pytest.raises(LookupError):
        Figure("1x", "int8.json details/resnet18/int9").value()


def test_the_reference_of_the_job_file_is_current() -> None:
    spec = importlib.util.spec_from_file_location("generate_job_reference", DOCS / "generate_job_reference.py")
    assert spec is not None
    assert spec.loader is not None
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    page = (DOCS / "job_file.md").read_text()
    assert page == generator.with_reference(page), "python docs/generate_job_reference.py"
    for name in Job.model_fields:
        assert f"| `{name}` |" in page
    cells = [line.rsplit("|", 2)[-2].strip() for line in page.splitlines() if line.startswith("| `")]
    assert all(cells), "each key says what it means"


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="the site needs prunefront[docs]")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "job_file.html").is_file()
