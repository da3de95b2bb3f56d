"""Expandable segments: one address range per stream and pool, backed by memory page by page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memfit.allocator.blocks import FREE, UNMAPPED, Block, ExpandableSegment, Pool
from memfit.allocator.config import SMALL_SEGMENT

if TYPE_CHECKING:
    from memfit.allocator.simulator import CachingAllocator


def grow(allocator: CachingAllocator, pool: Pool, size: int, stream: int) -> Block | None:
    """A free block of at least ``size`` bytes with new memory at its end, taken out of the cache.

    None when the device has no more; pages mapped until then stay in the cache, as in PyTorch.
    """
    block = _find_room(allocator, pool, size, stream)
    if block is None:
        reserve = range_size(allocator)
        page = SMALL_SEGMENT if pool.small else allocator.config.large_segment_size
        whole = -(-reserve // page) * page
        base = allocator.device.reserve(whole)
        if whole < size:
            return None  # one request cannot span two ranges; the new range is given up at once
        block = _new_range(allocator, pool, stream, ExpandableSegment(base, whole, page))
    if block.state == UNMAPPED and not _map(allocator, block, min(block.size, size)):
        return None
    while block.size < size:
        following = block.next
        assert following is not None
        if not _map(allocator, following, min(size - block.size, following.size)):
            return None
        block = following
    pool.remove(block)
    return block


def unmap(allocator: CachingAllocator, block: Block) -> None:
    """Give back the whole pages inside a free block; what is left at its ends stays cached."""
    segment, pool = block.segment, block.pool
    assert segment is not None
    page = segment.page
    first = -(-(block.address - segment.base) // page)
    last = (block.address + block.size - segment.base) // page
    if first >= last:
        return
    pool.remove(block)
    start, size = segment.base + first * page, (last - first) * page
    before, after = start - block.address, block.address + block.size - start - size
    if before:
        head = allocator.number(Block(block.stream, before, block.address, pool, segment))
        head.insert_before(block)
        pool.add(head)
    if after:
        tail = allocator.number(Block(block.stream, after, start + size, pool, segment))
        tail.insert_after(block)
        pool.add(tail)
    block.address, block.size, block.state = start, size, UNMAPPED
    _merge_unmapped(block, pool)
    allocator.moved(block)
    pool.add_unmapped(block)
    allocator.device.give(page, last - first)
    allocator.add_reserved(pool, -size)
    allocator.log("segment_unmap", start, size, block)
    if block.prev is None and block.next is None:  # nothing left: the range itself is given back
        pool.remove_unmapped(block)
        allocator.num_segments -= 1
        if pool.owner is not None:
            pool.owner.segments -= 1


def room(block: Block) -> int:
    """Bytes of a free block and of the unmapped range right behind it."""
    after = block.next
    return block.size + (after.size if after is not None and after.state == UNMAPPED else 0)


def _find_room(allocator: CachingAllocator, pool: Pool, size: int, stream: int) -> Block | None:
    """The lowest run of free and unmapped blocks with at least ``size`` bytes that contains unmapped ones."""
    entries = pool.unmapped.get(stream, [])
    if len(entries) > 1 and allocator.device.by_age:  # unmapped ranges go by address in every release
        entries = sorted(entries, key=lambda entry: allocator.device.address(entry[0]))
    for _, block in entries:
        start = block
        if block.prev is not None and block.prev.state == FREE:
            start = block.prev
        found, walker = 0, start
        while found < size and walker is not None and walker.state in (FREE, UNMAPPED):
            found += walker.size
            walker = walker.next  # type: ignore[assignment]
        if found >= size:
            return start
    return None


def range_size(allocator: CachingAllocator) -> int:
    """Bytes of a new address range before rounding: 9/8 of the device, or ``expandable_segments_reserve`` if less."""
    config, total = allocator.config, allocator.device.total
    reserve = total + total // 8
    if config.expandable_reserve_fraction is not None:
        return min(reserve, int(config.expandable_reserve_fraction * total))
    if config.expandable_reserve_bytes is not None:
        return min(reserve, config.expandable_reserve_bytes)
    return reserve


def _new_range(allocator: CachingAllocator, pool: Pool, stream: int, segment: ExpandableSegment) -> Block:
    block = allocator.number(Block(stream, segment.size, segment.base, pool, segment))
    block.state = UNMAPPED
    pool.add_unmapped(block)
    if pool.owner is not None:
        pool.owner.segments += 1
    allocator.num_segments += 1
    allocator.num_segments_peak = max(allocator.num_segments_peak, allocator.num_segments)
    return block


def _map(allocator: CachingAllocator, block: Block, size: int) -> bool:
    """Back the first ``size`` bytes of an unmapped block, in whole pages; False when the device has no more."""
    segment, pool, device = block.segment, block.pool, allocator.device
    assert segment is not None
    page = segment.page
    pages = -(-size // page)
    if not device.take(page, pages):
        return False
    mapped = pages * page
    pool.remove_unmapped(block)
    if mapped < block.size:
        rest = allocator.number(Block(block.stream, block.size - mapped, block.address + mapped, pool, segment))
        rest.state = UNMAPPED
        rest.insert_after(block)
        pool.add_unmapped(rest)
        block.size = mapped
    block.state = FREE
    allocator.log("segment_map", block.address, mapped, block)
    for other in (block.prev, block.next):
        if other is not None and other.state == FREE:
            pool.remove(other)
            _absorb(block, other)
    allocator.moved(block)
    pool.add(block)
    allocator.add_reserved(pool, mapped)
    return True


def _merge_unmapped(block: Block, pool: Pool) -> None:
    for other in (block.prev, block.next):
        if other is not None and other.state == UNMAPPED:
            pool.remove_unmapped(other)
            _absorb(block, other)


def _absorb(block: Block, other: Block) -> None:
    """Make a neighbour part of the block."""
    if block.prev is other:
        block.address = other.address
        block.prev = other.prev
        if block.prev is not None:
            block.prev.next = block
    else:
        block.next = other.next
        if block.next is not None:
            block.next.prev = block
    block.size += other.size
