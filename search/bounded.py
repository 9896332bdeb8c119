"""Optuna's TPE on a bounded part of a long study, the best trials and the latest: a draw costs the same for ever.

TPE reads every trial for each draw and fits its densities to all of them: in a search of thousands that is most of the
driver's work, for densities that the ten thousandth trial no longer moves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.samplers import TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from search.pareto import front

#: Finished trials that a draw looks at: the latest, and the best of those before them.
LATEST, BEST = 400, 100


class BoundedTPE(TPESampler):
    """TPE as it is until there are `LATEST + BEST` finished trials, then on so many of them; all that run count."""

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """See `BaseSampler`."""
        return super().infer_relative_search_space(_Part(study), trial)  # type: ignore[arg-type]

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """See `BaseSampler`."""
        return super().sample_relative(_Part(study), trial, search_space)  # type: ignore[arg-type]


class _Part:
    """A study that tells of some of its trials."""

    def __init__(self, study: Study) -> None:
        self._whole = study

    def __getattr__(self, name: str) -> Any:
        return getattr(self._whole, name)

    def _get_trials(self, *arguments: Any, **options: Any) -> list[FrozenTrial]:
        return worth_a_look(self._whole._get_trials(*arguments, **options))


def worth_a_look(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Of (accuracy up, costs down) trials in their order: all that are unfinished, the latest and the best others.

    The best are the first layers of non-domination among what keeps its constraints, or among all where nothing does.
    """
    ended = [t for t in trials if t.state.is_finished()]
    if len(ended) <= LATEST + BEST:
        return list(trials)
    older = [t for t in ended[:-LATEST] if t.state == TrialState.COMPLETE]
    within = [t for t in older if not float(t.system_attrs.get("constraints:over_budget", 0.0)) > 0.0]
    left = within or older
    chosen: set[int] = {t.number for t in ended[-LATEST:]}
    room = BEST
    while left and room > 0:
        layer = set(front([tuple(t.values) for t in left])) or set(range(len(left)))
        taken = sorted(layer)[-room:]
        chosen.update(left[i].number for i in taken)
        room -= len(taken)
        left = [t for i, t in enumerate(left) if i not in layer]
    return [t for t in trials if t.number in chosen or not t.state.is_finished()]
