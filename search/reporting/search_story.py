"""What the search knew before its first trial, for the report: sensitivity, feasibility, what cannot be pruned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from search.atomic import StoreError, parse_json
from search.budget import Budget
from search.job import Job
from search.reporting.figures import significant
from search.result import Baseline
from search.sensitivity import FILE_NAME as SENSITIVITY_NAME
from search.sensitivity import Sensitivity
from search.store import RunStore


def sensitivity_curves(store: RunStore, missing: list[str]) -> dict[str, Any] | None:
    """Loss and metric on training samples after pruning each dimension alone; None where none was measured."""
    try:
        table = Sensitivity.from_dict(parse_json((store.root / SENSITIVITY_NAME).read_bytes()))
    except FileNotFoundError:
        missing.append("no sensitivity was measured: search.warm_start was off, or the search has not come so far")
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        missing.append(f"{SENSITIVITY_NAME} cannot be read: {error}")
        return None
    return {
        "loss": significant(table.loss, 4),
        "accuracy": significant(table.accuracy, 4),
        "samples": table.samples,
        "epochs": significant(table.epochs, 4),
        "dimensions": [
            {
                "name": name,
                "sparsity": [significant(p.sparsity, 4) for p in points],
                "loss": [significant(p.loss, 4) for p in points],
                "accuracy": [significant(p.accuracy, 4) for p in points],
            }
            for name, points in table.points.items()
        ],
    }


def feasibility(
    store: RunStore, job: Job, baseline: Baseline, budget: Budget | None, forecast_name: str, missing: list[str]
) -> dict[str, Any]:
    """The networks measured before training, as speed-ups over the dense one, beside what the budget asks for.

    With them the layers that cannot be pruned, by name with the reason, and what the profile noted.
    """
    profile: Mapping[str, Any] = {}
    try:
        profile = store.read_profile()
        excluded = {str(layer): str(why) for layer, why in profile["groups"]["excluded"].items()}
        notes = [str(note) for note in profile["notes"]]
    except (StoreError, KeyError, TypeError, AttributeError):
        missing.append("profile.json of this run is not there or of another version: what cannot be pruned is unknown")
        excluded, notes = {}, []
    networks = []
    try:
        content = parse_json((store.root / forecast_name).read_bytes())
        networks = [
            {"name": str(p["name"]), "speedup": significant(1.0 / float(p["relative"]), 4)} for p in content["points"]
        ]
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
        missing.append("no network was measured before training: search.warm_start was off, or the rig has no forecast")
    asked = None
    if budget is not None and budget.rig == job.deciding_rig.name:
        asked = baseline.latency_ms / budget.latency_line(baseline.latency_ms)
    touched = profile.get("layers")
    return {
        "networks": networks,
        "asked": significant(asked, 4),
        "excluded": excluded,
        "notes": notes,
        "block": profile.get("block"),
        "align": job.sparsity.align,
        "left_out": [layer for layer in _names(profile) if isinstance(touched, list) and layer not in touched],
    }


def _names(profile: Mapping[str, Any]) -> list[str]:
    groups = profile.get("groups")
    layers = groups.get("layers") if isinstance(groups, Mapping) else None
    return [str(layer) for layer in layers] if isinstance(layers, list) else []
