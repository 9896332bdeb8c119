"""Whom the preparation of a run speaks to, where nobody listens."""

from __future__ import annotations

from search.tasks.dense import DenseEpoch


class Silent:
    """Preparation says nothing in a benchmark."""

    def say(self, line: str) -> None:
        """Nothing."""

    def dense_epoch(self, epoch: DenseEpoch, epochs: int) -> None:
        """Nothing."""
