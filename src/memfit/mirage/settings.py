"""The control surface of the imaginary GPU: one dataclass, one environment variable per field.

The null libraries (``native/core.c``) read these variables once, at the first call. ``VARIABLES`` documents them.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from memfit.errors import MemfitError
from memfit.hardware import Gpu
from memfit.units import KIB, MIB

PREFIX = "MEMFIT_MIRAGE_"
MAX_DEVICES = 16
DATA = Path(__file__).with_name("data")
_REGISTERS_PER_SM = 65_536  # the same for every compute capability from 6.0 to 12.1
_CLOCK_KHZ = 1_500_000  # shown to programs; nothing is timed

VARIABLES: Mapping[str, str] = {
    "COUNT": "GPUs that the process sees, at most 16; CUDA_VISIBLE_DEVICES lowers it as usual",
    "NAME": "name of the card",
    "TOTAL": "bytes of device memory that the driver reports",
    "CONTEXT": "bytes in use before the first allocation",
    "CUDA": "version that driver and runtime state, 13000 for 13.0",
    "MAJOR": "compute capability",
    "MINOR": "compute capability",
    "SMS": "multiprocessors",
    "THREADS_PER_SM": "resident threads of a multiprocessor",
    "BLOCKS_PER_SM": "resident blocks of a multiprocessor",
    "REGISTERS_PER_SM": "32-bit registers of a multiprocessor",
    "SHARED_PER_SM": "bytes of shared memory of a multiprocessor",
    "SHARED_PER_BLOCK": "bytes of shared memory that a block can opt in to",
    "SHARED_RESERVED": "bytes of shared memory that the system takes of each block",
    "L2": "bytes of the L2 cache",
    "BUS_BITS": "width of the memory bus",
    "MEMORY_KHZ": "memory clock; with the bus it gives the bandwidth of the card",
    "CLOCK_KHZ": "core clock",
    "INTEGRATED": "1 when the memory is shared with the host",
    "LAG": "kernel launches and queries until an event completes; -1: not before somebody waits for it",
    "ORDER": "of fresh addresses: ascending, descending, or a number that scatters them",
    "VALUES": "what unknown single numbers read as: zeros, or ones (by width: bool, bfloat16, float32, int64)",
    "LOG": "file for one line per allocation; {pid} in its name is replaced",
    "SUMMARY": "file for the totals of the process as JSON; {pid} in its name is replaced",
    "LIBRARY": "set by memfit: the library that holds the accounts, for ctypes",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Imaginary:
    """An imaginary GPU and how its driver behaves.

    Attributes:
        gpu: card of the catalog.
        cuda: CUDA release of the PyTorch build, (13, 0).
        count: devices in the process.
        total_bytes: of device memory.
        context_bytes: in use before the first allocation.
        lag: kernel launches and queries until an event completes; None: until somebody waits.
        values: what unknown numbers read as.
        order: of fresh addresses.
        log, summary: files to write, None for none.
    """

    gpu: Gpu
    cuda: tuple[int, int]
    count: int
    total_bytes: int
    context_bytes: int
    lag: int | None
    values: Literal["zeros", "ones"]
    order: Literal["ascending", "descending"] | int
    log: Path | None
    summary: Path | None

    @classmethod
    def of(
        cls,
        gpu: Gpu,
        *,
        cuda: tuple[int, int],
        count: int = 1,
        total_bytes: int | None = None,
        context_bytes: int | None = None,
        lag: int | None = 0,
        values: Literal["zeros", "ones"] = "zeros",
        order: Literal["ascending", "descending"] | int = "ascending",
        log: Path | None = None,
        summary: Path | None = None,
    ) -> Imaginary:
        """Check the arguments and fill in what the card says.

        Raises:
            MemfitError: a card without CUDA or of an unknown compute capability, or an argument out of bounds.
        """
        if gpu.compute_capability is None:
            msg = f"{gpu.title} is no CUDA device, so PyTorch's CUDA build does not run on it"
            raise MemfitError(msg, hint="`memfit hardware` lists the NVIDIA cards")
        multiprocessor(gpu.compute_capability)
        total = gpu.total_bytes if total_bytes is None else total_bytes
        context = gpu.context_bytes if context_bytes is None else context_bytes
        if not 1 <= count <= MAX_DEVICES:
            msg = f"`count` = {count}: one process can see 1 to {MAX_DEVICES} imaginary GPUs"
            raise MemfitError(msg)
        if not 0 <= context < total:
            msg = f"`context_bytes` = {context}: it has to lie below the {total} bytes of the device"
            raise MemfitError(msg)
        if lag is not None and lag < 0:
            msg = f"`lag` = {lag}: it cannot be negative"
            raise MemfitError(msg)
        if values not in ("zeros", "ones"):
            msg = f"`values` = {values!r}: zeros or ones"
            raise MemfitError(msg)
        if order not in ("ascending", "descending") and (not isinstance(order, int) or order < 1):
            msg = f"`order` = {order!r}: ascending, descending or a number above 0"
            raise MemfitError(msg)
        return cls(
            gpu=gpu,
            cuda=cuda,
            count=count,
            total_bytes=total,
            context_bytes=context,
            lag=lag,
            values=values,
            order=order,
            log=log,
            summary=summary,
        )

    def environment(self) -> dict[str, str]:
        """The variables of this device; ``VARIABLES`` says what each means."""
        assert self.gpu.compute_capability is not None
        major, minor = self.gpu.compute_capability
        limits = multiprocessor(self.gpu.compute_capability)
        bus_bits, memory_khz = memory_interface(self.gpu.memory_bytes_per_s)
        found = {
            "COUNT": self.count,
            "NAME": self.gpu.title,
            "TOTAL": self.total_bytes,
            "CONTEXT": self.context_bytes,
            "CUDA": 1000 * self.cuda[0] + 10 * self.cuda[1],
            "MAJOR": major,
            "MINOR": minor,
            "SMS": self.gpu.sm_count,
            "THREADS_PER_SM": limits["threads"],
            "BLOCKS_PER_SM": limits["blocks"],
            "REGISTERS_PER_SM": _REGISTERS_PER_SM,
            "SHARED_PER_SM": limits["shared_kib"] * KIB,
            "SHARED_PER_BLOCK": limits["shared_per_block_kib"] * KIB,
            "SHARED_RESERVED": limits["shared_reserved_kib"] * KIB,
            "L2": limits["l2_mib"] * MIB,
            "BUS_BITS": bus_bits,
            "MEMORY_KHZ": memory_khz,
            "CLOCK_KHZ": _CLOCK_KHZ,
            "INTEGRATED": int(self.gpu.unified),
            "LAG": -1 if self.lag is None else self.lag,
            "ORDER": self.order,
            "VALUES": self.values,
            "LOG": self.log or "",
            "SUMMARY": self.summary or "",
        }
        return {PREFIX + key: str(value) for key, value in found.items()}


def multiprocessor(capability: tuple[int, int]) -> dict[str, int]:
    """What one multiprocessor of a compute capability holds.

    Raises:
        MemfitError: a compute capability that the table does not have.
    """
    name = f"{capability[0]}.{capability[1]}"
    table = _capabilities()
    if name not in table:
        msg = f"compute capability {name} is not in the table of the imaginary GPU"
        raise MemfitError(msg, hint=f"known: {', '.join(table)}")
    return table[name]


def memory_interface(bytes_per_s: int) -> tuple[int, int]:
    """A bus width in bits and a memory clock in kHz that give a bandwidth (two transfers per clock)."""
    bus_bits = 8192 if bytes_per_s > 4e12 else 5120 if bytes_per_s > 1.2e12 else 384
    return bus_bits, round(bytes_per_s * 8 / bus_bits / 2 / 1000)


@cache
def _capabilities() -> dict[str, dict[str, Any]]:
    with (DATA / "capabilities.toml").open("rb") as file:
        return {row.pop("of"): row for row in tomllib.load(file)["capability"]}
