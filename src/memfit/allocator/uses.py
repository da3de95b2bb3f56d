"""Blocks that were freed while another stream still uses them (``record_stream``)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from memfit.allocator.blocks import Block

NEVER = 1 << 62


class PendingUses:
    """One event per freed block and using stream; a block is complete when all of its events are.

    When the GPU reaches an event is not known to a simulation, hence the lag.

    Args:
        lag: how many further allocations an event takes; None: it completes only when somebody waits for it.
        complete: called with each block that no stream uses any more.

    Attributes:
        num_blocks: freed blocks that are still in use.
    """

    def __init__(self, lag: int | None, complete: Callable[[Block], None]) -> None:
        self.num_blocks = 0
        self._lag = NEVER if lag is None else lag
        self._complete = complete
        self._queues: dict[int, deque[tuple[int, int, Block]]] = {}
        self._deferred: list[Block] = []
        self._recorded = self._synchronised = 0

    def __iter__(self) -> Iterator[Block]:
        blocks = {id(block): block for queue in self._queues.values() for _, _, block in queue}
        yield from blocks.values()
        yield from self._deferred

    def add(self, block: Block, now: int, *, hold: bool) -> None:
        """Take a freed block with uses; ``now`` counts allocations, ``hold``: a capture is under way."""
        self.num_blocks += 1
        if hold:
            self._deferred.append(block)
        else:
            self._record(block, now)

    def process(self, now: int) -> None:
        """Complete the blocks whose events are over, stream by stream in order."""
        self._record_deferred(now)
        done = now - self._lag
        for stream, queue in list(self._queues.items()):
            while queue and (queue[0][0] <= done or queue[0][1] <= self._synchronised):
                self._finish(queue.popleft()[2])
            if not queue:
                del self._queues[stream]

    def synchronize(self) -> None:
        """Every event recorded so far is over; noticed at the next `process`."""
        self._synchronised = self._recorded

    def wait(self) -> None:
        """Wait for all events and complete all blocks."""
        self._record_deferred(0)
        for queue in self._queues.values():
            for _, _, block in queue:
                self._finish(block)
        self._queues.clear()

    def _record(self, block: Block, now: int) -> None:
        uses, block.uses = block.uses, None
        for stream in uses or ():
            block.events += 1
            self._recorded += 1
            self._queues.setdefault(stream, deque()).append((now, self._recorded, block))

    def _record_deferred(self, now: int) -> None:
        """Blocks freed during a capture: uses recorded inside the capture are over when it has ended."""
        deferred, self._deferred = self._deferred, []
        for block in deferred:
            if block.capture_uses and block.uses:
                block.uses -= block.capture_uses
            block.capture_uses = None
            self._record(block, now)
            if block.events == 0:
                self.num_blocks -= 1
                self._complete(block)

    def _finish(self, block: Block) -> None:
        block.events -= 1
        if block.events == 0:
            self.num_blocks -= 1
            self._complete(block)
