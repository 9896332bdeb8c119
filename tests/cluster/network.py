"""Machines on one machine: network namespaces with their own addresses on one switch, else ports of this host."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

NAMESPACES = Path("/run/netns")
PREFIX = "pf"


class Network(Protocol):
    """Where the nodes of a cluster stand."""

    cuttable: bool
    """Whether a node can be cut off."""

    def join(self, name: str) -> tuple[str, Sequence[str]]:
        """The address of a new machine, and what a command is started with to run there."""
        ...

    def cut(self, name: str) -> None:
        """Let nothing through to and from a machine, as a pulled cable does."""
        ...

    def heal(self, name: str) -> None:
        """Plug it in again."""
        ...

    def close(self) -> None:
        """Take everything down."""
        ...


class Namespaces:
    """Each machine is a network namespace at 10.213.0.N, wired to a bridge in a namespace of its own.

    Nothing of it is seen outside, so that several may stand side by side. Needs root.
    """

    cuttable = True

    def __init__(self) -> None:
        self._made: list[str] = []
        self._clear_up_after_the_dead()
        self._switch = self._namespace("switch")
        _ip("-n", self._switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", self._switch, "link", "set", "bridge", "up")

    @staticmethod
    def allowed() -> bool:
        """Whether this user may make namespaces here."""
        if os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("nsenter") is None:
            return False
        probe = f"{PREFIX}{os.getpid()}-probe"
        made = subprocess.run(["ip", "netns", "add", probe], capture_output=True).returncode == 0
        subprocess.run(["ip", "netns", "del", probe], capture_output=True)
        return made

    @staticmethod
    def _clear_up_after_the_dead() -> None:
        """Namespaces outlive a test that was killed: those of processes that are gone are removed."""
        for entry in NAMESPACES.glob(f"{PREFIX}*-*"):
            pid = entry.name.removeprefix(PREFIX).partition("-")[0]
            if pid.isdecimal() and not Path("/proc", pid).exists():
                subprocess.run(["ip", "netns", "del", entry.name], capture_output=True)

    def _namespace(self, name: str) -> str:
        full = f"{PREFIX}{os.getpid()}-{name}"
        _ip("netns", "add", full)
        self._made.append(full)
        _ip("-n", full, "link", "set", "lo", "up")
        return full

    def join(self, name: str) -> tuple[str, Sequence[str]]:
        full = f"{PREFIX}{os.getpid()}-{name}"
        number = len(self._made)
        address = f"10.213.0.{number}"
        self._namespace(name)
        _ip("-n", self._switch, "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", full)
        _ip("-n", self._switch, "link", "set", name, "master", "bridge", "up")
        _ip("-n", full, "address", "add", f"{address}/24", "dev", "eth0")
        _ip("-n", full, "link", "set", "eth0", "up")
        # Ray finds its own address by asking which way it would go to the world.
        _ip("-n", full, "route", "add", "default", "dev", "eth0")
        # nsenter and not `ip netns exec`, which hides later mounts: a disk that fills up is one.
        return address, ("nsenter", f"--net={NAMESPACES / full}")

    def cut(self, name: str) -> None:
        _ip("-n", self._switch, "link", "set", name, "down")

    def heal(self, name: str) -> None:
        _ip("-n", self._switch, "link", "set", name, "up")

    def close(self) -> None:
        while self._made:
            subprocess.run(["ip", "netns", "del", self._made.pop()], capture_output=True)


class OneHost:
    """Every machine is this one: nodes differ by their ports alone, and none can be cut off."""

    cuttable = False

    def join(self, name: str) -> tuple[str, Sequence[str]]:
        return "127.0.0.1", ()

    def cut(self, name: str) -> None:
        raise NotImplementedError("ports of one host cannot be cut off")

    def heal(self, name: str) -> None:
        raise NotImplementedError("ports of one host cannot be cut off")

    def close(self) -> None:
        return


def make_network() -> Network:
    """Namespaces where root allows, else this host."""
    return Namespaces() if Namespaces.allowed() else OneHost()


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
