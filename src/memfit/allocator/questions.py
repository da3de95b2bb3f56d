"""What follows from recorded events: the smallest capacity, intervals, and what other settings would change."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from memfit.allocator.config import AllocatorConfig
from memfit.allocator.device import GRANULE
from memfit.allocator.events import USE, Event
from memfit.allocator.releases import LATEST, OLDEST_FIRST, Release
from memfit.allocator.replay import Settings, replay, resolve


def smallest_capacity(
    events: Sequence[Event],
    config: Settings = None,
    *,
    others: int = 0,
    release: Release = LATEST,
    order: str | int = "ascending",
    lag: int | None = 0,
    above: int = 0,
) -> int:
    """The capacity in bytes from which the events finish, to 2 MiB, found by bisection.

    The result finishes, 2 MiB less does not. A smaller device makes the allocator give cached memory back earlier,
    which moves later blocks; so in rare cases a still smaller capacity happens to work, too.

    Args:
        events: see `memfit.allocator.events`.
        config, others, release, order, lag: as for `replay`; ``others`` is part of the result.
        above: a capacity that is known not to be enough, though a smaller one may happen to be.

    Raises:
        MemfitError: as `replay`.
    """
    settings = resolve(config, release)
    share = settings.memory_fraction or 1.0

    def finishes(capacity: int) -> bool:
        result = replay(events, settings, capacity, others=others, release=release, order=order, lag=lag)
        return result.oom is None

    free = replay(events, settings, release=release, order=order, lag=lag)
    low = free.requested_peak // GRANULE * GRANULE + others - GRANULE  # cannot finish
    high = -(-int(free.reserved_peak / share) // GRANULE) * GRANULE + others
    low, high = max(low, above), max(high, above + GRANULE)
    while not finishes(high):  # a limit by fraction or by garbage collection acts differently on a small device
        low, high = high, high + 2 * (high - low)
    while high - low > GRANULE:
        middle = low + (high - low) // GRANULE // 2 * GRANULE
        if finishes(middle):
            high = middle
        else:
            low = middle
    return high


def reserved_interval(
    events: Sequence[Event],
    config: Settings = None,
    capacity: int | None = None,
    *,
    others: int = 0,
    release: Release = LATEST,
    seeds: int = 4,
    lags: Sequence[int | None] = (0, None),
) -> tuple[int, int]:
    """Lowest and highest reserved peak over what a trace cannot know.

    That is how long other streams use a block after its free (where events say so), and, up to torch 2.11 without
    expandable segments, the order of the driver's addresses. Where neither matters, both ends are the same.

    Args:
        events: see `memfit.allocator.events`.
        config, capacity, others, release: as for `replay`.
        seeds: scattered address orders to try besides the ascending and the descending one.
        lags: event lags to try.
    """
    settings = resolve(config, release)
    peaks = [
        replay(events, settings, capacity, others=others, release=release, order=order, lag=lag).reserved_peak
        for order, lag in _unknowns(events, settings, release, seeds, lags)
    ]
    return min(peaks), max(peaks)


def capacity_interval(
    events: Sequence[Event],
    config: Settings = None,
    *,
    others: int = 0,
    release: Release = LATEST,
    seeds: int = 2,
    lags: Sequence[int | None] = (0, None),
) -> tuple[int, int]:
    """Lowest and highest `smallest_capacity` over the same unknowns as `reserved_interval`."""
    settings = resolve(config, release)
    capacities = [
        smallest_capacity(events, settings, others=others, release=release, order=order, lag=lag)
        for order, lag in _unknowns(events, settings, release, seeds, lags)
    ]
    return min(capacities), max(capacities)


def _unknowns(
    events: Sequence[Event], config: AllocatorConfig, release: Release, seeds: int, lags: Sequence[int | None]
) -> list[tuple[str | int, int | None]]:
    """The (address order, lag) pairs that can make a difference."""
    orders: list[str | int] = ["ascending"]
    if release < OLDEST_FIRST and not config.expandable_segments:
        orders += ["descending", *range(1, seeds + 1)]
    if not any(event[0] == USE for event in events):
        lags = lags[:1]
    return [(order, lag) for order in orders for lag in lags]


@dataclass(frozen=True, kw_only=True)
class WhatIf:
    """One row of a comparison of allocator settings; bytes.

    Attributes:
        settings: text of ``PYTORCH_ALLOC_CONF``.
        allocated_peak, reserved_peak: without a limit.
        smallest_capacity: from which the events finish.
        fits: whether they finish on the given capacity; None without one.
        num_alloc_retries: on the given capacity, how often the cache had to be given back.
        warnings: what is wrong with the settings.
    """

    settings: str
    allocated_peak: int
    reserved_peak: int
    smallest_capacity: int
    fits: bool | None
    num_alloc_retries: int
    warnings: tuple[str, ...] = ()


WHAT_IF_SETTINGS = (
    "",
    "expandable_segments:True",
    "max_split_size_mb:128",
    "max_split_size_mb:512",
    "roundup_power2_divisions:8",
    "expandable_segments:True,roundup_power2_divisions:8",
)


def what_if(
    events: Sequence[Event],
    configs: Iterable[Settings] = WHAT_IF_SETTINGS,
    capacity: int | None = None,
    *,
    others: int = 0,
    release: Release = LATEST,
    lag: int | None = 0,
) -> list[WhatIf]:
    """The same events under several allocator settings, in the given order.

    Args:
        events: see `memfit.allocator.events`.
        configs: settings to compare.
        capacity: bytes of the device, for ``fits``.
        others, release, lag: as for `replay`.
    """
    rows = []
    for given in configs:
        config = resolve(given, release)
        free = replay(events, config, release=release, lag=lag)
        limited = None
        if capacity is not None:
            limited = replay(events, config, capacity, others=others, release=release, lag=lag)
        rows.append(
            WhatIf(
                settings=config.to_text(),
                allocated_peak=free.allocated_peak,
                reserved_peak=free.reserved_peak,
                smallest_capacity=smallest_capacity(events, config, others=others, release=release, lag=lag),
                fits=None if limited is None else limited.oom is None,
                num_alloc_retries=0 if limited is None else limited.num_alloc_retries,
                warnings=config.warnings(),
            )
        )
    return rows
