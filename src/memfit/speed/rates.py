"""What a card sustains: rates of matrix products, attention and streaming, from the data sheet and ``rates.toml``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from memfit.hardware import Gpu
from memfit.speed.calibration import Calibration
from memfit.speed.data import read

_BY_PRECISION = {"fp32": "tf32", "fp8": "fp8", "mxfp8": "fp8", "nvfp4": "nvfp4"}
_LOW = frozenset({"fp8", "mxfp8", "nvfp4"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """Sustained rates of one card.

    Attributes:
        matmul: FLOP/s of 16-bit matrix products without quantisation losses; ``low`` the same in 8 or 4 bit.
        attention: FLOP/s of the products inside fused attention; ``soft`` elements per second of its softmax.
        read: bytes per second of a kernel that only reads; ``stream`` of a memory-bound kernel of a layer.
        gradient: rate of the backward pass's products over that of the forward's.
        processors: multiprocessors.
        epilogue: share of a tile's stores that no other tile's products cover.
        kernel_s: device seconds per kernel.
        tiles: (rows, columns, share of the rate) of the tiles of a matrix product.
    """

    matmul: float
    low: float
    attention: float
    soft: float
    read: float
    stream: float
    gradient: float
    processors: int
    epilogue: float
    kernel_s: float
    tiles: tuple[tuple[int, int, float], ...]


DESKTOP = frozenset({"consumer", "workstation", "laptop"})


def _row(gpu: Gpu) -> Mapping[str, Any]:
    table = read("rates")
    base = table["architecture"].get(gpu.architecture, table["architecture"]["other"])
    desktop = table["desktop"].get(gpu.architecture, {}) if gpu.kind in DESKTOP else {}
    return {**base, **desktop, **table["card"].get(gpu.name, {})}


@lru_cache(maxsize=256)
def rates(gpu: Gpu, precision: str, kernel: str, calibration: Calibration) -> Rates:
    """The rates of a card.

    Args:
        gpu: the card.
        precision: as in the job: decides the type of the linear layers.
        kernel: the attention kernel, a column of ``rates.toml``.
        calibration: the figures to use.
    """
    row = _row(gpu)
    share = row["matmul"] * row["training"] * calibration.matmul
    # fp32 runs on TF32 units where there are any, but PyTorch leaves them off for matrix products by default
    dtype = "fp32" if precision == "fp32" else ("fp16" if precision.startswith("fp16") else "bf16")
    matmul = gpu.peak_flops(dtype) * share
    low = matmul
    if precision in _LOW:
        low = (
            gpu.peak_flops(_BY_PRECISION[precision])
            * row.get("low", row["matmul"])
            * row.get("training_low", row["training"])
        )
        low *= calibration.matmul
    fp32 = gpu.peak_flops("fp32")
    return Rates(
        matmul=matmul,
        low=max(low, matmul),
        attention=gpu.peak_flops(dtype) * row["matmul"] * row[kernel] * calibration.attention,
        soft=fp32 / SOFTMAX_FLOPS * calibration.attention,
        read=gpu.memory_bytes_per_s * row["stream"],
        stream=gpu.memory_bytes_per_s * row["stream"] * calibration.memory,
        gradient=row.get("gradient", 1.0),
        processors=max(gpu.sm_count, 1),
        epilogue=row.get("epilogue", EPILOGUE),
        kernel_s=calibration.kernel_s,
        tiles=tuple((t["rows"], t["columns"], t["share"]) for t in read("rates")["tile"]),
    )


EPILOGUE = 0.5
"""Share of a wave's stores that shows where each tile is a block of its own: blocks drift apart, and one stores while
another computes."""

SOFTMAX_FLOPS = 8
"""fp32 operations per score that the tensor units wait for: exponential, maximum, scaling, sum, cast, less what
overlaps. From FlashAttention 2 on an A100: 225 TFLOPS at head dim 128 and 176 to 190 at 64 (Dao 2023, figure 5)."""
