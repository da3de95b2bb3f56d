"""PyTorch's CUDA caching allocator, simulated: the same decisions on the same requests, block by block.

A request is rounded, looked for among the free blocks of its stream and pool (best fit), served by a new segment when
none fits, and split off when it leaves enough behind. Freed blocks merge with their free neighbours. The behaviour
is that of torch 2.1 to 2.15, with the differences named in `memfit.allocator.releases`.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import Any

from memfit.allocator import expandable, reclaim
from memfit.allocator.blocks import ALLOCATED, FREE, PENDING, Block, Pool, PrivatePool
from memfit.allocator.config import MIN_BLOCK, SMALL_LIMIT, AllocatorConfig, make_rounding, segment_size
from memfit.allocator.device import Device
from memfit.allocator.oom import SimulatedOutOfMemoryError, gather_facts, oom_text, rejection_text
from memfit.allocator.releases import (
    CAPTURE_ONLY,
    EXPANDABLE_PRIVATE,
    LATEST,
    OLDEST_FIRST,
    USES_END_WITH_CAPTURE,
    Release,
)
from memfit.allocator.stats import MemoryStats
from memfit.allocator.uses import PendingUses
from memfit.errors import MemfitError

NEVER = 1 << 62


class CachingAllocator:
    """One GPU's caching allocator.

    Args:
        config: the settings.
        device: the GPU below; by default without a limit.
        release: (major, minor) of torch whose words and rules apply.
        lag: how many further allocations a use on another stream (``record_stream``) outlives the free: 0, the GPU is
            always done at once; n; or None, it is done only when somebody synchronises.
        stats: counts all figures of ``torch.cuda.memory_stats`` when given.
        history: receives one tuple per action when given: (action, address, bytes, stream, pool number, frames).

    Attributes:
        allocated, active, requested, reserved: bytes now: blocks in use (with rounding and unsplit remainders); these
            and blocks that other streams still use; as the program asked; segments.
        allocated_peak, active_peak, requested_peak, reserved_peak: their highest values.
        num_segments, num_segments_peak, num_mallocs, num_alloc_retries, num_ooms: counts.
    """

    def __init__(
        self,
        config: AllocatorConfig | None = None,
        device: Device | None = None,
        *,
        release: Release = LATEST,
        lag: int | None = 0,
        stats: MemoryStats | None = None,
        history: list[tuple[Any, ...]] | None = None,
    ) -> None:
        self.config = config = config or AllocatorConfig()
        self.device = device or Device()
        self.device.by_age = release >= OLDEST_FIRST
        self.release = release
        self.stats = stats
        self.history = history
        self.allocated = self.active = self.requested = self.reserved = 0
        self.allocated_peak = self.active_peak = self.requested_peak = self.reserved_peak = 0
        self.num_segments = self.num_segments_peak = 0
        self.num_mallocs = self.num_alloc_retries = self.num_ooms = 0
        self.small = Pool(small=True)
        self.large = Pool(small=False)
        self.private: dict[int, PrivatePool] = {}
        self.max_split = NEVER if config.max_split_size is None else config.max_split_size
        self.allowed = None if config.memory_fraction is None else int(config.memory_fraction * self.device.total)
        self.collecting = config.garbage_collection_threshold > 0 and self.allowed is not None
        self.pending = PendingUses(lag, self._complete)
        self._round = make_rounding(config) if any(d > 1 for d in config.roundup_power2_divisions) else None
        self._expandable = config.expandable_segments
        self._by_creation = release == (2, 12)
        self._numbered = 0
        self._plain = not self._expandable and self.max_split == NEVER and not self.collecting
        self._routes: dict[int, int | None] = {}
        self._captures: set[int] = set()
        self._held = False  # a capture is under way: no event may be queried, no memory given back

    # ---- the program's calls ----

    def malloc(self, requested: int, stream: int = 0, frames: Any = None) -> Block:
        """Serve a request of ``requested`` > 0 bytes on a stream.

        Raises:
            SimulatedOutOfMemoryError: neither the cache nor the device has room.
        """
        if self.pending.num_blocks and not self._held:
            self.pending.process(self.num_mallocs)
        self.num_mallocs += 1
        if self._round is not None:
            size = self._round(requested)
        else:
            size = MIN_BLOCK if requested < MIN_BLOCK else (requested + 511) & -512
        pool = self.small if size <= SMALL_LIMIT else self.large
        if self._routes:
            pool = self._route(pool, stream)

        block: Block | None = None
        if self._plain:
            entries = pool.free.get(stream)
            if entries:
                index = bisect_left(entries, (size,))
                if index < len(entries):
                    block = entries.pop(index)[2]
        else:
            block = self._search(pool, size, stream)
        if block is None:
            block = self._grow(pool, size, stream, requested)

        # split what is left over
        left = block.size - size
        if left >= MIN_BLOCK and (pool.small or self._expandable or (left > SMALL_LIMIT and size < self.max_split)):
            rest = block
            segment = rest.segment
            block = Block(stream, size, rest.address, pool, segment)
            before = block.prev = rest.prev
            if before is not None:
                before.next = block
            block.next = rest
            rest.prev = block
            rest.address += size
            if self._by_creation:
                self.number(block)
            else:
                rest.key = rest.address
            rest.size = left
            rest.age_base = pool.searches
            insort(pool.free.setdefault(stream, []), (left, rest.key, rest))
            if self.stats is not None and segment is None:
                if before is not None or rest.next is not None:
                    self.stats.split(pool.small, 0, -size)
                else:
                    self.stats.split(pool.small, 1, left)
        elif self.stats is not None and block.segment is None and block.is_split():
            self.stats.split(pool.small, -1, -block.size)

        block.state = ALLOCATED
        block.requested = requested
        block.frames = frames
        size = block.size
        self.requested += requested
        if self.requested > self.requested_peak:
            self.requested_peak = self.requested
        self.allocated += size
        if self.allocated > self.allocated_peak:
            self.allocated_peak = self.allocated
        self.active += size
        if self.active > self.active_peak:
            self.active_peak = self.active
        if self.stats is not None:
            self.stats.allocated(pool.small, size, requested)
        if self.history is not None:
            self.log("alloc", block.address, requested, block)
        return block

    def free(self, block: Block) -> None:
        """The program's last reference to a block is gone."""
        self.allocated -= block.size
        if self.stats is not None:
            self.stats.free_requested(block.pool.small, block.size)
        if self.history is not None:
            self.log("free_requested", block.address, block.requested, block)
        if block.uses:
            block.state = PENDING
            self.pending.add(block, self.num_mallocs, hold=self._held)
        else:
            self._complete(block)

    def record_stream(self, block: Block, stream: int) -> None:
        """Another stream uses the block: it stays active after its free until that stream is done."""
        if stream == block.stream:
            return
        if block.uses is None:
            block.uses = set()
        block.uses.add(stream)
        if self._held and self.release >= USES_END_WITH_CAPTURE:
            if block.capture_uses is None:
                block.capture_uses = set()
            block.capture_uses.add(stream)

    def synchronize(self) -> None:
        """``torch.cuda.synchronize()``: every use recorded so far is over; noticed at the next request."""
        self.pending.synchronize()

    def empty_cache(self) -> None:
        """``torch.cuda.empty_cache()``: wait for pending uses, then give back every wholly free segment or page.

        During a graph capture nothing happens.
        """
        if self._held:
            return
        self.pending.wait()
        reclaim.release_all(self)

    def begin_pool(self, number: int, stream: int | None = None, *, capture: bool = False) -> None:
        """Serve requests of a stream (None: of all) from private pool ``number`` until `end_pool`.

        Args:
            number: the pool, from 1 on.
            stream: whose requests.
            capture: this is a graph capture, not a ``torch.cuda.MemPool``.

        Raises:
            MemfitError: the pool is being served already.
        """
        if number in self._routes:
            raise MemfitError(f"private pool {number} was begun twice")
        self.private.setdefault(number, PrivatePool(number)).users += 1
        self._routes[number] = stream
        if capture or self.release < CAPTURE_ONLY:
            self._captures.add(number)
            self._held = True

    def end_pool(self, number: int) -> None:
        """Requests no longer go to private pool ``number``."""
        self._routes.pop(number, None)
        self._captures.discard(number)
        self._held = bool(self._captures)

    def release_pool(self, number: int) -> None:
        """One user of private pool ``number`` is gone; after the last, its free segments may be given back.

        With expandable segments PyTorch may forget a released pool while tensors in it live on, and then read freed
        memory; here the pool stays until it is empty.
        """
        if number in self.private:
            self.private[number].users -= 1

    # ---- figures ----

    @property
    def inactive_split(self) -> int:
        """Free bytes that cannot be given back because their (not expandable) segment is partly in use."""
        return sum(
            block.size for pool in self.pools() for block in pool.blocks() if block.segment is None and block.is_split()
        )

    def pools(self) -> list[Pool]:
        """All pools: the two common ones, then the private ones."""
        return [self.large, self.small, *(pool for p in self.private.values() for pool in (p.large, p.small))]

    def log(self, action: str, address: int, size: int, block: Block) -> None:
        """Add one action to the history."""
        if self.history is not None:
            number = block.pool.owner.number if block.pool.owner else 0
            self.history.append((action, self.device.address(address), size, block.stream, number, block.frames))

    # ---- search and growth ----

    def _route(self, pool: Pool, stream: int) -> Pool:
        """The private pool that serves a stream at present in place of a common one."""
        for number, wanted in self._routes.items():
            if wanted is None or wanted == stream:
                private = self.private[number]
                return private.small if pool.small else private.large
        return pool

    def _search(self, pool: Pool, size: int, stream: int) -> Block | None:
        """The free block that serves a request, taken out of the cache, under all settings."""
        if self.collecting:
            pool.searches += 1
        entries = pool.free.get(stream)
        if not entries:
            return None
        index = bisect_left(entries, (size,))
        if index == len(entries):
            return None
        block = entries[index][2]
        if self._expandable:
            # an expandable block counts with the room it can grow into: a larger one with less room comes first
            room = expandable.room(block)
            while block.segment is not None and index + 1 < len(entries):
                following = entries[index + 1][2]
                if expandable.room(following) >= room:
                    break
                index, block, room = index + 1, following, expandable.room(following)
        if size < self.max_split:
            if block.size >= self.max_split:
                return None
        elif block.size >= size + self.config.max_non_split_rounding:
            return None
        del entries[index]
        return block

    def _grow(self, pool: Pool, size: int, stream: int, requested: int) -> Block:
        """A block out of new memory, after giving back cached memory where that is needed."""
        if self.collecting:
            reclaim.collect_garbage(self)
        block = self._new_block(pool, size, stream, requested)
        if block is None and self.max_split != NEVER and reclaim.release_for(self, pool, size, stream):
            block = self._new_block(pool, size, stream, requested)
        if block is None and not self._held:
            self.pending.wait()
            reclaim.release_all(self)
            self.num_alloc_retries += 1
            block = self._new_block(pool, size, stream, requested)
        if block is None:
            self.num_ooms += 1
            facts = gather_facts(self, size)
            if self.history is not None:
                self.history.append(("oom", facts.free, facts.segment, stream, 0, None))
            raise SimulatedOutOfMemoryError(oom_text(facts, self.release), facts)
        return block

    def _new_block(self, pool: Pool, size: int, stream: int, requested: int) -> Block | None:
        wanted = segment_size(size, self.config.large_segment_size)
        if self.allowed is not None and self.reserved + wanted > self.allowed:
            return None
        if self.config.throw_on_cudamalloc_oom and self.reserved + wanted > self.device.total:
            facts = gather_facts(self, size)
            raise SimulatedOutOfMemoryError(rejection_text(requested), facts)
        if self._expandable and (pool.owner is None or self.release >= EXPANDABLE_PRIVATE):
            return expandable.grow(self, pool, size, stream)
        if not self.device.take(wanted):
            return None
        block = self.number(Block(stream, wanted, self.device.reserve(wanted), pool, None))
        self.add_reserved(pool, wanted)
        self.num_segments += 1
        self.num_segments_peak = max(self.num_segments_peak, self.num_segments)
        if self.stats is not None:
            self.stats.up("segment", pool.small, 1)
        if pool.owner is not None:
            pool.owner.segments += 1
        self.log("segment_alloc", block.address, wanted, block)
        return block

    def number(self, block: Block) -> Block:
        """Give a new block its key in torch 2.12; in all other releases a block's key is its address."""
        if self._by_creation:
            self._numbered += 1
            block.key = self._numbered
        return block

    def moved(self, block: Block) -> None:
        """A block begins at another address."""
        if not self._by_creation:
            block.key = block.address

    def add_reserved(self, pool: Pool, size: int) -> None:
        """Count memory taken from (size > 0) or given back to the device."""
        self.reserved += size
        if self.reserved > self.reserved_peak:
            self.reserved_peak = self.reserved
        if self.stats is not None:
            (self.stats.up if size > 0 else self.stats.down)("reserved_bytes", pool.small, abs(size))

    # ---- free blocks and events ----

    def _complete(self, block: Block) -> None:
        """No stream uses the block any more: merge it with free neighbours, put it into the cache."""
        pool = block.pool
        if self.history is not None:
            self.log("free_completed", block.address, block.requested, block)
        size = original = block.size
        self.active -= size
        self.requested -= block.requested
        entries = pool.free.get(block.stream)  # neighbours are of the same pool and stream
        if entries is None:
            entries = pool.free[block.stream] = []
        merged = 0
        other = block.prev
        if other is not None and other.state == FREE:
            del entries[bisect_left(entries, (other.size, other.key))]
            merged = 1
            size += other.size
            block.address = other.address
            before = block.prev = other.prev
            if before is not None:
                before.next = block
        other = block.next
        if other is not None and other.state == FREE:
            del entries[bisect_left(entries, (other.size, other.key))]
            merged += 1
            size += other.size
            after = block.next = other.next
            if after is not None:
                after.prev = block
        if not self._by_creation:
            block.key = block.address
        block.size = size
        block.state = FREE
        block.frames = None
        block.age_base = pool.searches
        insort(entries, (size, block.key, block))
        if self.stats is not None:
            if block.segment is None:
                kept = 1 if block.is_split() else 0
                self.stats.split(pool.small, kept - merged, kept * size - (size - original))
            self.stats.free_completed(pool.small, original, block.requested)
