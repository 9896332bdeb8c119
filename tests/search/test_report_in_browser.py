"""The report as a person sees it, in headless Chromium: it loads without a complaint, hover and click work."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from search.job_file import load_job
from search.reporting.content import report_content
from search.reporting.page import render
from search.store import RunStore
from tests.chromium import ABSENT, Page, find_chromium
from tests.search.fabricated_run import fabricated_run
from tests.search.test_reporting import HOSTILE

CHROMIUM = find_chromium() or ""
pytestmark = pytest.mark.skipif(not CHROMIUM, reason=ABSENT)

TITLE = "document.getElementById('trial-title').textContent"
WIDE = "document.documentElement.scrollWidth <= window.innerWidth"
#: Centres of the front plot's marks, in the window.
MARKS = """[...document.querySelectorAll('#plot-front .scatterlayer path.point')].map(p => {
  const box = p.getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2]; })"""
LABEL = "[...document.querySelectorAll('#plot-front .hoverlayer text')].map(t => t.textContent).join(' ')"


def written(store: RunStore, path: Path) -> Path:
    baseline, results = store.read_baseline(), store.results()
    path.write_text(render(report_content(store, load_job(store.job_path), baseline, results, time_front=False)))
    return path


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    return written(fabricated_run(folder / "run", trials=20), folder / "report.html")


@pytest.fixture(scope="module")
def opened(report: Path) -> Iterator[Page]:
    """The report on a wide screen."""
    with Page(CHROMIUM) as page:
        page.open(report)
        yield page


def hovered(page: Page, at: list[float]) -> str:
    """What the plot says of the mark there."""
    page.mouse(1, 1)  # away from all plots, so that what is said next is said of this mark
    page.wait(f"!{LABEL}")
    page.mouse(*at)
    said: str = page.wait(LABEL)
    return said


def test_it_loads_without_a_complaint_and_asks_for_nothing(opened: Page, report: Path) -> None:
    assert opened.problems == []
    assert opened.requests == [report.as_uri()]
    for plot in ("front", "accuracy", "residuals", "progress", "sensitivity"):
        assert opened.run(f"document.querySelectorAll('#plot-{plot} .scatterlayer .trace').length") > 0, plot
    assert opened.run(WIDE)
    assert opened.run("document.querySelectorAll('#layers tbody tr').length") == 5
    assert opened.run("document.getElementById('again').textContent").startswith("prunefront prune ")


def test_hover_tells_of_a_mark_and_a_click_chooses_it(opened: Page) -> None:
    opened.run("document.getElementById('front').scrollIntoView()")
    chosen = 0
    for at in opened.run(MARKS):
        said = hovered(opened, at)
        match = re.match(r"trial (\d+)(, on the front)?accuracy [\d.]+ %", said)
        if match is None:
            continue
        opened.mouse(*at, click=True)
        opened.wait(f"{TITLE} === `Trial {match[1]}{match[2] or ', behind the front'}`")
        assert opened.run("location.hash") == f"#trial-{match[1]}"
        assert opened.run("document.getElementById('choice').value") == match[1]
        assert f"--trial {match[1]} " in opened.run("document.getElementById('export').textContent")
        chosen += 1
        if chosen == 3:
            break
    assert chosen == 3
    assert opened.problems == []


def test_the_select_box_and_the_table_choose_too(opened: Page) -> None:
    script = """(() => { const box = document.getElementById('choice'); box.selectedIndex = box.length - 1;
      box.dispatchEvent(new Event('change')); return box.value; })()"""
    number = opened.run(script)
    assert opened.run(TITLE).startswith(f"Trial {number},")
    first = opened.run("document.querySelector('button[data-trial]').dataset.trial")
    opened.run("document.querySelector('button[data-trial]').click()")
    assert opened.run(TITLE).startswith(f"Trial {first},")
    assert opened.run("document.querySelectorAll('tr.chosen').length") >= 1


@pytest.mark.parametrize("look", [{"dark": True}, {"phone": True, "width": 390, "height": 844}])
def test_it_is_as_whole_in_the_dark_and_on_a_phone(report: Path, look: dict[str, Any]) -> None:
    with Page(CHROMIUM, **look) as page:
        page.open(report, fragment="#trial-0")
        assert page.problems == []
        assert page.run(WIDE), "nothing beyond the screen"
        assert page.run(TITLE).startswith("Trial 0,")
        paper = page.run("getComputedStyle(document.body).backgroundColor")
        brightness = sum(map(int, re.findall(r"\d+", paper)[:3])) / 3
        assert (brightness < 60) == ("dark" in look)


def test_it_can_be_printed(report: Path, tmp_path: Path) -> None:
    with Page(CHROMIUM, dark=True) as page:
        page.open(report)
        page.pdf(tmp_path / "report.pdf")
        assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
        assert page.problems == []
        assert page.run("[...document.querySelectorAll('details')].every(d => d.open)"), "tables are printed too"


def test_what_users_named_runs_nothing(tmp_path: Path) -> None:
    layers = (HOSTILE, '"><svg onload=window.hacked=1>', "head")
    store = fabricated_run(tmp_path / '"><img src=x onerror=x>', trials=6, layers=layers, task=HOSTILE)
    with Page(CHROMIUM) as page:
        page.open(written(store, tmp_path / "report.html"))
        assert page.run("window.hacked === undefined")
        assert page.problems == []
        assert page.run("document.querySelector('#layers tbody th').textContent") == HOSTILE
        names = page.run("[...document.querySelectorAll('#plot-residuals .legendtext')].map(t => t.textContent)")
        assert "head" in names
        assert page.run("document.querySelectorAll('img, svg [onload]').length") == 0


def test_a_run_without_a_complete_trial_is_a_page_too(tmp_path: Path) -> None:
    store = fabricated_run(tmp_path / "run", trials=0)
    with Page(CHROMIUM) as page:
        page.open(written(store, tmp_path / "report.html"))
        assert page.problems == []
        assert "No trial is complete yet" in page.run("document.body.textContent")
