"""Seconds of single kernels: a matrix product by its shape, fused attention, a pass over memory."""

from __future__ import annotations

from memfit.speed.numbers import Real, above, least, most
from memfit.speed.rates import Rates

TILE_S = 1.5e-6
"""Seconds of a wave's start that nothing covers: the first loads from memory."""

SPLIT_BYTES = 16
"""Bytes per element of the result that a split of the inner dimension costs: fp32 partial sums written and read."""

SPLIT_SLICE = 256
"""The least inner length that a split leaves."""


def product(
    r: Rates,
    rows: Real,
    columns: Real,
    inner: Real,
    *,
    batch: Real = 1.0,
    low: bool = False,
    out: float = 2.0,
    weight: float | None = None,
    gradient: bool = False,
) -> Real:
    """Seconds of ``batch`` matrix products (rows x inner) (inner x columns).

    Tiles of several sizes run in waves over the multiprocessors; the library takes the fastest size. Few tiles are
    split along the inner dimension. Nothing is faster than its operands can be read.

    Args:
        low: 8-bit or 4-bit operands.
        out: bytes written per element of the result.
        gradient: a product of the backward pass, whose operands lie the other way round in memory.
        weight: bytes read per element of the second operand where it is stored in another type than it is used in.
    """
    rate = (r.low if low else r.matmul) * (r.gradient if gradient else 1.0)
    each = rate / r.processors
    width = 1.0 if low else 2.0
    partial_s = rows * columns * (batch * SPLIT_BYTES) / r.stream
    best: Real = None
    for tile_rows, tile_columns, share in r.tiles:
        tiles = above(rows / tile_rows) * above(columns / tile_columns) * batch
        tile_s = inner * (2.0 * tile_rows * tile_columns / (each * share))
        # the multiprocessors store their tiles at about the same time, at the end of a wave
        store_s = tile_rows * tile_columns * out * r.processors / r.read * r.epilogue
        whole = above(tiles / r.processors) * (tile_s + (store_s + TILE_S))
        slices = most(inner / SPLIT_SLICE, 1.0)
        split = most(tiles / r.processors, 1.0 / slices) * tile_s + (partial_s + store_s + TILE_S)
        seconds = least(whole, split)
        best = seconds if best is None else least(best, seconds)
    traffic = rows * inner * width + inner * columns * (width if weight is None else weight) + rows * columns * out
    return most(best, traffic * batch / r.read) + r.kernel_s


def attention(r: Rates, scores: Real, dims: float, tiles: Real, *, backward: bool = False) -> Real:
    """Seconds of fused attention.

    Args:
        scores: elements of the score matrix that are computed (a causal mask halves them).
        dims: head dim of queries plus head dim of values.
        tiles: independent pieces of work (heads x sequences x query blocks).
        backward: five products instead of two, at a lower rate.
    """
    products, rate, softmax = (2.5, r.attention * BACKWARD_RATE, 1.5) if backward else (1.0, r.attention, 1.0)
    seconds = scores * (2.0 * dims * products / rate + softmax / r.soft)
    # pieces of unlike length fill the last wave half on average
    filled = (tiles + 0.5 * r.processors) / tiles
    starts = above(tiles / r.processors) * (TILE_S * products)
    return seconds * most(filled, r.processors / tiles) + starts + (3.0 if backward else 1.0) * r.kernel_s


BACKWARD_RATE = 0.79
"""Rate of the products in FlashAttention's backward over its forward (Dao 2023: 196 against 225 TFLOPS on an A100,
softmax taken out)."""


def stream(r: Rates, num_bytes: Real, kernels: Real) -> Real:
    """Seconds of memory-bound kernels."""
    return num_bytes / r.stream + kernels * r.kernel_s
