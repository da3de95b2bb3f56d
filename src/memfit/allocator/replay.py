"""Run recorded events through the simulated allocator: peaks, spans between marks, out of memory."""

from __future__ import annotations

import gc
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memfit.allocator.blocks import Block
from memfit.allocator.config import AllocatorConfig
from memfit.allocator.device import Device
from memfit.allocator.events import (
    ALLOC,
    EMPTY_CACHE,
    FREE,
    MARK,
    POOL_BEGIN,
    POOL_END,
    POOL_RELEASE,
    SYNC,
    USE,
    Event,
)
from memfit.allocator.oom import SimulatedOutOfMemoryError
from memfit.allocator.releases import LATEST, Release
from memfit.allocator.simulator import CachingAllocator
from memfit.allocator.snapshot import segments, snapshot, write_snapshot
from memfit.allocator.stats import MemoryStats
from memfit.errors import MemfitError

Settings = AllocatorConfig | str | None
"""Allocator settings, as an object, as the text of ``PYTORCH_ALLOC_CONF``, or None for PyTorch's defaults."""


@dataclass(frozen=True, kw_only=True)
class OutOfMemory:
    """The request that failed.

    Attributes:
        index: of its event. id: of its storage. requested: bytes that the program asked for.
        segment: bytes that the allocator then asked of the device.
        text: PyTorch's message.
    """

    index: int
    id: Hashable
    requested: int
    segment: int
    text: str


@dataclass(frozen=True, kw_only=True)
class Span:
    """Peaks between two MARK events, in bytes; ``begin`` and ``end`` are event indices."""

    label: str
    begin: int
    end: int
    allocated_peak: int
    reserved_peak: int


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What the allocator did with the events; bytes throughout.

    Attributes:
        allocated_peak, active_peak, requested_peak, reserved_peak: see `CachingAllocator`.
        allocated, reserved: at the end.
        peak_index: the event at which ``allocated_peak`` was first reached; -1 when nothing was allocated.
        num_events: events replayed: all, or up to the failing one.
        num_segments_peak, num_alloc_retries: counts.
        spans: peaks between marks; what precedes the first mark has the label "".
        oom: the failing request, where the replay ended; None when all went well.
        allocator, live: the final state: the allocator and its blocks in use by id.
    """

    allocated_peak: int
    active_peak: int
    requested_peak: int
    reserved_peak: int
    allocated: int
    reserved: int
    peak_index: int
    num_events: int
    num_segments_peak: int
    num_alloc_retries: int
    spans: tuple[Span, ...]
    oom: OutOfMemory | None
    allocator: CachingAllocator = field(repr=False, compare=False)
    live: Mapping[Hashable, Block] = field(repr=False, compare=False)

    def segments(self) -> list[dict[str, Any]]:
        """The final memory map in PyTorch's form."""
        return segments(self.allocator, self.live.values())

    def snapshot(self) -> dict[str, Any]:
        """The final state as PyTorch's memory snapshot; its history is filled when the replay kept one."""
        return snapshot(self.allocator, self.live.values())

    def write_snapshot(self, path: str | Path) -> None:
        """Write `snapshot` as PyTorch's pickle."""
        write_snapshot(path, self.allocator, self.live.values())


def replay(
    events: Iterable[Event],
    config: Settings = None,
    capacity: int | None = None,
    *,
    others: int = 0,
    release: Release = LATEST,
    order: str | int = "ascending",
    lag: int | None = 0,
    history: bool = False,
    stats: bool = False,
    frames: Callable[[Event], Any] | None = None,
) -> Replay:
    """Replay events up to their end or the first out-of-memory error.

    Args:
        events: see `memfit.allocator.events`.
        config: allocator settings.
        capacity: bytes of the device; None is no limit.
        others: bytes in use outside of the allocator (context, other processes).
        release: (major, minor) of torch.
        order: of driver addresses, see `Device`; without influence from torch 2.12 on.
        lag: of uses on other streams, see `CachingAllocator`.
        history: keep every action for the snapshot.
        stats: count all of ``torch.cuda.memory_stats`` (``result.allocator.stats.to_dict()``).
        frames: gives the stack frames of an ALLOC event for the snapshot, as a list of
            ``{"filename", "line", "name"}``.

    Raises:
        MemfitError: settings that cannot be read, an unknown event, an id allocated twice.
    """
    allocator = CachingAllocator(
        resolve(config, release),
        Device(capacity, others, order),
        release=release,
        lag=lag,
        stats=MemoryStats() if stats else None,
        history=[] if history else None,
    )
    collecting = gc.isenabled()
    gc.disable()  # the many small tuples would set off collections that find nothing
    try:
        return _replay(events, allocator, frames)
    finally:
        if collecting:
            gc.enable()


def _replay(events: Iterable[Event], allocator: CachingAllocator, frames: Callable[[Event], Any] | None) -> Replay:
    malloc, free = allocator.malloc, allocator.free
    live: dict[Hashable, Block] = {}
    spans = _Spans(allocator)
    oom: OutOfMemory | None = None
    peak, peak_index, index = 0, -1, -1
    for index, event in enumerate(events):
        kind = event[0]
        if kind == ALLOC:
            size = event[2]
            if size > 0:
                name = event[1]
                if name in live:
                    raise MemfitError(f"event {index}: storage {name!r} is allocated twice")
                try:
                    live[name] = malloc(size, event[3], frames(event) if frames is not None else None)
                except SimulatedOutOfMemoryError as error:
                    oom = OutOfMemory(
                        index=index, id=name, requested=size, segment=error.facts.segment, text=str(error)
                    )
                    break
                if allocator.allocated > peak:
                    peak, peak_index = allocator.allocated, index
        elif kind == FREE:
            block = live.pop(event[1], None)
            if block is not None:
                free(block)
        elif kind == MARK:
            spans.close(index, str(event[1]))
        else:
            _rare(allocator, live, index, event)
    spans.close(index + 1, "")
    return Replay(
        allocated_peak=allocator.allocated_peak,
        active_peak=allocator.active_peak,
        requested_peak=allocator.requested_peak,
        reserved_peak=allocator.reserved_peak,
        allocated=allocator.allocated,
        reserved=allocator.reserved,
        peak_index=peak_index,
        num_events=index + 1,
        num_segments_peak=allocator.num_segments_peak,
        num_alloc_retries=allocator.num_alloc_retries,
        spans=tuple(spans.done),
        oom=oom,
        allocator=allocator,
        live=live,
    )


class _Spans:
    """Splits the allocator's peaks at marks and puts the overall peaks back in the end."""

    def __init__(self, allocator: CachingAllocator) -> None:
        self.allocator = allocator
        self.done: list[Span] = []
        self.label, self.begin = "", 0
        self.highest = (0, 0)

    def close(self, index: int, label: str) -> None:
        allocator = self.allocator
        peaks = allocator.allocated_peak, allocator.reserved_peak
        if index > self.begin or self.label:
            self.done.append(
                Span(
                    label=self.label,
                    begin=self.begin,
                    end=index,
                    allocated_peak=peaks[0],
                    reserved_peak=peaks[1],
                )
            )
        self.highest = max(self.highest[0], peaks[0]), max(self.highest[1], peaks[1])
        self.label, self.begin = label, index
        if label:
            allocator.allocated_peak, allocator.reserved_peak = allocator.allocated, allocator.reserved
        else:
            allocator.allocated_peak, allocator.reserved_peak = self.highest


def _rare(allocator: CachingAllocator, live: dict[Hashable, Block], index: int, event: Event) -> None:
    """The events that are neither ALLOC, FREE nor MARK."""
    kind = event[0]
    if kind == USE:
        block = live.get(event[1])
        if block is not None:
            allocator.record_stream(block, event[2])
    elif kind == EMPTY_CACHE:
        allocator.empty_cache()
    elif kind == SYNC:
        allocator.synchronize()
    elif kind == POOL_BEGIN:
        allocator.begin_pool(event[1], event[2], capture=event[3])
    elif kind == POOL_END:
        allocator.end_pool(event[1])
    elif kind == POOL_RELEASE:
        allocator.release_pool(event[1])
    else:
        raise MemfitError(f"event {index}: {kind!r} is no kind of event")


def resolve(config: Settings, release: Release) -> AllocatorConfig:
    """The settings as an object."""
    if isinstance(config, str):
        return AllocatorConfig.parse(config, release)
    return config or AllocatorConfig()
