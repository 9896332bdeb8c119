"""Where studies are kept and what they are called: storages by URL, one study a question, the sampler by its name.

SQLite on the driver's disk is the default; a journal file is for file systems that are shared.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import optuna
from optuna.distributions import distribution_to_json
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages._rdb import models
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock, JournalStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import create_engine, delete, insert, make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from search.atomic import StoreError
from search.bounded import BoundedTPE
from search.budget import Budget
from search.objective_names import DEFAULT
from search.objectives import LATENCY_ALONE, Objectives
from search.space import Space

optuna.logging.set_verbosity(optuna.logging.ERROR)


def directions(objectives: Objectives) -> list[StudyDirection]:
    """Accuracy up, every cost down."""
    return [StudyDirection.MAXIMIZE, *[StudyDirection.MINIMIZE] * len(objectives.costs)]


class Database(RDBStorage):
    """Optuna's database, told a new trial's parameters in one statement: Optuna asks three times for each of them."""

    def _get_prepared_new_trial(
        self, study_id: int, template_trial: FrozenTrial | None, session: Session
    ) -> models.TrialModel:
        if template_trial is None:
            return super()._get_prepared_new_trial(study_id, None, session)
        bare = copy.copy(template_trial)
        bare.params, bare.distributions = {}, {}
        trial = super()._get_prepared_new_trial(study_id, bare, session)
        session.add_all(
            models.TrialParamModel(
                trial_id=trial.trial_id,
                param_name=name,
                param_value=template_trial.distributions[name].to_internal_repr(value),
                distribution_json=distribution_to_json(template_trial.distributions[name]),
            )
            for name, value in template_trial.params.items()
        )
        return trial

    def note(self, trial_id: int, user: Mapping[str, Any], system: Mapping[str, Any]) -> None:
        """Set attributes of an unfinished trial in one transaction: Optuna takes one for each of them."""
        with _create_scoped_session(self.scoped_session) as session:
            trial = models.TrialModel.find_or_raise_by_id(trial_id, session)
            self.check_trial_is_updatable(trial_id, cast(TrialState, trial.state))
            for model, attributes in (
                (models.TrialUserAttributeModel, user),
                (models.TrialSystemAttributeModel, system),
            ):
                if not attributes:
                    continue
                # what a kill left of an earlier attempt to note the same
                session.execute(delete(model).where(model.trial_id == trial_id, model.key.in_(attributes)))
                rows = [{"trial_id": trial_id, "key": k, "value_json": json.dumps(v)} for k, v in attributes.items()]
                session.execute(insert(model), rows)


def note_trial(storage: BaseStorage, trial_id: int, user: Mapping[str, Any], system: Mapping[str, Any]) -> None:
    """Set attributes of an unfinished trial."""
    database = getattr(storage, "_backend", storage)  # Optuna puts a cache of finished trials around it
    if isinstance(database, Database):
        database.note(trial_id, user, system)
        return
    for key, value in user.items():
        storage.set_trial_user_attr(trial_id, key, value)
    for key, value in system.items():
        storage.set_trial_system_attr(trial_id, key, value)


def make_sampler(kind: str, seed: int) -> BaseSampler:
    """Optuna's sampler of this kind: `tpe`, `nsga2` or `random`."""
    with quiet():
        if kind == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        if kind == "nsga2":
            return optuna.samplers.NSGAIISampler(population_size=16, seed=seed)
        return BoundedTPE(multivariate=True, group=True, constant_liar=True, n_startup_trials=8, seed=seed)


def open_study(
    url: str, name: str, objectives: Objectives = LATENCY_ALONE, about: Mapping[str, Any] | None = None
) -> Study:
    """The study of this name, a new one where there is none. Raises `StoreError` with the mend.

    `about` is what it says of itself to those who look at it.

    Nothing is ever asked of its own sampler: proposals are drawn in memory, see `search.mirror`.
    """
    with _opening(url):
        storage = open_storage(url)
        sampler = optuna.samplers.RandomSampler()
        with quiet():
            try:  # read first: what is there already need not be written
                study = optuna.load_study(storage=storage, study_name=name, sampler=sampler)
            except KeyError:
                study = optuna.create_study(
                    storage=storage,
                    study_name=name,
                    sampler=sampler,
                    directions=directions(objectives),
                    load_if_exists=True,
                )
            if study.metric_names != objectives.metrics:
                study.set_metric_names(objectives.metrics)
            known = study.user_attrs
            for key, value in (about or {}).items():
                if known.get(key) != value:
                    study.set_user_attr(key, value)
        return study


def study_name(space: Space, budget: Budget | None, rig: str, run: str, objectives: Objectives = LATENCY_ALONE) -> str:
    """One study a question: another space, budget, rig or list of objectives is another question to the same record."""
    searched = space.precisions if len(space.precisions) > 1 else ()
    asked = () if objectives.names == DEFAULT else (objectives.names,)
    question = repr((space.to_dict(), str(budget), rig, run, *searched, *asked)).encode()
    return f"prunefront-{hashlib.sha256(question).hexdigest()[:12]}"


def study_url(setting: str, default: Path) -> str:
    """The job's `search.study` as a URL: `sqlite` means study.db in the run folder."""
    return f"sqlite:///{default.resolve()}" if setting == "sqlite" else setting


def study_place(url: str) -> str:
    """The file behind a URL, for messages; a server's URL without its password."""
    if url.startswith(("sqlite:///", "journal:")):
        return url.removeprefix("sqlite:///").removeprefix("journal:")
    try:
        return make_url(url).render_as_string(hide_password=True)
    except SQLAlchemyError:
        return url


def open_storage(url: str) -> BaseStorage:
    """SQLite by `sqlite:///PATH` (any SQLAlchemy URL works), or a journal file by `journal:PATH`."""
    if url.startswith("journal:"):
        path = Path(url.removeprefix("journal:"))
        path.parent.mkdir(parents=True, exist_ok=True)
        drop_torn_line(path)
        # a lock by O_EXCL works where links do not; it is abandoned after its grace period if its holder was killed
        lock = JournalFileOpenLock(str(path), grace_period=5)
        with quiet():
            return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))
    return Database(url, engine_kwargs={"connect_args": {"timeout": 30}} if url.startswith("sqlite") else None)


def require_study(setting: str) -> None:
    """Raises `StoreError` for a job's `search.study` that cannot be opened: a server that does not answer, a folder.

    Asked before anything is trained; nothing is written.
    """
    if setting == "sqlite":
        return
    if setting.startswith(("sqlite:///", "journal:")):
        place = Path(study_place(setting).partition("?")[0])
        if place.is_dir():
            raise StoreError(f"search.study: {place} is a folder: name a file in it, such as {place / 'study.db'}")
        return
    with _opening(setting):
        engine = create_engine(setting)
        try:
            engine.connect().close()
        finally:
            engine.dispose()


def drop_torn_line(path: Path) -> None:
    """Cut off a last line that a kill left unfinished: the next append would make it unreadable for good."""
    if not path.exists():
        return
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        with open(path, "r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without Optuna's warnings of what is experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def written() -> Iterator[None]:
    """Errors of a study that stays unwritten, as one line with its cause."""
    try:
        yield
    except (optuna.exceptions.StorageInternalError, SQLAlchemyError, OSError) as error:
        cause = str(error.__cause__ or error).splitlines()[0]
        raise StoreError(f"the study cannot be written ({cause}): mend that, then go on with the run") from error


@contextlib.contextmanager
def _opening(url: str) -> Iterator[None]:
    try:
        yield
    except StoreError:
        raise
    except ImportError as error:
        missing = getattr(error.__cause__ or error, "name", None) or "its driver"
        raise StoreError(
            f"the study {study_place(url)} needs the Python package {missing!r}: install it where the search is started"
        ) from None
    except Exception as error:  # SQLAlchemy, Optuna and the file system each have their own
        line = str(error.__cause__ or error).splitlines()
        if isinstance(error, PermissionError) or (line and "readonly" in line[0]):
            raise StoreError(
                f"the study {study_place(url)} cannot be written ({line[0]}): mend that, then go on with the run"
            ) from None
        is_file = url.startswith(("sqlite:", "journal:"))
        mend = "move it away, it is filled again from the results" if is_file else "check the URL and its server"
        raise StoreError(
            f"the study {study_place(url)} cannot be opened ({line[0] if line else type(error).__name__}): {mend}"
        ) from None
