"""`prunefront doctor`: what this machine has for a search, what it lacks, and what to do about it.

Measures, trains and writes nothing, and starts no Ray.
"""

from __future__ import annotations

import os
import platform
import shutil
import stat
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

import search
from evaluators import RigUnavailable, make_rig, rig_names
from evaluators.blocks import block_of, cache_folder
from evaluators.errors import EvaluationError
from evaluators.host import allowed_cores, cpu_isa, cpu_model
from evaluators.rig import measures_modules
from search.address import checked_address
from search.atomic import json_text
from search.errors import UserError

#: ok: as it should be. note: fine for most, with what would change it. missing: something does not work without it.
Verdict = Literal["ok", "note", "missing"]

SCHEMA = 1
NEEDED = ("torch", "torch-pruning", "numpy", "safetensors", "onnx", "onnxscript", "onnxruntime", "ray", "optuna")
NEEDED_MORE = ("onnx-ir", "pydantic", "PyYAML", "typer", "rich", "matplotlib", "plotly", "Jinja2")
OPTIONAL: Mapping[str, str] = {
    "scikit-learn": "for the task of the demo: pip install 'prunefront[digits]'",
    "triton": "for columns on CUDA: pip install 'prunefront[cuda]'",
    "torchvision": "for its networks by name: pip install 'prunefront[vision]'",
    "timm": "for its networks by name: pip install 'prunefront[vision]'",
    "transformers": "for its image classifiers by name: pip install 'prunefront[transformers]'",
    "mlflow-skinny": "for logging.mlflow in a job: pip install 'prunefront[mlflow]'",
}
#: A run keeps the weights of its trials: of a ResNet-18 some 40 MB each.
LEAST_FREE_GB = 5.0
_COLOURS: Mapping[Verdict, str] = {"ok": "green", "note": "yellow", "missing": "bold red"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the doctor's."""

    area: str
    what: str
    verdict: Verdict = "ok"
    mend: str = ""


def show_doctor(storage: Path, *, as_json: bool, console: Console) -> int:
    """Print all findings; returns the exit code: 2 where something is missing without which no search runs."""
    found = list(findings(storage))
    lacking = any(finding.verdict == "missing" for finding in found)
    if as_json:
        content = {"schema": SCHEMA, "well": not lacking, "findings": [asdict(finding) for finding in found]}
        sys.stdout.write(json_text(content))
        return 2 if lacking else 0
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    before = ""
    for finding in found:
        said = Text(finding.what)
        if finding.mend:
            said.append(f"\n-> {finding.mend}", style="dim" if finding.verdict == "ok" else "")
        mark = Text(finding.verdict, style=_COLOURS[finding.verdict])
        table.add_row("" if finding.area == before else finding.area, mark, said)
        before = finding.area
    console.print(table)
    return 2 if lacking else 0


def findings(storage: Path) -> Iterator[Finding]:
    """Everything there is to say; `storage` is where runs are to be kept."""
    yield from _versions()
    yield from _devices()
    yield from _rigs()
    yield _block()
    yield _ray()
    yield _token()
    yield from _storage(storage)


def _versions() -> Iterator[Finding]:
    python = platform.python_version()
    old = sys.version_info < (3, 11)
    yield Finding(
        area="versions",
        what=f"prunefront {search.__version__}, Python {python}",
        verdict="missing" if old else "ok",
        mend="use Python 3.11 or newer" if old else "",
    )
    known, absent = [], []
    for name in (*NEEDED, *NEEDED_MORE):
        try:
            known.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            absent.append(name)
    yield Finding(area="versions", what=", ".join(known))
    for name in absent:
        yield Finding(area="versions", what=f"{name} is not installed", verdict="missing", mend=f"pip install {name}")
    for name, mend in OPTIONAL.items():
        try:
            yield Finding(area="versions", what=f"{name} {version(name)}")
        except PackageNotFoundError:
            yield Finding(area="versions", what=f"{name} is not installed", verdict="note", mend=mend)


def _devices() -> Iterator[Finding]:
    import torch

    cores = len(allowed_cores())
    yield Finding(
        area="devices",
        what=f"{cpu_model()} ({cpu_isa()}), {cores} core{'' if cores == 1 else 's'} to use",
        verdict="note" if cores == 1 else "ok",
        mend="trials and measurements share the one core: resources.max_concurrent: 1" if cores == 1 else "",
    )
    threads = os.environ.get("OMP_NUM_THREADS")
    yield Finding(
        area="devices",
        what=f"OMP_NUM_THREADS is {threads or 'not set'}",
        verdict="ok" if threads == "1" else "note",
        mend=""
        if threads == "1"
        else "export OMP_NUM_THREADS=1: trials then share the cores, and training is repeatable",
    )
    if not torch.cuda.is_available():
        built = "this PyTorch is built without CUDA" if torch.version.cuda is None else "PyTorch sees no CUDA device"
        yield Finding(area="devices", what=f"no GPU: {built}", mend="none is needed: training runs on the CPU")
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield Finding(
            area="devices",
            what=f"GPU {index}: {properties.name}, {properties.total_memory / 2**30:.0f} GiB, "
            f"compute capability {properties.major}.{properties.minor}",
            mend="trials use it with resources.gpus_per_trial: 1",
        )


def _rigs() -> Iterator[Finding]:
    absent = []
    for name in rig_names():
        try:
            stamp = make_rig(name).stamp(1)
        except (RigUnavailable, EvaluationError):
            absent.append(name)
            continue
        kind = "PyTorch modules" if measures_modules(name) else "ONNX files"
        yield Finding(area="rigs", what=f"{name}: {kind} on {stamp.device}, {stamp.runtime}")
    if absent:
        yield Finding(
            area="rigs",
            what=f"not on this machine: {', '.join(absent)}",
            mend="name one in a job, and prunefront profile JOB.yaml says what it needs",
        )


class _NotKept(Exception):
    """The channel block is not in the cache: it would have to be measured."""


def _block() -> Finding:
    def measure(candidate: Any, reference: Any) -> Any:
        raise _NotKept

    folder = cache_folder()
    try:
        block = block_of(make_rig("onnxruntime-cpu").stamp(1), measure)
    except _NotKept:
        return Finding(
            area="channel block",
            what=f"not measured yet on this device; kept in {folder}"
            if folder
            else "measured anew each time: no cache",
            verdict="ok" if folder else "note",
            mend="the first search or profile measures it, some seconds"
            if folder
            else "set PRUNEFRONT_CACHE to a folder that can be written",
        )
    except EvaluationError as error:
        return Finding(area="channel block", what=f"unknown: {error}", verdict="note")
    return Finding(
        area="channel block",
        what=f"{block.block} channels, depthwise {block.depthwise} (onnxruntime-cpu, one thread; kept in {folder})",
    )


def _ray() -> Finding:
    named = os.environ.get("RAY_ADDRESS")
    try:
        checked_address("auto")
    except UserError as error:
        why = str(error).removeprefix("--address auto: ").partition(":")[0]
        if named:
            return Finding(
                area="Ray",
                what=f"RAY_ADDRESS is {named!r}, and no cluster answers there",
                verdict="note",
                mend="unset RAY_ADDRESS, or start the cluster: a search without --address starts a Ray of its own",
            )
        return Finding(area="Ray", what=f"{why}: a search starts its own, and stops it")
    return Finding(area="Ray", what=f"a cluster answers{f' at {named}' if named else ''}: join it with --address auto")


def _token() -> Finding:
    mode = os.environ.get("RAY_AUTH_MODE", "token")
    if mode != "token":
        return Finding(
            area="token",
            what=f"RAY_AUTH_MODE is {mode!r}: whoever reaches Ray's ports can run code here",
            verdict="note",
            mend="unset RAY_AUTH_MODE, or set it to token",
        )
    if os.environ.get("RAY_AUTH_TOKEN"):
        return Finding(area="token", what="from RAY_AUTH_TOKEN")
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named) if named else Path(os.path.expanduser("~")) / ".ray" / "auth_token"
    try:
        mode_bits = path.stat().st_mode
    except OSError:
        if named:
            return Finding(
                area="token",
                what=f"RAY_AUTH_TOKEN_PATH is {path}, which cannot be read",
                verdict="missing",
                mend="name the file that holds the token, or unset it",
            )
        return Finding(area="token", what=f"none yet: Ray makes {path} when it starts here")
    if mode_bits & (stat.S_IRWXG | stat.S_IRWXO):
        return Finding(area="token", what=f"{path} can be read by others", verdict="note", mend=f"chmod 600 {path}")
    return Finding(area="token", what=f"{path}, readable by you alone")


def _storage(storage: Path) -> Iterator[Finding]:
    place = storage.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    where = f"{storage}" if place == storage.absolute() else f"{storage} (to be made in {place})"
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        yield Finding(
            area="storage",
            what=f"{where} cannot be written",
            verdict="missing",
            mend="choose another folder: prunefront search JOB.yaml --storage DIR",
        )
        return
    free = shutil.disk_usage(place).free / 1e9
    low = free < LEAST_FREE_GB
    yield Finding(
        area="storage",
        what=f"{where}, {free:.1f} GB free",
        verdict="note" if low else "ok",
        mend="a run may need more: search.keep_weights: front keeps the front alone" if low else "",
    )
