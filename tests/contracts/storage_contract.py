"""What every storage of a study must hold to: subclass `StorageContract` and give it a URL."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from optuna.trial import TrialState

from search.budget import Budget
from search.sampler import Proposal, StudySampler
from search.space import Space
from tests.search.fabricated import SPACE, result_of

ROOT = Path(__file__).parents[2]


class StorageContract:
    """Subclasses provide the fixture `url`: a study's URL where nothing is yet."""

    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        raise NotImplementedError

    def open(self, url: str, space: Space = SPACE, **options: object) -> StudySampler:
        return StudySampler(url, space, **options)  # type: ignore[arg-type]

    def test_a_driver_finds_what_the_one_before_left(self, url: str) -> None:
        first = self.open(url, sampler="random")
        asked = [first.ask() for _ in range(4)]
        first.tell(result_of(asked[0]))
        first.tell(result_of(asked[1], "stopped"))
        second = self.open(url, sampler="random", start=1)
        assert second.unfinished() == asked[2:]
        states = [t.state for t in second.study.get_trials(deepcopy=False)]
        assert [states[p.number] for p in asked] == [
            TrialState.COMPLETE,
            TrialState.PRUNED,
            TrialState.RUNNING,
            TrialState.RUNNING,
        ]
        more = second.ask()
        assert more.number >= len(states)
        assert more.plan not in [p.plan for p in asked]

    def test_figures_come_back_exactly(self, url: str) -> None:
        budget = Budget(speedup=1.7)
        sampler = self.open(url, budget=budget)
        proposal = sampler.ask()
        result = result_of(proposal, accuracy=0.1 + 0.2, speedup=3.0)
        sampler.tell(result)
        trial = self.open(url, budget=budget).study.get_trials(deepcopy=False)[0]
        assert trial.values == [0.1 + 0.2, 1.0 / 3.0]
        assert trial.params == dict(proposal.params)
        excess = budget.excess(result.latency_high_ms or 0, result.speedup_low or 0)
        assert trial.constraints == {"over_budget": excess, "0": excess}, "as Optuna 5 notes it, and as Optuna 4 did"

    def test_another_question_is_another_study(self, url: str) -> None:
        plain = self.open(url)
        plain.ask()
        for other in (
            self.open(url, budget=Budget(speedup=2.0)),
            self.open(url, rig="cuda"),
            self.open(url, Space(SPACE.dimensions[:2])),
            self.open(url, run="digits-002"),
        ):
            assert other.study.get_trials(deepcopy=False) == []
        assert len(self.open(url).study.get_trials(deepcopy=False)) == 1

    def test_a_study_is_filled_with_the_numbers_of_the_record(self, url: str) -> None:
        old = self.open(url)
        results = {p.number: result_of(p) for p in (old.ask() for _ in range(5))}
        gap = sorted(results)[3]
        del results[gap]
        budget = Budget(speedup=1.2)
        new = self.open(url, budget=budget)
        new.fill(results)
        again = self.open(url, budget=budget)
        trials = again.study.get_trials(deepcopy=False)
        assert [t.number for t in trials] == list(range(max(results) + 1))
        assert all(trials[n].values == list(r.dominates_key) for n, r in results.items())
        assert all(t.state == TrialState.FAIL for t in trials if t.number not in results)
        assert trials[gap].params == {}
        assert again.unfinished() == []
        assert again.ask().number > max(results)

    def test_a_killed_driver_costs_no_trial_and_repeats_none(self, url: str, tmp_path: Path) -> None:
        """Ask and tell in a process that is killed at random instants; what it said it had done must be there."""
        rng = random.Random(url.partition(":")[0])
        journal = tmp_path / "said"
        journal.touch()
        for start in range(2):
            lines = len(journal.read_text().splitlines())
            process = subprocess.Popen(
                [sys.executable, __file__, url, str(journal), str(start)],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": "."},
            )
            deadline = time.monotonic() + 600
            while len(journal.read_text().splitlines()) < lines + 4 and time.monotonic() < deadline:
                time.sleep(0.01)
            assert len(journal.read_text().splitlines()) >= lines + 4
            time.sleep(rng.uniform(0.0, 0.1))
            process.send_signal(signal.SIGKILL)
            process.wait()
        said = [line.split() for line in journal.read_text().splitlines(keepends=True) if line.endswith("\n")]
        told = {int(number) for what, number, _ in said if what == "told"}
        digests = {int(number): digest for what, number, digest in said if what == "asked"}
        sampler = self.open(url, sampler="random", start=9)
        trials = {t.number: t for t in sampler.study.get_trials(deepcopy=False)}
        assert len(told) >= 2
        assert all(trials[number].state == TrialState.COMPLETE for number in told)
        assert all(SPACE.plan(trials[number].params).digest() == digest for number, digest in digests.items())
        unfinished = sampler.unfinished()
        finished = [t for t in trials.values() if t.state == TrialState.COMPLETE and "duplicate_of" not in t.user_attrs]
        plans = [SPACE.plan(t.params).digest() for t in finished] + [p.plan.digest() for p in unfinished]
        assert len(set(plans)) == len(plans)
        for proposal in unfinished:
            sampler.tell(result_of(proposal))
        assert not [t for t in sampler.study.get_trials(deepcopy=False) if t.state == TrialState.RUNNING]


def _ask_and_tell(url: str, journal: Path, start: int) -> None:
    """What the killed process does: the trials left unfinished first, then new ones, until it is shot."""
    sampler = StudySampler(url, SPACE, sampler="random", start=start)
    with open(journal, "a", buffering=1) as said:

        def settle(proposal: Proposal) -> None:
            said.write(f"asked {proposal.number} {proposal.plan.digest()}\n")
            sampler.tell(result_of(proposal))
            said.write(f"told {proposal.number} {proposal.plan.digest()}\n")

        for proposal in sampler.unfinished():
            settle(proposal)
        while True:
            settle(sampler.ask())


if __name__ == "__main__":
    _ask_and_tell(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
