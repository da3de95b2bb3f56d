"""Reading a card: the caching allocator's figures, the card's used memory, times.

``CudaMeter`` reads a real card; ``StubMeter`` stands in for it where there is none, so that the pipeline can be tried:
what it gives is marked and measures nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

GIB = 1 << 30
SMOKE = "cpu smoke, not a measurement"
"""The mark of everything that did not come from a card."""


class _MemoryV2(ctypes.Structure):
    """nvmlMemory_v2_t (nvml.h): ``used`` excludes what the driver reserves for itself."""

    _fields_ = (
        ("version", ctypes.c_uint),
        *((name, ctypes.c_ulonglong) for name in ("total", "reserved", "free", "used")),
    )


class Nvml:
    """The four calls of NVML that are needed, without a Python package.

    Raises:
        OSError: the library is missing or does not answer.
    """

    def __init__(self) -> None:
        self._lib = ctypes.CDLL("libnvidia-ml.so.1")
        self._call("nvmlInit_v2")

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._lib, name)(*arguments)
        if code:
            raise OSError(f"{name} gives {code}")

    def driver(self) -> str:
        """Version of the driver."""
        text = ctypes.create_string_buffer(96)
        self._call("nvmlSystemGetDriverVersion", text, 96)
        return text.value.decode()

    def used(self) -> dict[str, int]:
        """Used bytes of every card, by UUID."""
        count = ctypes.c_uint()
        self._call("nvmlDeviceGetCount_v2", ctypes.byref(count))
        out = {}
        for index in range(count.value):
            device, uuid = ctypes.c_void_p(), ctypes.create_string_buffer(96)
            self._call("nvmlDeviceGetHandleByIndex_v2", index, ctypes.byref(device))
            self._call("nvmlDeviceGetUUID", device, uuid, 96)
            memory = _MemoryV2()
            memory.version = ctypes.sizeof(_MemoryV2) | 2 << 24
            self._call("nvmlDeviceGetMemoryInfo_v2", device, ctypes.byref(memory))
            out[uuid.value.decode()] = int(memory.used)
        return out


def num_cards() -> int:
    """CUDA devices that a process here can use, without torch and without a context."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int()
    if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)):
        return 0
    return count.value


@dataclass(kw_only=True, slots=True)
class Peaks:
    """Bytes: the highest figures since ``reset``, and those of the moment."""

    allocated: int
    reserved: int
    now_allocated: int
    now_reserved: int


@dataclass(kw_only=True)
class CudaMeter:
    """Reads the current CUDA device.

    Attributes:
        device: for ``torch.device``.
        outside: most bytes of the card that this process held beside its allocator, at any ``sample``.
        source: where used memory comes from: ``nvml`` (less what was used before this process began) or
            ``cudaMemGetInfo`` (whatever others use is counted too).
    """

    device: str = "cuda"
    smoke: str = ""
    source: str = "cudaMemGetInfo"
    outside: int = 0
    _nvml: Nvml | None = None
    _before: dict[str, int] = field(default_factory=dict)
    _uuid: str = ""

    def __post_init__(self) -> None:
        with contextlib.suppress(OSError, AttributeError):
            self._nvml = Nvml()
            self._before = self._nvml.used()

    def start(self) -> dict[str, int]:
        """Creates the context; the bytes it takes and what the card has in all."""
        import torch

        torch.cuda.init()
        torch.cuda.set_device(0)
        torch.cuda.synchronize()
        uuid = f"GPU-{getattr(torch.cuda.get_device_properties(0), 'uuid', '')}"
        if self._nvml and uuid in self._before:
            self._uuid, self.source = uuid, "nvml"
        free, total = torch.cuda.mem_get_info()
        return {
            "context": self.used(),
            "before": self._before.get(self._uuid, 0),
            "total": total,
            "free_after_context": free,
        }

    def used(self) -> int:
        """Bytes of the card that this process uses."""
        import torch

        if self._nvml and self._uuid:
            return self._nvml.used()[self._uuid] - self._before[self._uuid]
        free, total = torch.cuda.mem_get_info()
        return int(total - free)

    def sample(self) -> None:
        """Waits for the card and notes what is used outside the allocator."""
        import torch

        torch.cuda.synchronize()
        self.outside = max(self.outside, self.used() - torch.cuda.memory_reserved())

    def peaks(self) -> Peaks:
        """The allocator's figures."""
        import torch

        return Peaks(
            allocated=torch.cuda.max_memory_allocated(),
            reserved=torch.cuda.max_memory_reserved(),
            now_allocated=torch.cuda.memory_allocated(),
            now_reserved=torch.cuda.memory_reserved(),
        )

    def reset(self) -> None:
        """Peaks begin anew."""
        import torch

        torch.cuda.reset_peak_memory_stats()

    def statistics(self) -> dict[str, int]:
        """What else the allocator counts: peaks since ``reset``, ``retries`` and ``ooms`` of the process."""
        import torch

        stats = torch.cuda.memory_stats()
        keys = {
            "requested_peak": "requested_bytes.all.peak",
            "active_peak": "active_bytes.all.peak",
            "inactive_split_peak": "inactive_split_bytes.all.peak",
            "segments_peak": "segment.all.peak",
            "retries": "num_alloc_retries",
            "ooms": "num_ooms",
        }
        return {name: int(stats.get(key, 0)) for name, key in keys.items()}

    def seconds(self, call: Callable[[], Any]) -> float:
        """Time of a call and of all work it gave the card."""
        import torch

        torch.cuda.synchronize()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    def limit(self, num_bytes: int) -> None:
        """The allocator holds no more than this."""
        import torch

        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, num_bytes / total))


@dataclass(kw_only=True)
class StubMeter:
    """Stands in for a card on a machine without one. Bytes are made up; times are the processor's."""

    device: str = "cpu"
    smoke: str = SMOKE
    source: str = SMOKE
    outside: int = GIB // 2

    def start(self) -> dict[str, int]:
        """Made up."""
        return {"context": GIB // 2, "before": 0, "total": 16 * GIB, "free_after_context": 15 * GIB}

    def used(self) -> int:
        """Made up."""
        return 2 * GIB

    def sample(self) -> None:
        """Nothing to wait for."""

    def peaks(self) -> Peaks:
        """Made up."""
        return Peaks(allocated=GIB, reserved=3 * GIB // 2, now_allocated=GIB // 4, now_reserved=GIB)

    def reset(self) -> None:
        """Nothing to forget."""

    def statistics(self) -> dict[str, int]:
        """Nothing is counted."""
        return {}

    def seconds(self, call: Callable[[], Any]) -> float:
        """Processor time of a call, on the clock."""
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    def limit(self, num_bytes: int) -> None:
        """There is no allocator to limit."""


Meter = CudaMeter | StubMeter
