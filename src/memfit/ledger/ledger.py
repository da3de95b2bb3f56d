"""A Ledger: bytes by component of one rank at one moment, which closes against the card's capacity."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from memfit.ledger.component import COMPONENTS, Component, Provenance

_ORDER = {name: index for index, name in enumerate(COMPONENTS)}
_OUTSIDE_ALLOCATOR = frozenset({"runtime", "others", "unaccounted"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One line of a ledger.

    Attributes:
        component: what the bytes are booked under.
        name: what exactly they are, in words.
        bytes: size on this rank; may be negative only for ``unaccounted``.
        provenance: where the number comes from.
        note: formula or source, shown on demand.
    """

    component: Component
    name: str
    bytes: int
    provenance: Provenance = "formula"
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ledger:
    """Bytes of one rank at its fullest moment.

    ``capacity_bytes = device_bytes + free_bytes`` always holds; without a known card the capacity is None.

    Attributes:
        label: which rank, in words ("rank 0 of pipeline stage 1").
        moment: when ("backward of the last block").
        entries: lines in display order.
        capacity_bytes: total as the driver reports it, or None.
    """

    label: str
    moment: str
    entries: tuple[Entry, ...]
    capacity_bytes: int | None = None

    @classmethod
    def of(
        cls, entries: Iterable[Entry], *, label: str = "", moment: str = "", capacity_bytes: int | None = None
    ) -> Ledger:
        """A ledger with its entries sorted by component and zero lines dropped."""
        kept = sorted((e for e in entries if e.bytes), key=lambda e: _ORDER[e.component])
        return cls(label=label, moment=moment, entries=tuple(kept), capacity_bytes=capacity_bytes)

    def sum_of(self, *components: str) -> int:
        """Bytes booked under the given components."""
        return sum(e.bytes for e in self.entries if e.component in components)

    def by_component(self) -> dict[str, int]:
        """Bytes per component, display order, components without bytes left out."""
        sums: dict[str, int] = {}
        for entry in self.entries:
            sums[entry.component] = sums.get(entry.component, 0) + entry.bytes
        return sums

    @property
    def allocated_bytes(self) -> int:
        """What the caching allocator has handed out."""
        return sum(e.bytes for e in self.entries if e.component not in _OUTSIDE_ALLOCATOR and e.component != "slack")

    @property
    def reserved_bytes(self) -> int:
        """What the caching allocator holds: allocated plus slack."""
        return sum(e.bytes for e in self.entries if e.component not in _OUTSIDE_ALLOCATOR)

    @property
    def device_bytes(self) -> int:
        """What the card shows as used: reserved, runtime, other processes."""
        return sum(e.bytes for e in self.entries)

    @property
    def free_bytes(self) -> int | None:
        """What is left of the capacity; negative when the need is larger; None without a known card."""
        return None if self.capacity_bytes is None else self.capacity_bytes - self.device_bytes

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {
            "label": self.label,
            "moment": self.moment,
            "capacity_bytes": self.capacity_bytes,
            "free_bytes": self.free_bytes,
            "components": [
                {"name": e.component, "what": e.name, "bytes": e.bytes, "provenance": e.provenance, "note": e.note}
                for e in self.entries
            ],
        }
