"""Single kernels and collectives against figures worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memfit.hardware import lookup_gpu
from memfit.speed.calibration import default
from memfit.speed.kernels import attention, product, stream
from memfit.speed.network import START_S, fabric
from memfit.speed.numbers import above, doublings, least, most
from memfit.speed.rates import rates


def card(name, precision="bf16", kernel="flash2"):
    return rates(lookup_gpu(name)[0], precision, kernel, default())


def test_a_large_product_runs_near_the_sustained_rate():
    # 2 * 8192^3 = 1.1e12 operations; an H100 sustains 989 TFLOPS * 0.828 * 0.66 = 540 in training
    seconds = product(card("h100"), 8192.0, 8192.0, 8192.0)
    assert 1.1e12 / seconds == pytest.approx(0.95 * 540e12, rel=0.05)


def test_a_thin_product_is_bound_by_its_operands():
    # a token through 8192 x 8192 weights of 16 bit reads 134 MB; an A100 streams 2.039 TB/s * 0.87
    seconds = product(card("a100-80gb"), 1.0, 8192.0, 8192.0)
    assert seconds == pytest.approx(134.2e6 / (2.039e12 * 0.87), rel=0.05)


def test_waves_quantise():
    # 132 tiles of 128 x 256 fill an H100 once; one more needs a second wave of what is left, or a split
    r = card("h100")
    full = product(r, 256.0 * 12, 128.0 * 11, 8192.0)
    more = product(r, 256.0 * 12, 128.0 * 11 + 1, 8192.0)
    assert full * 1.03 < more < full * 2.1


@given(st.integers(1, 1 << 14), st.integers(1, 1 << 14), st.integers(1, 1 << 14), st.sampled_from(("h100", "t4")))
def test_products_grow_with_each_side_and_keep_below_the_rate(rows, columns, inner, name):
    r = card(name)
    seconds = product(r, float(rows), float(columns), float(inner))
    assert 2.0 * rows * columns * inner / seconds <= r.matmul
    assert product(r, float(rows) * 2, float(columns), float(inner)) >= seconds
    assert product(r, float(rows), float(columns), float(inner) * 2) >= seconds


def test_flash_attention_reaches_its_published_rate():
    # FlashAttention 2 on an A100, 16 heads of 128, 16k tokens, no mask: 225 TFLOPS forward, 196 backward (Dao 2023)
    scores = 16.0 * 16384 * 16384
    r = card("a100-80gb")
    forward = attention(r, scores, 256.0, 16.0 * 128)
    backward = attention(r, scores, 256.0, 16.0 * 128, backward=True)
    assert scores * 512 / forward / 1e12 == pytest.approx(225, rel=0.1)
    assert scores * 512 * 2.5 / backward / 1e12 == pytest.approx(196, rel=0.1)


def test_streaming_a_gigabyte():
    assert stream(card("h100"), 1e9, 0) == pytest.approx(1e9 / (3.35e12 * 0.89 * 0.85))
    assert stream(card("h100"), 0.0, 10) == pytest.approx(10 * default().kernel_s)


def test_a_large_all_reduce_runs_at_bus_bandwidth():
    f = fabric(lookup_gpu("a100-80gb")[0], 8, default())
    group = f.group(8, 1)
    size = float(1 << 30)
    # 2 * 7/8 of the bytes over 300 GB/s * 0.8, 1.3 times slower inside training
    assert f.all_reduce(group, size) == pytest.approx(1.3 * 2 * 7 / 8 * size / (300e9 * 0.8), rel=0.02)


def test_a_small_all_reduce_is_latency():
    f = fabric(lookup_gpu("h100")[0], 8, default())
    seconds = f.all_reduce(f.group(8, 1), 1024.0)
    assert 1.3 * START_S < seconds < 60e-6


def test_groups_and_their_links():
    f = fabric(lookup_gpu("h100")[0], 8, default())
    local = f.group(8, 1)
    assert (local.inside, local.nodes) == (8, 1)
    assert local.bytes_per_s == 450e9 * 0.8
    wide = f.group(16, 8)  # one rank of each node: its own port
    assert (wide.inside, wide.nodes, wide.bytes_per_s) == (1, 16, 50e9 * 0.8)
    mixed = f.group(16, 2)  # four ranks of each node share four ports
    assert (mixed.inside, mixed.nodes) == (4, 4)
    assert mixed.bytes_per_s == 4 * 50e9 * 0.8
    assert f.all_reduce(f.group(1, 1), 1e9) == 0.0


def test_cards_without_peer_to_peer_go_through_host_memory():
    plain, direct = (fabric(lookup_gpu(n)[0], 8, default()) for n in ("rtx-4090", "h100"))
    assert plain.local < 5e9 < direct.local


@given(st.lists(st.integers(1, 1 << 20), min_size=1, max_size=8))
def test_arithmetic_is_the_same_for_numbers_and_arrays(values):
    column = np.array(values, dtype=np.int64)
    assert doublings(column).tolist() == [doublings(v) for v in values]
    assert above(column / 7.0).tolist() == [above(v / 7.0) for v in values]
    assert most(column, 100).tolist() == [most(v, 100) for v in values]
    assert least(column, 100).tolist() == [least(v, 100) for v in values]


def test_doublings():
    assert [doublings(n) for n in (1, 2, 3, 4, 5, 8, 9)] == [0, 1, 2, 2, 3, 3, 4]
