"""PyTorch's CUDA caching allocator, simulated in pure Python.

`replay` runs recorded events (`memfit.allocator.events`) through the allocator of a torch release under any settings;
`smallest_capacity`, `reserved_interval` and `what_if` ask what follows. The simulation returns the addresses,
statistics and error texts of the real allocator binaries (``tests/mirage`` compares them).
"""

from __future__ import annotations

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
from memfit.allocator.oom import OomFacts, SimulatedOutOfMemoryError, oom_text
from memfit.allocator.questions import WhatIf, capacity_interval, reserved_interval, smallest_capacity, what_if
from memfit.allocator.releases import parse_release
from memfit.allocator.replay import OutOfMemory, Replay, Span, replay
from memfit.allocator.simulator import CachingAllocator
from memfit.allocator.snapshot import snapshot, write_snapshot
from memfit.allocator.stats import MemoryStats

__all__ = [
    "ALLOC",
    "EMPTY_CACHE",
    "FREE",
    "MARK",
    "POOL_BEGIN",
    "POOL_END",
    "POOL_RELEASE",
    "SYNC",
    "USE",
    "AllocatorConfig",
    "CachingAllocator",
    "Device",
    "Event",
    "MemoryStats",
    "OomFacts",
    "OutOfMemory",
    "Replay",
    "SimulatedOutOfMemoryError",
    "Span",
    "WhatIf",
    "capacity_interval",
    "oom_text",
    "parse_release",
    "replay",
    "reserved_interval",
    "smallest_capacity",
    "snapshot",
    "what_if",
    "write_snapshot",
]
