"""A run's copy at a URL: its driver's disk may be lost, and the search goes on elsewhere from what is there.

The run folder on the driver's disk stays the record. A thread pushes what is new: a finished trial whole and
`result.json` last, so that a trial at the URL that has one is finished there too; then the records beside the trials,
and the study as one file. `search URL` fetches that and goes on; what was running begins again.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from search.atomic import StoreError, disk_errors, sync_tree
from search.job import Job
from search.lease import NAME as LEASE_NAME
from search.lease import RENEWED_S, Lease, Lost
from search.record import RESULT_NAME, is_number, numbered, parse_result
from search.remote import Remote, is_url, join_url, name_of, without_secrets
from search.store import JOB_NAME, RunStore

#: Where the run folders of a job lie that names a URL: in the current folder, as they do without one.
LOCAL = Path("runs")
#: How often is looked for what is new; a run's trials take longer.
EVERY_S = 3.0
#: After a copy failed.
AGAIN_S = 30.0
#: Files that are read from the URL side by side.
ASKED_AT_A_TIME = 16
_ENVIRONMENT = "environment.json"
#: Of the top of a run folder: the driver's own, and what Ray and SQLite keep there.
_NOT = ("driver.lock", "ray", "study.db", "study.db-journal", "study.db-wal", "study.db-shm", LEASE_NAME)


def local_storage(job: Job) -> Path:
    """Where the job's run folders are made on this disk."""
    return LOCAL if is_url(job.storage) else Path(job.storage)


def names_there(job: Job) -> list[str]:
    """The runs at the job's URL; raises `UserError` where it cannot be reached. None where it names a folder."""
    return Remote(job.storage).names() if is_url(job.storage) else []


class Copies:
    """Pushes what is new in a run folder to `remote` while the context is open, and all that is left at its end.

    What cannot be pushed is said once, and tried again: the search goes on, its record is on this disk.
    """

    def __init__(self, store: RunStore, remote: Remote, say: Callable[[str], None]) -> None:
        self._store, self._remote, self._say = store, remote, say
        self._lease = Lease(remote)
        self._closed = threading.Event()
        # Each for itself: weights may take longer on their way than the lease runs.
        self._threads = [
            threading.Thread(target=task, daemon=True, name="copies") for task in (self._keep_up, self._keep_lease)
        ]
        self._there: set[int] = set()
        self._stamps: dict[str, tuple[int, int]] = {}
        self._lost: Lost | None = None

    def __enter__(self) -> Copies:
        self._lease.take()
        try:
            self._there = reconcile(self._store, self._remote)
            self.push()
        except BaseException:
            with contextlib.suppress(StoreError):
                self._lease.give_back()
            raise
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        for thread in self._threads:
            thread.join()
        if self._lost is not None:
            self._say(f"{self._lost}: nothing more was copied there")
            return
        try:
            self.push()
            self._lease.give_back()
        except (StoreError, OSError) as error:
            self._say(f"not all is copied ({error}): prunefront search {self._store.root} copies the rest")

    def push(self) -> None:
        """Copy all that is new, in an order in which every state of the copy can be gone on from.

        Nothing before the dense network is trained: a run that stops at a mistake until then is none.
        """
        if not self._store.has_baseline:
            return
        self._records()
        for number in numbered(self._store.trials_dir):
            if self._lost is not None:
                return
            if number not in self._there:
                self._trial(number)
        self._study()

    def _keep_lease(self) -> None:
        while not self._closed.wait(RENEWED_S):
            try:
                self._lease.renew()
            except Lost as lost:
                self._lost = lost
                self._say(f"{lost}: this one copies nothing more; stop it, or it is in vain")
                return
            except StoreError:
                continue  # what cannot be reached is said where the copies are made

    def _keep_up(self) -> None:
        failed = False
        while not self._closed.wait(AGAIN_S if failed else EVERY_S) and self._lost is None:
            try:
                self.push()
            except (StoreError, OSError, sqlite3.Error) as error:
                if not failed:
                    self._say(f"copies wait: {error}: the search goes on, and they are tried again")
                failed = True
            else:
                if failed:
                    self._say(f"copies to {without_secrets(self._remote.url)} go on")
                failed = False

    def _trial(self, number: int) -> None:
        folder = self._store.trial_dir(number)
        names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
        for name in sorted(names, key=lambda name: name == RESULT_NAME):
            with contextlib.suppress(FileNotFoundError):  # weights that nothing wants are removed at a search's end
                self._remote.put(f"trials/{number}/{name}", folder / name)
        self._there.add(number)

    def _records(self) -> None:
        top = [p for p in self._store.root.iterdir() if p.is_file() and p.name not in _NOT]
        for path in sorted([*top, *self._store.baseline_dir.iterdir()]):
            if path.name.startswith("."):
                continue
            name = path.relative_to(self._store.root).as_posix()
            with contextlib.suppress(FileNotFoundError):
                stat = path.stat()
                stamp = (stat.st_mtime_ns, stat.st_size)
                if self._stamps.get(name) != stamp:
                    self._remote.put(name, path)
                    self._stamps[name] = stamp

    def _study(self) -> None:
        """The study as SQLite itself copies it, between two transactions; another kind of study has its own place."""
        path = self._store.study_path
        if not path.exists():
            return
        stat = path.stat()
        stamp = (stat.st_mtime_ns, stat.st_size)
        if self._stamps.get(path.name) == stamp:
            return
        with contextlib.closing(sqlite3.connect(path, timeout=30)) as source:
            content = _serialized(source)
        self._remote.put(path.name, content)
        self._stamps[path.name] = stamp


def _serialized(source: sqlite3.Connection) -> bytes:
    with contextlib.closing(sqlite3.connect(":memory:")) as copy:
        source.backup(copy)
        return copy.serialize()


@contextlib.contextmanager
def copied(store: RunStore, job: Job, say: Callable[[str], None]) -> Iterator[None]:
    """Keep the run's copy at the job's URL up to date; nothing where its storage is a folder."""
    if not is_url(job.storage):
        yield
        return
    remote = Remote(join_url(job.storage, store.name))
    say(f"copies go to {without_secrets(remote.url)}")
    with Copies(store, remote, say):
        yield


def reconcile(store: RunStore, remote: Remote) -> set[int]:
    """Fetch the trials that were finished elsewhere; returns the numbers of all that are finished at `remote`.

    Raises `StoreError` where the two are different runs, or had gone on apart.
    """
    there = _finished(remote)
    environment = remote.read(_ENVIRONMENT)
    if environment is not None and environment != (store.root / _ENVIRONMENT).read_bytes():
        raise StoreError(
            f"{store.root} and {without_secrets(remote.url)} are different runs: choose another --name, or remove one"
        )
    for number, (files, record) in sorted(there.items()):
        mine = store.trial_dir(number)
        if mine.exists():
            if (mine / RESULT_NAME).exists() and (mine / RESULT_NAME).read_bytes() != record:
                raise StoreError(
                    f"trial {number} at {without_secrets(remote.url)} is another than in {store.root}: a driver went "
                    f"on elsewhere; move {store.root} away, then `prunefront search` with the URL fetches it"
                )
            continue
        staged = store.attempt_dir(number, "fetched")
        shutil.rmtree(staged)
        with ThreadPoolExecutor(ASKED_AT_A_TIME) as pool:
            asked = [pool.submit(remote.fetch, f"trials/{number}/{name}", staged / name) for name in files]
            for fetching in asked:
                fetching.result()
        with disk_errors("publish", mine):
            sync_tree(staged)
            staged.rename(mine)
        store.discard_partial(number)
    return set(there)


def finished_at(remote: Remote) -> set[int]:
    """The trials whose record is there, whole."""
    return set(_finished(remote))


def _finished(remote: Remote) -> dict[int, tuple[list[str], bytes]]:
    """The trials whose record is there, whole, with the names of their files and that record."""
    trials: dict[int, list[str]] = {}
    for path in remote.files():
        parts = path.split("/", 2)
        if len(parts) == 3 and parts[0] == "trials" and is_number(parts[1]):
            trials.setdefault(int(parts[1]), []).append(parts[2])
    asked = [number for number, files in trials.items() if RESULT_NAME in files]
    with ThreadPoolExecutor(ASKED_AT_A_TIME) as pool:  # an object store takes its time for each, and minds no company
        read = pool.map(remote.read, (f"trials/{number}/{RESULT_NAME}" for number in asked))
        records = {number: record or b"" for number, record in zip(asked, read, strict=True)}
    return {number: (trials[number], record) for number, record in records.items() if _is_whole(number, record)}


def _is_whole(number: int, record: bytes) -> bool:
    try:
        return parse_result(record).number == number
    except ValueError:
        return False


def fetched(url: str, say: Callable[[str], None]) -> Path:
    """The run at `url` as a folder in `LOCAL`, fetched where there is none. Raises `UserError` for what is no run.

    The folder appears in one rename: a kill leaves none that is half a run.
    """
    remote = Remote(url)
    root = LOCAL / name_of(url)
    if root.exists():
        return root
    if remote.read(JOB_NAME) is None:
        raise StoreError(f"{without_secrets(url)} is no run: there is no {JOB_NAME}")
    say(f"fetching {without_secrets(url)} to {root}")
    staged = root.with_name(f".{root.name}.fetching")
    with disk_errors("make", staged):
        shutil.rmtree(staged, ignore_errors=True)
        (staged / "trials" / ".partial").mkdir(parents=True)
        (staged / "baseline").mkdir()
    for name in remote.files():
        if not name.startswith("trials/") and name != LEASE_NAME and not name.endswith(".tmp"):
            remote.fetch(name, staged / name)
    with disk_errors("make", root):
        sync_tree(staged)
        staged.rename(root)
    return root
