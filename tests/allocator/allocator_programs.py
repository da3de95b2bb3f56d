"""Random but valid event lists for the allocator's property tests."""

from __future__ import annotations

from hypothesis import strategies as st

from memfit.allocator import ALLOC, EMPTY_CACHE, FREE, SYNC, USE, Event

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

SIZES = st.one_of(
    st.integers(1, 4000),
    st.integers(4000, 2 * MIB),
    st.integers(MIB - 600, MIB + 600),
    st.integers(MIB, 24 * MIB),
    st.integers(10 * MIB, 200 * MIB),
)
STREAMS = st.sampled_from([0, 0, 0, 0x1000, 0x2000])
SETTINGS = st.sampled_from([
    "",
    "",
    "expandable_segments:True",
    "max_split_size_mb:30",
    "roundup_power2_divisions:4",
    "roundup_power2_divisions:[2:4,64:8,>:2],expandable_segments:True",
    "large_segment_size_mb:40",
])  # fmt: skip
RELEASES = st.sampled_from([(2, 1), (2, 4), (2, 9), (2, 11), (2, 12), (2, 13), (2, 15)])


@st.composite
def programs(draw: st.DrawFn, *, uses: bool = True, max_size: int = 60) -> list[Event]:
    """Events whose frees and uses name live storages."""
    steps = draw(st.lists(st.tuples(st.integers(0, 99), SIZES, STREAMS, st.integers(0, 1 << 16)), max_size=max_size))
    events: list[Event] = []
    live: list[int] = []
    for number, (dice, size, stream, pick) in enumerate(steps):
        if live and dice < 42:
            name = live.pop(pick % len(live))
            if uses and dice < 12:
                events.append((USE, name, 0x1000 * (pick % 3)))
            events.append((FREE, name))
        elif dice < 45:
            events.append((EMPTY_CACHE,))
        elif dice < 48:
            events.append((SYNC,))
        else:
            events.append((ALLOC, number, size, stream))
            live.append(number)
    return events
