"""Machines that have Ray and the libraries but not this package, as nodes of a cluster on this host."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from search.orphans import Watcher

START_S = 300.0
_MAIN = "from ray.scripts.scripts import main; main()"


def bare_python(folder: Path, version: str | None = None) -> Path:
    """A Python with the libraries of this one and without this package, in the new `folder`.

    With `version`, it says that this version of prunefront is installed.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    [site] = folder.glob("lib/python*/site-packages")
    # A line of a .pth file is a folder whose own .pth files are not read: an editable install is not found by it.
    (site / "libraries.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    if version is not None:
        (site / f"prunefront-{version}.dist-info").mkdir()
        (site / f"prunefront-{version}.dist-info" / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: prunefront\nVersion: {version}\n"
        )
    return folder / "bin" / "python"


def hidden(*folders: Path) -> tuple[str, ...]:
    """What a command is started with so that it and its children do not see these folders; () where not allowed."""
    mounts = " && ".join(f"mount -t tmpfs none {folder}" for folder in folders)
    prefix = ("unshare", "--mount", "sh", "-c", f'{mounts} && exec "$@"', "sh")
    try:
        allowed = subprocess.run([*prefix, "true"], capture_output=True, timeout=60).returncode == 0
    except OSError:
        allowed = False
    return prefix if allowed else ()


@dataclass
class Nodes:
    """Started by `ray start`, each with its own processes and folder; all end with this process."""

    token: str | None
    """None: a cluster that asks for none."""
    address: str = ""
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="pfm", dir="/tmp")))

    @property
    def environment(self) -> dict[str, str]:
        """For every process of the cluster."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_") and k != "PYTHONPATH"}
        own = {"RAY_AUTH_MODE": "disabled"} if self.token is None else {
            "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}  # fmt: skip
        return {**kept, **own, "RAY_enable_metrics_collection": "0", "OMP_NUM_THREADS": "1", "PYTHONNOUSERSITE": "1"}

    def start(
        self, python: Path, *arguments: str, prefix: Sequence[str] = (), more: Mapping[str, str] | None = None
    ) -> None:
        """One more node: the head if it is the first."""
        if self.address:
            where = [f"--address={self.address}"]
        else:
            port = _free_port()
            where = ["--head", f"--port={port}", "--include-dashboard=false"]
            self.address = f"{_own_address()}:{port}"
        subprocess.run(
            [*prefix, str(python), "-P", "-c", _MAIN, "start", *where, f"--node-ip-address={_own_address()}",
             "--num-gpus=0", "--object-store-memory=100000000", "--disable-usage-stats",
             *([] if "--address" in where[0] else [f"--temp-dir={self.folder}"]), *arguments],
            env={**self.environment, **(more or {})}, cwd=self.folder, check=True, timeout=START_S,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip


@contextmanager
def nodes(token: str | None) -> Iterator[Nodes]:
    """No nodes yet; those that are started end with the context."""
    made = Nodes(token)
    with Watcher() as watcher, watcher.marking():
        yield made
    shutil.rmtree(made.folder, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def _own_address() -> str:
    """This host's address on its network, loopback where it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("10.255.255.255", 1))
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"
