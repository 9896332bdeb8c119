"""A laboratory that trains nothing: accuracies and latencies by a fit to trials of uniformly random plans.

The trials are really trained once (`search_quality.py --collect N`), from start to end, on plans drawn uniformly and by
no sampler, so that the fit favours none. It is ridge regression on the plan's kept fractions k: the logarithm of the
error (1 - accuracy) at each stage on log k, its squares and pairwise products; the relative latency on k and
k_i k_(i+1), which MACs are linear in. Ridge parameters are chosen by leave-one-out (Hastie et al. 2009, equation 7.64).
Samplers are compared here in seconds; claims are made where trials are trained.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from quality_lab import Figures, Lab, Stage, Trial
from quality_task import SIDE, SmallNet, kept_widths
from torch import zeros

from admm.plan import PruningPlan
from evaluators import count_macs, count_params
from search.atomic import write_atomic
from search.errors import UserError
from search.rungs import rung_iterations
from search.space import Space
from search.weights import prunable_weights

Floats = NDArray[np.float64]

TABLE = Path(__file__).parent / "results" / "search_quality_surrogate.json"
#: Every so many-th trial is held out when the errors are measured; the fit in use sees all.
HELD_OUT = 4
PENALTIES = tuple(float(p) for p in np.logspace(-4, 3, 29))
LEAST_TRIALS = 16


def collect(lab: Lab, count: int, *, seed: int, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Train `count` distinct plans drawn uniformly from the space, each from start to end."""
    drawn = random.Random(seed)
    trials: list[dict[str, Any]] = []
    known: set[str] = set()
    while len(trials) < count:
        params = {d.name: drawn.randrange(len(d.sparsities)) for d in lab.space.dimensions}
        plan = lab.space.plan(params)
        if plan.digest() in known:
            continue
        known.add(plan.digest())
        figures = lab.figures(plan)
        stages = list(lab.stages(Trial(plan=plan, seed=seed)))
        trials.append(
            {
                "params": params,
                "latency_ms": round(figures.latency_ms, 6),
                "relative_latency": round(figures.relative_latency, 5),
                "stages": [[s.rung, round(s.epochs, 5), round(s.accuracy, 5)] for s in stages],
            }
        )
        say(f"{len(trials)} of {count}: {figures.relative_latency:.3f} of dense, accuracy {stages[-1].accuracy:.4f}")
    return trials


def write_table(lab: Lab, trials: Sequence[Mapping[str, Any]], *, command: str, conditions: Mapping[str, Any]) -> None:
    """Keep the trials with the command that made them and the held-out errors of the fit, as JSON."""
    content = {
        "command": command,
        "conditions": dict(conditions),
        "space": lab.space.to_dict(),
        "dense_accuracy": lab.dense_accuracy,
        "trials": list(trials),
    }
    content["held_out"] = SurrogateLab(content).held_out
    # a line for each trial
    lines = ",\n  ".join(json.dumps(trial) for trial in content.pop("trials"))
    write_atomic(TABLE, f'{json.dumps(content, indent=1)[:-2]},\n "trials": [\n  {lines}\n ]\n}}\n')


@dataclass(frozen=True, eq=False)
class Ridge:
    """Linear in standardised features, penalised; `chosen` by leave-one-out among `PENALTIES`."""

    mean: Floats
    scale: Floats
    weights: Floats
    offset: float
    penalty: float

    @classmethod
    def fit(cls, x: Floats, y: Floats) -> Ridge:
        """Features `x` [samples, features] and values `y` [samples]."""
        mean, scale = x.mean(0), np.maximum(x.std(0), 1e-12)
        u, s, vt = np.linalg.svd((x - mean) / scale, full_matrices=False)
        offset = float(y.mean())
        projected = u.T @ (y - offset)
        best: tuple[float, float] | None = None
        for penalty in PENALTIES:
            shrink = s**2 / (s**2 + penalty)
            leverage = (u**2 * shrink).sum(1) + 1.0 / len(y)
            residual = (y - offset - u @ (shrink * projected)) / np.maximum(1.0 - leverage, 1e-6)
            error = float((residual**2).mean())
            if best is None or error < best[0]:
                best = (error, penalty)
        assert best is not None
        weights = vt.T @ (s / (s**2 + best[1]) * projected)
        return cls(mean=mean, scale=scale, weights=weights, offset=offset, penalty=best[1])

    def predict(self, x: Floats) -> Floats:
        """[samples, features] -> [samples]."""
        return np.asarray((x - self.mean) / self.scale @ self.weights + self.offset)


def accuracy_features(kept: Floats) -> Floats:
    """Of kept fractions [samples, layers]: logarithms, their squares and pairwise products, [samples, features]."""
    logs = np.log(kept)
    pairs = [logs[:, i] * logs[:, j] for i, j in combinations(range(kept.shape[1]), 2)]
    return np.column_stack([logs, logs**2, *pairs])


def latency_features(kept: Floats) -> Floats:
    """Of kept fractions [samples, layers]: what MACs and the sizes of activations are linear in."""
    return np.column_stack([kept, kept[:, :-1] * kept[:, 1:]])


class SurrogateLab:
    """Stages and figures by the fit; the same plan always shows the same, so its front can be known.

    Raises `UserError` for a table that is too small or is none.
    """

    def __init__(self, table: Mapping[str, Any]) -> None:
        try:
            self._space = Space.from_dict(table["space"])
            self._dense = float(table["dense_accuracy"])
            self._trials = list(table["trials"])
            stages = [[(s[0], float(s[1]), float(s[2])) for s in t["stages"]] for t in self._trials]
            latency = np.array([float(t["relative_latency"]) for t in self._trials])
            self._dense_ms = float(np.median([t["latency_ms"] / t["relative_latency"] for t in self._trials]))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"the surrogate's table cannot be read ({error!r}): make it with --collect") from None
        if len(self._trials) < LEAST_TRIALS:
            raise UserError(f"{len(self._trials)} trials are too few for a surrogate: collect {LEAST_TRIALS} or more")
        kept = np.array([self._kept(t["params"]) for t in self._trials])
        errors = np.array([[np.log(max(1.0 - s[2], 1e-4)) for s in trial] for trial in stages])  # [trials, stages]
        self._stages = [(stage[0], stage[1]) for stage in stages[0]]
        self._accuracy = [Ridge.fit(accuracy_features(kept), column) for column in errors.T]
        self._latency = Ridge.fit(latency_features(kept), latency)
        self.held_out = self._errors(kept, errors, latency)

    @classmethod
    def read(cls, path: Path = TABLE) -> SurrogateLab:
        """The table on disk; raises `UserError` where it is gone or damaged."""
        try:
            return cls(json.loads(path.read_text()))
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read ({error}): make it with --collect") from None

    def _errors(self, kept: Floats, errors: Floats, latency: Floats) -> dict[str, Any]:
        """Of a fit to three quarters of the trials on the fourth: root mean squares, and what knowing nothing gives."""
        out = np.arange(len(kept)) % HELD_OUT == 0
        found: dict[str, Any] = {"trials": len(kept), "held_out": int(out.sum())}
        for (rung, _), column in zip(self._stages, errors.T, strict=True):
            ridge = Ridge.fit(accuracy_features(kept[~out]), column[~out])
            truth = 1.0 - np.exp(column[out])
            told = 1.0 - np.exp(ridge.predict(accuracy_features(kept[out])))
            found["end" if rung is None else f"iteration {rung}"] = {
                "rms_pp": _rms(100.0 * (told - truth)),
                "spread_pp": _rms(100.0 * (truth - truth.mean())),
            }
        ridge = Ridge.fit(latency_features(kept[~out]), latency[~out])
        told = ridge.predict(latency_features(kept[out]))
        found["latency"] = {
            "rms_relative": _rms(told / latency[out] - 1.0),
            "spread_relative": _rms(latency[out] / latency[out].mean() - 1.0),
        }
        return found

    def _kept(self, params: Mapping[str, int]) -> list[float]:
        return [1.0 - d.sparsities[int(params[d.name])] for d in self._space.dimensions]

    @property
    def space(self) -> Space:
        """That of the job whose trials were collected."""
        return self._space

    @property
    def rungs(self) -> tuple[int, ...]:
        """As in that job."""
        return rung_iterations(max(rung for rung, _ in self._stages if rung is not None))

    @property
    def dense_accuracy(self) -> float:
        """As measured."""
        return self._dense

    def figures(self, plan: PruningPlan) -> Figures:
        """Latency by the fit; MACs and weights are those of the network that the plan leads to."""
        relative = float(self.relative_latencies(np.array([self._kept(self._space.params(plan))]))[0])
        dense, small = SmallNet(), SmallNet(kept_widths(plan))
        return Figures(
            latency_ms=relative * self._dense_ms,
            relative_latency=relative,
            macs=count_macs(small, zeros(1, 1, SIDE, SIDE)),
            params=count_params(small),
            compression_x=prunable_weights(dense) / prunable_weights(small),
        )

    def stages(self, trial: Trial) -> Iterator[Stage]:
        """Raises `UserError` for another way than ADMM: that was not collected."""
        if trial.how != "admm":
            raise UserError(f"the surrogate knows trials by ADMM only, not by {trial.how!r}")
        features = accuracy_features(np.array([self._kept(self._space.params(trial.plan))]))
        for (rung, epochs), ridge in zip(self._stages, self._accuracy, strict=True):
            yield Stage(rung=rung, epochs=epochs, accuracy=float(1.0 - np.exp(ridge.predict(features)[0])))

    def relative_latencies(self, kept: Floats) -> Floats:
        """[plans, layers] -> [plans]; never below the fastest that was measured by more than a tenth."""
        least = 0.9 * min(float(t["relative_latency"]) for t in self._trials)
        return np.maximum(self._latency.predict(latency_features(kept)), least)

    def every_point(self) -> list[tuple[float, float]]:
        """(accuracy, relative latency) of every plan of the space: what its true front is read from."""
        axes = [1.0 - np.array(d.sparsities) for d in self._space.dimensions]
        kept = np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")], axis=1)
        accuracy = 1.0 - np.exp(self._accuracy[-1].predict(accuracy_features(kept)))
        return list(zip(accuracy.tolist(), self.relative_latencies(kept).tolist(), strict=True))


def _rms(values: Floats) -> float:
    return round(float(np.sqrt((values**2).mean())), 4)
