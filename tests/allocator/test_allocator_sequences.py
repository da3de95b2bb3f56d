"""Small programs whose outcome can be followed by hand; the figures are those of the real allocator."""

from __future__ import annotations

import pytest

from memfit.allocator import (
    ALLOC,
    EMPTY_CACHE,
    FREE,
    POOL_BEGIN,
    POOL_END,
    POOL_RELEASE,
    SYNC,
    USE,
    AllocatorConfig,
    CachingAllocator,
    OomFacts,
    oom_text,
    replay,
)
from memfit.allocator.oom import size_text
from memfit.errors import MemfitError

MIB, GIB = 1 << 20, 1 << 30


def reserved(*events, settings="", **options):
    return replay(list(events), settings, **options).reserved_peak


@pytest.mark.parametrize(
    ("size", "segment"),
    [(1, 2), (MIB, 2), (MIB + 1, 20), (10 * MIB - 512, 20), (10 * MIB, 10), (11 * MIB, 12), (300 * MIB + 1, 302)],
)
def test_segment_of_a_single_request(size, segment):
    assert reserved((ALLOC, 0, size, 0)) == segment * MIB


def test_zero_bytes_allocate_nothing_and_unknown_names_are_ignored():
    result = replay([(ALLOC, 0, 0, 0), (FREE, 0), (FREE, "never"), (USE, "never", 1)])
    assert result.reserved_peak == result.allocated_peak == 0
    assert result.peak_index == -1


def test_a_large_block_keeps_a_remainder_of_up_to_one_mebibyte():
    kept = replay([(ALLOC, 0, 20 * MIB, 0), (FREE, 0), (ALLOC, 1, 19 * MIB, 0)])
    assert kept.allocated == 20 * MIB
    split = replay([(ALLOC, 0, 20 * MIB, 0), (FREE, 0), (ALLOC, 1, 19 * MIB - 512, 0)])
    assert split.allocated == 19 * MIB - 512
    assert split.allocator.inactive_split == MIB + 512


def test_streams_do_not_share_blocks():
    assert reserved((ALLOC, 0, 30 * MIB, 0), (FREE, 0), (ALLOC, 1, 30 * MIB, 0)) == 30 * MIB
    assert reserved((ALLOC, 0, 30 * MIB, 0), (FREE, 0), (ALLOC, 1, 30 * MIB, 7)) == 60 * MIB


def test_best_fit_takes_the_smallest_block_that_fits():
    events = [(ALLOC, name, size * MIB, 0) for name, size in enumerate((40, 30, 50))]
    events += [(FREE, name) for name in range(3)]
    result = replay([*events, (ALLOC, "x", 29 * MIB + 1, 0)])
    assert result.live["x"].size == 30 * MIB


def test_ties_go_to_the_lowest_address_and_from_2_13_on_to_the_oldest_segment():
    events = [(ALLOC, name, 30 * MIB, 0) for name in range(3)]
    events += [(FREE, 2), (FREE, 0), (FREE, 1), (ALLOC, "x", 30 * MIB, 0)]
    for release, winner in (((2, 9), 2), ((2, 15), 0)):
        result = replay(events, release=release, order="descending", history=True)
        addresses = [entry[1] for entry in result.allocator.history if entry[0] == "alloc"]
        assert addresses[:3] == sorted(addresses[:3], reverse=True)
        assert addresses[3] == addresses[winner]


@pytest.mark.parametrize(("lag", "peak"), [(0, 30), (1, 60), (2, 90), (None, 150)])
def test_a_use_on_another_stream_delays_reuse_by_the_lag(lag, peak):
    events = []
    for name in range(5):
        events += [(ALLOC, name, 30 * MIB, 0), (USE, name, 0x10), (FREE, name)]
    assert reserved(*events, lag=lag) == peak * MIB
    own_stream = [(USE, event[1], 0) if event[0] == USE else event for event in events]
    assert reserved(*own_stream, lag=lag) == 30 * MIB


def test_synchronisation_ends_uses_and_out_of_memory_waits_for_them():
    program = [(ALLOC, 0, 30 * MIB, 0), (USE, 0, 1), (FREE, 0)]
    again = (ALLOC, 1, 30 * MIB, 0)
    assert reserved(*program, again, lag=None) == 60 * MIB
    assert reserved(*program, (SYNC,), again, lag=None) == 30 * MIB
    limited = replay([*program, again], capacity=40 * MIB, lag=None)
    assert limited.oom is None
    assert limited.num_alloc_retries == 1


def test_expandable_segments_remove_fragmentation():
    events = [(ALLOC, i, 60 * MIB, 0) for i in range(4)] + [(FREE, i) for i in range(4)] + [(ALLOC, 9, 240 * MIB, 0)]
    assert reserved(*events) == 480 * MIB
    assert reserved(*events, settings="expandable_segments:True") == 240 * MIB
    partly = replay([*events[:6], (EMPTY_CACHE,)], "expandable_segments:True")
    assert partly.reserved == 120 * MIB  # pages 60..120 and the first are free again


def test_max_split_size_keeps_large_blocks_whole():
    events = [(ALLOC, 0, 200 * MIB, 0), (FREE, 0), (ALLOC, 1, 50 * MIB, 0)]
    assert reserved(*events) == 200 * MIB
    assert reserved(*events, settings="max_split_size_mb:100") == 250 * MIB


def test_garbage_collection_gives_old_blocks_back():
    events = []
    for size in range(30, 100, 10):
        events += [(ALLOC, size, size * MIB, 0), (FREE, size)]
    settings = "per_process_memory_fraction:0.5"
    assert reserved(*events, settings=settings, capacity=GIB) == 420 * MIB
    collected = reserved(*events, settings=settings + ",garbage_collection_threshold:0.3", capacity=GIB)
    assert collected < 300 * MIB


def test_private_pools_keep_their_memory_until_they_are_released():
    capture = [
        (POOL_BEGIN, 1, None, True),
        (ALLOC, "a", 30 * MIB, 0),
        (ALLOC, "b", 50 * MIB, 0),
        (FREE, "b"),
        (POOL_END, 1),
    ]
    after = [(ALLOC, "c", 50 * MIB, 0), (FREE, "c"), (EMPTY_CACHE,)]
    assert replay([*capture, *after]).reserved == 80 * MIB
    assert replay([*capture, (POOL_RELEASE, 1), *after]).reserved == 30 * MIB
    failing = replay([*capture, (ALLOC, "d", GIB, 0)], capacity=GIB)
    assert "with 50.00 MiB allocated in private pools (e.g., CUDA Graphs), " in failing.oom.text
    with pytest.raises(MemfitError, match="begun twice"):
        replay([(POOL_BEGIN, 1, 0, False), (POOL_BEGIN, 1, 0, False)])


def test_only_captures_hold_back_cached_memory_from_2_13_on():
    events = [(ALLOC, 0, 600 * MIB, 0), (FREE, 0), (POOL_BEGIN, 1, 7, False), (ALLOC, 1, 700 * MIB, 0)]
    assert replay(events, capacity=GIB, release=(2, 11)).oom is not None
    assert replay(events, capacity=GIB, release=(2, 13)).oom is None
    captured = [*events[:2], (POOL_BEGIN, 1, 7, True), events[3]]
    assert replay(captured, capacity=GIB, release=(2, 13)).oom is not None


def test_out_of_memory_text_of_each_release_family():
    events = [(ALLOC, 0, 300 * MIB, 0), (ALLOC, 1, 100 * MIB, 0), (FREE, 1), (ALLOC, 2, 3 * MIB, 0)]
    program = [*events, (ALLOC, 3, 750 * MIB + 1, 0)]
    texts = {
        minor: replay(program, capacity=GIB, others=200 * MIB, release=(2, minor)).oom.text for minor in range(1, 16)
    }
    start = "CUDA out of memory. Tried to allocate 752.00 MiB. GPU 0 has a total "
    figures = (
        " of 1024.00 MiB of which 424.00 MiB is free. Including non-PyTorch memory, this process has 600.00 MiB memory"
        " in use. Of the allocated memory 303.00 MiB is allocated by PyTorch, and 97.00 MiB is reserved by PyTorch but"
        " unallocated. If reserved but unallocated memory is large try setting "
    )
    manual = " to avoid fragmentation.  See documentation for Memory Management "
    assert texts[1] == f"{start}capacty{figures}max_split_size_mb{manual}and PYTORCH_CUDA_ALLOC_CONF"
    assert texts[3] == start.removesuffix("0 has a total ")
    old = "(https://pytorch.org/docs/stable/notes/cuda.html#environment-variables)"
    new = "(https://docs.pytorch.org/docs/stable/notes/cuda.html#optimizing-memory-usage-with-pytorch-cuda-alloc-conf)"
    for minor in (2, *range(4, 16)):
        variable = "PYTORCH_ALLOC_CONF" if minor == 10 else "PYTORCH_CUDA_ALLOC_CONF"
        link = new if minor >= 11 else old
        assert texts[minor] == f"{start}capacity{figures}{variable}=expandable_segments:True{manual} {link}"


def test_out_of_memory_text_with_a_fraction_and_without_nvml():
    facts = OomFacts(
        segment=20 * MIB, total=GIB, free=5, in_use=None, allowed=512 * MIB, allocated=2000, private=0, reserved=MIB
    )
    text = oom_text(facts)
    assert "of which 5 bytes is free. 512.00 MiB allowed; Of the allocated memory 1.95 KiB is allocated" in text
    assert "this process" not in text
    assert "allowed" not in oom_text(facts, (2, 4))


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (1024, "1024 bytes"), (1025, "1.00 KiB"), (MIB, "1024.00 KiB"), (GIB, "1024.00 MiB")],
)
def test_sizes_as_pytorch_writes_them(size, text):
    assert size_text(size) == text


def test_expandable_range_smaller_than_a_request():
    result = replay([(ALLOC, 0, 350 * MIB, 0)], "expandable_segments:True,expandable_segments_reserve:0.2", 900 * MIB)
    assert "exceeds the expandable-segment reserve of 180.00 MiB" in result.oom.text
    assert result.reserved_peak == 0


def test_config_objects_and_texts_are_both_settings():
    events = [(ALLOC, 0, 5 * MIB, 0)]
    assert replay(events, AllocatorConfig(large_segment_size=64 * MIB)).reserved_peak == 64 * MIB
    assert replay(events, "large_segment_size_mb:64").reserved_peak == 64 * MIB
    assert CachingAllocator().config == AllocatorConfig()


def test_early_refusal_leaves_the_cache_alone():
    events = [(ALLOC, 0, 600 * MIB, 0), (FREE, 0), (ALLOC, 1, 700 * MIB, 0)]
    assert replay(events, capacity=GIB).oom is None
    refused = replay(events, "throw_on_cudamalloc_oom:True", GIB)
    assert refused.oom.text.endswith("per_process_memory_fraction limit. Requested size: 700.00 MiB")
    assert refused.reserved == 600 * MIB
