"""The nodes of a cluster: do they have what this driver has? Asked once at the start, and told by the node's address.

Imports the standard library alone at its top: the question is asked on machines that may lack everything else.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path
from typing import Any

import search
from search.atomic import disk_errors
from search.errors import UserError

#: How long nodes may take to answer, their first worker's start included.
PATIENCE_S = 120.0
#: A network file system may show a new file late; who does not wait for it works all the same, by the network.
SEEN_S = 3.0
#: The folder in a run folder that lasts as long as its search.
SCRATCH = "ray"
#: What a worker imports: distribution names.
NEEDED = (
    "torch",
    "torch-pruning",
    "numpy",
    "safetensors",
    "onnx",
    "onnx-ir",
    "onnxruntime",
    "onnxscript",
    "pydantic",
    "PyYAML",
)
#: Where Ray unpacks what travelled.
_TRAVELLED = "py_modules_files"


class NodeRefused(UserError):
    """A machine that joined later and must not work for this search: no fault of any trial."""


def facts() -> dict[str, str | None]:
    """Distribution -> version on this machine, None for one that is missing; of prunefront, the one installed here."""
    known: dict[str, str | None] = {"prunefront": None}
    installed = [d for d in distributions(name="prunefront") if _TRAVELLED not in str(d.locate_file(""))]
    if installed:
        known["prunefront"] = installed[0].version  # the one that an import would find
    for name in NEEDED:
        try:
            known[name] = version(name)
        except PackageNotFoundError:
            known[name] = None
    return known


def mismatch(node: dict[str, str | None], driver: dict[str, str | None], ours: str = search.__version__) -> str | None:
    """What is wrong with a node, and the mend; None where nothing is."""
    missing = [name for name in NEEDED if node.get(name) is None]
    if missing:
        return f"it lacks {', '.join(missing)}: pip install prunefront there"
    installed = node.get("prunefront")
    if installed is not None and installed != ours:
        return f"it has prunefront {installed}, the driver {ours}: install the same, or none: it travels by itself"
    there, here = node["torch"] or "", driver["torch"] or ""
    if _minor(there) != _minor(here):
        return f"it has torch {there}, the driver {here}: install {_minor(here)} there"
    return None


def _minor(text: str) -> str:
    found = re.match(r"\d+\.\d+", text)
    return found[0] if found else text


def require_alike(say: Callable[[str], None]) -> None:
    """Ask every node of the cluster that this process has joined. Raises `UserError` naming the first that differs.

    A node that does not answer in time is named and left alone: it may be frozen, and others can do its work.
    """
    here = facts()
    for address, there in _asked(facts, (), lambda node: True, say):
        wrong = there if isinstance(there, str) else mismatch(there, here)
        if wrong is not None:
            raise UserError(f"node {address} cannot work for this search: {wrong}")


def marked(root: Path) -> str:
    """Leave a mark in a run folder that has its scratch folder: a folder of the same path elsewhere has it not."""
    mark = secrets.token_hex(8)
    with disk_errors("write", root / SCRATCH / mark):
        (root / SCRATCH / mark).touch()
    return mark


def sees(root: str, mark: str) -> bool:
    """Whether this machine sees, at this path, the run folder that was marked so."""
    try:
        return (Path(root) / SCRATCH / mark).is_file()
    except OSError:  # it may not even look
        return False


def blind(root: str, mark: str, say: Callable[[str], None]) -> tuple[list[str], int]:
    """(the addresses of nodes that train and do not see the marked run folder, how many nodes train and answered).

    Raises `UserError` naming a node that cannot be asked.
    """
    without, nodes = [], 0
    for address, there in _asked(_sees_soon, (root, mark), _trains, say):
        if isinstance(there, str):
            raise UserError(f"node {address} cannot work for this search: {there}")
        nodes += 1
        if not there:
            without.append(address)
    return sorted(without), nodes


def _sees_soon(root: str, mark: str) -> bool:
    until = time.monotonic() + SEEN_S
    while not sees(root, mark):
        if time.monotonic() >= until:
            return False
        time.sleep(0.2)
    return True


def _trains(node: Mapping[str, Any]) -> bool:
    return bool(node["Resources"].get("CPU", 0.0) or node["Resources"].get("GPU", 0.0))


def _asked(
    question: Callable[..., Any],
    arguments: tuple[Any, ...],
    wanted: Callable[[Mapping[str, Any]], bool],
    say: Callable[[str], None],
) -> Iterator[tuple[str, Any]]:
    """(address, what the node answers) of each node that answers; text where it could not be asked, and why."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

    look: Any = ray.remote(num_cpus=0, max_retries=0)(question)
    nodes = sorted((n["NodeManagerAddress"], n["NodeID"]) for n in ray.nodes() if n["Alive"] and wanted(n))
    asked = {
        look.options(scheduling_strategy=On(node, soft=False)).remote(*arguments): address for address, node in nodes
    }
    answered, silent = ray.wait(list(asked), num_returns=len(asked), timeout=PATIENCE_S) if asked else ([], [])
    for reference in answered:
        address = asked[reference]
        try:
            yield address, ray.get(reference)
        except ray.exceptions.RuntimeEnvSetupError as error:
            yield address, f"what it needs did not arrive there: {_last_line(error)}"
        except ray.exceptions.RayTaskError as error:
            yield address, f"this package cannot be used there: {_last_line(error)}"
        except ray.exceptions.RayError:
            say(f"node {address} was lost while it was asked what it has")
    for reference in silent:
        say(f"node {asked[reference]} did not say within {PATIENCE_S:.0f} s what it has")
        ray.cancel(reference)


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
