"""How often each source proposes: the one whose proposals added more hypervolume an epoch, the more often.

A bandit over few arms whose rewards fade: what a source gained lately counts. It is computed from what is known of
the finished trials, in the order of their numbers, so that a restart goes on alike.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence

#: No source is asked less often than this.
FLOOR = 0.15
#: Weight of a source's earlier gains for each later trial of its own.
FADING = 0.75
#: Trials of the common rate that each source is credited with: a few without gain are no proof against it.
PRIOR = 2.0


def shares(sources: Sequence[str], history: Iterable[tuple[str, float, float]]) -> dict[str, float]:
    """Each source's share of the proposals; they add up to 1.

    `history` has (source, hypervolume gained, epochs spent) of each finished trial by number; other sources' trials
    in it are passed over. Equal shares until something was gained.
    """
    gained, spent, counted = dict.fromkeys(sources, 0.0), dict.fromkeys(sources, 0.0), dict.fromkeys(sources, 0.0)
    for source, gain, epochs in history:
        if source in gained:
            gained[source] = FADING * gained[source] + gain
            spent[source] = FADING * spent[source] + epochs
            counted[source] = FADING * counted[source] + 1.0
    total = sum(gained.values())
    if not 0.0 < total < math.inf or sum(spent.values()) <= 0.0:
        return {source: 1.0 / len(sources) for source in sources}
    mean, trial = total / sum(spent.values()), sum(spent.values()) / sum(counted.values())
    prior = PRIOR * trial
    rates = {source: (gained[source] + prior * mean) / (spent[source] + prior) for source in sources}
    free = 1.0 - FLOOR * len(sources)
    return {source: FLOOR + free * rate / sum(rates.values()) for source, rate in rates.items()}


def pick(shares: Mapping[str, float], rng: random.Random) -> str:
    """A source, as often as its share says."""
    return rng.choices(list(shares), list(shares.values()))[0]
