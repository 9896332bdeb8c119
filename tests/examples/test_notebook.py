"""The notebook runs as it stands, cell by cell, in a kernel of its own; on a smaller network, in its own folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat", reason="the notebook needs prunefront[notebook]")
nbclient = pytest.importorskip("nbclient", reason="the notebook needs prunefront[notebook]")
pytest.importorskip("ipykernel", reason="the notebook needs prunefront[notebook]")
pytest.importorskip("sklearn", reason="the digits need prunefront[digits]")
pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples" / "notebook.ipynb"
#: What makes it seconds where it is minutes.
SMALLER = {
    '"width": 32, "epochs": 6': '"width": 16, "epochs": 2',
    '"min_accuracy": 0.5': '"min_accuracy": 0.0',
    '"speedup": 2.0}': '"speedup": 1.05}',
    '"iterations": 3': '"iterations": 1',
    'finetune={"epochs": 2': 'finetune={"epochs": 1',
    '"trials": 8, "final_stretch": 1': '"trials": 3, "final_stretch": 1, "remeasure": False',
    "speedup=2.0)": "speedup=1.01)",
}


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The notebook after its last cell."""
    folder = tmp_path_factory.mktemp("notebook")
    content = NOTEBOOK.read_text()
    for before, after in SMALLER.items():
        quoted = [text.replace('"', '\\"') for text in (before, after)]
        assert quoted[0] in content, f"the notebook says {before} no more"
        content = content.replace(*quoted)
    notebook = nbformat.reads(content, as_version=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
        patch.setenv("IPYTHONDIR", str(folder / "ipython"))
        nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    return notebook


def shown(notebook: Any, holds: str, kind: str = "text/html") -> list[str]:
    """What the one cell with `holds` in its source shows, in order."""
    (cell,) = [cell for cell in notebook.cells if cell.cell_type == "code" and holds in cell.source]
    return [output.data[kind] for output in cell.outputs if kind in output.get("data", {})]


def test_the_live_table_is_one_output_that_ends_with_the_last_state(executed: Any) -> None:
    tables = [html for html in shown(executed, "search(job") if "prunefront search" in html]
    assert len(tables) == 1
    assert "3 of 3" in tables[0]
    assert "color" in tables[0]


def test_what_was_said_before_the_table_is_still_there(executed: Any) -> None:
    said = "".join(shown(executed, "search(job"))
    assert said.index("training the dense network") < said.index("prunefront search") < said.index("export one with")


def test_the_front_is_a_table_and_the_picture_a_picture(executed: Any) -> None:
    assert shown(executed, "search(job")[-1].startswith("<table>")
    assert shown(executed, "plt.plot", "image/png")


def test_the_exported_file_was_run(executed: Any) -> None:
    assert "% of 300 test images" in shown(executed, "InferenceSession", "text/plain")[0]
    assert "against the wide one" in shown(executed, "measure(narrow", "text/plain")[0]


def test_the_file_shows_what_it_did_and_names_no_place(executed: Any) -> None:
    stored = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(stored)
    cells = [cell for cell in stored.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for cell in cells for output in cell.outputs if output.output_type in ("stream", "error")]
    assert "/tmp" not in NOTEBOOK.read_text()
    assert "/home" not in NOTEBOOK.read_text()
