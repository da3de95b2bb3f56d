"""Giving cached memory back to the device: on request, before an out-of-memory error, and by garbage collection."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

from memfit.allocator import expandable
from memfit.allocator.blocks import Block, Pool

if TYPE_CHECKING:
    from memfit.allocator.simulator import CachingAllocator


def release_all(allocator: CachingAllocator) -> None:
    """Give back every wholly free segment, of private pools only once they are released."""
    _release_pool(allocator, allocator.large)
    _release_pool(allocator, allocator.small)
    for number, private in list(allocator.private.items()):
        if private.users > 0:
            continue
        _release_pool(allocator, private.small)
        _release_pool(allocator, private.large)
        if private.segments == 0:
            del allocator.private[number]


def release_for(allocator: CachingAllocator, pool: Pool, size: int, stream: int) -> bool:
    """Give back just enough unsplittable cached blocks of one stream to make room for ``size`` bytes.

    Only with ``max_split_size_mb``; returns whether enough was given back.
    """
    wanted = max(size, allocator.max_split)
    entries = pool.free.get(stream, [])
    index = bisect_left(entries, (wanted,))
    if index < len(entries):
        _release_segment(allocator, entries[index][2])
        return True
    released = 0
    while released < wanted and index > 0:
        index -= 1
        block = entries[index][2]
        if block.size < allocator.max_split:
            break
        if block.segment is None:
            released += block.size
            _release_segment(allocator, block)
    return released >= wanted


def collect_garbage(allocator: CachingAllocator) -> None:
    """Give back unused large segments, oldest first, when more than the threshold is reserved.

    A block's age is the number of searches of the large pool since it was cached.
    """
    assert allocator.allowed is not None
    threshold = int(allocator.config.garbage_collection_threshold * allocator.allowed)
    if allocator.reserved <= threshold:
        return
    target = allocator.reserved - threshold
    pool = allocator.large
    unsplit = [block for block in pool.blocks() if not block.is_split()]
    total_age = sum(pool.searches - block.age_base for block in unsplit)
    count = len(unsplit)
    reclaimed, freed = 0, True
    while reclaimed < target and freed and count > 0:
        limit = total_age / count
        freed = False
        for block in pool.blocks():
            age = pool.searches - block.age_base
            if not block.is_split() and block.segment is None and age >= limit:
                freed = True
                reclaimed += block.size
                total_age -= age
                count -= 1
                _release_segment(allocator, block)


def _release_pool(allocator: CachingAllocator, pool: Pool) -> None:
    blocks = list(pool.blocks())
    for block in blocks:
        if block.segment is None and not block.is_split():
            _release_segment(allocator, block)
    for block in blocks:
        if block.segment is not None:
            expandable.unmap(allocator, block)


def _release_segment(allocator: CachingAllocator, block: Block) -> None:
    """Give a wholly free segment back."""
    pool = block.pool
    allocator.log("segment_free", block.address, block.size, block)
    pool.remove(block)
    allocator.device.give(block.size)
    allocator.num_segments -= 1
    allocator.add_reserved(pool, -block.size)
    if allocator.stats is not None:
        allocator.stats.down("segment", pool.small, 1)
    if pool.owner is not None:
        pool.owner.segments -= 1
