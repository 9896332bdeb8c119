"""What decides whether a figure of throughput counts, and the whole benchmark once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.throughput import tree_cpu_s, trouble

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "throughput.py"
IDLE = {"one_steps_s": 100.0, "one_share": 0.99, "two_steps_s": 195.0, "two_share": 0.98}


def test_two_quiet_controls_that_agree_let_a_figure_count() -> None:
    assert trouble(IDLE, IDLE | {"two_steps_s": 200.0}) is None


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ({"two_share": 0.6}, {}, "the control before had 60% of a core (two at a time), not 95%"),
        ({}, {"one_share": 0.9}, "the control after had 90% of a core (one at a time), not 95%"),
        ({}, {"one_steps_s": 80.0}, "the controls differ by 22% (one_steps_s), more than 5%"),
    ],
)
def test_a_machine_with_other_work_is_named(before: dict[str, float], after: dict[str, float], said: str) -> None:
    assert trouble(IDLE | before, IDLE | after) == said


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_what_children_spend_is_counted() -> None:
    before = tree_cpu_s(os.getpid())
    spend = "import time\nwhile time.process_time() < 0.5: pass\nprint('done', flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", spend], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"done\n"
        assert tree_cpu_s(os.getpid()) - before >= 0.45
        child.kill()


@pytest.mark.ray
@pytest.mark.slow
def test_last_line_is_the_claim() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "--tiny"], capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert set(result) == {"claim", "figure", "unit", "bar", "holds", "details"}
    details = result["details"]
    assert result["figure"] == pytest.approx(details["one"]["wall_s"] / details["two"]["wall_s"], abs=1e-3)
    assert details["counted"] is (details["trouble"] is None)
    assert not (result["holds"] and not details["counted"])
    assert all(details[name]["cpu_s_a_trial"] > 0.0 for name in ("bare", "one", "two"))
