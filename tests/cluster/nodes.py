"""A real Ray cluster on this machine: a head and workers, each started by `ray start` with processes of its own."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from search.orphans import Watcher, marked
from tests.cluster.network import Network, OneHost, free_port, make_network
from tests.search.tiny.processes import PATIENCE_S, PROGRAM, Process

RAY = (sys.executable, "-c", "from ray.scripts.scripts import main; main()")
HEAD = "head"
#: A node that is silent is given up after about eight seconds instead of Ray's half a minute to more than one.
QUICK_HEALTH_CHECK = {
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}
STORE_BYTES = 100_000_000


@dataclass
class Node:
    """One machine of the cluster and the processes that were started there."""

    name: str
    address: str
    prefix: Sequence[str]
    cpus: int
    rig: bool
    watcher: Watcher | None = None
    """Ends the node's processes when this process ends, by kill -9 too."""
    process: Process | None = None

    def pids(self) -> list[int]:
        """All processes of this node that live."""
        return [] if self.watcher is None else marked(self.watcher.mark)

    def pids_of(self, title: str) -> list[int]:
        """Those whose command line or title holds this text."""
        return [pid for pid in self.pids() if title in title_of(pid)]

    def signal(self, number: signal.Signals, pids: Sequence[int] | None = None) -> None:
        """Send a signal to all its processes, or those named."""
        for pid in self.pids() if pids is None else pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    @property
    def up(self) -> bool:
        """Whether its raylet lives."""
        return self.watcher is not None and bool(self.pids_of("raylet/raylet"))


@dataclass
class Cluster:
    """A head, which holds the rig and no trial, and workers that run two trials each."""

    network: Network = field(default_factory=make_network)
    health_check: Mapping[str, str] = field(default_factory=lambda: QUICK_HEALTH_CHECK)
    nodes: dict[str, Node] = field(default_factory=dict)
    hides: Sequence[str] = ()
    """What the workers are started with besides, so that they do not see all that the head sees."""

    def __post_init__(self) -> None:
        # Sockets lie below it, whose names may have a hundred characters.
        self.temporary = Path(tempfile.mkdtemp(prefix="pf", dir="/tmp"))
        self._port = free_port() if isinstance(self.network, OneHost) else 6379
        self._token = secrets.token_hex(16)

    def __enter__(self) -> Cluster:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def address(self) -> str:
        """What `--address` takes."""
        return f"{self.nodes[HEAD].address}:{self._port}"

    @property
    def head(self) -> Node:
        """The node with Ray's own services, the driver and the rig."""
        return self.nodes[HEAD]

    @property
    def workers(self) -> list[Node]:
        """The nodes that train."""
        return [node for node in self.nodes.values() if node.name != HEAD]

    def start(self) -> None:
        """Head and two workers, all joined."""
        for name in (HEAD, "w1", "w2"):
            address, prefix = self.network.join(name)
            head = name == HEAD
            prefix = prefix if head else (*prefix, *self.hides)
            self.nodes[name] = Node(name=name, address=address, prefix=prefix, cpus=0 if head else 2, rig=head)
        self.mend()

    def _launch(self, node: Node) -> None:
        """`ray start` on a machine; `_joined` waits for it."""
        folder = self.temporary / node.name
        shutil.rmtree(folder, ignore_errors=True)
        where = (
            ("--head", f"--port={self._port}", "--include-dashboard=false")
            if node.name == HEAD
            else (f"--address={self.address}",)
        )
        command = (
            *node.prefix,
            *RAY,
            "start",
            *where,
            f"--node-ip-address={node.address}",
            f"--num-cpus={node.cpus}",
            "--num-gpus=0",
            f"--object-store-memory={STORE_BYTES}",
            f"--temp-dir={folder}",
            f"--resources={json.dumps({'latency_rig': 1} if node.rig else {})}",
            "--disable-usage-stats",
            "--block",
        )
        node.watcher = Watcher()
        node.watcher.__enter__()
        node.process = Process(
            *command, cwd=self.temporary, environment={**self.environment, **node.watcher.environment}
        )

    def _joined(self, node: Node) -> None:
        assert node.process is not None
        node.process.wait_for("Ray runtime started.")

    @property
    def environment(self) -> dict[str, str]:
        """What every process of the cluster and its driver is started with."""
        return {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self._token,
            "RAY_TMPDIR": str(self.temporary / HEAD),
            "RAY_enable_metrics_collection": "0",
            "RAY_memory_monitor_refresh_ms": "0",
            "RAY_DISABLE_IMPORT_WARNING": "1",
            **self.health_check,
        }

    def search(self, *arguments: object, cwd: Path) -> Process:
        """`prunefront search ... --address` typed on the head's machine, in `cwd`."""
        command = (*self.head.prefix, *PROGRAM, "search", *map(str, arguments), "--address", self.address)
        return Process(*command, cwd=cwd, environment=self.environment)

    def stop(self, node: Node) -> None:
        """End all that runs on a machine; it stays in the network."""
        if node.watcher is not None:
            node.signal(signal.SIGCONT)
            node.watcher.__exit__()
            node.watcher = None
        if node.process is not None:
            node.process.__exit__(None, None, None)
            node.process = None

    def mend(self) -> None:
        """Bring back what a failure took: a head that is gone takes all with it."""
        if not self.head.up:
            for node in self.nodes.values():
                self.stop(node)
            self._launch(self.head)
            self._joined(self.head)
        down = [node for node in self.workers if not node.up]
        for node in down:
            self.stop(node)
            self._launch(node)
        for node in down:
            self._joined(node)

    def node_of(self, pid: int) -> Node:
        """The machine that a process runs on."""
        found = [node for node in self.nodes.values() if pid in node.pids()]
        assert found, f"process {pid} is of no node"
        return found[0]

    def close(self) -> None:
        """Take everything down, whatever state it is in."""
        with ExitStack() as last:
            last.callback(shutil.rmtree, self.temporary, ignore_errors=True)
            last.callback(self.network.close)
            for node in self.nodes.values():
                last.callback(self.stop, node)


def title_of(pid: int) -> str:
    """A process's command line, empty where it is gone."""
    try:
        return Path("/proc", str(pid), "cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def wait_until_gone(pids: Sequence[int], seconds: float = PATIENCE_S) -> None:
    """Until none of these processes lives."""
    deadline = time.monotonic() + seconds
    while any(title_of(pid) for pid in pids):
        assert time.monotonic() < deadline, [title_of(pid) for pid in pids]
        time.sleep(0.05)
