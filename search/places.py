"""Where the rigs of a job measure: on a machine of the cluster that offers their resource, else on the driver's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from search.job import Job


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One device that rigs take turns on, as one actor."""

    resource: str | None
    """What Ray is to reserve one of for the actor; None: nothing."""
    node: str | None
    """The id of the node that the actor is bound to; None: any that offers the resource."""
    address: str
    here: bool
    """Whether it is the driver's machine, so that the driver's own measurements are of the same device."""
    rigs: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """All places of a job, and what is to be said of them."""

    places: tuple[Place, ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def elsewhere(self) -> tuple[str, ...]:
        """The rigs that measure on another machine than the driver's."""
        return tuple(rig for place in self.places if not place.here for rig in place.rigs)


def placed(job: Job, nodes: Sequence[Mapping[str, Any]], driver: str) -> Placement:
    """Places for the rigs of `job` among `nodes`, as `ray.nodes()` tells of them; `driver` is the id of the driver's.

    Rigs of one resource share a place, and all that have no machine of their own share the driver's.
    """
    alive = [node for node in nodes if node["Alive"]]
    addresses = {node["NodeID"]: str(node["NodeManagerAddress"]) for node in alive}
    by_resource: dict[str | None, list[str]] = {}
    for spec in job.rigs:
        offered = any(node["Resources"].get(spec.resource, 0.0) >= 1.0 for node in alive) if spec.resource else False
        by_resource.setdefault(spec.resource if offered else None, []).append(spec.name)
    places, notes = [], []
    for resource, rigs in by_resource.items():
        offering = [n["NodeID"] for n in alive if resource is not None and n["Resources"].get(resource, 0.0) >= 1.0]
        here = resource is None or driver in offering
        where = addresses.get(driver, "this machine") if here else min(addresses[node] for node in offering)
        node = driver if here else None
        places.append(Place(resource=resource, node=node, address=where, here=here, rigs=tuple(rigs)))
        if not here:
            more = f" or {len(offering) - 1} more" if len(offering) > 1 else ""
            notes.append(f"measuring {', '.join(rigs)} on {where}{more}, which offers {resource!r}")
    lost = sorted({str(spec.resource) for spec in job.rigs if spec.resource and spec.resource not in by_resource})
    if lost:
        notes.append(
            f"warning: no node offers {', '.join(map(repr, lost))}: measuring on the driver's machine, where trials "
            f"may train as well; when all training has ended, its front is measured again"
        )
    return Placement(places=tuple(places), notes=tuple(notes))
