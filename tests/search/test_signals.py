"""Ctrl-C during a search: once is a wish, twice is the end, with the last words said whole and nothing raised."""

from __future__ import annotations

import copy
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

from search.signals import INTERRUPTED, Interrupt

TWICE = """
import os, signal, sys
from search.signals import Interrupt

interrupt = Interrupt(lambda: os.write(1, b"last words\\n"))
with interrupt.heard():
    os.kill(os.getpid(), signal.{0})
    print("heard", interrupt.requested, flush=True)
    child = os.fork()
    if child == 0:  # as Ray forks, with our handler until it has become another program
        os.kill(os.getpid(), signal.{0})
        os._exit(0)
    print("child", os.waitpid(child, 0)[1], flush=True)
    os.kill(os.getpid(), signal.{0})
    print("never said", flush=True)
"""


def test_once_is_a_wish_and_the_handlers_come_back() -> None:
    interrupt = Interrupt(lambda: None)
    before = signal.getsignal(signal.SIGINT)
    with interrupt.heard():
        assert not interrupt.requested
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.requested
    assert signal.getsignal(signal.SIGINT) is before


def test_twice_ends_the_process_with_its_last_words() -> None:
    for name in ("SIGINT", "SIGTERM"):
        done = subprocess.run(
            [sys.executable, "-c", TWICE.format(name)],
            capture_output=True,
            text=True,
            timeout=300,
            cwd=Path(__file__).parents[2],
        )
        assert (done.returncode, done.stderr) == (INTERRUPTED, "")
        assert done.stdout.splitlines() == ["heard True", "child 0", "last words"]


def test_tune_may_write_it_down() -> None:
    interrupt = Interrupt(lambda: None)
    assert not pickle.loads(pickle.dumps(interrupt)).requested
    interrupt.requested = True
    assert copy.copy(interrupt).requested
