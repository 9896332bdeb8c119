"""The arithmetic of the noise benchmark, and that its training processes end; what it measures is not judged here."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("timing_noise")


def sample(bench: ModuleType, condition: str, speedup: float, **changes: Any) -> Any:
    values = {
        "network": "small",
        "control": 1.0,
        "latency_ms": 1.0,
        "dense_ms": 2.0,
        "seconds": 0.5,
        "converged": True,
        "control_converged": True,
        **changes,
    }
    return bench.Sample(condition=condition, speedup=speedup, **values)


def test_deviations_are_from_the_median_at_rest(bench: ModuleType) -> None:
    samples = [
        *(sample(bench, bench.IDLE, speedup) for speedup in (2.0, 1.98, 2.02)),
        sample(bench, bench.SAME_CORE, 2.1, control=0.98, seconds=1.5, load_steps=3),
        sample(bench, bench.SAME_CORE, 1.88, control=1.01, converged=False, load_steps=4),
        sample(bench, bench.SAME_CORE, 2.04),
        sample(bench, bench.IDLE, 8.0, network="large", dense_ms=50.0, seconds=9.0),
        sample(bench, bench.SAME_CORE, 8.4, network="large", dense_ms=50.0, seconds=9.0),
    ]
    rows = bench.summarise(samples)
    assert list(rows) == ["small, idle", "small, same core", "large, idle", "large, same core"]
    idle, loaded = rows["small, idle"], rows["small, same core"]
    assert (idle["median"], idle["deviation"], idle["median_deviation"]) == (2.0, 0.01, 0.0)
    assert (loaded["median"], loaded["deviation"], loaded["median_deviation"]) == (2.04, 0.06, 0.02)
    assert (loaded["control"], loaded["converged"], loaded["measurements"]) == (0.02, 2, 3)
    assert (loaded["seconds"], loaded["load_steps"]) == (1.5, 7)
    assert rows["large, same core"]["deviation"] == 0.05
    claim = bench.verdict(rows, quick=False, left_out=None)
    assert (claim.figure, claim.bar, claim.holds) == (0.06, 0.07, True)
    details = claim.details
    assert (details["within_bar"], details["within_aim"], details["controls_within_bar"]) == (True, False, True)
    assert (details["control"], details["seconds"]) == (0.02, 1.5), "9 s of a network over 5 ms do not count"


@pytest.mark.parametrize(
    ("changes", "broken"),
    [
        ({"speedup": 2.15}, "within_bar"),
        ({"speedup": 1.85}, "within_bar"),
        ({"control": 1.04}, "controls_within_bar"),
        ({"control": 0.96}, "controls_within_bar"),
        ({"seconds": 2.1}, "seconds_within_bar"),
    ],
)
def test_each_bar_can_be_missed(bench: ModuleType, changes: dict[str, float], broken: str) -> None:
    loaded = {"condition": bench.OTHER_CORE, "speedup": 2.0, **changes}
    rows = bench.summarise([sample(bench, bench.IDLE, 2.0), sample(bench, **loaded)])
    claim = bench.verdict(rows, quick=False, left_out=None)
    assert not claim.holds
    kept = ("within_bar", "controls_within_bar", "seconds_within_bar")
    assert [name for name in kept if not claim.details[name]] == [broken]


def test_slow_networks_are_not_held_to_the_seconds(bench: ModuleType) -> None:
    rows = bench.summarise([sample(bench, bench.IDLE, 2.0, dense_ms=50.0, seconds=9.0)])
    claim = bench.verdict(rows, quick=False, left_out="why")
    assert (claim.holds, claim.details["seconds_within_bar"], claim.details["left_out"]) == (True, None, "why")


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no process affinity here")
def test_loads_train_on_their_core_only_when_asked_and_are_gone_afterwards(bench: ModuleType) -> None:
    seen: list[Any] = []

    def break_off() -> None:
        with bench.loads() as (running, reason):
            several = len(os.sched_getaffinity(0)) > 1
            assert list(running) == [bench.IDLE, *([bench.OTHER_CORE] if several else []), bench.SAME_CORE]
            assert (reason is None) is several
            seen.extend(load for load in running.values() if load is not None)
            load = running[bench.SAME_CORE]
            assert os.sched_getaffinity(load.process.pid) == {max(os.sched_getaffinity(0))}
            begun = load.steps
            assert begun > 0
            load.resume()
            load.rest()
            rested = load.steps
            assert rested > begun
            load.process.join(0.2)
            load.rest()
            assert load.steps == rested
            raise KeyError

    with pytest.raises(KeyError):
        break_off()
    assert seen
    for load in seen:
        assert not load.process.is_alive()
        with pytest.raises(RuntimeError, match="has ended"):
            load.resume()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no process affinity here")
def test_a_load_that_died_is_said_at_once(bench: ModuleType) -> None:
    load = bench.Load(max(os.sched_getaffinity(0)))
    try:
        load.process.kill()
        load.process.join()
        with pytest.raises(RuntimeError, match="has ended"):
            load.resume()
    finally:
        load.end()


def test_one_core_leaves_the_other_core_out(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []

    class Still:
        def __init__(self, core: int) -> None:
            started.append(core)

        def resume(self) -> None: ...

        rest = end = resume

    monkeypatch.setattr(bench, "Load", Still)
    monkeypatch.setattr(bench, "allowed_cores", lambda: (3,))
    with bench.loads() as (running, reason):
        assert list(running) == [bench.IDLE, bench.SAME_CORE]
    assert started == [3]
    assert reason.startswith("one core only")


@pytest.mark.slow
def test_reduced_figures_are_not_recorded() -> None:
    command = [sys.executable, str(FOLDER / "timing_noise.py"), "--quick", "--record"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 2
    assert "full benchmark only" in done.stderr


def test_the_claim_is_json(bench: ModuleType) -> None:
    rows = bench.summarise([sample(bench, bench.IDLE, 2.0)])
    written = json.loads(bench.verdict(rows, quick=True, left_out=None).to_json())
    assert written["details"]["rows"]["small, idle"]["speedups"] == [2.0]
