"""A driver whose cluster is gone says so in its last line and ends, instead of waiting in Ray's own code."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: Ends by itself after the patience, or is told to by a line; `sys.argv` holds the ports that are watched.
PROGRAM = """
import sys, time
from search import cluster_watch
cluster_watch.PATIENCE_S, cluster_watch._EVERY_S, cluster_watch._TIMEOUT_S = 0.5, 0.05, 1.0
with cluster_watch.ClusterWatch([("127.0.0.1", int(port)) for port in sys.argv[1:]], lambda: print("gone", flush=True)):
    print("watching", flush=True)
    sys.stdin.readline()
print("left", flush=True)
"""


def _listening() -> socket.socket:
    server = socket.create_server(("127.0.0.1", 0))
    server.listen(128)
    return server


def _driver(*servers: socket.socket) -> subprocess.Popen[str]:
    ports = [str(server.getsockname()[1]) for server in servers]
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *ports],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "watching\n"
    return process


def test_the_process_ends_with_its_last_words_when_one_place_is_silent() -> None:
    with _listening() as head, _listening() as node, _driver(head, node) as driver:
        node.close()
        assert driver.stdout is not None
        assert driver.stdout.read() == "gone\n"
        assert driver.wait(timeout=300) == 2


def test_nothing_happens_while_all_places_answer_and_after_it_is_left() -> None:
    with _listening() as head, _driver(head) as driver:
        said, _ = driver.communicate("\n", timeout=300)
    assert said == "left\n"
    assert driver.returncode == 0
