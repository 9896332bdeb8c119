"""Ray for the length of a search: one of our own, or a cluster that is joined with all that its workers need."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Said before Ray is imported: strangers on the network stay out, Tune keeps its hands off folders and logs.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_TQDM_PATCH_PRINT", "0")
# A slow machine has its agent of metrics up too late, and each process of Ray complains of that on the terminal.
os.environ.setdefault("RAY_enable_metrics_collection", "0")

import ray

from search.elsewhere import measuring_at
from search.errors import UserError
from search.far_rigs import FarRigs
from search.job import Job
from search.nodes import require_alike
from search.orphans import Watcher
from search.places import Place, Placement, placed
from search.rig_actor import NAMESPACE, RESOURCE
from search.shipping import Cargo, home_of, pack

#: What a job submitted by `ray job submit` was submitted with.
_SUBMITTED = "RAY_JOB_CONFIG_JSON_ENV_VAR"
_COMMON: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "namespace": NAMESPACE}


class Session:
    """A cluster that this process has joined; `close` leaves it, which may be done early."""

    def __init__(self, address: str, placement: Placement, far: FarRigs | None, leave: Callable[[], None]) -> None:
        self.address = address
        self.placement = placement
        self._far, self._leave = far, leave

    def rest(self) -> None:
        """Give the rigs of other machines back, for the trials' own actors or for fresh processes."""
        if self._far is not None:
            self._far.rest()

    def training_ended(self) -> None:
        """Where the driver's machine measures, leave the cluster: Ray then ends what this search still runs there."""
        if self._far is None:
            self._leave()


@contextlib.contextmanager
def own_ray(scratch: Path, job: Job) -> Iterator[Placement]:
    """A Ray of our own on this machine, which ends with this process however that ends."""
    _ready()
    with Watcher() as watcher:
        try:
            with watcher.marking(), _elsewhere_than(scratch / "empty"):
                try:
                    # "local": a cluster that RAY_ADDRESS names is joined only when --address says so
                    ray.init(address="local", include_dashboard=False, resources={RESOURCE: 1}, **_COMMON)
                except (ConnectionError, ValueError, RuntimeError) as error:
                    raise UserError(f"Ray cannot be started here: {_why(error)}") from None
            here = Place(
                resource=RESOURCE, node=None, address="this machine", here=True, rigs=tuple(r.name for r in job.rigs)
            )
            yield Placement(places=(here,))
        finally:
            ray.shutdown()


@contextlib.contextmanager
def joined(address: str, job: Job, say: Callable[[str], None]) -> Iterator[Session]:
    """Join the cluster at HOST:PORT with the package and the job's folder, its nodes checked, its rigs placed.

    Within, rigs on other machines are opened there. Raises `UserError` for a cluster that cannot be joined, and for a
    node with other packages, by its address.
    """
    _ready()
    scratch = Path(tempfile.mkdtemp(prefix="prunefront-"))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        cargo = pack(scratch / "cargo", home_of(job.task, job.folder))
        if cargo.left:
            more = f" and {len(cargo.left) - 1} more" if len(cargo.left) > 1 else ""
            say(f"{cargo.left[0]}{more} beside the job's code do not travel: workers need them at the same place")
        leave = stack.enter_context(_connected(address, scratch, cargo))
        require_alike(say)
        placement = placed(job, ray.nodes(), ray.get_runtime_context().get_node_id())
        for note in placement.notes:
            say(note)
        far = FarRigs(job, placement, say) if placement.elsewhere else None
        if far is not None:
            stack.enter_context(measuring_at(far))
            stack.callback(far.rest)
        yield Session(address, placement, far, leave)


@contextlib.contextmanager
def _connected(address: str, scratch: Path, cargo: Cargo) -> Iterator[Callable[[], None]]:
    try:
        with _elsewhere_than(scratch / "empty"):
            ray.init(address=address, runtime_env=_runtime_env(cargo), **_COMMON)
    except (ConnectionError, ValueError, RuntimeError) as error:
        ray.shutdown()
        raise UserError(
            f"--address {address}: the Ray cluster there cannot be joined ({_why(error)}): start one with "
            f"`ray start --head`, or leave --address out"
        ) from None
    try:
        yield ray.shutdown
    finally:
        ray.shutdown()


def _runtime_env(cargo: Cargo) -> dict[str, Any]:
    """What travels, beside what `ray job submit` sent: of two lists of modules Ray would refuse one."""
    submitted: dict[str, Any] = {}
    if _SUBMITTED in os.environ:
        submitted = json.loads(os.environ[_SUBMITTED]).get("runtime_env") or {}
        os.environ["RAY_OVERRIDE_JOB_RUNTIME_ENV"] = "1"
    modules = [*submitted.get("py_modules", ()), *cargo.modules]
    return {"py_modules": modules, "env_vars": {**submitted.get("env_vars", {}), **cargo.env_vars}}


@contextlib.contextmanager
def _elsewhere_than(empty: Path) -> Iterator[None]:
    """In an empty folder: Ray puts the current one on its workers' path, before all that is installed."""
    empty.mkdir(parents=True, exist_ok=True)
    before = os.getcwd()
    os.chdir(empty)
    try:
        yield
    finally:
        os.chdir(before)


def _ready() -> None:
    # Ray reads RAY_AUTH_MODE once a process, perhaps before a search in it has settled the mode.
    config: Any = ray._raylet
    config.Config.initialize("")
    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a lost worker is no traceback for the user


def _why(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
