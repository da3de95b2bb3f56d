"""``torch.cuda`` as a program on one GPU sees it, for machines without one. Imported only once torch is wanted.

Streams and events are plain objects that remember which stream is current, so every allocation knows its stream;
memory queries answer from the trace.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from memfit.trace.hidden import Gpu
from memfit.trace.shims import replaced


class Stream:
    """A CUDA stream in name and number only."""

    _next = 0

    def __init__(self, device: Any = None, priority: int = 0, **_: Any) -> None:
        self.stream_id = self.cuda_stream = Stream._next
        Stream._next += 1
        self.device = torch.device("cuda", 0)
        self.device_index, self.device_type, self.priority = 0, 1, priority

    def wait_stream(self, stream: Any) -> None:
        """Order only; nothing runs."""

    def wait_event(self, event: Any) -> None:
        """Order only; nothing runs."""

    def synchronize(self) -> None:
        """Nothing runs."""

    def record_event(self, event: Any = None) -> Any:
        """An event that is already done."""
        return event or Event()

    def query(self) -> bool:
        """Always done."""
        return True

    def __enter__(self) -> Stream:
        self._outer = current.stream
        current.stream = self
        return self

    def __exit__(self, *_: object) -> None:
        current.stream = self._outer


class Event:
    """A CUDA event that is done at once."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def record(self, stream: Any = None) -> None:
        """Nothing runs."""

    def wait(self, stream: Any = None) -> None:
        """Nothing runs."""

    def synchronize(self) -> None:
        """Nothing runs."""

    def query(self) -> bool:
        """Always done."""
        return True

    def elapsed_time(self, other: Any) -> float:
        """Nothing takes time."""
        return 0.0


class _Current:
    stream: Any = None


current = _Current()


def stream_number() -> int:
    """Number of the current stream, 0 outside the facade."""
    return 0 if current.stream is None else int(current.stream.stream_id)


class _StreamContext:
    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def __enter__(self) -> None:
        self.outer = current.stream
        if self.stream is not None:
            current.stream = self.stream

    def __exit__(self, *_: object) -> None:
        current.stream = self.outer


@contextmanager
def cuda_facade(
    gpu: Gpu, in_use: Callable[[], int], used: Callable[[Any, int], None], devices: int = 8
) -> Iterator[None]:
    """While open, ``torch.cuda`` speaks for ``gpu``.

    Args:
        gpu: the imaginary card.
        in_use: bytes allocated now, for the memory queries.
        used: told of ``tensor.record_stream(stream)``.
        devices: how many cards are seen.
    """
    Stream._next = 0
    default = Stream()
    current.stream = default
    properties = types.SimpleNamespace(
        name=gpu.name,
        major=gpu.capability[0],
        minor=gpu.capability[1],
        total_memory=gpu.total_bytes,
        multi_processor_count=gpu.multiprocessors,
        max_threads_per_multi_processor=gpu.threads_per_multiprocessor,
        warp_size=32,
        gcnArchName="",
    )

    def set_stream(stream: Any) -> None:
        current.stream = stream

    def nothing(*_: Any, **__: Any) -> None:
        return None

    def rng(*_: Any, **__: Any) -> Any:
        return torch.empty(16, dtype=torch.uint8, device="cpu")

    answers: dict[str, Any] = {
        "Stream": Stream,
        "Event": Event,
        "current_stream": lambda _device=None: current.stream,
        "default_stream": lambda _device=None: default,
        "stream": _StreamContext,
        "set_stream": set_stream,
        "current_device": lambda: 0,
        "device_count": lambda: devices,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "is_current_stream_capturing": lambda: False,
        "is_bf16_supported": lambda *_, **__: gpu.capability >= (8, 0),
        "get_device_properties": lambda _device=None: properties,
        "get_device_capability": lambda _device=None: gpu.capability,
        "get_device_name": lambda _device=None: gpu.name,
        "get_rng_state": rng,
        "memory_allocated": lambda _device=None: in_use(),
        "memory_reserved": lambda _device=None: in_use(),
        "max_memory_allocated": lambda _device=None: in_use(),
        "mem_get_info": lambda _device=None: (gpu.total_bytes - in_use(), gpu.total_bytes),
        **dict.fromkeys(("set_device", "synchronize", "_lazy_init", "init", "set_rng_state", "empty_cache"), nothing),
        **dict.fromkeys(("reset_peak_memory_stats", "manual_seed", "manual_seed_all"), nothing),
    }
    with ExitStack() as stack:
        for name, value in answers.items():
            stack.enter_context(replaced(torch.cuda, name, value))
        # Module.to swaps parameters and refuses while weak references exist; fake tensors always have some
        stack.enter_context(replaced(torch.utils, "weakref", types.SimpleNamespace(getweakrefs=lambda _t: [])))
        stack.enter_context(
            replaced(torch.Tensor, "record_stream", lambda tensor, stream: used(tensor, int(stream.stream_id)))
        )
        stack.enter_context(replaced(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False))
        try:
            yield
        finally:
            current.stream = None
