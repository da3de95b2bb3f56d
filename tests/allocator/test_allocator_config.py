"""Settings as PyTorch reads them, and what it would refuse."""

from __future__ import annotations

import pytest

from memfit.allocator import AllocatorConfig, parse_release, replay
from memfit.allocator.config import make_rounding
from memfit.errors import MemfitError, UnknownNameError

MIB = 1 << 20


def test_every_simulated_setting_is_read():
    config = AllocatorConfig.parse(
        "expandable_segments:True, max_split_size_mb:128,max_non_split_rounding_mb:40,roundup_power2_divisions:8,"
        "garbage_collection_threshold:0.8,large_segment_size_mb:64,per_process_memory_fraction:0.5,"
        "expandable_segments_reserve:40G,backend:native,pinned_num_register_threads:4"
    )
    assert config == AllocatorConfig(
        expandable_segments=True,
        max_split_size=128 * MIB,
        max_non_split_rounding=40 * MIB,
        roundup_power2_divisions=(8,) * 16,
        garbage_collection_threshold=0.8,
        large_segment_size=64 * MIB,
        memory_fraction=0.5,
        expandable_reserve_bytes=40 << 30,
        no_effect=("pinned_num_register_threads",),
    )
    assert AllocatorConfig.parse("") == AllocatorConfig()
    assert any("pinned_num_register_threads" in warning for warning in config.warnings())
    assert any("max_split_size_mb" in warning for warning in config.warnings())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "expandable_segments:True",
        "max_split_size_mb:512,max_non_split_rounding_mb:64",
        "roundup_power2_divisions:4",
        "roundup_power2_divisions:[4:8,32:2,128:4,>:16]",
        "garbage_collection_threshold:0.6,per_process_memory_fraction:0.9",
        "large_segment_size_mb:32,expandable_segments:True,expandable_segments_reserve:0.5",
        "expandable_segments_reserve:40G",
        "throw_on_cudamalloc_oom:True",
    ],
)
def test_text_of_a_config_reads_back_the_same(text):
    config = AllocatorConfig.parse(text)
    assert AllocatorConfig.parse(config.to_text()) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_split_size:128", "did you mean `max_split_size_mb`"),
        ("expandable_segment:True", "did you mean `expandable_segments`"),
        ("garbage_collect_threshold:0.8", "did you mean `garbage_collection_threshold`"),
        ("roundup_power2_division:8", "did you mean `roundup_power2_divisions`"),
    ],
)
def test_a_misspelt_setting_names_the_nearest(text, message):
    with pytest.raises(UnknownNameError, match=message):
        AllocatorConfig.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "expandable_segments:true",
        "throw_on_cudamalloc_oom:1",
        "expandable_segments",
        "expandable_segments:",
        "max_split_size_mb:19",
        "max_split_size_mb:12.5",
        "max_split_size_mb:-5",
        "max_split_size_mb:99999999999999",
        "max_non_split_rounding_mb:1",
        "large_segment_size_mb:2",
        "garbage_collection_threshold:0",
        "garbage_collection_threshold:1",
        "garbage_collection_threshold:nan",
        "garbage_collection_threshold:much",
        "per_process_memory_fraction:1.5",
        "expandable_segments_reserve:-3",
        "expandable_segments_reserve:G",
        "roundup_power2_divisions:3",
        "roundup_power2_divisions:[3:4]",
        "roundup_power2_divisions:[256:4",
        "roundup_power2_divisions:[256]",
        "backend:cudaMallocAsync",
        "a" * 5000,
        ",,",
        "]:[",
    ],
)
def test_a_value_that_pytorch_refuses_is_one_error(text):
    with pytest.raises(MemfitError):
        AllocatorConfig.parse(text)


def test_rounding_table_by_size_and_release():
    """Read off the binaries: an entry covers its power of two; the first covers all below; gaps stay at 512 B."""
    text = "roundup_power2_divisions:[4:8,32:2,128:4,>:16]"
    new, old = (make_rounding(AllocatorConfig.parse(text, release)) for release in ((2, 10), (2, 9)))
    for mebibytes, steps in ((1, 8), (4, 8), (32, 2), (256, 16), (1024, 16)):
        size = mebibytes * MIB
        assert new(size + 1) == old(size + 1) == size + size // steps
        assert new(size) == size
    assert new(9 * MIB + 1) == old(9 * MIB + 1) == 9 * MIB + 512
    assert new(128 * MIB + 1) == 160 * MIB
    assert old(128 * MIB + 1) == 136 * MIB


def test_unknown_events_orders_and_double_ids_are_errors():
    with pytest.raises(MemfitError, match="no kind of event"):
        replay([(99,)])
    with pytest.raises(MemfitError, match="allocated twice"):
        replay([(0, "x", 10, 0), (0, "x", 10, 0)])
    with pytest.raises(MemfitError, match="address order"):
        replay([], order="sideways")


def test_releases():
    assert parse_release("2.13") == parse_release("2.13.0") == parse_release("2.13.0+cu130") == (2, 13)
    for text in ("", "1.13", "2", "3.0", "2.x", "latest"):
        with pytest.raises(MemfitError, match="not a version"):
            parse_release(text)
