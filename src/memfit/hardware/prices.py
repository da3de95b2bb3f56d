"""What a GPU-hour cost on the day of the snapshot. Prices move: every answer carries its date."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

from memfit.errors import JobError
from memfit.hardware.data import read
from memfit.hardware.gpu import Gpu


@dataclass(frozen=True, kw_only=True, slots=True)
class Price:
    """The price of one GPU for one hour.

    Attributes:
        gpu: name of the card.
        provider: who asked it; ``given`` for the user's own figure.
        usd_per_hour: on demand, US dollars per GPU.
        spot_usd_per_hour: interruptible, None where not listed.
        source, date: where and when it was seen.
    """

    gpu: str
    provider: str
    usd_per_hour: float
    spot_usd_per_hour: float | None
    source: str
    date: str


@cache
def prices() -> tuple[Price, ...]:
    """The whole snapshot."""
    return tuple(Price(**row) for row in read("prices"))


def price(gpu: Gpu, override: float | None = None) -> Price | None:
    """The price of a card: the user's own, else the lowest on-demand one of the snapshot, else None.

    Args:
        gpu: the card.
        override: US dollars per GPU-hour that the user pays.

    Raises:
        JobError: the override is negative or not a number.
    """
    if override is not None:
        if not math.isfinite(override) or override < 0:
            raise JobError("price", "must be dollars per GPU-hour", value=override, bound=">= 0")
        return Price(
            gpu=gpu.name,
            provider="given",
            usd_per_hour=float(override),
            spot_usd_per_hour=None,
            source="given by the user",
            date="",
        )
    return min((p for p in prices() if p.gpu == gpu.name), key=lambda p: p.usd_per_hour, default=None)
