"""One accelerator as the driver shows it: memory, rates, links, and where each figure comes from.

Units: bytes are ints; rates are bytes or FLOP per second; link rates count one direction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Literal

from memfit.hardware.data import GPU_FILES, read, sources
from memfit.units import GIB

Vendor = Literal["nvidia", "amd", "intel", "apple"]
Kind = Literal["datacenter", "workstation", "consumer", "laptop", "embedded", "unified"]
Origin = Literal["measured", "derived", "assumed", "given"]

# Bytes per second of one PCIe lane and direction after line coding (gen 1-2 8b/10b, 3-5 128b/130b, 6 FLIT 242/256).
_PCIE_LANE_BYTES_PER_S = {
    0: 0.0,
    1: 0.25e9,
    2: 0.5e9,
    3: 8e9 * 128 / 130 / 8,
    4: 16e9 * 128 / 130 / 8,
    5: 32e9 * 128 / 130 / 8,
    6: 64e9 * 242 / 256 / 8,
}

# A type that the card has no units for runs on the next one it has: values are widened, weights dequantised.
_FALLBACK = {
    "fp4": "fp8",
    "mxfp4": "fp4",
    "nvfp4": "fp4",
    "mxfp8": "fp8",
    "fp8": "bf16",
    "int4": "int8",
    "int8": "fp16",
    "bf16": "fp32",
    "fp16": "fp32",
    "tf32": "fp32",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """One accelerator device.

    Attributes:
        name: memfit's name, e.g. ``h100-sxm-80gb``.
        title: the vendor's name; for NVIDIA mostly what CUDA prints as the device name.
        vendor, kind, architecture, form: what it is; form is sxm, pcie, oam, mxm (laptop), superchip, soc or apu.
        aliases: other names that mean this card.
        year: of release.
        nominal_gb: memory as sold. Most vendors mean GiB by it.
        total_bytes: what CUDA, ROCm or Metal reports as the device's total; fitting is judged against this.
        total_origin: measured, derived (from nvidia-smi or a rule), assumed, or given by the user.
        memory_type: hbm3, gddr6x, ...
        memory_bytes_per_s: peak bandwidth of the device memory.
        flops: dense peak FLOP/s by dtype, tensor units where there are any, fp32 accumulation for fp16 and bf16.
            Use :meth:`peak_flops`, which knows what runs when a dtype is missing.
        sm_count: streaming multiprocessors, compute units, Xe cores or GPU cores.
        compute_capability: (major, minor) for CUDA devices, else None.
        gfx: the target name of ROCm devices, else None.
        context_bytes: what a process that uses torch holds on the device outside torch's allocator, without NCCL.
        context_origin: as total_origin.
        ecc: how error correction costs memory.
        unified: the memory is shared with the host.
        link: name of the direct GPU-to-GPU link, empty when there is none.
        link_bytes_per_s: of that link per GPU, one direction (NVLink, Infinity Fabric); 0 when there is none.
        bridge_bytes_per_s: of an optional bridge between two cards, one direction.
        c2c_bytes_per_s: of a coherent link to the host CPU (Grace), one direction, per GPU.
        pcie_gen, pcie_lanes: the host interface; 0 for devices that share the host's memory controller.
        p2p: peer-to-peer copies over PCIe (the GeForce driver refuses them since Turing).
        tdp_w: board power.
        note: what else to know.
        sources: ``specs``, ``flops``, ``total`` and ``context``, each with the text and date of its source.
    """

    name: str
    title: str
    vendor: Vendor
    kind: Kind
    architecture: str
    form: str
    year: int
    nominal_gb: int
    total_bytes: int
    total_origin: Origin
    memory_type: str
    memory_bytes_per_s: int
    flops: Mapping[str, int] = field(hash=False)
    sm_count: int
    context_bytes: int
    context_origin: Origin
    pcie_gen: int
    pcie_lanes: int
    p2p: bool
    sources: Mapping[str, str] = field(hash=False, repr=False)
    aliases: tuple[str, ...] = ()
    compute_capability: tuple[int, int] | None = None
    gfx: str | None = None
    ecc: str = "none"
    unified: bool = False
    link: str = ""
    link_bytes_per_s: int = 0
    bridge_bytes_per_s: int = 0
    c2c_bytes_per_s: int = 0
    tdp_w: int | None = None
    note: str = ""

    @property
    def usable_bytes(self) -> int:
        """What torch can reserve when nothing else runs on the card: the total less the context."""
        return self.total_bytes - self.context_bytes

    @property
    def pcie_bytes_per_s(self) -> int:
        """The host interface, one direction, after line coding."""
        return round(_PCIE_LANE_BYTES_PER_S[self.pcie_gen] * self.pcie_lanes)

    @property
    def host_bytes_per_s(self) -> int:
        """The best path to host memory, one direction; the memory's own rate when it is shared with the host."""
        if self.unified:
            return self.memory_bytes_per_s
        return max(self.pcie_bytes_per_s, self.c2c_bytes_per_s)

    def supports(self, dtype: str) -> bool:
        """Whether the card has units for ``dtype`` (fp32, tf32, fp16, bf16, fp8, int8, fp4)."""
        return dtype in self.flops

    def peak_flops(self, dtype: str) -> int:
        """Dense peak FLOP/s of matrix products in ``dtype``.

        A dtype without units of its own takes the rate of the one it is computed in: fp4 as fp8, fp8 as bf16,
        bf16 as fp32. bf16 falls back to fp32, not fp16: its values do not fit into fp16.

        Raises:
            ValueError: the dtype is not one of the known ones.
        """
        wanted = dtype
        while dtype not in self.flops:
            if dtype not in _FALLBACK:
                msg = f"no peak rate is known for dtype {wanted!r}"
                raise ValueError(msg)
            # Cards without bf16 units serve fp8 and int8 weights in fp16.
            dtype = "fp16" if dtype == "fp8" and "bf16" not in self.flops else _FALLBACK[dtype]
        return self.flops[dtype]

    def with_total_bytes(self, total_bytes: int) -> Gpu:
        """The same card with the total that the user's driver reports."""
        return replace(
            self,
            total_bytes=total_bytes,
            total_origin="given",
            sources={**self.sources, "total": "given by the user"},
        )

    def to_dict(self) -> dict[str, Any]:
        """The figures that a result shows, JSON-ready."""
        return {
            "name": self.name,
            "title": self.title,
            "vendor": self.vendor,
            "nominal_gb": self.nominal_gb,
            "total_bytes": self.total_bytes,
            "total_gib": round(self.total_bytes / GIB, 3),
            "total_origin": self.total_origin,
            "context_bytes": self.context_bytes,
            "context_origin": self.context_origin,
            "memory_bytes_per_s": self.memory_bytes_per_s,
            "flops": dict(self.flops),
            "link_bytes_per_s": self.link_bytes_per_s,
            "pcie_bytes_per_s": self.pcie_bytes_per_s,
            "sm_count": self.sm_count,
            "compute_capability": None if self.compute_capability is None else list(self.compute_capability),
            "note": self.note,
            "sources": dict(self.sources),
        }


@cache
def gpus() -> tuple[Gpu, ...]:
    """All accelerators that memfit knows, data-centre cards first."""
    return tuple(_gpu(row) for name in GPU_FILES for row in read(name))


def _gpu(row: dict[str, Any]) -> Gpu:
    texts = sources()
    capability = row.pop("compute_capability", None)
    if capability is not None:
        major, minor = capability.split(".")
        row["compute_capability"] = (int(major), int(minor))
    row["aliases"] = tuple(row.get("aliases", ()))
    row["sources"] = {what: texts[key] for what, key in row["sources"].items()}
    return Gpu(**row)
