"""What a GPU-hour costs: a dated snapshot, or a list of the user's. Prices move: every answer carries its date.

Two rules stand between a row and an answer. A machine is rented whole: a price of an 8-GPU machine is paid eight times
for one GPU, and a single-GPU machine says nothing about four GPUs that share a node. And an old price, one of more than
``OLD_MONTHS`` months, is used only where its provider is asked for by name and has no newer one.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cache

from memfit.errors import JobError
from memfit.hardware.cluster import default_node
from memfit.hardware.data import DATA_DATE, read
from memfit.hardware.gpu import Gpu

OLD_MONTHS = 18
"""Prices of more months are old: AWS asked 98.32 dollars for a p5.48xlarge in 2025-03 and 55.04 in 2026-05."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Price:
    """The price of one GPU for one hour.

    Attributes:
        gpu: name of the card.
        provider: who asked it; ``given`` for the user's own figure.
        machine: the machine that has this price; empty where cards are priced one by one.
        machine_gpus: its GPUs, which are rented together; None where cards are rented one by one.
        usd_per_hour: on demand, US dollars per GPU.
        spot_usd_per_hour: interruptible, None where not listed.
        source, date: where and when it was seen; the date is empty where none is known.
    """

    gpu: str
    provider: str
    machine: str = ""
    machine_gpus: int | None = None
    usd_per_hour: float
    spot_usd_per_hour: float | None
    source: str
    date: str

    @property
    def is_old(self) -> bool:
        """More than ``OLD_MONTHS`` months before this release's data: no answer depends on the day it is asked."""
        return bool(self.date) and _month(DATA_DATE) - _month(self.date) > OLD_MONTHS

    def serves(self, gpus: int, per_node: int) -> bool:
        """Whether so many GPUs, ``per_node`` of them in one node, are found in machines of this price."""
        return self.machine_gpus is None or self.machine_gpus >= min(gpus, per_node)

    def paid_gpus(self, gpus: int) -> int:
        """GPUs that are paid for when so many are used: those of whole machines."""
        size = self.machine_gpus or 1
        return -(-gpus // size) * size

    def per_hour(self, gpus: int, *, spot: bool = False) -> float:
        """US dollars an hour for so many GPUs in whole machines; ``spot`` takes the interruptible price where known."""
        each = self.spot_usd_per_hour if spot and self.spot_usd_per_hour is not None else self.usd_per_hour
        return self.paid_gpus(gpus) * each


def _month(date: str) -> int:
    """Months since year 0 of ``2026``, ``2026-05`` or ``2026-05-17``; a bare year counts from its start."""
    year, _, rest = date.partition("-")
    return int(year) * 12 + int(rest[:2] or 1)


@cache
def prices() -> tuple[Price, ...]:
    """The whole snapshot."""
    return tuple(Price(**row) for row in read("prices"))


def cheapest(
    gpu: Gpu,
    gpus: int = 1,
    *,
    per_node: int | None = None,
    rows: Iterable[Price] | None = None,
    within: Collection[str] = (),
    spot: bool = False,
) -> Price | None:
    """The price at which so many cards cost least, the newest of equal ones; None where no price is known.

    Args:
        gpu: the card.
        gpus: how many.
        per_node: of them that share a node; default: as the usual machine of the card has.
        rows: the prices that are known; default: the snapshot.
        within: providers in lower case; empty for all. Old prices are used of these only, and only where the provider
            has no newer one.
        spot: compare interruptible prices where they are known.
    """
    node = per_node or default_node(gpu).num_gpus
    found = [p for p in (prices() if rows is None else rows) if p.gpu == gpu.name and p.serves(gpus, node)]
    if within:
        found = [p for p in found if p.provider.lower() in within]
    recent = {p.provider for p in found if not p.is_old}
    usable = [p for p in found if not p.is_old or (within and p.provider not in recent)]
    return min(usable, key=lambda p: (p.per_hour(gpus, spot=spot), -_month(p.date or "0")), default=None)


def price(gpu: Gpu, override: float | None = None, gpus: int = 1) -> Price | None:
    """The price of cards: the user's own, else the lowest on-demand one of the snapshot that is not old, else None.

    Args:
        gpu: the card.
        override: US dollars per GPU-hour that the user pays.
        gpus: how many are rented together.

    Raises:
        JobError: the override is negative or not a number.
    """
    if override is None:
        return cheapest(gpu, gpus)
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
