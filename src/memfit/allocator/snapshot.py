"""A snapshot of the simulated allocator in PyTorch's own format, for its viewer and for every tool that reads one.

The pickle holds plain dicts, lists, tuples, strings and numbers (protocol 4), with the keys of
``torch.cuda.memory._snapshot()`` as of torch 2.13; ``torch.cuda._memory_viz`` and the viewer page open it.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from memfit.allocator.blocks import ALLOCATED, PENDING, UNMAPPED, Block
from memfit.allocator.simulator import CachingAllocator

STATES = {ALLOCATED: "active_allocated", PENDING: "active_pending_free"}


def segments(allocator: CachingAllocator, live: Iterable[Block]) -> list[dict[str, Any]]:
    """The memory map: every segment with its blocks, by address.

    Args:
        allocator: the allocator.
        live: the blocks in use, which only their owner knows.
    """
    blocks = [*live, *allocator.pending, *(block for pool in allocator.pools() for block in pool.blocks())]
    heads = [block for block in blocks if block.prev is None or block.prev.state == UNMAPPED]
    return sorted((_segment(allocator, head) for head in heads), key=lambda segment: segment["address"])


def snapshot(allocator: CachingAllocator, live: Iterable[Block]) -> dict[str, Any]:
    """The whole snapshot: memory map, history (when one was kept) and settings."""
    config = allocator.config
    return {
        "segments": segments(allocator, live),
        "device_traces": [[_action(i, entry) for i, entry in enumerate(allocator.history or ())]],
        "allocator_settings": {
            "PYTORCH_CUDA_ALLOC_CONF": config.to_text(),
            "max_split_size": -1 if config.max_split_size is None else config.max_split_size,
            "garbage_collection_threshold": config.garbage_collection_threshold,
            "expandable_segments": config.expandable_segments,
            "roundup_power2_divisions": {
                str(1 << i): divisions for i, divisions in enumerate(config.roundup_power2_divisions)
            },
        },
        "external_annotations": [],
    }


def write_snapshot(path: str | Path, allocator: CachingAllocator, live: Iterable[Block]) -> None:
    """Write the snapshot as the pickle that ``torch.cuda.memory._dump_snapshot`` writes."""
    with Path(path).open("wb") as file:
        pickle.dump(snapshot(allocator, live), file, protocol=4)


def _segment(allocator: CachingAllocator, head: Block) -> dict[str, Any]:
    place = allocator.device.address
    blocks: list[dict[str, Any]] = []
    block: Block | None = head
    while block is not None and block.state != UNMAPPED:
        blocks.append({
            "address": place(block.address),
            "size": block.size,
            "requested_size": block.requested,
            "state": STATES.get(block.state, "inactive"),
            "frames": block.frames or [],
        })  # fmt: skip
        block = block.next
    active = [b for b in blocks if b["state"] != "inactive"]
    owner = head.pool.owner
    return {
        "device": 0,
        "address": place(head.address),
        "total_size": sum(b["size"] for b in blocks),
        "allocated_size": sum(b["size"] for b in active if b["state"] == "active_allocated"),
        "active_size": sum(b["size"] for b in active),
        "requested_size": sum(b["requested_size"] for b in active),
        "stream": head.stream,
        "segment_type": "small" if head.pool.small else "large",
        "segment_pool_id": (0, owner.number if owner else 0),
        "is_expandable": head.segment is not None,
        "frames": [],
        "blocks": blocks,
    }


def _action(index: int, entry: tuple[Any, ...]) -> dict[str, Any]:
    action, address, size, stream, pool, frames = entry
    return {
        "action": action,
        "device_free" if action == "oom" else "addr": address,
        "size": size,
        "stream": stream,
        "time_us": index,
        "pool_id": (0, pool),
        "compile_context": "",
        "user_metadata": "",
        "frames": frames or [],
    }
