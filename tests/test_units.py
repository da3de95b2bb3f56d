"""Sizes and counts: one reader, one writer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memfit.units import GB, GIB, KIB, MIB, format_bytes, format_count, format_gib, parse_bytes, parse_count


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("80GiB", 80 * GIB),
        ("80 GB", 80 * GB),
        ("80gb", 80 * GB),
        ("512MiB", 512 * MIB),
        ("1.5 KiB", 1536),
        ("2 TiB", 2 << 40),
        ("1_000", 1000),
        ("0", 0),
        ("7 b", 7),
    ],
)
def test_sizes_are_read_in_binary_and_decimal_units(text, value):
    assert parse_bytes(text) == value


@pytest.mark.parametrize(
    "text", ["", "GiB", "-1GiB", "8 k", "1e9", "80 GiBs", "12x", "1.2.3", "٣ GiB", "9" * 40, "1" + " " * 99 + "?"]
)
def test_text_that_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match="not a size in bytes"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [("8k", 8192), ("128K", 131072), ("1m", 1 << 20), ("4096", 4096), ("1.5k", 1536), ("2ki", 2048), ("1_024", 1024)],
)
def test_counts_take_powers_of_1024(text, value):
    assert parse_count(text) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [("8 GiB", "not a count"), ("", "not a count"), ("1.3", "not a whole"), ("0.3k", "not a whole")],
)
def test_text_that_is_no_whole_count_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_count(text)


@given(st.integers(0, 1 << 60))
def test_whole_bytes_are_read_back(value):
    assert parse_bytes(f"{value} B") == pytest.approx(value, rel=1e-15)
    assert parse_count(str(value)) == pytest.approx(value, rel=1e-15)


@given(st.integers(0, 1 << 50))
def test_what_is_written_reads_back_to_two_decimals(value):
    assert parse_bytes(format_bytes(value)) == pytest.approx(value, rel=0.006, abs=0.5)
    assert parse_bytes(format_gib(value)) == pytest.approx(value, abs=0.006 * GIB)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (KIB, "1.00 KiB"),
        (3 * MIB // 2, "1.50 MiB"),
        (-2 * GIB, "-2.00 GiB"),
        (5 << 40, "5120.00 GiB"),
    ],
)
def test_bytes_are_written_in_the_unit_that_suits(value, text):
    assert format_bytes(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (8_030_261_248, "8.03B"),
        (494_032_768, "494.0M"),
        (12_300, "12.3k"),
        (999, "999"),
        (1_500_000_000_000, "1.5T"),
        (70_553_706_496, "70.6B"),
    ],
)
def test_counts_are_written_as_people_write_them(value, text):
    assert format_count(value) == text
