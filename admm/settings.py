"""How ADMM and the retraining run: frozen, validated on construction."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


def _require(ok: bool, name: str, value: object, bound: str) -> None:
    if not ok:
        raise ValueError(f"{name} must {bound}, got {value!r}")


def _require_optimizer(section: str, settings: AdmmSettings | FinetuneSettings) -> None:
    lr, momentum, decay, norm = settings.lr, settings.momentum, settings.weight_decay, settings.max_grad_norm
    _require(0 < lr < math.inf, f"{section}.lr", lr, "be above 0 and finite")
    _require(settings.optimizer in ("sgd", "adamw"), f"{section}.optimizer", settings.optimizer, "be sgd or adamw")
    _require(0 <= momentum < 1, f"{section}.momentum", momentum, "lie in [0, 1)")
    _require(0 <= decay < math.inf, f"{section}.weight_decay", decay, "be at least 0 and finite")
    _require(norm is None or norm > 0, f"{section}.max_grad_norm", norm, "be above 0, or None")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmmSettings:
    """The W/Z/U phase (Zhang et al. 2018, section 3; Boyd et al. 2011, section 3)."""

    iterations: int = 6
    """Z and U updates; each follows `epochs_per_iteration` epochs of training W. 0: the hard prune comes at once, as
    one does with weights that were pruned by this plan before."""
    epochs_per_iteration: int = 1
    lr: float = 0.01
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = 0.9
    weight_decay: float = 1e-4
    rho_start: float = 0.1
    """rho of the first iteration, in units of each tensor's gradient scale ‖g‖/‖W‖."""
    rho_end: float = 10.0
    """rho of the last iteration, in the same units; between them it rises geometrically."""
    progressive: float = 0.0
    """Share of the iterations over which the constraint tightens, in proportion to what is left, from the dense
    network to what is asked (multi-step pruning, Ye et al. 2019, arXiv 1903.09769); 0 asks for all at once."""
    schedule: Literal["constant", "cosine"] = "constant"
    """The learning rate over the whole phase; `cosine` falls to a tenth."""
    nearly_dead: float = 0.0
    """Filters and columns below this share of their layer's mean energy go at the hard prune (P-RM, arXiv 1905.00136);
    0 leaves them. A very small share may find nothing to take."""
    max_grad_norm: float | None = None

    def __post_init__(self) -> None:
        _require(0 <= self.nearly_dead < 1, "admm.nearly_dead", self.nearly_dead, "lie in [0, 1)")
        _require(self.iterations >= 0, "admm.iterations", self.iterations, "be at least 0")
        _require(self.epochs_per_iteration >= 1, "admm.epochs_per_iteration", self.epochs_per_iteration, "be >= 1")
        _require_optimizer("admm", self)
        _require(0 < self.rho_start <= self.rho_end, "admm.rho_start", self.rho_start, "lie in (0, rho_end]")
        _require(math.isfinite(self.rho_end), "admm.rho_end", self.rho_end, "be finite")
        _require(self.schedule in ("constant", "cosine"), "admm.schedule", self.schedule, "be constant or cosine")
        _require(0 <= self.progressive <= 1, "admm.progressive", self.progressive, "lie in [0, 1]")

    @property
    def epochs(self) -> int:
        """Epochs of the whole phase."""
        return self.iterations * self.epochs_per_iteration


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneSettings:
    """Masked retraining after the hard prune, optionally distilled from the dense model (Hinton et al. 2015)."""

    epochs: int = 4
    lr: float = 0.01
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = 0.9
    weight_decay: float = 1e-4
    distillation_weight: float = 0.5
    """Share of the loss that follows the dense model's soft outputs; 0 trains on the labels alone."""
    temperature: float = 4.0
    schedule: Literal["cosine", "constant", "one-cycle"] = "cosine"
    """The learning rate, step by step; `one-cycle` rises over the first tenth before it falls along the cosine."""
    ema: float = 0.0
    """Decay of an exponential moving average of the weights, which is then what counts; 0 turns it off."""
    max_grad_norm: float | None = None

    def __post_init__(self) -> None:
        _require(self.epochs >= 0, "finetune.epochs", self.epochs, "be at least 0")
        _require_optimizer("finetune", self)
        known = ("cosine", "constant", "one-cycle")
        _require(self.schedule in known, "finetune.schedule", self.schedule, f"be one of {', '.join(known)}")
        share = self.distillation_weight
        _require(0 <= share <= 1, "finetune.distillation_weight", share, "lie in [0, 1]")
        _require(0 <= self.ema < 1, "finetune.ema", self.ema, "lie in [0, 1)")
        _require(self.temperature > 0, "finetune.temperature", self.temperature, "be above 0")
