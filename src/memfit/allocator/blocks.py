"""Blocks, the free lists that hold them, and private pools."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from typing import Any

FREE, ALLOCATED, PENDING, UNMAPPED = range(4)
"""States of a block: cached; in use; freed but still used by another stream; address range without memory."""


class ExpandableSegment:
    """An address range that is backed page by page."""

    __slots__ = ("base", "page", "size")

    def __init__(self, base: int, size: int, page: int) -> None:
        self.base = base
        self.size = size
        self.page = page


class Block:
    """A piece of a segment; ``prev`` and ``next`` are its neighbours in the same segment.

    ``key`` orders free blocks of one size: the address, in torch 2.12 the number of the block.
    """

    __slots__ = (
        "address", "age_base", "capture_uses", "events", "frames", "key", "next", "pool", "prev", "requested",
        "segment", "size", "state", "stream", "uses",
    )  # fmt: skip

    def __init__(self, stream: int, size: int, address: int, pool: Pool, segment: ExpandableSegment | None) -> None:
        self.stream = stream
        self.size = size
        self.address = address
        self.key = address
        self.pool = pool
        self.segment = segment
        self.prev: Block | None = None
        self.next: Block | None = None
        self.state = FREE
        self.requested = 0
        self.age_base = 0
        self.events = 0
        self.uses: set[int] | None = None
        self.capture_uses: set[int] | None = None
        self.frames: Any = None

    def is_split(self) -> bool:
        """Whether the segment holds more than this block."""
        return self.prev is not None or self.next is not None

    def insert_before(self, other: Block) -> None:
        """Become the left neighbour of ``other``."""
        self.prev = other.prev
        if self.prev is not None:
            self.prev.next = self
        self.next = other
        other.prev = self

    def insert_after(self, other: Block) -> None:
        """Become the right neighbour of ``other``."""
        self.next = other.next
        if self.next is not None:
            self.next.prev = self
        self.prev = other
        other.next = self


class Pool:
    """Free blocks by stream, ordered by size, then key; a block never serves another stream."""

    __slots__ = ("free", "owner", "searches", "small", "unmapped")

    def __init__(self, *, small: bool, owner: PrivatePool | None = None) -> None:
        self.small = small
        self.owner = owner
        self.free: dict[int, list[tuple[int, int, Block]]] = {}
        self.unmapped: dict[int, list[tuple[int, Block]]] = {}
        self.searches = 0

    def add(self, block: Block) -> None:
        """Put a free block into the cache."""
        block.age_base = self.searches
        insort(self.free.setdefault(block.stream, []), (block.size, block.key, block))

    def remove(self, block: Block) -> None:
        """Take a free block out of the cache."""
        entries = self.free[block.stream]
        del entries[bisect_left(entries, (block.size, block.key))]

    def add_unmapped(self, block: Block) -> None:
        """Remember an address range without memory."""
        insort(self.unmapped.setdefault(block.stream, []), (block.address, block))

    def remove_unmapped(self, block: Block) -> None:
        """Forget an address range without memory."""
        entries = self.unmapped[block.stream]
        del entries[bisect_left(entries, (block.address,))]

    def blocks(self) -> Iterator[Block]:
        """The free blocks in the order of PyTorch's set: stream, size, key; safe against changes."""
        for stream in sorted(self.free):
            for entry in list(self.free[stream]):
                yield entry[2]

    def free_bytes(self) -> int:
        """Bytes of the free blocks."""
        return sum(entry[0] for entries in self.free.values() for entry in entries)


class PrivatePool:
    """The two pools that serve a graph capture or a ``torch.cuda.MemPool``; ``users`` 0 makes it releasable."""

    __slots__ = ("large", "number", "segments", "small", "users")

    def __init__(self, number: int) -> None:
        self.number = number
        self.users = 0
        self.segments = 0
        self.small = Pool(small=True, owner=self)
        self.large = Pool(small=False, owner=self)
