"""A study twice: the durable one on disk, and a copy in memory that the sampler draws from, in lock step.

Asked directly, a study on disk writes and commits each parameter of a proposal, and is read again for every draw.
Here a proposal is drawn in memory and written as one finished row in one transaction, before it is handed out: a kill
at any instant leaves it there whole, or not at all.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import IntDistribution
from optuna.samplers import BaseGASampler, BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from search.study import note_trial, quiet

#: What TPE notes of a proposal while it runs, so that others see it before its parameters are set; here they are.
SCRATCH = "tpe:relative_params"
#: Where Optuna 4 kept constraints, and where Optuna's dashboard (0.21) still looks for them. Samplers would count each
#: of them twice.
LISTED = "constraints"


def listed(constraints: Mapping[str, float]) -> dict[str, list[float]]:
    """Constraints as Optuna's dashboard reads them."""
    return {LISTED: list(constraints.values())} if constraints else {}


class Mirror:
    """`study` is the durable one and decides the numbers; `trials` are the copy's, by number.

    `make(n)` gives the sampler that draws; n counts how often the copy had to be made anew, because a write failed or
    somebody else added a trial.
    """

    def __init__(self, study: Study, make: Callable[[int], BaseSampler]) -> None:
        self.study = study
        self._make = make
        self._copies = 0
        self._copy()

    def _copy(self) -> None:
        self._stale = False
        self._memory = optuna.create_study(
            storage=optuna.storages.InMemoryStorage(),
            sampler=self._make(self._copies),
            directions=self.study.directions,
        )
        self._copies += 1
        self._ids: list[int] = []
        for trial in self.study.get_trials(deepcopy=False):
            known = {k: v for k, v in trial.system_attrs.items() if k != LISTED}
            template = trial if LISTED not in trial.system_attrs else _with_attributes(trial, known)
            self._memory._storage.create_new_trial(self._memory._study_id, template_trial=template)
            self._ids.append(trial._trial_id)

    def fresh(self) -> bool:
        """Make the copy anew if it may no longer be one; whether that was so."""
        if not self._stale:
            return False
        self._copy()
        return True

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials by number; not to be changed."""
        return self._memory._storage.get_all_trials(self._memory._study_id, deepcopy=False)

    def trial(self, number: int) -> FrozenTrial:
        """One trial, not to be changed."""
        return self._memory._storage.get_trial(number)  # a study alone in its storage: ids are numbers

    def draw(self, distributions: Mapping[str, IntDistribution]) -> FrozenTrial:
        """A proposal of the sampler, in memory only: `write` it or it is lost."""
        self._stale = True
        with quiet():
            live = self._memory.ask()
            for name, d in distributions.items():
                live.suggest_int(name, d.low, d.high)
        return self.trial(live.number)

    def place(
        self, params: Mapping[str, int], distributions: Mapping[str, IntDistribution], state: TrialState
    ) -> FrozenTrial:
        """A given proposal in the place of a drawn one, RUNNING or WAITING, in memory only: `write` it."""
        self._stale = True
        template = optuna.trial.create_trial(state=state, params=dict(params), distributions=dict(distributions))
        return self.trial(self._memory._storage.create_new_trial(self._memory._study_id, template_trial=template))

    def insert(self, template: FrozenTrial) -> int:
        """A trial as it is, finished perhaps; returns its number."""
        self._stale = True
        number = self._memory._storage.create_new_trial(self._memory._study_id, template_trial=template)
        return self.write(number)

    def note(self, number: int, attributes: Mapping[str, Any]) -> None:
        """Add user attributes to a trial that is not yet written."""
        for key, value in attributes.items():
            self._memory._storage.set_trial_user_attr(number, key, value)

    def write(self, number: int) -> int:
        """Make a trial durable, whole and in one transaction; returns the number that it has there.

        Another number than `number` means that somebody else added trials: the copy is then no copy.
        """
        if self.trial(number).state == TrialState.RUNNING:
            self._breed(number)
        trial = self.trial(number)
        template = optuna.trial.create_trial(
            state=trial.state,
            values=trial.values,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs=trial.user_attrs,
            system_attrs={k: v for k, v in trial.system_attrs.items() if not k.startswith(SCRATCH)}
            | listed(trial.constraints),
        )
        storage = self.study._storage
        trial_id = storage.create_new_trial(self.study._study_id, template_trial=template)
        found = storage.get_trial_number_from_id(trial_id)
        self._ids.append(trial_id)
        self._stale = found != number
        return found

    def start(self, number: int) -> FrozenTrial:
        """Let a WAITING trial run."""
        self._stale = True
        self.study._storage.set_trial_state_values(self._ids[number], TrialState.RUNNING)
        self._memory._storage.set_trial_state_values(number, TrialState.RUNNING)
        self._stale = False
        return self.trial(number)

    def complete(self, number: int, distributions: Mapping[str, IntDistribution]) -> FrozenTrial:
        """Draw what a trial lacks of its parameters, and write that; what is set stays."""
        lacking = distributions.keys() - self.trial(number).params.keys()
        if lacking:
            self._stale = True
            with quiet():
                live = optuna.trial.Trial(self._memory, number)
                for name, d in distributions.items():
                    live.suggest_int(name, d.low, d.high)
            params = self.trial(number).params
            for name in (name for name in distributions if name in lacking):
                self.study._storage.set_trial_param(self._ids[number], name, params[name], distributions[name])
            self._stale = False
        key = self._breed(number)
        if key is not None:
            self.study._storage.set_trial_system_attr(self._ids[number], key, self.trial(number).system_attrs[key])
        return self.trial(number)

    def _breed(self, number: int) -> str | None:
        """A place in the population: the sampler itself gives none to a trial that it did not draw.

        Returns the attribute's name where it is new.
        """
        sampler, trial = self._memory.sampler, self.trial(number)
        if not isinstance(sampler, BaseGASampler):
            return None
        key = sampler._get_generation_key()
        if key in trial.system_attrs:
            return None
        self._memory._thread_local.cached_all_trials = None  # of the last draw: what was told since counts
        sampler.get_trial_generation(self._memory, trial)
        return key

    def first_generation(self) -> dict[str, int]:
        """The attribute that makes a trial filled in one of the first population, where the sampler breeds."""
        sampler = self._memory.sampler
        return {sampler._get_generation_key(): 0} if isinstance(sampler, BaseGASampler) else {}

    def finish(
        self,
        number: int,
        state: TrialState,
        values: Sequence[float] | None = None,
        *,
        constraints: Mapping[str, float] | None = None,
        attributes: Mapping[str, Any] | None = None,
        artefacts: Mapping[str, str] | None = None,
        durable: bool = True,
    ) -> None:
        """File a trial's end; with `durable` False in memory only, for a trial that is still to be written.

        `attributes` and `artefacts` are for those who look at the study: the copy needs none of them.
        """
        self._stale = True
        found = {f"constraints:{key}": value for key, value in (constraints or {}).items()}
        for key, value in found.items():
            self._memory._storage.set_trial_system_attr(number, key, value)
        if durable:
            # a kill between here and the state leaves them set, and they are set again to the same
            told = {**found, **listed(constraints or {}), **(artefacts or {})}
            note_trial(self.study._storage, self._ids[number], attributes or {}, told)
            self.study._storage.set_trial_state_values(self._ids[number], state, values)
        with quiet():
            self._memory.sampler.after_trial(self._memory, self.trial(number), state, values)
        self._memory._storage.set_trial_state_values(number, state, values)
        self._stale = not durable


def _with_attributes(trial: FrozenTrial, attributes: dict[str, Any]) -> FrozenTrial:
    """The same trial with other system attributes."""
    other = copy.copy(trial)
    other._system_attrs = attributes
    return other
