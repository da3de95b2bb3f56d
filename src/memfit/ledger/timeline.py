"""A Timeline: allocations and frees in order, from whichever of the four ways produced them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from memfit.ledger.component import Component


class Event(NamedTuple):
    """One allocation (``bytes`` > 0), free (``bytes`` < 0) of block ``id``, or mark (``bytes`` == 0, ``phase`` begins).

    Attributes:
        id: the block; a free carries the id of its allocation.
        bytes: size with its sign.
        component: what the block holds.
        phase: ``load``, ``forward``, ``loss``, ``backward``, ``reduce``, ``optimizer`` ...
        module: path of the module that was running, "" when unknown.
        what: the operation or the tensor, in words.
        stream: CUDA stream number, 0 is the default stream.
    """

    id: int
    bytes: int
    component: Component
    phase: str
    module: str = ""
    what: str = ""
    stream: int = 0


@dataclass(frozen=True, slots=True)
class Timeline:
    """Events of one rank in order, with the readings everybody needs."""

    events: tuple[Event, ...]
    origin: Literal["formula", "traced", "measured"] = "formula"

    def __len__(self) -> int:
        return len(self.events)

    def __iter__(self) -> Iterator[Event]:
        return iter(self.events)

    def totals(self) -> list[int]:
        """Bytes in use after each event."""
        total = 0
        out = []
        for event in self.events:
            total += event.bytes
            out.append(total)
        return out

    @property
    def peak(self) -> tuple[int, int]:
        """(index of the event, bytes) of the first highest point; (-1, 0) when empty."""
        best, at, total = 0, -1, 0
        for index, event in enumerate(self.events):
            total += event.bytes
            if total > best:
                best, at = total, index
        return at, best

    def phase_peaks(self) -> dict[str, int]:
        """Highest bytes in use during each phase, in order of appearance."""
        peaks: dict[str, int] = {}
        total = 0
        for event in self.events:
            total += event.bytes
            peaks[event.phase] = max(peaks.get(event.phase, 0), total)
        return peaks

    def live_at(self, index: int) -> dict[int, Event]:
        """The blocks in use right after event ``index``, by id."""
        live: dict[int, Event] = {}
        for event in self.events[: index + 1]:
            if event.bytes > 0:
                live[event.id] = event
            elif event.bytes < 0:
                live.pop(event.id, None)
        return live

    def components_at(self, index: int) -> dict[Component, int]:
        """Bytes per component right after event ``index``."""
        sums: dict[Component, int] = defaultdict(int)
        for event in self.live_at(index).values():
            sums[event.component] += event.bytes
        return dict(sums)


def timeline(events: Iterable[Event], origin: Literal["formula", "traced", "measured"] = "formula") -> Timeline:
    """A Timeline from any iterable of events."""
    return Timeline(tuple(events), origin)
