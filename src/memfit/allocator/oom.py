"""What PyTorch says when memory runs out, in the words of each release family.

The texts were read off the allocator binaries of the releases 2.1.2 to 2.15.0; the oracle tests compare them
character by character.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from memfit.allocator.config import segment_size
from memfit.allocator.expandable import range_size
from memfit.allocator.releases import LATEST, Release
from memfit.units import GIB, KIB, MIB

if TYPE_CHECKING:
    from memfit.allocator.simulator import CachingAllocator

_ADVICE = (
    " If reserved but unallocated memory is large try setting {setting} to avoid fragmentation."
    "  See documentation for Memory Management {link}"
)
_LINK = " (https://pytorch.org/docs/stable/notes/cuda.html#environment-variables)"
_LINK_2_11 = (
    " (https://docs.pytorch.org/docs/stable/notes/cuda.html#optimizing-memory-usage-with-pytorch-cuda-alloc-conf)"
)
_EXPANDABLE_2_15 = (
    " expandable_segments is enabled. If instead the process is running out of virtual address space (VSZ), expandable"
    " segments may be over-reserving VA (each segment reserves ~9/8 of device memory, times the number of streams);"
    " reduce it via PYTORCH_CUDA_ALLOC_CONF expandable_segments_reserve / expandable_segments_reserve_by_class."
)
_EXCEEDED_2_15 = (
    " This allocation exceeds the expandable-segment reserve of {limit} for this stream, and a single allocation cannot"
    " span expandable segments. Raise PYTORCH_CUDA_ALLOC_CONF expandable_segments_reserve or"
    " expandable_segments_reserve_by_class (or unset it) so that a segment is at least {segment}."
)


@dataclass(frozen=True, kw_only=True)
class OomFacts:
    """The figures of an out-of-memory text, in bytes.

    Attributes:
        segment: what was asked of the driver; "Tried to allocate" names this, not the tensor.
        total: total of the device. free: what the driver has left.
        in_use: what the driver counts for this process, context included; None where NVML is missing.
        allowed: limit by a memory fraction, or None.
        allocated: bytes in blocks in use.
        private: free bytes inside private pools.
        reserved: bytes of all segments.
        expandable: whether expandable segments are on.
        exceeded_reserve: bytes of an expandable segment's address range when the request is larger, or None.
        device: index of the GPU.
    """

    segment: int
    total: int
    free: int
    in_use: int | None
    allowed: int | None
    allocated: int
    private: int
    reserved: int
    expandable: bool = False
    exceeded_reserve: int | None = None
    device: int = 0


class SimulatedOutOfMemoryError(Exception):
    """The simulated allocator could not serve a request; ``facts`` holds the figures, the text is PyTorch's."""

    def __init__(self, text: str, facts: OomFacts) -> None:
        super().__init__(text)
        self.facts = facts


def gather_facts(allocator: CachingAllocator, size: int) -> OomFacts:
    """The figures at the moment at which ``size`` rounded bytes cannot be served."""
    config, device = allocator.config, allocator.device
    reserve = range_size(allocator) if config.expandable_segments else size
    return OomFacts(
        segment=segment_size(size, config.large_segment_size),
        total=device.total,
        free=device.free,
        in_use=device.used + device.others,
        allowed=allocator.allowed,
        allocated=allocator.allocated,
        private=sum(p.small.free_bytes() + p.large.free_bytes() for p in allocator.private.values()),
        reserved=allocator.reserved,
        expandable=config.expandable_segments,
        exceeded_reserve=reserve if reserve < size else None,
    )


def oom_text(facts: OomFacts, release: Release = LATEST) -> str:
    """PyTorch's message for these figures.

    Args:
        facts: the figures.
        release: (major, minor) of torch.
    """
    private = facts.private if release >= (2, 4) else 0
    head = f"CUDA out of memory. Tried to allocate {size_text(facts.segment)}. GPU "
    if release == (2, 3):  # this release prints the index as a character, and character 0 ends the text
        if facts.device == 0:
            return head
        head += chr(facts.device)
    else:
        head += str(facts.device)
    parts = [
        f"{head} has a total {'capacity' if release >= (2, 2) else 'capacty'} of {size_text(facts.total)} of which "
        f"{size_text(facts.free)} is free. "
    ]
    if facts.in_use is not None:
        parts.append(f"Including non-PyTorch memory, this process has {size_text(facts.in_use)} memory in use. ")
    if facts.allowed is not None and release >= (2, 5):
        parts.append(f"{size_text(facts.allowed)} allowed; ")
    parts.append(f"Of the allocated memory {size_text(facts.allocated + private)} is allocated by PyTorch, ")
    if private:
        parts.append(f"with {size_text(private)} allocated in private pools (e.g., CUDA Graphs), ")
    unallocated = facts.reserved - facts.allocated - private
    parts.append(f"and {size_text(unallocated)} is reserved by PyTorch but unallocated.")
    parts.append(_advice(facts, release))
    return "".join(parts)


def rejection_text(size: int) -> str:
    """The message under ``throw_on_cudamalloc_oom`` for ``size`` bytes: the device is not asked at all."""
    return (
        "CUDA out of memory. Allocation was preemptively rejected because it would exceed per_process_memory_fraction"
        f" limit. Requested size: {size_text(size)}"
    )


def _advice(facts: OomFacts, release: Release) -> str:
    """What the message recommends."""
    if release < (2, 2):
        return _ADVICE.format(setting="max_split_size_mb", link="and PYTORCH_CUDA_ALLOC_CONF")
    if facts.expandable and release >= (2, 15):
        if facts.exceeded_reserve is None:
            return _EXPANDABLE_2_15
        limit, segment = size_text(facts.exceeded_reserve), size_text(facts.segment)
        return _EXCEEDED_2_15.format(limit=limit, segment=segment)
    if facts.expandable and release >= (2, 14):
        return ""
    variable = "PYTORCH_ALLOC_CONF" if release == (2, 10) else "PYTORCH_CUDA_ALLOC_CONF"
    link = _LINK_2_11 if release >= (2, 11) else _LINK
    return _ADVICE.format(setting=f"{variable}=expandable_segments:True", link=link)


def size_text(size: int) -> str:
    """Bytes as PyTorch's messages write them, e.g. ``1024.00 MiB`` for a whole GiB."""
    if size <= KIB:
        return f"{size} bytes"
    for limit, unit, name in ((MIB, KIB, "KiB"), (GIB, MIB, "MiB")):
        if size <= limit:
            return f"{size / unit:.2f} {name}"
    return f"{size / GIB:.2f} GiB"
