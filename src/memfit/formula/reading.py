"""One stage at its fullest moment, as plain figures: what ledgers, result documents and batches are made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from memfit.formula.runtime import RUNTIMES
from memfit.formula.step import ENTRIES
from memfit.ledger import Entry, Ledger

Line = tuple[str, str, int, str]
"""(component, name, bytes, provenance)."""

_EXACT = frozenset({"weights", "kv", "state"})


class Outside(NamedTuple):
    """Bytes outside the allocator; ``vendor`` names the runtime they belong to."""

    context: int
    nccl: int
    others: int
    vendor: str = "nvidia"

    @property
    def total(self) -> int:
        """All of it."""
        return self.context + self.nccl + self.others


class Reading(NamedTuple):
    """A stage's peak.

    Attributes:
        label: which rank, in words.
        phase, moment: when.
        parts: entry -> bytes; names as in ``step.ENTRIES`` or ``inference.ENTRIES``.
        slack: reserved minus allocated.
        outside: what the allocator does not see.
        host: pinned host memory of the rank.
    """

    label: str
    phase: str
    moment: str
    parts: Mapping[str, int]
    slack: int
    outside: Outside
    host: int = 0
    names: Mapping[str, tuple[Any, str]] = ENTRIES

    @property
    def allocated(self) -> int:
        """Bytes handed out by the caching allocator."""
        return sum(self.parts.values())

    @property
    def reserved(self) -> int:
        """Bytes held by the caching allocator."""
        return self.allocated + self.slack

    @property
    def device(self) -> int:
        """Bytes in use on the card."""
        return self.reserved + self.outside.total

    def peak_bytes(self) -> dict[str, int]:
        """The three peaks by kind."""
        allocated = self.allocated
        reserved = allocated + self.slack
        return {"allocated": allocated, "reserved": reserved, "device": reserved + self.outside.total}

    def lines(self) -> Iterator[Line]:
        """Lines that are not zero, in ledger order of their source."""
        for key, (component, name) in self.names.items():
            value = self.parts.get(key, 0)
            if value:
                yield component, name, value, "exact" if key in _EXACT else "formula"
        if self.slack:
            yield "slack", "allocator slack", self.slack, "calibrated"
        context, nccl, others, vendor = self.outside
        runtime, collectives, _ = RUNTIMES[vendor]
        if context:
            yield "runtime", runtime, context, "assumed"
        if nccl:
            yield "runtime", collectives, nccl, "assumed"
        if others:
            yield "others", "other processes", others, "assumed"

    def components(self) -> list[dict[str, Any]]:
        """The lines as JSON-ready objects."""
        return [{"name": c, "what": n, "bytes": b, "provenance": p} for c, n, b, p in self.lines()]

    def ledger(self, capacity: int | None) -> Ledger:
        """The reading as a Ledger."""
        entries = [Entry(component=c, name=n, bytes=b, provenance=p) for c, n, b, p in self.lines()]  # type: ignore[arg-type]
        return Ledger.of(entries, label=self.label, moment=self.moment, capacity_bytes=capacity)
