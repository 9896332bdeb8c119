"""Made-up trials: a small space, and results as a worker would have written them, without any training."""

from __future__ import annotations

import math
from typing import Any

from search.result import Status, TrialResult
from search.sampler import Proposal
from search.space import Dimension, Space
from search.store import RunStore

SPACE = Space(
    (
        Dimension(layer="conv1", structure="filter", sparsities=(0.0, 0.25, 0.5, 0.75)),
        Dimension(layer="conv2", structure="filter", sparsities=(0.0, 0.25, 0.5, 0.75)),
        Dimension(layer="fc", structure="channel", sparsities=(0.0, 0.2, 0.4, 0.6, 0.8)),
    )
)
#: A space with three plans: soon searched through.
TINY = Space((Dimension(layer="conv", structure="filter", sparsities=(0.0, 0.25, 0.5)),))
#: Its plans in fp32 and in int8.
MIXED = Space(TINY.dimensions, ("fp32", "int8"))


def result_of(proposal: Proposal, status: Status = "complete", **changes: Any) -> TrialResult:
    """What a worker would record: the more is removed, the faster and the less accurate."""
    removed = [s for layer in proposal.plan.values() for s in layer.values()]
    latency = math.exp(-0.4 * sum(removed))
    values: dict[str, Any] = {
        "plan_digest": proposal.plan.digest(),
        "seed": 0,
        "params_sampled": dict(proposal.params),
        "requested": proposal.plan.to_dict(),
        "source": proposal.source,
        "stretch": proposal.stretch,
        "precision": proposal.precision,
        "latency_ms": latency,
        "latency_high_ms": 1.02 * latency,
        "speedup": 1.0 / latency,
        "speedup_low": 0.98 / latency,
    }
    if status == "complete":
        values |= {"accuracy": 1.0 - 0.1 * sum(s * s for s in removed), "compression_x": 2.0, "macs": 1, "params": 1}
    else:
        values["reason"] = f"made up: {status}"
    return TrialResult(number=proposal.number, status=status, **(values | changes))


def publish(store: RunStore, result: TrialResult) -> TrialResult:
    """Commit a result as the worker does: staged in a folder of its own, then renamed."""
    assert store.commit(result.number, store.attempt_dir(result.number, "worker"), result)
    return result
