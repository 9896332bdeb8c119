"""A run folder for a worker that does not see the driver's: what it needs is fetched, what it makes is sent there."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from search.atomic import disk_errors, write_atomic
from search.record import result_text
from search.result import TrialResult
from search.run_dir import check_name
from search.served_folder import INHERITED
from search.store import RunStore, StoreError

#: Sending a trial's state may take this share of its time; what takes less than a second is always sent.
SENDING, ALWAYS_S = 0.1, 1.0


class Keeper(Protocol):
    """Who has the run folder: `search.served_folder.ServedFolder`, perhaps on another machine."""

    def opening(self) -> dict[str, bytes]: ...
    def begin(self, number: int, attempt: str) -> None: ...
    def trial(self, number: int) -> dict[str, bytes] | None: ...
    def checkpoint(self, number: int) -> bytes | None: ...
    def keep_checkpoint(self, number: int, content: bytes) -> bool: ...
    def commit(self, number: int, attempt: str, files: Mapping[str, bytes], result: str) -> bool: ...
    def discard_partial(self, number: int) -> None: ...
    def note_loss(self, number: int, reason: str) -> None: ...


class MirroredStore(RunStore):
    """A `RunStore` as one worker process uses it, in a folder `root` of its own; the record is the keeper's.

    A trial's folder is fetched when it is asked for, and here until `forget`. What only a driver does with a run (its
    list of results, adding to records) is not to be asked of it.
    """

    def __init__(self, root: Path, name: str, keeper: Keeper) -> None:
        """Fill the empty folder `root`; `name` is the run's."""
        super().__init__(root)
        self.name = name
        self._keeper = keeper
        self._send_again: dict[int, float] = {}
        for folder in (self.baseline_dir, self.partial_dir):
            with disk_errors("make", folder):
                folder.mkdir(parents=True)
        for place, content in keeper.opening().items():
            inside, _, file = place.rpartition("/")
            if inside not in ("", self.baseline_dir.name):
                raise StoreError(f"run {name} sent a file for {inside[:120]!r}, where none belongs")
            write_atomic(root / inside / check_name(file, "a file's name"), content)

    def forget(self) -> None:
        """Remove what was fetched of other trials, and what earlier attempts made here."""
        self._send_again.clear()
        for folder in (*self.trials_dir.iterdir(), *self.partial_dir.iterdir()):
            if folder != self.partial_dir:
                shutil.rmtree(folder, ignore_errors=True)

    def trial_dir(self, number: int) -> Path:
        """`trials/<n>`, fetched where it is not here: there if and only if the trial is finished."""
        folder = super().trial_dir(number)
        if folder.exists():
            return folder
        files = self._keeper.trial(number)
        if files is None:
            return folder
        staged = self.trials_dir / f".fetched-{number}-{secrets.token_hex(4)}"
        with disk_errors("write", folder):
            staged.mkdir()
            try:
                for name in (name for name in INHERITED if name in files):
                    write_atomic(staged / name, files[name])
                os.rename(staged, folder)
            finally:
                shutil.rmtree(staged, ignore_errors=True)
        return folder

    def result(self, number: int) -> TrialResult:
        """See `RunStore`."""
        self.trial_dir(number)
        return super().result(number)

    def attempt_dir(self, number: int, attempt_id: str) -> Path:
        """See `RunStore`; the keeper knows of the attempt as well."""
        folder = super().attempt_dir(number, attempt_id)
        self._keeper.begin(number, attempt_id)
        return folder

    def keep_checkpoint(self, number: int) -> None:
        """Send the state that was written, unless sending takes longer than it saves.

        Raises `FileNotFoundError` where the trial is finished, as writing to a work folder that is gone does.
        """
        if time.monotonic() < self._send_again.get(number, 0.0):
            return
        content = self.checkpoint_path(number).read_bytes()
        began = time.monotonic()
        if not self._keeper.keep_checkpoint(number, content):
            raise FileNotFoundError(f"trial {number} is finished")
        took = time.monotonic() - began
        if took > ALWAYS_S:
            self._send_again[number] = time.monotonic() + took / SENDING

    def fetch_checkpoint(self, number: int) -> Path:
        """The state as the keeper has it, whoever sent it."""
        path = self.checkpoint_path(number)
        content = self._keeper.checkpoint(number)
        if content is None:
            path.unlink(missing_ok=True)
            return path
        with disk_errors("make", path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content)
        return path

    def commit(self, number: int, staged: Path, result: TrialResult) -> bool:
        """See `RunStore`; the files of the attempt are sent, and are here no more."""
        if result.number != number:
            raise ValueError(f"result of trial {result.number} committed as trial {number}")
        with disk_errors("read", staged):
            files = {path.name: path.read_bytes() for path in staged.iterdir() if path.name[0] != "."}
        first = self._keeper.commit(number, staged.name, files, result_text(result))
        super().discard_partial(number)
        return first

    def discard_partial(self, number: int) -> None:
        """See `RunStore`."""
        self._keeper.discard_partial(number)
        super().discard_partial(number)

    def note_loss(self, number: int, reason: str) -> None:
        """See `RunStore`; what went wrong on a disk of this machine is said to be of it."""
        with contextlib.suppress(Exception):
            here = f" (on {socket.gethostname()})" if str(self.root) in reason else ""
            self._keeper.note_loss(number, reason + here)
