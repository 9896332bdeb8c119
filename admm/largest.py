"""How many weights of each layer are among the largest rho w^2 of a whole network: one threshold, by selection.

Where every weight costs the same this is the exact projection onto a budget, and needs no ranking: a sample bounds the
threshold from both sides, one pass counts what lies beyond and picks out what lies between. On the tensors' own device;
nothing of a layer's size is copied to the host.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

#: Weights looked at together; with all their flags they stay in a core's cache. A device wants more at once.
PIECE, DEVICE_PIECE = 1 << 16, 1 << 24
#: Up to here all weights are candidates: a sample would save nothing.
SMALL = 1 << 14
#: Standard deviations of a sampled rank between the guess and either bound: a miss costs time only.
SLACK = 4.0
#: How far the bounds are moved apart, relatively: more than a square, a root and a float32 can round.
MARGIN = 1e-6


@dataclass(frozen=True, slots=True)
class Candidates:
    """Weights that count whatever the threshold, and the scores rho w^2 of those that may: float64, positive."""

    beyond: list[int]
    """[layers]"""
    scores: list[Tensor]
    """[layers] of [candidates], on the weights' device."""


def largest_counts(weights: Sequence[Tensor], rho: Sequence[float], least: Sequence[int], keep: int) -> list[int]:
    """Counts [layers] that keep the most sum_l rho_l ||Z_l||^2 with `keep` weights in all and `least` in each layer.

    `rho` [layers] is not negative, `least` [layers] sums up to at most `keep`; `weights` are finite. Weights of no
    energy are not kept beyond `least`. Of equal scores those of earlier layers are counted first.
    """
    counts = [0] * len(weights)
    free = list(range(len(weights)))
    while free:
        some = _shares([weights[i] for i in free], [rho[i] for i in free], keep)
        for i, count in zip(free, some, strict=True):
            counts[i] = count
        # a layer that gets fewer than it must have takes them from the others, whose threshold can only rise
        short = [i for i in free if counts[i] < least[i]]
        if not short:
            break
        for i in short:
            counts[i] = least[i]
            keep -= least[i]
        free = [i for i in free if i not in short]
    return counts


def _shares(weights: Sequence[Tensor], rho: Sequence[float], keep: int) -> list[int]:
    """How many of each layer are among the `keep` largest scores of all."""
    if keep < 1:
        return [0] * len(weights)
    total = sum(w.numel() for w in weights)
    low, high = _bounds(weights, rho, keep, total) if keep < total and total > SMALL else (0.0, math.inf)
    found = _between(weights, rho, low, high)
    need, every = keep - sum(found.beyond), torch.cat(found.scores)
    if (low, high) != (0.0, math.inf):
        value = float(_at_rank(every, need)) if 1 <= need <= every.numel() else math.nan
        if not low <= value <= high:  # the sample misled
            found = _between(weights, rho, 0.0, math.inf)
            need, every = keep, torch.cat(found.scores)
    if need >= every.numel():
        return [b + s.numel() for b, s in zip(found.beyond, found.scores, strict=True)]
    threshold = _at_rank(every, need)
    tallies = torch.stack([torch.stack(((s > threshold).sum(), (s == threshold).sum())) for s in found.scores]).tolist()
    ties = need - sum(above for above, _ in tallies)
    counts = []
    for beyond, (above, equal) in zip(found.beyond, tallies, strict=True):
        counts.append(beyond + above + min(equal, ties))
        ties -= min(equal, ties)
    return counts


def _at_rank(scores: Tensor, rank: int) -> Tensor:
    """The `rank`-th largest, 1 <= rank <= n."""
    return scores.kthvalue(scores.numel() - rank + 1).values


def _bounds(weights: Sequence[Tensor], rho: Sequence[float], keep: int, total: int) -> tuple[float, float]:
    """Scores below and above the threshold, most likely, from every n^(1/3)-th weight."""
    # a stride of 1 mod 6 shares no factor with the extents that layers have: it meets all columns of a matrix
    stride = 6 * round(total ** (1 / 3) / 6) + 1
    sample = torch.cat(
        [r * w.detach().reshape(-1)[::stride].double().square() for w, r in zip(weights, rho, strict=True)]
    )
    size, share = sample.numel(), keep / total
    slack = SLACK * math.sqrt(share * (1.0 - share) * size) + 2.0
    first, last = math.floor(share * size - slack), math.ceil(share * size + slack)
    high = float(_at_rank(sample, first)) if first >= 1 else math.inf
    low = float(_at_rank(sample, last)) if last <= size else 0.0
    return low, high


def _between(weights: Sequence[Tensor], rho: Sequence[float], low: float, high: float) -> Candidates:
    """What lies above `high` is counted; what lies from `low` to `high`, about, is picked out."""
    found = Candidates([], [])
    for weight, scale in zip(weights, rho, strict=True):
        flat = weight.detach().reshape(-1)
        none = torch.empty(0, dtype=torch.float64, device=flat.device)
        if not scale > 0.0:
            found.beyond.append(0)
            found.scores.append(none)
            continue
        least, most = math.sqrt(low / scale) * (1.0 - MARGIN), math.sqrt(high / scale) * (1.0 + MARGIN)
        pieces, beyond = [none], torch.zeros((), dtype=torch.int64, device=flat.device)
        for piece in flat.split(PIECE if flat.device.type == "cpu" else DEVICE_PIECE):
            # half precision would round the bounds away from the weights
            size = piece.to(torch.promote_types(piece.dtype, torch.float32)).abs()
            above = size > most
            beyond += above.sum()
            inside = size[(size >= least) & ~above].double().square() * scale
            pieces.append(inside[inside > 0.0])
        found.beyond.append(int(beyond))
        found.scores.append(torch.cat(pieces))
    return found
