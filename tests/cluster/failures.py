"""What can fail on a cluster, each failure injected into a search of real processes; returns how long it took to mend.

Each function leaves its run checked: `Run.require_undisturbed`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.cluster.ground import Ground, Run, kill
from tests.cluster.nodes import wait_until_gone
from tests.search.tiny.processes import Process


@dataclass(frozen=True)
class Recovery:
    """From a failure, or from its end where that is not ours to bring about, until the search goes on."""

    seconds: float
    measured: str
    """From what to what."""


class Skipped(Exception):
    """Why a failure cannot be brought about on this machine."""


def worker_killed(ground: Ground) -> Recovery:
    """kill -9 of a process that trains."""
    run = ground.begin()
    with run.search() as driver:
        held = run.held(driver)
        trial = min(held)
        failed = kill([held[trial]])
        run.open_gate()
        again = run.until_trained_on(driver, {trial: held[trial]})
        _ends_well(run, driver)
    return Recovery(again - failed, "from kill -9 to the trial's next epoch")


def node_terminated(ground: Ground) -> Recovery:
    """SIGTERM to a worker node's raylet, as a provider that takes a machine back sends it."""
    return _node_lost(ground, signal.SIGTERM)


def node_killed(ground: Ground) -> Recovery:
    """kill -9 of all processes of a worker node: a machine that is switched off."""
    return _node_lost(ground, signal.SIGKILL)


def _node_lost(ground: Ground, number: signal.Signals) -> Recovery:
    run = ground.begin()
    with run.search() as driver:
        held = run.held(driver)
        node, lost = run.node_and_trials(held)
        failed = time.time()
        node.signal(number, node.pids_of("raylet/raylet") if number == signal.SIGTERM else None)
        wait_until_gone(list(lost.values()))  # one that trains on meanwhile is no failure yet
        run.open_gate()
        again = run.until_trained_on(driver, lost)
        _ends_well(run, driver)
    return Recovery(again - failed, f"from {number.name} to the next epoch of a trial that was there")


def node_frozen(ground: Ground) -> Recovery:
    """SIGSTOP of a worker node until others have finished its trials, then SIGCONT: its processes write late."""
    run = ground.begin()
    with run.search() as driver:
        held = run.held(driver)
        node, lost = run.node_and_trials(held)
        failed = time.time()
        node.signal(signal.SIGSTOP)
        try:
            run.open_gate()
            again = run.until_trained_on(driver, lost)
            run.until_published(driver, lost, len(lost))
            run.ledger.look()
        finally:
            node.signal(signal.SIGCONT)
        wait_until_gone(list(lost.values()))
        run.ledger.look()
        _ends_well(run, driver, once=False)
    return Recovery(again - failed, "from SIGSTOP to the next epoch of a trial that was there")


def network_cut(ground: Ground) -> Recovery:
    """A worker node's cable pulled until another has taken its trial over, then plugged in again.

    Cut off, its processes train on and write to the disk that all share.
    """
    network = ground.cluster.network
    if not network.cuttable:
        raise Skipped("network namespaces need root: ports of one host cannot be cut off")
    run = ground.begin()
    with run.search() as driver:
        held = run.held(driver)
        node, lost = run.node_and_trials(held)
        failed = time.time()
        network.cut(node.name)
        try:
            again = run.until_taken_up(driver, lost)
            run.open_gate()
            run.until_published(driver, lost, len(lost))
            run.ledger.look()
        finally:
            network.heal(node.name)
        wait_until_gone(list(lost.values()))
        _ends_well(run, driver, once=False)
    return Recovery(again - failed, "from the cut until another worker has taken its trial up")


def rig_killed(ground: Ground) -> Recovery:
    """kill -9 of the process that measures, while it measures."""
    run = ground.begin()
    with run.search() as driver:
        run.held(driver)
        (rig,) = ground.cluster.head.pids_of("RigActor")
        os.kill(rig, signal.SIGSTOP)  # so that it is killed neither before nor after
        run.open_gate()
        driver.wait_until(lambda: any((run.root / "trials" / ".partial").glob("*/*/model.onnx")))
        failed = kill([rig])
        again = run.until_published(driver)
        _ends_well(run, driver)
    return Recovery(again - failed, "from kill -9 to the next trial's end")


def rig_hangs(ground: Ground) -> Recovery:
    """SIGSTOP of the process that measures, for good: what its driver hangs in looks the same from outside."""
    run = ground.begin()
    with run.search() as driver:
        run.held(driver)
        (rig,) = ground.cluster.head.pids_of("RigActor")
        failed = time.time()
        os.kill(rig, signal.SIGSTOP)
        run.open_gate()
        again = run.until_published(driver)
        _ends_well(run, driver)
    return Recovery(again - failed, "from SIGSTOP to the next trial's end")


def driver_killed(ground: Ground) -> Recovery:
    """kill -9 of the driver; `prunefront search RUN --address` goes on."""
    run = ground.begin()
    with run.search() as driver:
        held = run.held(driver)
        failed = time.time()
        driver.end(signal.SIGKILL)
        driver.wait()
    with run.search() as driver:
        run.open_gate()
        again = run.until_trained_on(driver, held)
        _ends_well(run, driver)
    return Recovery(again - failed, "from kill -9, started again at once, to the next epoch")


def head_killed(ground: Ground) -> Recovery:
    """kill -9 of all of Ray on the head; it is started again, and `prunefront search RUN --address` goes on."""
    run = ground.begin()
    with run.search() as driver:
        held = run.held(driver)
        ground.cluster.head.signal(signal.SIGKILL)
        code = driver.wait()
        assert code == 2, (code, driver.text)
        assert "Traceback" not in driver.text
        said = driver.lines[-1]
        assert f"search {run.root} --address {ground.cluster.address}" in said, said
    run.ledger.look()
    failed = time.time()
    ground.cluster.mend()
    with run.search() as driver:
        run.open_gate()
        again = run.until_trained_on(driver, held)
        _ends_well(run, driver)
    return Recovery(again - failed, "from `ray start` on all machines and the command again to the next epoch")


def storage_full(ground: Ground) -> Recovery:
    """Not a byte left where the run folder lies; once there is room, `prunefront search RUN` goes on."""
    with _small_disk(ground.folder / f"disk-{ground.begun}") as disk:
        run = ground.begin(disk / "run")
        with run.search() as driver:
            held = run.held(driver)
            filler = disk / "filler"
            _fill(filler)
            run.open_gate()
            _stops_for(driver, "No space left on device")
        run.require_whole()
        filler.unlink()
        return _goes_on(run, held)


def storage_read_only(ground: Ground) -> Recovery:
    """The run folder can be written no more; once it can, `prunefront search RUN` goes on."""
    run = ground.begin()
    with run.search() as driver:
        held = run.held(driver)
        with _read_only(run.root / "trials"):
            run.open_gate()
            _stops_for(driver, "Read-only file system")
    run.require_whole()
    return _goes_on(run, held)


def disk_lost(ground: Ground) -> Recovery:
    """kill -9 of the driver and its run folder gone; `prunefront search URL` goes on from the copies, elsewhere."""
    run = ground.begin()
    bucket = ground.folder / f"bucket-{ground.begun}"
    job = yaml.safe_load((run.root / "job.yaml").read_text())
    (run.root / "job.yaml").write_text(yaml.safe_dump(job | {"storage": f"file://{bucket}"}))
    copy = bucket / run.root.name
    with run.search() as driver:
        run.held(driver)
        run.open_gate()
        driver.wait_until(lambda: any(copy.glob("trials/*/result.json")))
        failed = time.time()
        driver.end(signal.SIGKILL)
        driver.wait()
    finished = {path.parent.name for path in copy.glob("trials/*/result.json")}
    shutil.rmtree(run.root, ignore_errors=True)
    again = run.moved(ground.folder / f"elsewhere-{ground.begun}")
    with again.search(f"file://{copy}") as driver:
        went_on = again.until_trained_on(driver, {})
        _ends_well(again, driver, once=False)
    assert not finished & {str(epoch["trial"]) for epoch in again.epochs()}, "a finished trial was trained again"
    return Recovery(went_on - failed, "from kill -9, started again elsewhere at once, to the next epoch")


def _goes_on(run: Run, lost: Mapping[int, int]) -> Recovery:
    failed = time.time()
    with run.search() as driver:
        again = run.until_trained_on(driver, lost)
        _ends_well(run, driver)
    return Recovery(again - failed, "from the mended disk and the command again to the next epoch")


def _stops_for(driver: Process, why: str) -> None:
    code = driver.wait()
    assert code == 2, (code, driver.text)
    assert "Traceback" not in driver.text
    assert why in driver.lines[-1], driver.text


def _ends_well(run: Run, driver: Process, *, once: bool = True) -> None:
    assert driver.wait() == 0, driver.text
    assert "Traceback" not in driver.text
    run.require_undisturbed(once=once)


@contextlib.contextmanager
def _small_disk(folder: Path) -> Iterator[Path]:
    """A file system of a few megabytes at `folder`."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], capture_output=True)
    if done.returncode != 0:
        raise Skipped("a small disk needs root: tmpfs cannot be mounted")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _fill(path: Path) -> None:
    with open(path, "wb", buffering=0) as file:
        for size in (65536, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"\0" * size)


@contextlib.contextmanager
def _read_only(folder: Path) -> Iterator[None]:
    """`folder` as a file system that cannot be written, whoever asks."""
    done = subprocess.run(["mount", "--bind", str(folder), str(folder)], capture_output=True)
    if done.returncode != 0:
        raise Skipped("a read-only file system needs root: it cannot be mounted")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


#: What fails, in the order of docs/reliability.md.
FAILURES: dict[str, Callable[[Ground], Recovery]] = {
    of.__name__: of
    for of in (
        worker_killed,
        node_terminated,
        node_killed,
        node_frozen,
        network_cut,
        rig_killed,
        rig_hangs,
        driver_killed,
        head_killed,
        storage_full,
        storage_read_only,
        disk_lost,
    )
}
#: Those after which nobody needs to do anything.
BY_ITSELF = frozenset(
    of.__name__ for of in (worker_killed, node_terminated, node_killed, node_frozen, network_cut, rig_killed, rig_hangs)
)
