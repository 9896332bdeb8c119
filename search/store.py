"""A run folder on disk: the record of a search. What it says is finished is finished, after any crash."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from admm.bounded import read_bounded
from search.atomic import (
    StoreError,
    disk_errors,
    is_temporary,
    json_text,
    parse_json,
    sync_folder,
    sync_tree,
    write_atomic,
)
from search.lock import LOCK_NAME, driver_lock
from search.record import MOST_BYTES, RESULT_NAME, ResultCache, baseline_text, numbered, parse_baseline, result_text
from search.result import Baseline, TrialResult
from search.run_dir import check_name, next_run_dir

__all__ = ["RunStore", "StoreError", "driver_lock", "next_run_dir", "write_atomic"]

#: How a job sees a trial's record: with its own rig's figures on top, or why it cannot be judged.
View: TypeAlias = Callable[[TrialResult], TrialResult | str]

JOB_NAME = "job.yaml"
MODEL_NAME = "model.onnx"
TRACE_NAME = "trace.jsonl"
#: What a run writes into: a link there would lead its files elsewhere.
_OWN_FOLDERS = ("trials", "trials/.partial", "baseline", "measured", "ray", "tensorboard", "mlflow", "artifacts")
CHECKPOINT_NAME = "checkpoint.safetensors"
LOSS_NAME = "lost.txt"
_PROBE_BYTES = 2**16


class RunStore:
    """One run folder: `job.yaml`, `environment.json`, `baseline/`, `profile.json`, `trials/<n>/`, `study.db`.

    A trial works in `trials/.partial/<n>/` and becomes `trials/<n>/` in one rename: a folder with a plain
    number is a finished trial, whose record is only ever added to (`amend`). What the disk refuses is a one-line
    `StoreError`.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.name = root.resolve().name
        self.job_path = root / JOB_NAME
        self.study_path = root / "study.db"
        self.baseline_dir = root / "baseline"
        self.trials_dir = root / "trials"
        self.partial_dir = self.trials_dir / ".partial"
        self._environment_path = root / "environment.json"
        self._baseline_path = self.baseline_dir / "baseline.json"
        self._profile_path = root / "profile.json"
        self._cache = ResultCache(self.trials_dir)
        self._view: View = lambda result: result

    def see_through(self, view: View) -> None:
        """From here on results are what `view` makes of the records; where that is text, it says why there is none."""
        self._view = view

    @classmethod
    def create(cls, root: Path, job_yaml: str, environment: Mapping[str, Any]) -> RunStore:
        """Make `root` a run folder; it must be new, empty, or hold the driver's lock only."""
        store = cls(root)
        with disk_errors("make the run folder", root):
            root.mkdir(parents=True, exist_ok=True)
            if (root / LOCK_NAME).exists():
                store._clear_unfinished()
            foreign = sorted(entry.name for entry in root.iterdir() if entry.name != LOCK_NAME)
            if JOB_NAME in foreign:
                raise StoreError(f"{root} is a run already: `prunefront search {root}` goes on with it")
            if foreign:
                raise StoreError(
                    f"{root} holds {foreign[0]!r} and is no run folder: choose another --name or --storage"
                )
            try:
                store.trials_dir.mkdir()
            except FileExistsError:
                raise StoreError(f"{root} was taken by another command just now: choose another --name") from None
            store.partial_dir.mkdir()
            store.baseline_dir.mkdir()
        write_atomic(store._environment_path, json_text(environment))
        # Last: a folder that holds a job.yaml holds everything else that `open` asks for.
        write_atomic(store.job_path, job_yaml)
        return store

    def _clear_unfinished(self) -> None:
        """Remove what a `create` left that was killed; for the holder of the driver's lock."""
        if self.job_path.exists():
            return
        self._sweep_temporaries()
        self._environment_path.unlink(missing_ok=True)
        for folder in (self.partial_dir, self.trials_dir, self.baseline_dir):
            with contextlib.suppress(OSError):  # what is not empty is none of ours, and refused by name
                folder.rmdir()

    @classmethod
    def open(cls, root: Path) -> RunStore:
        """An existing run folder; raises `StoreError` naming what is missing."""
        if not root.is_dir():
            raise StoreError(f"{root} is not a run folder: it {'is a file' if root.exists() else 'does not exist'}")
        store = cls(root)
        wanted = (store.job_path, store._environment_path, store.trials_dir, store.baseline_dir)
        missing = [path.name for path in wanted if not path.exists()]
        if missing:
            raise StoreError(f"{root} is not a run folder: {', '.join(missing)} missing")
        whole = root.resolve()
        for name in _OWN_FOLDERS:
            if not (root / name).resolve().is_relative_to(whole):
                raise StoreError(
                    f"{root / name} is a link out of the run folder: put the folder back, or link all of it"
                )
        return store

    def environment(self) -> dict[str, Any]:
        """Versions and machine, as written when the run was made."""
        return self._read(self._environment_path, "the file is gone")

    def trial_dir(self, number: int) -> Path:
        """`trials/<n>`: there if and only if the trial is finished."""
        return self.trials_dir / _checked(number)

    def checkpoint_path(self, number: int) -> Path:
        """Where the unfinished trial keeps its state, shared by its attempts: write it with `write_atomic`.

        The folder is there once an attempt has its `attempt_dir`.
        """
        return self.partial_dir / _checked(number) / CHECKPOINT_NAME

    def keep_checkpoint(self, number: int) -> None:
        """Called when `checkpoint_path` was written: nothing to do where that is the run folder itself.

        Raises `OSError` where a successor has finished the trial, as writing does.
        """

    def fetch_checkpoint(self, number: int) -> Path:
        """Where the state of the unfinished trial can be read now, if there is one."""
        return self.checkpoint_path(number)

    def last_step(self, number: int) -> int | None:
        """When the unfinished trial last got a step further, in ns; None where it did not yet."""
        try:
            return self.checkpoint_path(number).stat().st_mtime_ns
        except OSError:
            return None

    def attempt_dir(self, number: int, attempt_id: str) -> Path:
        """An attempt's own folder `trials/.partial/<n>/<attempt_id>`, made if need be, to stage its files in.

        Attempts never share one: a worker that was thought dead and comes back writes beside its successor.
        """
        folder = self.partial_dir / _checked(number) / check_name(attempt_id, "an attempt's id")
        with disk_errors("make", folder):
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def commit(self, number: int, staged: Path, result: TrialResult) -> bool:
        """Publish a finished trial: `result.json` last into `staged`, then one rename to `trials/<n>`.

        After True the trial survives kill -9 and power loss, and its partial work is gone. False when the
        trial was finished before: this late result and its files are thrown away, the first stays. Raises
        `ValueError` for a result that is another trial's or could not be read back.
        """
        if result.number != number:
            raise ValueError(f"result of trial {result.number} committed as trial {number}")
        text = result_text(result)
        target = self.trial_dir(number)
        try:
            if not target.exists() and self._publish(staged, target, text):
                self.discard_partial(number)
                return True
        except StoreError:
            # The winner clears the work folders of all attempts: what failed for that is a late result.
            if not target.exists():
                raise
        shutil.rmtree(staged, ignore_errors=True)
        return False

    def _publish(self, staged: Path, target: Path, result_json: str) -> bool:
        write_atomic(staged / RESULT_NAME, result_json)
        with disk_errors("publish", target):
            (staged / CHECKPOINT_NAME).unlink(missing_ok=True)
            sync_tree(staged)
            try:
                os.rename(staged, target)
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                    return False
                raise
            sync_folder(self.trials_dir)
        return True

    def amend(self, result: TrialResult) -> None:
        """Put a record that says more in the place of a finished trial's, for the holder of the driver's lock."""
        path = self.trial_dir(result.number) / RESULT_NAME
        if not path.exists():
            raise StoreError(f"run {self.name} has no finished trial {result.number}: its record cannot be added to")
        write_atomic(path, result_text(result))

    def note_loss(self, number: int, reason: str) -> None:
        """Keep why an attempt at an unfinished trial was lost, for the driver to tell."""
        with contextlib.suppress(StoreError, OSError):
            folder = self.partial_dir / _checked(number)
            folder.mkdir(exist_ok=True)
            write_atomic(folder / LOSS_NAME, reason + "\n")

    def require_writable(self) -> None:
        """Raises `StoreError` where a worker could not have written either: then no trial is to blame for its loss."""
        folder = self.partial_dir / f".trash-probe-{secrets.token_hex(4)}"
        try:
            with disk_errors("write", folder):
                folder.mkdir()
            write_atomic(folder / "probe", bytes(_PROBE_BYTES))
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def last_loss(self, number: int) -> str | None:
        """Why the last attempt was lost that could still say so."""
        try:
            return (self.partial_dir / _checked(number) / LOSS_NAME).read_text().strip() or None
        except (OSError, UnicodeDecodeError):
            return None

    def discard_partial(self, number: int) -> None:
        """Remove what unfinished attempts of this trial left; nothing there is no error."""
        folder = self.partial_dir / _checked(number)
        trash = self.partial_dir / f".trash-{number}-{secrets.token_hex(4)}"
        # Renamed first: an attempt that still runs then fails whole, and never publishes a half-emptied one.
        with disk_errors("remove", folder), contextlib.suppress(FileNotFoundError):
            os.rename(folder, trash)
        # What cannot be removed now is only litter: `sweep_partials` tries again.
        shutil.rmtree(trash, ignore_errors=True)

    def sweep_partials(self) -> list[int]:
        """Drop the work folders of finished trials; returns the numbers whose work is unfinished, ascending.

        For a driver that starts, under its lock: a kill between publishing and clearing leaves such folders, and one
        in the middle of writing a temporary file.
        """
        with disk_errors("read", self.partial_dir):
            self._sweep_temporaries()
            for litter in self.partial_dir.glob(".trash-*"):
                shutil.rmtree(litter, ignore_errors=True)
        unfinished = []
        for number in numbered(self.partial_dir):
            if self.trial_dir(number).exists():
                self.discard_partial(number)
            else:
                unfinished.append(number)
        return unfinished

    def _sweep_temporaries(self) -> None:
        for folder in (self.root, self.baseline_dir):
            for litter in folder.glob(".*"):
                if is_temporary(litter.name):
                    litter.unlink(missing_ok=True)

    def results(self) -> dict[int, TrialResult]:
        """Every finished trial's result by ascending number; what cannot be believed is in `problems()`.

        Only files that changed are read again, so this may be called in a loop.
        """
        seen = {n: self._view(entry.result) for n, entry in self._cache.scan().items() if entry.result is not None}
        return {n: result for n, result in seen.items() if isinstance(result, TrialResult)}

    def unseen(self) -> dict[int, str]:
        """Why finished trials with a sound record are passed over, by number."""
        seen = {n: self._view(entry.result) for n, entry in self._cache.scan().items() if entry.result is not None}
        return {n: why for n, why in seen.items() if isinstance(why, str)}

    def unseen_for(self, number: int) -> str | None:
        """Why this finished trial is passed over; None where it is not. No other is looked at."""
        entry = self._cache.look(number)
        seen = None if entry is None or entry.result is None else self._view(entry.result)
        return seen if isinstance(seen, str) else None

    def finished(self) -> set[int]:
        """The numbers of all trials that have ended, those with a damaged record included."""
        return set(self._cache.scan())

    def problems(self) -> list[str]:
        """One line for every trial folder whose result is missing, torn, foreign or invalid."""
        return [entry.problem for entry in self._cache.scan().values() if entry.problem is not None]

    def result(self, number: int) -> TrialResult:
        """One finished trial; raises `StoreError` saying why there is none."""
        _checked(number)
        entry = self._cache.look(number)
        if entry is None:
            entries = self._cache.scan()
            span = f"it has {len(entries)}, from {min(entries)} to {max(entries)}" if entries else "it has none yet"
            raise StoreError(f"run {self.name} has no finished trial {number}: {span}")
        if entry.result is None:
            raise StoreError(f"run {self.name}: {entry.problem}")
        seen = self._view(entry.result)
        if isinstance(seen, str):
            raise StoreError(f"trial {number} of run {self.name}: {seen}: passed over")
        return seen

    def model_path(self, number: int) -> Path:
        """The trial's `model.onnx`; raises `StoreError` when the trial shipped none, saying why."""
        result = self.result(number)
        path = self.trial_dir(number) / MODEL_NAME
        if not path.is_file():
            why = f"it is {result.status}: {result.reason}" if result.reason else "the file is gone"
            raise StoreError(f"trial {number} of run {self.name} has no {MODEL_NAME}: {why}")
        return path

    @property
    def has_baseline(self) -> bool:
        """Whether the dense model was measured."""
        return self._baseline_path.exists()

    def write_baseline(self, baseline: Baseline) -> None:
        """Record the dense model's figures in `baseline/baseline.json`."""
        write_atomic(self._baseline_path, baseline_text(baseline))

    def read_baseline(self) -> Baseline:
        """The dense model's figures; raises `StoreError` before they are measured (ask `has_baseline`)."""
        content = self._bytes(self._baseline_path, f"the dense model is not measured yet: {self._go_on}")
        try:
            return parse_baseline(content)
        except ValueError as error:
            raise StoreError(f"{self._baseline_path}: {error}: remove it to measure again") from None

    @property
    def has_profile(self) -> bool:
        """Whether the network was profiled."""
        return self._profile_path.exists()

    def write_profile(self, profile: Mapping[str, Any]) -> None:
        """Record groups, alignment and predictor in `profile.json`."""
        write_atomic(self._profile_path, json_text(profile))

    def read_profile(self) -> dict[str, Any]:
        """The profile; raises `StoreError` before it is written (ask `has_profile`)."""
        return self._read(self._profile_path, f"the network is not profiled yet: {self._go_on}")

    @property
    def _go_on(self) -> str:
        return f"`prunefront search {self.root}` goes on with it"

    def _bytes(self, path: Path, absent: str) -> bytes:
        with disk_errors("read", path):
            try:
                return read_bounded(path, MOST_BYTES)
            except FileNotFoundError:
                raise StoreError(f"run {self.name} has no {path.name}: {absent}") from None

    def _read(self, path: Path, absent: str) -> dict[str, Any]:
        content = self._bytes(path, absent)
        try:
            return parse_json(content)
        except ValueError as error:
            raise StoreError(f"{path}: {error}") from None


def _checked(number: int) -> str:
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < 10**9:
        raise StoreError(f"a trial's number is a whole number from 0 to 999999999, got {number!r}")
    return str(number)
