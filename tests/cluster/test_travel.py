"""A search on machines that have neither this package nor the job's folder nor the run's, the rig on another one."""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from search.result import TrialResult
from search.store import RunStore
from tests.cluster.machines import Nodes, bare_python, hidden, nodes
from tests.search.tiny.processes import ROOT, Process

pytestmark = [pytest.mark.slow, pytest.mark.ray]
#: As the installed command runs: the current folder is not on the path.
PROGRAM = (sys.executable, "-P", "-c", "from search.cli import main; main()", "search")
TINY = ROOT / "tests" / "search" / "tiny"
#: Says where each process of the search found the task.
TELL = """

import os as _os
with open(_os.environ["PRUNEFRONT_TEST_LOG"], "a") as _log:
    _log.write(json.dumps({"file": __file__, "search": sys.modules["search"].__file__, "pid": _os.getpid(),
        "sent": _os.environ.get("PRUNEFRONT_TEST_SENT")}) + "\\n")
"""


@dataclass
class Ground:
    """A cluster of a head without processors, where drivers run, and one bare machine that trains and measures."""

    nodes: Nodes
    python: Path
    home: Path
    """The job's folder, which the other machine does not see."""
    runs: Path
    """Run folders, which the other machine does not see either."""
    log: Path

    def search(self, *arguments: object, submitted: str | None = None) -> Process:
        environment = {**self.nodes.environment, "PYTHONPATH": str(ROOT), "PRUNEFRONT_TEST_LOG": str(self.log)}
        if submitted is not None:
            environment["RAY_JOB_CONFIG_JSON_ENV_VAR"] = submitted
        command = ["env", "-i", *(f"{k}={v}" for k, v in environment.items()), *PROGRAM]
        return Process(*command, *map(str, arguments), "--address", self.nodes.address, cwd=self.home)


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    folder = tmp_path_factory.mktemp("travel")
    home, runs, log = folder / "home", folder / "runs", folder / "log"
    home.mkdir()
    runs.mkdir()
    (home / "tiny_task.py").write_text((TINY / "tiny_task.py").read_text() + TELL)
    job = (
        (TINY / "job.yaml").read_text().replace("trials: 6", "trials: 3").replace("remeasure: false", "remeasure: true")
    )
    (home / "job.yaml").write_text(job)
    prefix = hidden(home, runs, ROOT)
    if not prefix:
        pytest.skip("hiding folders from a process needs root")
    python = bare_python(folder / "bare")
    with nodes(secrets.token_hex(32)) as started:
        started.start(python, "--num-cpus=0")
        more = {"PRUNEFRONT_TEST_LOG": str(log), "PRUNEFRONT_CACHE": str(folder / "cache")}
        started.start(python, "--num-cpus=1", '--resources={"latency_rig": 1}', prefix=prefix, more=more)
        yield Ground(nodes=started, python=python, home=home, runs=runs, log=log)


def test_package_and_job_travel_and_the_rig_is_the_other_machines(ground: Ground) -> None:
    # as in a process that `ray job submit` started, which sent things of its own
    sent = {"py_modules": [str(ground.home / "sent")], "env_vars": {"PRUNEFRONT_TEST_SENT": "yes"}}
    (ground.home / "sent").mkdir()
    (ground.home / "sent" / "__init__.py").write_text("")
    submitted = json.dumps({"runtime_env": sent, "metadata": {"job_submission_id": "raysubmit_1"}})
    with ground.search("job.yaml", "--storage", ground.runs, "--name", "first", submitted=submitted) as driver:
        assert driver.wait() == 0, driver.text
        own = driver.pid
    assert "which offers 'latency_rig'" in driver.text
    assert "1 of 1 nodes that train do not see the run folder" in driver.text
    assert "warning" not in driver.text
    assert "measuring the front again" in driver.text
    assert "not measured again" not in driver.text
    store = RunStore.open(ground.runs / "first")
    results: dict[int, TrialResult] = store.results()
    assert [results[n].status for n in sorted(results)] == ["complete"] * 3
    assert (store.root / "final.json").exists()
    told = [json.loads(line) for line in ground.log.read_text().splitlines()]
    there = [one for one in told if one["pid"] != own]
    assert there
    for one in there:
        assert "/prunefront_job_" in one["file"], one  # the copy that travelled
        assert "/py_modules_files/" in one["search"], one
        assert one["sent"] == "yes"
    assert not any(str(ground.home) in one["file"] for one in there)


def test_a_node_with_another_version_is_refused_by_its_address(ground: Ground, tmp_path: Path) -> None:
    before = set(ground.runs.iterdir())
    other = bare_python(tmp_path / "other", version="9.9.9")
    ground.nodes.start(other, "--num-cpus=1")
    with ground.search("job.yaml", "--storage", ground.runs, "--name", "never") as driver:
        assert driver.wait() == 2, driver.text
    address = ground.nodes.address.rpartition(":")[0]
    assert f"node {address} cannot work for this search: it has prunefront 9.9.9, the driver" in driver.lines[-1]
    assert "Traceback" not in driver.text
    assert set(ground.runs.iterdir()) == before


def test_a_module_of_our_names_is_refused_before_ray_is_joined(ground: Ground) -> None:
    (ground.home / "admm.py").write_text("")
    try:
        with ground.search("job.yaml", "--storage", ground.runs, "--name", "never") as driver:
            assert driver.wait() == 2, driver.text
    finally:
        (ground.home / "admm.py").unlink()
    [line] = driver.lines
    assert f"{ground.home / 'admm.py'} has the name of a package of prunefront, 'admm': rename it" in line
