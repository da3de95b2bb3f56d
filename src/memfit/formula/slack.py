"""What the caching allocator holds beyond what is allocated, and the band around a prediction.

Causes, seen by replaying played steps (``timeline.py``) through the simulated allocator (``benchmarks/slack.py``):

- a free block serves only the stream it was allocated on, so sharded runs add up the peaks of their streams: gathered
  weights, reductions with the gradient shards, and everything else;
- large freed blocks (logits) are cut by smaller requests and are not whole again when the next step wants them;
- optimizer states are made at the end of the first step, inside memory that activations had used;
- what ``segments.py`` counts.

With expandable segments only the first cause is left, and the embedding's reduction input on a first pipeline stage.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import NormalDist
from typing import Any

from memfit.formula.dims import Int
from memfit.ledger import Band

FLAT = {"logits": 12, "kept": 3, "block": 25, "unfilled": 88, "uneven": 170, "first_pass": 85}
LATE = {"logits": 30, "kept": 1, "block": 25, "states": 12}
"""Percent of each entry that is lost to splitting, by least squares over simulated steps (``benchmarks/slack.py``
prints the fit and its residual): FLAT where gradients stand in buffers from the start (its last three are those of
``segments.py``, in jobs with experts, tensor and pipeline parallelism), LATE where they come and go."""


RESERVED_ABOVE = {False: 0.14, True: 0.18}
"""How far above the prediction 19 of 20 runs stay in reserved memory, without and with sharded weights."""

OUTSIDE_ABOVE = 0.25
"""The same for what lies outside the allocator."""


def fragments(parts: Mapping[str, Int], *, states_late: bool) -> Int:
    """Bytes lost to splitting with the default allocator settings.

    Args:
        parts: entries of one moment.
        states_late: optimizer states are made tensor by tensor in the first step.
    """
    lost: Int = 0
    for name, percent in (LATE if states_late else FLAT).items():
        lost = lost + parts.get(name, 0) * percent
    return lost // 100


def bands(peak: Mapping[str, int], outside: int, *, sharded: bool) -> dict[str, Band]:
    """The ranges that hold nine runs in ten, for allocated, reserved and device; ``need`` decides about fitting.

    ``need`` is what must be there for the run to finish: the allocator gives cached blocks back before it fails, so the
    need lies between allocated and reserved.

    Args:
        peak: ``allocated``, ``reserved`` and ``device`` bytes.
        outside: bytes outside the allocator.
        sharded: the job shards over data parallelism, whose stream order widens the range.
    """
    allocated = Band.around(peak["allocated"], 0.06, 0.07)
    reserved = Band.around(peak["reserved"], 0.10, RESERVED_ABOVE[sharded])
    device = Band(reserved.low + outside, peak["device"], reserved.high + round(outside * (1 + OUTSIDE_ABOVE)))
    need = need_band(needed(peak["allocated"], peak["reserved"], outside))
    return {"allocated": allocated, "reserved": reserved, "device": device, "need": need}


def calm_bytes(reserved: Any, outside: Any, risk: float, *, sharded: bool) -> Any:
    """The capacity from which the allocator keeps its cache for good with a probability of at least ``1 - risk``.

    Below it a run may finish, but gives blocks back and asks the driver for new ones in every step, which is slow.

    Args:
        reserved, outside: bytes held by the allocator and outside it, one number or an array.
        risk: largest accepted probability, below one half.
        sharded: as for ``bands``.
    """
    spread = NormalDist().inv_cdf(1 - risk) / NormalDist().inv_cdf(0.95)
    return reserved * (1 + RESERVED_ABOVE[sharded] * spread) + outside * (1 + OUTSIDE_ABOVE * spread)


def needed(allocated: Int, reserved: Int, outside: Int) -> Int:
    """The middle of the band ``need``: bytes that must be there for a run to finish."""
    return (allocated * 2 + reserved) // 3 + outside


def need_band(middle: int) -> Band:
    """The band ``need`` around its middle."""
    return Band(middle * 93 // 100, middle, middle * 109 // 100)


def most_needed(capacity_bytes: int, risk: float) -> int:
    """The largest middle of ``need`` that runs out of memory with at most the probability ``risk``."""
    low, high = 0, 2 * capacity_bytes
    while low < high:
        middle = (low + high + 1) // 2
        if need_band(middle).p_above(capacity_bytes) <= risk:
            low = middle
        else:
            high = middle - 1
    return low
