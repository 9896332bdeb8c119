"""The run folder for machines that do not see it: an actor beside the driver that reads and writes it for them."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from evaluators.errors import one_line
from search.atomic import StoreError
from search.errors import AttemptLost
from search.mirrored_store import MirroredStore
from search.nodes import blind, marked, sees
from search.own_folder import own_folder
from search.served_folder import ServedFolder
from search.store import RunStore

#: How often Ray asks again what the keeper was at that had to be started again: all it does may be done twice.
RETRIES = 2
#: What of a `ServedFolder` a worker may call.
_ASKED = ("begin", "trial", "checkpoint", "keep_checkpoint", "commit", "discard_partial", "note_loss")


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=RETRIES)
class FolderKeeper:
    """A `ServedFolder`; one call at a time, so that of two attempts one is first. The disk is all of its state."""

    def __init__(self, root: str) -> None:
        self._folder = ServedFolder(RunStore.open(Path(root)))
        self._opening: Any = None

    def opening(self) -> list[Any]:
        """Where the files lie in the object store: read once here, sent once to each machine."""
        if self._opening is None:
            self._opening = ray.put(self._folder.opening())
        return [self._opening]

    def call(self, method: str, *arguments: Any) -> Any:
        """What a method of the `ServedFolder` answers."""
        if method not in _ASKED:
            raise ValueError(f"a worker asks for {', '.join(_ASKED)}, got {method[:120]!r}")
        return getattr(self._folder, method)(*arguments)


class RemoteKeeper:
    """A `search.mirrored_store.Keeper` that asks the actor of this name. Raises `AttemptLost` where it is gone."""

    def __init__(self, name: str) -> None:
        with _reasons():
            self._actor = ray.get_actor(name)  # in the namespace that the driver has joined with

    def opening(self) -> dict[str, bytes]:
        """See `ServedFolder`."""
        with _reasons():
            references: list[Any] = ray.get(self._actor.opening.remote())
            files: dict[str, bytes] = ray.get(references[0])
            return files

    def begin(self, number: int, attempt: str) -> None:
        """See `ServedFolder`."""
        self._ask("begin", number, attempt)

    def trial(self, number: int) -> dict[str, bytes] | None:
        """See `ServedFolder`."""
        files: dict[str, bytes] | None = self._ask("trial", number)
        return files

    def checkpoint(self, number: int) -> bytes | None:
        """See `ServedFolder`."""
        content: bytes | None = self._ask("checkpoint", number)
        return content

    def keep_checkpoint(self, number: int, content: bytes) -> bool:
        """See `ServedFolder`."""
        return bool(self._ask("keep_checkpoint", number, content))

    def commit(self, number: int, attempt: str, files: Mapping[str, bytes], result: str) -> bool:
        """See `ServedFolder`."""
        return bool(self._ask("commit", number, attempt, dict(files), result))

    def discard_partial(self, number: int) -> None:
        """See `ServedFolder`."""
        self._ask("discard_partial", number)

    def note_loss(self, number: int, reason: str) -> None:
        """See `ServedFolder`."""
        self._ask("note_loss", number, reason)

    def _ask(self, method: str, *arguments: Any) -> Any:
        with _reasons():
            return ray.get(self._actor.call.remote(method, *arguments))


@contextlib.contextmanager
def _reasons() -> Iterator[None]:
    """What was raised in the actor, as it was raised there; `AttemptLost` where there is none."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, StoreError | ValueError):
            raise error.cause from None
        raise AttemptLost(f"the run folder's keeper failed: {one_line(error)}") from None
    except (ray.exceptions.RayError, ValueError) as error:
        raise AttemptLost(f"the driver of this run is gone, and the run folder with it: {one_line(error)}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """Where a worker finds the run: the folder itself where it holds the driver's mark, else by its keeper."""

    run_dir: str
    mark: str
    keeper: str | None
    """The actor's name; None where all workers are on the driver's machine."""

    def open(self, number: int | None = None) -> RunStore:
        """The run, for the next trial of this process. Raises `StoreError`, and `AttemptLost` without a keeper.

        A disk of this machine that does not take it is told to the driver, as what ended an attempt at trial `number`.
        """
        try:
            return self._open()
        except StoreError as error:
            if self.keeper is not None and number is not None:
                with contextlib.suppress(Exception):
                    reason = f"{StoreError.__name__}: {one_line(error)} (on {socket.gethostname()})"
                    RemoteKeeper(self.keeper).note_loss(number, reason)
            raise

    def _open(self) -> RunStore:
        if self.keeper is None or sees(self.run_dir, self.mark):
            return RunStore.open(Path(self.run_dir))
        if self.keeper not in _mirrors:
            _mirrors.clear()  # a process works for one driver
            _mirrors[self.keeper] = MirroredStore(
                own_folder() / "run", Path(self.run_dir).name, RemoteKeeper(self.keeper)
            )
        mirror = _mirrors[self.keeper]
        mirror.forget()
        return mirror


_mirrors: dict[str, MirroredStore] = {}


@contextlib.contextmanager
def found(root: Path, *, joined: bool, say: Callable[[str], None]) -> Iterator[Where]:
    """Let workers find the run folder `root`, within; its scratch folder is there.

    On a cluster that was `joined`, an actor on this machine serves those that do not see it, and `say` is told which.
    """
    folder, mark = str(root.resolve()), marked(root)
    if not joined:
        yield Where(run_dir=folder, mark=mark, keeper=None)
        return
    name = f"folder-{root.resolve().name}-{mark}"
    start: Any = FolderKeeper  # the decorator made it an actor class, which its annotations do not say
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = start.options(name=name, scheduling_strategy=here).remote(folder)
    try:
        without, nodes = blind(folder, mark, say)
        if without:
            say(
                f"{len(without)} of {nodes} nodes that train do not see the run folder ({_some(without)}): what they "
                f"need and make of it goes through the network"
            )
        yield Where(run_dir=folder, mark=mark, keeper=name)
    finally:
        with contextlib.suppress(Exception):  # the cluster may be gone already
            ray.kill(actor, no_restart=True)


def _some(addresses: list[str], most: int = 3) -> str:
    more = len(addresses) - most
    return ", ".join(addresses[:most]) + (f" and {more} more" if more > 0 else "")
