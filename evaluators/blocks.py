"""The device's channel block: the step in which a channel count costs time, found by a short measured staircase.

Kernels work on blocks of channels, so 20 channels may cost what 32 cost. Small convolutions of a few widths are
measured against one of them, and the block is the b for which `a + c * ceil(width / b) * b` explains the times best.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from evaluators.errors import RigError
from evaluators.measurement import DeviceStamp, Measurement
from evaluators.staircase import ENDS, staircase_onnx

#: The blocks that are told apart; kernels of today's processors use no others.
BLOCKS: tuple[int, ...] = (1, 4, 8, 16, 32)
#: What every width is measured against.
REFERENCE = 64
#: Multiples of four, among them odd multiples of 4, 8 and 16; narrow ones above all, where a block is the largest
#: share of the time.
EVEN_WIDTHS: tuple[int, ...] = (20, 24, 28, 36, 40, 44, 48, 56, 80)
#: Measured only where no block above four is found. Elsewhere they would mislead: off every layout the kernels are
#: others, and as a rule slower ones.
ODD_WIDTHS: tuple[int, ...] = (17, 18, 21, 33)
#: Where the wide end takes no more than this longer than the narrow end, the width is said to be free.
_FLAT = 0.12
#: A smaller block is preferred unless it explains the times worse by this factor ...
_AS_GOOD = 1.1
#: ... and while a second one is within this factor, the widths are measured again, so many times in all.
_CLEAR = 1.6
_ROUNDS = 4
#: Raised when the procedure changes, so that blocks found by an earlier one are measured anew.
_METHOD = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelBlock:
    """Channel counts that are multiples of these lose nothing to rounding on this device.

    Raises `ValueError` for a block that is no positive integer.
    """

    block: int
    """Of ordinary convolutions."""
    depthwise: int
    """Of depthwise convolutions with their pointwise neighbours."""
    points: Mapping[str, Mapping[int, float]]
    """What was measured: `conv3x3` and `depthwise` -> width -> time relative to the widest reference."""
    stamp: Mapping[str, Any]
    """What it holds for: rig, device, isa, runtime, provider, threads and batch class."""
    note: str = ""
    """Anything unusual, such as a device on which the width costs nothing; empty otherwise."""

    def __post_init__(self) -> None:
        for name in ("block", "depthwise"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an integer >= 1, got {value!r}")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form; widths become text."""
        points = {kind: {str(w): t for w, t in times.items()} for kind, times in self.points.items()}
        return {**asdict(self), "points": points, "stamp": dict(self.stamp)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> ChannelBlock:
        """Read what `to_dict` wrote; `ValueError` in one line for anything else."""
        try:
            if odd := sorted(set(content) ^ {f.name for f in fields(cls)}):
                raise ValueError(f"{odd[0]!r} is missing or unknown")
            points = {
                str(kind): {int(w): float(t) for w, t in times.items()} for kind, times in content["points"].items()
            }
            return cls(**{**content, "points": points, "stamp": dict(content["stamp"]), "note": str(content["note"])})
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"not a channel block: {error}") from None


def measure_block(
    measure: Callable[[Any, Any], Measurement], *, batch: int = 1, network: Callable[..., Any] | None = None
) -> ChannelBlock:
    """Measure the staircase, some 20 pairs of small networks whose batch is free, and find the blocks in it.

    `network(kind, width, batch=)` makes what `measure` takes: `staircase_onnx`, or `staircase_module` for a rig of
    modules.

    `batch` is what `measure` runs them at: it makes the images smaller, and goes into the stamp. Where noise leaves
    two blocks about as likely the widths are measured again. Raises `RigError` if the measurements come from more
    than one device.
    """
    make = network or staircase_onnx
    stamps: list[dict[str, Any]] = []
    fits: dict[str, StaircaseFit] = {}
    points: dict[str, dict[int, float]] = {}
    for kind in ENDS:
        reference = make(kind, REFERENCE, batch=batch)
        logs: dict[int, list[float]] = {REFERENCE: [0.0]}
        widths = EVEN_WIDTHS
        for _ in range(2 * _ROUNDS):
            for width in widths:
                measured = measure(make(kind, width, batch=batch), reference)
                logs.setdefault(width, []).append(-math.log(measured.speedup))
                stamps.append(block_key(measured.stamp, batch))
            points[kind] = {width: math.exp(float(np.mean(values))) for width, values in sorted(logs.items())}
            fits[kind] = find_block(points[kind])
            widths = fits[kind].unclear
            if not widths or len(logs.get(widths[0], ())) == _ROUNDS:
                break
    if other := next((stamp for stamp in stamps if stamp != stamps[0]), None):
        raise RigError(f"one staircase came from two devices, {stamps[0]} and {other}: measure on one rig")
    return ChannelBlock(
        block=fits["conv3x3"].block,
        depthwise=fits["depthwise"].block,
        points=points,
        stamp=stamps[0],
        note="; ".join(f"{kind}: {fit.note}" for kind, fit in fits.items() if fit.note),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class StaircaseFit:
    """The block behind one staircase."""

    block: int
    unclear: tuple[int, ...] = ()
    """Widths to measure (again) before another block can be ruled out."""
    note: str = ""


def find_block(times: Mapping[int, float]) -> StaircaseFit:
    """The block behind these times (width -> relative time).

    Multiples of four tell the blocks above four apart; where none explains them better than four, the other widths
    tell four from one. Errors are relative and their absolute values averaged, so that one bad point decides
    nothing. Of blocks that do about as well the smaller is taken: it leaves more choice.
    """
    even = {w: t for w, t in times.items() if w % 4 == 0}
    odd = {w: t for w, t in times.items() if w % 4 != 0}
    ordered = [even[w] for w in sorted(even)]
    growth = float(np.median(ordered[-3:]) / np.median(ordered[:3]))
    if growth - 1.0 < _FLAT:
        note = f"the width costs next to nothing ({growth:.2f}x from the narrow to the wide end), so block 1"
        return StaircaseFit(block=1, note=note)
    lines = {block: _line(even, block) for block in BLOCKS if block >= 4}
    found, clear, error = _choose({block: _misfit(even, block, line) for block, line in lines.items()})
    unclear = () if clear else EVEN_WIDTHS
    if clear and found == 4:
        # Of multiples of four the line of four is that of one: it says what other widths would cost on either. They
        # may cost more than either says, off every layout.
        slope = max(float(lines[4][1]), 1e-12)
        saved = [(lines[4][0] + slope * math.ceil(w / 4) * 4 - t) / (slope * (-w % 4)) for w, t in odd.items()]
        share = float(np.mean(saved)) if saved else 0.0
        found = 1 if share > 0.5 else 4
        unclear = ODD_WIDTHS if not saved or 0.25 < share < 0.75 else ()
    note = f"even block {found} explains the times only to {error:.0%}" if error > 0.1 else ""
    return StaircaseFit(block=found, unclear=unclear, note=note)


def _line(times: Mapping[int, float], block: int) -> np.ndarray:
    """[overhead, cost a channel] of times that rise in steps of `block`."""
    widths, seconds = np.array(list(times)), np.array(list(times.values()))
    features = np.stack([np.ones(len(times)), np.ceil(widths / block) * block], axis=1)
    return nonnegative_fit(features / seconds[:, None], np.ones(len(times)))


def _misfit(times: Mapping[int, float], block: int, line: np.ndarray) -> float:
    """Mean relative error of a line in steps of `block`."""
    return float(np.mean([abs((line[0] + line[1] * math.ceil(w / block) * block) / t - 1) for w, t in times.items()]))


def _choose(errors: Mapping[int, float]) -> tuple[int, bool, float]:
    """The smallest block among the best, whether no other comes near it, and its error."""
    best = min(errors.values())
    found = min(b for b in errors if errors[b] <= _AS_GOOD * best + 1e-9)
    clear = all(error > _CLEAR * best + 1e-9 for block, error in errors.items() if block != found)
    return found, clear, errors[found]


def nonnegative_fit(features: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Least squares with coefficients >= 0, by trying all subsets: exact, for a handful of columns.

    `features` is [rows, columns], `targets` [rows]; the result [columns].
    """
    rows, columns = features.shape
    best, least = np.zeros(columns), float(np.square(targets).sum())
    for count in range(1, min(rows, columns) + 1):
        for chosen in combinations(range(columns), count):
            part = features[:, chosen]
            solution = np.linalg.lstsq(part, targets, rcond=None)[0]
            error = float(np.square(part @ solution - targets).sum())
            if solution.min() >= 0.0 and error < least - 1e-15:
                best, least = np.zeros(columns), error
                best[list(chosen)] = solution
    return best


def block_key(stamp: DeviceStamp, batch: int) -> dict[str, Any]:
    """What a block depends on: not the kernel of the system, and the batch only by its power of two, 64 at most."""
    batch_class = min(2 ** (batch.bit_length() - 1), 64)
    names = ("rig", "device", "isa", "runtime", "provider", "threads")
    return {**{name: getattr(stamp, name) for name in names}, "batch_class": batch_class}


def block_of(
    stamp: DeviceStamp,
    measure: Callable[[Any, Any], Measurement],
    *,
    batch: int | None = None,
    cache: Path | None = None,
    network: Callable[..., Any] | None = None,
) -> ChannelBlock:
    """The block of a device, from the cache or by `measure_block`; `batch` is the stamp's unless given.

    `network` is what `measure_block` takes; `cache` is a folder, `cache_folder()` unless given. A damaged file is
    measured anew and replaced; a folder that cannot be written costs a measurement each time and is no error. Raises
    `RigError` if `measure` runs elsewhere than the stamp says.
    """
    batch = stamp.batch if batch is None else batch
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise ValueError(f"batch must be an integer >= 1, got {batch!r}")
    key = block_key(stamp, batch)
    folder = cache_folder() if cache is None else cache
    name = hashlib.sha256(json.dumps([_METHOD, key], sort_keys=True).encode()).hexdigest()[:24]
    path = None if folder is None else folder / f"block-{name}.json"
    if path is not None and (known := _read(path)) is not None and known.stamp == key:
        return known
    found = measure_block(measure, batch=batch, network=network)
    if found.stamp != key:
        raise RigError(f"the block was asked of {key} and measured on {found.stamp}: measure on the stamp's own rig")
    if path is not None:
        with suppress(OSError):
            _write(path, json.dumps(found.to_dict(), indent=1) + "\n")
    return found


def cache_folder() -> Path | None:
    """`$PRUNEFRONT_CACHE`, else `prunefront` in `$XDG_CACHE_HOME` or `~/.cache`; None for a user without a home."""
    if own := os.environ.get("PRUNEFRONT_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):  # the XDG specification: a relative path is to be ignored
        return Path(base) / "prunefront"
    try:
        return Path.home() / ".cache" / "prunefront"
    except RuntimeError:
        return None


def _read(path: Path) -> ChannelBlock | None:
    try:
        return ChannelBlock.from_dict(json.loads(path.read_bytes()))
    except (OSError, ValueError, RecursionError):
        return None


def _write(path: Path, text: str) -> None:
    """The old file or the new one whole, whoever else measures the same device at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        with temporary.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
