"""The difference of two ledgers, component by component."""

from __future__ import annotations

from dataclasses import dataclass

from memfit.ledger.component import COMPONENTS
from memfit.ledger.ledger import Ledger


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """One component in two ledgers; ``delta_bytes`` is right minus left."""

    component: str
    left_bytes: int
    right_bytes: int

    @property
    def delta_bytes(self) -> int:
        """Right minus left."""
        return self.right_bytes - self.left_bytes


def compare(left: Ledger, right: Ledger) -> tuple[Difference, ...]:
    """Every component that either ledger has, in display order.

    The deltas sum to the difference of the two ledgers' device bytes.
    """
    a, b = left.by_component(), right.by_component()
    return tuple(
        Difference(component=name, left_bytes=a.get(name, 0), right_bytes=b.get(name, 0))
        for name in COMPONENTS
        if name in a or name in b
    )
