"""A Band: how far a number may be off, and the probability that it does not fit."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Band:
    """A central value with the range that holds nine runs in ten.

    Attributes:
        low: 5 % of runs need less.
        mid: the estimate.
        high: 5 % of runs need more.
    """

    low: int
    mid: int
    high: int

    @classmethod
    def around(cls, mid: int, below: float, above: float) -> Band:
        """A band from relative margins, e.g. ``below=0.04, above=0.08``."""
        return cls(round(mid * (1 - below)), mid, round(mid * (1 + above)))

    def p_above(self, limit: int) -> float:
        """Probability that the true value exceeds ``limit`` (two half-normals joined at ``mid``)."""
        side = self.high - self.mid if limit >= self.mid else self.mid - self.low
        if side <= 0:
            return 0.0 if limit >= self.mid else 1.0
        z = (limit - self.mid) / (side / 1.6448536269514722)
        return 0.5 * math.erfc(z / math.sqrt(2))

    def to_list(self) -> list[int]:
        """[low, mid, high]."""
        return [self.low, self.mid, self.high]
