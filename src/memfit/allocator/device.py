"""The driver below the allocator: bytes in use and the order in which it hands out addresses."""

from __future__ import annotations

from bisect import bisect_right

from memfit.errors import MemfitError
from memfit.units import MIB

GRANULE = 2 * MIB
UNBOUNDED_TOTAL = 1 << 40
"""What an unbounded device reports as its total: only the address range of expandable segments depends on it."""

LOW = 0x6000_0000_0000
HIGH = 0x6800_0000_0000
SCATTER = 0x9E3B1
SEED_STEP = 0x3C6EF
SLOTS = 1 << 20


class Device:
    """Accounts of one GPU's memory.

    Up to torch 2.11 addresses break ties between free blocks of one size, so their order is part of a simulation's
    input: "ascending" (each new segment lies above all before), "descending", or a positive seed that scatters
    segments. From 2.12 on age decides, wherever a block lies (``by_age``): then the allocator works on ascending
    numbers, and `address` translates them. Address ranges given back are not handed out again.

    Args:
        capacity: bytes of the device, or None for no limit.
        others: bytes in use outside of the allocator: the CUDA context, other processes.
        order: "ascending", "descending" or a seed > 0.
    """

    __slots__ = (
        "_high", "_low", "_numbers", "_order", "_places", "_slot", "by_age", "capacity", "others", "total", "used",
    )  # fmt: skip

    def __init__(self, capacity: int | None = None, others: int = 0, order: str | int = "ascending") -> None:
        if order not in ("ascending", "descending") and (isinstance(order, str) or order < 1):
            raise MemfitError(f"`order`: {order!r} is not an address order", hint="ascending, descending or a seed > 0")
        self.total = capacity if capacity is not None else UNBOUNDED_TOTAL
        self.capacity = float("inf") if capacity is None else capacity
        self.others = others
        self.used = 0
        self.by_age = False
        self._numbers: list[int] = []
        self._places: list[int] = []
        self._order = order
        self._low = LOW
        self._high = HIGH
        self._slot = 0

    @property
    def free(self) -> int:
        """Bytes that the driver reports as free."""
        return max(0, self.total - self.used - self.others)

    def reserve(self, size: int) -> int:
        """A fresh address range, without memory."""
        size = (size + GRANULE - 1) & -GRANULE
        if self._order == "ascending" or self.by_age:
            address = self._low
            self._low += size + GRANULE
            if self._order != "ascending":
                self._numbers.append(address)
                self._places.append(self._place(size))
            return address
        return self._place(size)

    def address(self, number: int) -> int:
        """Where a block lies, given the number that the allocator orders it by."""
        if not self._numbers:
            return number
        index = bisect_right(self._numbers, number) - 1
        return self._places[index] + number - self._numbers[index]

    def _place(self, size: int) -> int:
        if self._order == "descending":
            self._high -= size + GRANULE
            return self._high
        assert isinstance(self._order, int)
        slot = (self._slot * SCATTER + self._order * SEED_STEP) & (SLOTS - 1)  # odd factor: no slot twice
        self._slot += 1
        return (slot + 1) << 40

    def take(self, size: int, count: int = 1) -> bool:
        """Whether ``count`` times ``size`` bytes, each rounded up to the driver's granularity, were free; takes it."""
        size = ((size + GRANULE - 1) & -GRANULE) * count
        if self.used + size + self.others > self.capacity:
            return False
        self.used += size
        return True

    def give(self, size: int, count: int = 1) -> None:
        """Return what `take` took."""
        self.used -= ((size + GRANULE - 1) & -GRANULE) * count
