"""The full statistics of ``torch.cuda.memory_stats()``: nine figures, each for all, the small and the large pool."""

from __future__ import annotations

NAMES = (
    "allocation", "segment", "active", "inactive_split",
    "allocated_bytes", "reserved_bytes", "active_bytes", "inactive_split_bytes", "requested_bytes",
)  # fmt: skip
KINDS = ("all", "small_pool", "large_pool")


class Stat:
    """One figure: now, highest, sum of increases, sum of decreases."""

    __slots__ = ("allocated", "current", "freed", "peak")

    def __init__(self) -> None:
        self.current = 0
        self.peak = 0
        self.allocated = 0
        self.freed = 0

    def up(self, amount: int) -> None:
        """Increase."""
        self.current += amount
        self.allocated += amount
        self.peak = max(self.peak, self.current)

    def down(self, amount: int) -> None:
        """Decrease."""
        self.current -= amount
        self.freed += amount


class MemoryStats:
    """Counts what the allocator reports to it; costs about as much time as the allocator itself, hence optional."""

    def __init__(self) -> None:
        self.table = {name: (Stat(), Stat(), Stat()) for name in NAMES}

    def up(self, name: str, small: bool, amount: int) -> None:
        """Increase a figure of one pool and of all."""
        stats = self.table[name]
        stats[0].up(amount)
        stats[1 if small else 2].up(amount)

    def down(self, name: str, small: bool, amount: int) -> None:
        """Decrease a figure of one pool and of all."""
        stats = self.table[name]
        stats[0].down(amount)
        stats[1 if small else 2].down(amount)

    def allocated(self, small: bool, size: int, requested: int) -> None:
        """A block came into use."""
        self.up("allocation", small, 1)
        self.up("allocated_bytes", small, size)
        self.up("active", small, 1)
        self.up("active_bytes", small, size)
        self.up("requested_bytes", small, requested)

    def free_requested(self, small: bool, size: int) -> None:
        """The program freed a block."""
        self.down("allocation", small, 1)
        self.down("allocated_bytes", small, size)

    def free_completed(self, small: bool, size: int, requested: int) -> None:
        """No stream uses the block any more."""
        self.down("active", small, 1)
        self.down("active_bytes", small, size)
        self.down("requested_bytes", small, requested)

    def split(self, small: bool, blocks: int, size: int) -> None:
        """Free blocks of partly used segments changed by a number and by bytes."""
        for name, amount in (("inactive_split", blocks), ("inactive_split_bytes", size)):
            if amount > 0:
                self.up(name, small, amount)
            elif amount < 0:
                self.down(name, small, -amount)

    def to_dict(self) -> dict[str, int]:
        """The figures under PyTorch's keys, e.g. ``allocated_bytes.all.peak``."""
        return {
            f"{name}.{kind}.{field}": getattr(stat, field)
            for name, stats in self.table.items()
            for kind, stat in zip(KINDS, stats, strict=True)
            for field in ("current", "peak", "allocated", "freed")
        }
