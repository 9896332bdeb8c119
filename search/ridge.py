"""A forecast of what an untried plan would measure, from the finished ones: Bayesian ridge regression. NumPy only.

Each dimension enters as u = -ln(what is kept) and u^2: log latency is nearly linear in u, and damage convex. All
dimensions share a trend (more removed is faster and worse), from which each departs as far as the trials say. A draw
from the posterior instead of its mean makes the search try what it does not know (Thompson sampling).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from search.space import Space

Floats = npt.NDArray[np.float64]

#: Ridge penalties tried, relative to the features' mean square; the best by generalised cross-validation is taken.
PENALTIES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
#: The trend of all dimensions together is hardly penalised: its columns count as this much larger.
TREND = 10.0
TRENDS = 2


class Features:
    """Steps as a matrix [plans, 2 dimensions + 2]: each dimension's u and u^2, and their means."""

    def __init__(self, space: Space) -> None:
        self._names = [d.name for d in space.dimensions]
        #: What is drawn beside the dimensions, such as the precision: enters as it is.
        self._others = [name for name in space.sizes if name not in set(self._names)]
        self._removed = [
            np.asarray([-math.log(max(1.0 - s, 1e-3)) for s in d.sparsities], dtype=np.float64)
            for d in space.dimensions
        ]

    def steps(self, plans: Sequence[Mapping[str, int]]) -> Floats:
        """The steps of the dimensions [plans, dimensions]."""
        return np.asarray([[p[n] for n in self._names] for p in plans], dtype=np.float64).reshape(len(plans), -1)

    def of(self, plans: Sequence[Mapping[str, int]]) -> Floats:
        """One row a plan."""
        u = np.asarray([[r[p[n]] for n, r in zip(self._names, self._removed, strict=True)] for p in plans])
        u = u.reshape(len(plans), len(self._names))
        trend = np.stack([u.mean(axis=1), (u * u).mean(axis=1)], axis=1)
        others = np.asarray([[float(p[n]) for n in self._others] for p in plans]).reshape(len(plans), -1)
        return np.concatenate([u, u * u, others, trend], axis=1)


class Line:
    """Weighted ridge regression of one target, its intercept free. `draw` gives coefficients of the posterior."""

    def __init__(self, features: Floats, target: Floats, weights: Floats | None = None) -> None:
        w = np.ones(len(target)) if weights is None else weights / weights.mean()
        self._centre = (w[:, None] * features).mean(axis=0)
        self._level = float((w * target).mean())
        root = np.sqrt(w)
        x = root[:, None] * (features - self._centre)
        y = root * (target - self._level)
        # the dimensions' columns share one scale, so that one that was seldom moved stays near the trend
        spread = np.sqrt((x * x).mean(axis=0))
        own, trend = spread[:-TRENDS], spread[-TRENDS:]
        moved = own[own > 0.0]
        shared = float(np.median(moved)) if moved.size else 1.0
        self._scale = np.concatenate([np.full(own.size, shared), np.where(trend > 0.0, trend, 1.0) / TREND])
        x = x / self._scale
        squares, right = np.linalg.eigh(x.T @ x)
        self._squares, self._right = np.maximum(squares, 0.0), right.T
        along = self._right @ (x.T @ y)
        total = float(y @ y)
        best = math.inf
        self._ridge, self._variance = PENALTIES[-1] * len(y), total / len(y)
        for penalty in PENALTIES:
            ridge = penalty * len(y)
            shrunk = 1.0 / (self._squares + ridge)
            # of |y - x b|^2, with b the ridge solution
            residual = max(total - float((along**2 * shrunk * (2.0 - self._squares * shrunk)).sum()), 0.0)
            freedom = len(y) - 1.0 - float((self._squares * shrunk).sum())
            if freedom > 0.5 and residual / freedom**2 < best:
                best = residual / freedom**2
                self._ridge, self._variance = ridge, residual / freedom
        self._mean = self._right.T @ (along / (self._squares + self._ridge))

    def draw(self, normals: Floats | None = None) -> Floats:
        """Coefficients of the scaled features: the posterior's mean, or a draw with these standard normals [columns].

        Directions that no trial tells apart vary as the prior does.
        """
        if normals is None:
            return np.asarray(self._mean)
        spread = math.sqrt(self._variance) / np.sqrt(self._squares + self._ridge)
        return np.asarray(self._mean + self._right.T @ (spread * normals))

    def at(self, features: Floats, coefficients: Floats) -> Floats:
        """The target of each row under these coefficients."""
        return np.asarray(self._level + (features - self._centre) / self._scale @ coefficients)
