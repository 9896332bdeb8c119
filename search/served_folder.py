"""A run folder served to workers that do not see it: files as bytes, under names and sizes that are looked at first."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

from admm.bounded import HEADER_BYTES, PLAN_BYTES, read_bounded
from admm.compact import PLAN_FILE, WEIGHTS_FILE
from search.atomic import StoreError, disk_errors, is_temporary, write_atomic
from search.job_file import load_job
from search.record import MOST_BYTES, RESULT_NAME, parse_result
from search.store import CHECKPOINT_NAME, JOB_NAME, MODEL_NAME, TRACE_NAME, RunStore

#: What a worker may read of a finished trial: for a plan that begins with its weights, or is the same one.
INHERITED = (PLAN_FILE, WEIGHTS_FILE, TRACE_NAME, RESULT_NAME)
#: An ONNX file is one message, and none is larger.
MODEL_BYTES = 2**31
#: A checkpoint holds the weights, ADMM's two copies of them and the optimiser's two, in a type that may be wider.
CHECKPOINT_TIMES = 16


class ServedFolder:
    """What `search.mirrored_store.Keeper` asks for, on the disk where the run folder is.

    All that is not as a worker of ours sends it is refused by `ValueError`: a file of another name, or larger than such
    a file can be. What the disk refuses is a `StoreError`.
    """

    def __init__(self, store: RunStore) -> None:
        self._store = store

    def opening(self) -> dict[str, bytes]:
        """The files that a worker opens its bench with, by their place in the run folder."""
        store = self._store
        paths = [path for path in store.root.iterdir() if path.name in ("environment.json", "profile.json")]
        paths += [path for path in store.baseline_dir.iterdir() if not is_temporary(path.name)]
        with disk_errors("read", store.root):
            files = {_place(store.root, path): path.read_bytes() for path in paths if path.is_file()}
        # another folder is another place for whatever the file names by its own
        return {JOB_NAME: load_job(store.job_path).to_yaml().encode(), **files}

    def begin(self, number: int, attempt: str) -> None:
        """An attempt at a trial has begun."""
        self._store.attempt_dir(number, attempt)

    def trial(self, number: int) -> dict[str, bytes] | None:
        """What another trial may need of a finished one; None where it is not finished.

        A file that cannot be read, or is larger than such a file can be, is as one that is gone.
        """
        folder = self._store.trial_dir(number)
        if not folder.exists():
            return None
        most = {**self._most(), RESULT_NAME: MOST_BYTES}
        files: dict[str, bytes] = {}
        for name in INHERITED:
            with contextlib.suppress(OSError):
                files[name] = read_bounded(folder / name, most[name])
        return files

    def checkpoint(self, number: int) -> bytes | None:
        """The state of an unfinished trial; None where there is none that can be read: then it begins anew."""
        with contextlib.suppress(OSError):
            return read_bounded(self._store.checkpoint_path(number), self._most()[CHECKPOINT_NAME])
        return None

    def keep_checkpoint(self, number: int, content: bytes) -> bool:
        """Put a trial's state in the place of its last one; False where the trial is finished."""
        self._require_sound({CHECKPOINT_NAME: content}, (CHECKPOINT_NAME,))
        return self._unless_finished(number, {self._store.checkpoint_path(number): content})

    def commit(self, number: int, attempt: str, files: Mapping[str, bytes], result: str) -> bool:
        """`RunStore.commit` of an attempt that was made elsewhere: `files` by name, `result` as in result.json."""
        record = parse_result(result)
        self._require_sound(files, (MODEL_NAME, PLAN_FILE, WEIGHTS_FILE, TRACE_NAME))
        if self._store.trial_dir(number).exists():
            return False
        staged = self._store.attempt_dir(number, attempt)
        if not self._unless_finished(number, {staged / name: content for name, content in files.items()}):
            return False
        return self._store.commit(number, staged, record)

    def discard_partial(self, number: int) -> None:
        """See `RunStore`; of a finished trial alone: what is begun is another attempt's."""
        if self._store.trial_dir(number).exists():
            self._store.discard_partial(number)

    def note_loss(self, number: int, reason: str) -> None:
        """See `RunStore`."""
        self._store.note_loss(number, reason[:10_000])

    def _unless_finished(self, number: int, files: Mapping[Path, bytes]) -> bool:
        """Write them; False where the trial was finished meanwhile, and its work folder went away."""
        finished = self._store.trial_dir(number)
        if finished.exists():
            return False
        try:
            for path, content in files.items():
                write_atomic(path, content)
        except StoreError:
            if finished.exists():
                return False
            raise
        return True

    def _require_sound(self, files: Mapping[str, bytes], names: tuple[str, ...]) -> None:
        most = self._most()
        for name, content in files.items():
            if name not in names:
                raise ValueError(f"a worker sends {', '.join(names)} of a trial, got {name[:120]!r}")
            if len(content) > most[name]:
                raise ValueError(f"{name} of a trial holds at most {most[name]} bytes, got {len(content)}")

    def _most(self) -> dict[str, int]:
        """The most bytes that each file of a trial can hold, by the dense network's."""
        dense = self._store.baseline_dir / WEIGHTS_FILE
        with disk_errors("read", dense):
            size = dense.stat().st_size
        return {
            PLAN_FILE: PLAN_BYTES,
            TRACE_NAME: MOST_BYTES,
            MODEL_NAME: MODEL_BYTES,
            WEIGHTS_FILE: size + HEADER_BYTES,
            CHECKPOINT_NAME: CHECKPOINT_TIMES * size + HEADER_BYTES,
        }


def _place(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()
