"""What ADMM did, iteration by iteration and tensor by tensor: pruning is never a black box."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

#: A run whose largest relative primal residual is above this when ADMM ends has not converged.
CONVERGED = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRecord:
    """One ADMM iteration: `primal` ‖W−Z‖/‖W‖, `dual` ‖Z−Z_before‖/‖W‖, `rho` and the entries that the projection
    `kept` per tensor; mean training loss."""

    iteration: int
    loss: float
    primal: Mapping[str, float]
    dual: Mapping[str, float]
    rho: Mapping[str, float]
    kept: Mapping[str, int] = field(default_factory=dict)

    @property
    def worst(self) -> tuple[str, float]:
        """The tensor with the largest primal residual, and that residual; ("", 0.0) for an empty plan."""
        return max(self.primal.items(), key=lambda item: item[1], default=("", 0.0))


@dataclass(slots=True)
class AdmmTrace:
    """The records of a run and the accuracies around the hard prune."""

    records: list[TraceRecord] = field(default_factory=list)
    accuracy_before_prune: float | None = None
    accuracy_after_prune: float | None = None
    accuracy_after_finetune: float | None = None

    @property
    def primal_residual(self) -> float | None:
        """Largest ‖W−Z‖/‖W‖ when ADMM ended; None before the first iteration."""
        return self.records[-1].worst[1] if self.records else None

    def warning(self) -> str | None:
        """One line when the residual has not fallen when the iterations end, saying what to change."""
        if not self.records:
            return None
        name, residual = self.records[-1].worst
        if residual <= CONVERGED:
            return None
        return (
            f"ADMM has not converged: ‖W−Z‖/‖W‖ is {residual:.2f} in {name} (aim: {CONVERGED}); "
            f"raise admm.iterations or admm.rho_end, or ask for less"
        )

    def to_lines(self) -> str:
        """The trace as JSON lines: one a record, then one with the accuracies."""
        lines = [json.dumps({"kind": "admm", **_plain(r)}) for r in self.records]
        lines.append(json.dumps({"kind": "accuracy", **self.accuracies()}))
        return "\n".join(lines) + "\n"

    @classmethod
    def from_lines(cls, text: str) -> AdmmTrace:
        """Read what `to_lines` wrote. Raises `ValueError`, `KeyError` or `TypeError` for anything else."""
        lines = [json.loads(line) for line in text.splitlines()]
        records = [{k: v for k, v in line.items() if k != "kind"} for line in lines if line["kind"] == "admm"]
        accuracies = [line for line in lines if line["kind"] == "accuracy"]
        if len(accuracies) != 1:
            raise ValueError(f"a trace has one line of accuracies, this one has {len(accuracies)}")
        return cls.from_dict({"records": records, "accuracies": accuracies[0]})

    def accuracies(self) -> dict[str, float | None]:
        """Validation accuracy before the hard prune, after it, and after retraining."""
        return {
            "before_prune": self.accuracy_before_prune,
            "after_prune": self.accuracy_after_prune,
            "after_finetune": self.accuracy_after_finetune,
        }

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form, for a checkpoint."""
        return {"records": [_plain(r) for r in self.records], "accuracies": self.accuracies()}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> AdmmTrace:
        """Read what `to_dict` wrote."""
        accuracies = content["accuracies"]
        return cls(
            records=[
                TraceRecord(**{**r, "loss": math.nan if r["loss"] is None else r["loss"]}) for r in content["records"]
            ],
            accuracy_before_prune=accuracies["before_prune"],
            accuracy_after_prune=accuracies["after_prune"],
            accuracy_after_finetune=accuracies["after_finetune"],
        )


def _plain(record: TraceRecord) -> dict[str, Any]:
    """JSON-ready; a loss that nobody told is null, since JSON has no NaN."""
    return {**asdict(record), "loss": None if math.isnan(record.loss) else record.loss}
