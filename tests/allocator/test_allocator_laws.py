"""What must hold for every program, under every setting and release."""

from __future__ import annotations

import pytest
from allocator_programs import MIB, RELEASES, SETTINGS, programs
from hypothesis import given, settings
from hypothesis import strategies as st

from memfit.allocator import (
    ALLOC,
    FREE,
    MARK,
    AllocatorConfig,
    CachingAllocator,
    Device,
    SimulatedOutOfMemoryError,
    capacity_interval,
    replay,
    reserved_interval,
    smallest_capacity,
    what_if,
)
from memfit.allocator.blocks import ALLOCATED, UNMAPPED
from memfit.allocator.blocks import FREE as FREE_STATE
from memfit.allocator.config import make_rounding, segment_size

LAGS = st.sampled_from([0, 3, None])
few = settings(max_examples=40, deadline=None)
fewer = settings(max_examples=15, deadline=None)


def requested_at_end(events) -> int:
    sizes = {}
    for event in events:
        if event[0] == ALLOC:
            sizes[event[1]] = event[2]
        elif event[0] == FREE:
            sizes.pop(event[1])
    return sum(sizes.values())


@few
@given(events=programs(), text=SETTINGS, release=RELEASES, lag=LAGS)
def test_parts_sum_and_nothing_overlaps(events, text, release, lag):
    result = replay(events, text, release=release, lag=lag, stats=True)
    allocator = result.allocator
    assert allocator.reserved >= allocator.active >= allocator.allocated >= requested_at_end(events)
    assert allocator.active >= allocator.requested >= requested_at_end(events)
    assert result.reserved_peak >= result.active_peak >= result.allocated_peak
    assert allocator.device.used == allocator.reserved
    end = 0
    for segment in result.segments():
        assert segment["address"] >= end
        end = segment["address"]
        for block in segment["blocks"]:
            assert block["address"] == end
            assert block["size"] > 0
            assert block["state"] == "inactive" or block["size"] >= block["requested_size"]
            end += block["size"]
        assert segment["total_size"] == end - segment["address"]
        assert segment["stream"] in (0, 0x1000, 0x2000)
    assert sum(s["total_size"] for s in result.segments()) == allocator.reserved
    assert sum(s["allocated_size"] for s in result.segments()) == allocator.allocated
    assert sum(s["active_size"] for s in result.segments()) == allocator.active
    figures = allocator.stats.to_dict()
    for name in ("allocated", "active", "reserved", "requested"):
        both = [figures[f"{name}_bytes.{kind}.current"] for kind in ("all", "small_pool", "large_pool")]
        assert both[0] == both[1] + both[2] == getattr(allocator, name)
        assert figures[f"{name}_bytes.all.peak"] == getattr(result, f"{name}_peak")


@few
@given(events=programs(), text=SETTINGS, release=RELEASES)
def test_free_neighbours_are_merged_and_lists_are_sorted(events, text, release):
    result = replay(events, text, release=release)
    for pool in result.allocator.pools():
        for stream, entries in pool.free.items():
            assert entries == sorted(entries, key=lambda entry: entry[:2])
            for size, key, block in entries:
                assert (block.size, block.key, block.stream, block.state) == (size, key, stream, FREE_STATE)
                for other in (block.prev, block.next):
                    assert other is None or other.state != FREE_STATE
                assert block.next is None or block.next.prev is block
    for block in result.live.values():
        assert block.state == ALLOCATED
        assert block.address % 512 == 0


@few
@given(events=programs(), text=SETTINGS, release=RELEASES, lag=LAGS)
def test_freeing_all_and_emptying_the_cache_returns_everything(events, text, release, lag):
    result = replay(events, text, release=release, lag=lag)
    allocator = result.allocator
    for block in result.live.values():
        allocator.free(block)
    allocator.empty_cache()
    assert allocator.allocated == allocator.active == allocator.requested == allocator.reserved == 0
    assert allocator.device.used == allocator.num_segments == allocator.inactive_split == 0


@few
@given(events=programs(), lag=LAGS)
def test_expandable_segments_hold_exactly_the_rounded_requests(events, lag):
    """No unsplit remainder is ever counted, and after empty_cache every mapped page holds a byte in use."""
    result = replay(events, "expandable_segments:True", lag=lag)
    round_size = make_rounding(AllocatorConfig())
    sizes = {event[1]: round_size(event[2]) for event in events if event[0] == ALLOC}
    assert result.allocated == sum(sizes[name] for name in result.live)
    allocator = result.allocator
    allocator.empty_cache()
    pages = set()
    for block in result.live.values():
        segment = block.segment
        first = (block.address - segment.base) // segment.page
        last = (block.address + block.size - 1 - segment.base) // segment.page
        pages |= {(segment.base, segment.page, page) for page in range(first, last + 1)}
    assert allocator.reserved == sum(page for _, page, _ in pages)


@few
@given(events=programs(uses=False), text=SETTINGS, release=RELEASES)
def test_a_capacity_of_the_reserved_peak_changes_nothing(events, text, release):
    free = replay(events, text, release=release)
    if free.reserved_peak:
        tight = replay(events, text, free.reserved_peak, release=release)
        assert tight.oom is None
        assert tight.num_alloc_retries == 0
        assert (tight.reserved_peak, tight.allocated_peak) == (free.reserved_peak, free.allocated_peak)


@few
@given(events=programs(), text=SETTINGS, release=RELEASES, capacity=st.integers(1, 600), others=st.integers(0, 50))
def test_the_device_is_never_overcommitted(events, text, release, capacity, others):
    capacity, others = capacity * MIB, others * MIB
    result = replay(events, text, capacity, others=others, release=release)
    allocator = result.allocator
    assert result.reserved_peak + others <= max(capacity, others)
    if result.oom is None:
        assert result.num_events == len(events)
    else:
        failed = events[result.oom.index]
        assert failed[:3] == (ALLOC, result.oom.id, result.oom.requested)
        assert result.num_events == result.oom.index + 1
        assert allocator.num_ooms == 1
        assert result.num_alloc_retries >= 1
        # nothing that could be given back was left behind
        assert all(block.is_split() for pool in allocator.pools() for block in pool.blocks() if block.segment is None)


@few
@given(events=programs(), text=SETTINGS, fraction=st.sampled_from([0.25, 0.5, 1.0]))
def test_a_memory_fraction_limits_what_is_reserved(events, text, fraction):
    capacity = 800 * MIB
    settings_text = ",".join(part for part in (text, f"per_process_memory_fraction:{fraction}") if part)
    result = replay(events, settings_text, capacity)
    pages = 40 * MIB if "expandable" in text else 0  # expandable growth is checked by segment, mapped by page
    assert result.reserved_peak <= capacity * fraction + pages


@fewer
@given(events=programs(max_size=40), text=SETTINGS, release=RELEASES)
def test_the_smallest_capacity_finishes_and_two_mebibytes_less_do_not(events, text, release):
    capacity = smallest_capacity(events, text, release=release)
    if any(event[0] == ALLOC for event in events):
        assert replay(events, text, capacity, release=release).oom is None
        assert replay(events, text, capacity - 2 * MIB, release=release).oom is not None
        free = replay(events, text, release=release)
        assert free.requested_peak <= capacity <= free.reserved_peak
        assert smallest_capacity(events, text, release=release, others=7 * MIB) == capacity + 7 * MIB


@fewer
@given(events=programs(), text=SETTINGS, order=st.sampled_from(["descending", 1, 2, 9]))
def test_address_order_matters_for_nothing_from_2_12_on(events, text, order):
    plain, other = replay(events, text), replay(events, text, order=order)
    old = replay(events, text, release=(2, 12)), replay(events, text, release=(2, 12), order=order)
    assert old[0].reserved_peak == old[1].reserved_peak
    assert (plain.reserved_peak, plain.allocated_peak) == (other.reserved_peak, other.allocated_peak)
    low, high = reserved_interval(events, text, lags=[0])
    assert low == high == plain.reserved_peak
    assert capacity_interval(events, text, lags=[0]) == (smallest_capacity(events, text),) * 2


@fewer
@given(events=programs(), text=SETTINGS)
def test_the_reserved_interval_contains_every_single_answer(events, text):
    low, high = reserved_interval(events, text, release=(2, 9))
    for order in ("ascending", "descending", 2):
        for lag in (0, None):
            assert low <= replay(events, text, release=(2, 9), order=order, lag=lag).reserved_peak <= high


@settings(max_examples=5, deadline=None)
@given(events=programs(max_size=30))
def test_the_capacity_interval_contains_single_answers(events):
    low, high = capacity_interval(events, release=(2, 9))
    for order in ("ascending", "descending", 2):
        assert low <= smallest_capacity(events, release=(2, 9), order=order) <= high


@few
@given(events=programs(uses=False), cut=st.integers(0, 60), text=SETTINGS)
def test_marks_split_the_peaks_and_change_nothing_else(events, cut, text):
    plain = replay(events, text)
    marked = replay([*events[:cut], (MARK, "second"), *events[cut:]], text)
    assert marked.reserved_peak == plain.reserved_peak == max(s.reserved_peak for s in marked.spans)
    assert marked.allocated_peak == plain.allocated_peak == max(s.allocated_peak for s in marked.spans)
    assert marked.spans[-1].label == "second"
    assert marked.spans[-1].end == len(events) + 1
    if plain.peak_index >= 0:
        prefix = replay(events[: plain.peak_index + 1], text)
        assert prefix.allocated == plain.allocated_peak


@fewer
@given(events=programs(), capacity=st.integers(1, 400))
def test_what_if_rows_agree_with_single_replays(events, capacity):
    capacity *= MIB
    for row in what_if(events, ["", "expandable_segments:True"], capacity):
        assert row.reserved_peak == replay(events, row.settings).reserved_peak
        assert row.fits == (replay(events, row.settings, capacity).oom is None)
        assert row.smallest_capacity == smallest_capacity(events, row.settings)


@few
@given(sizes=st.lists(st.integers(1, 60 * MIB), min_size=1, max_size=40))
def test_a_cached_block_that_fits_is_used_before_new_memory(sizes):
    allocator = CachingAllocator()
    for block in [allocator.malloc(size) for size in sizes]:
        allocator.free(block)
    reserved = allocator.reserved
    for size in sorted(sizes, reverse=True)[:1]:
        allocator.malloc(size)
    assert allocator.reserved == reserved


@few
@given(size=st.integers(1, 1 << 36), text=SETTINGS)
def test_rounding_covers_the_request_and_is_idempotent(size, text):
    config = AllocatorConfig.parse(text)
    round_size = make_rounding(config)
    rounded = round_size(size)
    assert rounded >= max(size, 512)
    assert rounded % 512 == 0
    assert round_size(rounded) == rounded
    assert segment_size(rounded, config.large_segment_size) >= rounded
    if not any(config.roundup_power2_divisions):
        assert rounded - size < 512


@few
@given(events=programs(), text=SETTINGS)
def test_unmapped_ranges_never_count_as_free(events, text):
    result = replay(events, text, 700 * MIB)
    for pool in result.allocator.pools():
        for entries in pool.unmapped.values():
            for address, block in entries:
                assert block.state == UNMAPPED
                assert block.address == address
                assert block.next is None or block.next.state != UNMAPPED


def test_replay_needs_no_recursion_or_time_for_long_programs():
    events = []
    for step in range(3000):
        events += [(ALLOC, i, 1000 * (i + step % 7 + 1), 0) for i in range(4)]
        events += [(FREE, i) for i in range(4)]
    result = replay(events, "", 64 * MIB)
    assert result.num_events == 24000
    assert result.reserved_peak == 2 * MIB


def test_direct_use_of_the_allocator():
    allocator = CachingAllocator(device=Device(40 * MIB))
    block = allocator.malloc(30 * MIB)
    with pytest.raises(SimulatedOutOfMemoryError) as caught:
        allocator.malloc(20 * MIB)
    assert caught.value.facts.segment == 20 * MIB
    assert caught.value.facts.free == 10 * MIB
    allocator.free(block)
    assert allocator.malloc(40 * MIB).size == 40 * MIB


@pytest.mark.parametrize("text", ["", "expandable_segments:True"])
def test_the_work_does_not_grow_with_the_bytes(text):
    size = 10**40  # counted page by page, this would never end
    capacity = smallest_capacity([(ALLOC, "huge", size, 0), (FREE, "huge")], text)
    assert 0 <= capacity - size < 64 * MIB
