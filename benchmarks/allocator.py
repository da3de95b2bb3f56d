"""How fast is the simulated allocator, and what does it say about a transformer step?

``python benchmarks/allocator.py [EVENTS.pickle]`` prints microseconds per event for the default and other settings, the
time of a bisection for the smallest capacity, and a what-if table. Without a file the events are those of a made-up
training step (32 layers, two steps, optimizer states created in the first).
"""

from __future__ import annotations

import pickle
import sys
import time
from pathlib import Path

from memfit.allocator import ALLOC, FREE, MARK, Event, replay, smallest_capacity, what_if
from memfit.units import GIB, format_gib

SETTINGS = (
    "",
    "expandable_segments:True",
    "max_split_size_mb:512",
    "roundup_power2_divisions:8",
    "garbage_collection_threshold:0.8,per_process_memory_fraction:0.9",
)


def training_step(num_layers: int = 32, tokens: int = 4096, hidden: int = 4096, ffn: int = 14336) -> list[Event]:
    """Events of two steps in bf16: parameters, activations, gradients, AdamW states and their temporaries."""
    events: list[Event] = []
    number = 0

    def alloc(size: int) -> int:
        nonlocal number
        number += 1
        events.append((ALLOC, number, size, 0))
        return number

    def free(*names: int) -> None:
        events.extend((FREE, name) for name in names)

    shapes = [hidden * hidden, hidden * hidden // 4, hidden * hidden // 4, hidden * hidden, *[hidden * ffn] * 3, hidden]
    weights = [[alloc(2 * n) for n in shapes] for _ in range(num_layers)]
    states: list[int] = []
    for step in (1, 2):
        events.append((MARK, f"step {step} forward"))
        saved = []
        for _ in range(num_layers):
            kept = []
            for width in (hidden, hidden, hidden // 4, hidden // 4, hidden, hidden, ffn, ffn, ffn, hidden):
                kept.append(alloc(2 * tokens * width))
                scratch = [alloc(4 * tokens * width), alloc(4 * tokens), alloc(2 * tokens * width)]
                free(*scratch)
            saved.append(kept)
        events.append((MARK, f"step {step} backward"))
        gradients = []
        for kept in reversed(saved):
            flowing = alloc(2 * tokens * hidden)
            for n in shapes:
                gradients.append(alloc(2 * n))
                scratch = [alloc(2 * tokens * ffn), alloc(4 * n // 8)]
                free(*scratch)
            free(*kept, flowing)
        events.append((MARK, f"step {step} optimizer"))
        if not states:
            states = [alloc(2 * n) for _ in range(2 * num_layers) for n in shapes]
        scratch = [alloc(2 * n) for _ in range(num_layers) for n in shapes]
        free(*scratch, *gradients)
    assert weights
    return events


def main(arguments: list[str]) -> None:
    """Print the tables."""
    if arguments:
        with Path(arguments[0]).open("rb") as file:
            events = pickle.load(file)
    else:
        events = training_step()
    print(f"{len(events)} events")
    for settings in SETTINGS:
        best = float("inf")
        for _ in range(7):
            start = time.process_time()
            result = replay(events, settings, 200 * GIB)
            best = min(best, time.process_time() - start)
        reserved = format_gib(result.reserved_peak)
        print(f"{best / len(events) * 1e6:5.2f} us/event  reserved {reserved}  {settings or 'default'}")
    start = time.process_time()
    capacity = smallest_capacity(events)
    print(f"smallest capacity {format_gib(capacity, 4)} in {time.process_time() - start:.2f} s")
    print("allocated   reserved   smallest   settings")
    for row in what_if(events):
        figures = (row.allocated_peak, row.reserved_peak, row.smallest_capacity)
        print("  ".join(f"{format_gib(figure):>9}" for figure in figures), "", row.settings or "default")


if __name__ == "__main__":
    main(sys.argv[1:])
