from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from search.atomic import StoreError
from search.lock import driver_lock

ROOT = Path(__file__).parents[2]

HOLDER = """
import sys, time
from pathlib import Path
from search.lock import driver_lock
with driver_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_the_second_driver_is_refused_by_the_name_of_the_first(tmp_path: Path) -> None:
    run = tmp_path / "digits-001"
    run.mkdir()
    where = rf"pid {os.getpid()} on host {socket.gethostname()} since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d"
    with driver_lock(run):
        message = f"^run digits-001 is being driven by {where}: wait for it or stop it$"
        with pytest.raises(StoreError, match=message), driver_lock(run):
            pass
        with pytest.raises(StoreError, match="is being driven by"), driver_lock(run):
            pass
    with driver_lock(run):
        assert "pid" in (run / "driver.lock").read_text()
    assert (run / "driver.lock").read_text() == ""


def test_a_killed_driver_leaves_the_run_free_though_its_name_stands(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None
    with process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(StoreError, match=f"pid {process.pid} on host"), driver_lock(tmp_path):
            pass
        process.send_signal(signal.SIGKILL)
    assert str(process.pid) in (tmp_path / "driver.lock").read_text()
    with driver_lock(tmp_path):
        assert str(os.getpid()) in (tmp_path / "driver.lock").read_text()


def test_a_process_started_by_the_driver_does_not_keep_the_run(tmp_path: Path) -> None:
    with driver_lock(tmp_path):
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False)
    with child:
        with driver_lock(tmp_path):
            assert child.poll() is None
        child.communicate(b"\n")


def test_the_lock_is_dropped_when_the_driver_fails(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="boom"), driver_lock(tmp_path):
        raise RuntimeError("boom")
    with driver_lock(tmp_path):
        assert (tmp_path / "driver.lock").exists()


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b'{"pid": {}}', b'{"pid": 1, "host": "h"}'])
def test_a_lock_with_no_readable_name_still_refuses(tmp_path: Path, content: bytes) -> None:
    with driver_lock(tmp_path):
        (tmp_path / "driver.lock").write_bytes(content)
        with pytest.raises(StoreError, match="another process that has not signed"), driver_lock(tmp_path):
            pass


def test_a_folder_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"cannot lock .*driver\.lock: No such file"), driver_lock(tmp_path / "x"):
        pass
