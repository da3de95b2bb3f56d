"""Records the allocator's history of the script and ends the script after the steps that were asked for."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

from . import ending
from .labels import Labels
from .place import Place
from .settings import SETTINGS, note, warn


class Use(NamedTuple):
    """``record_stream``: at ``time_us`` the block at ``address`` was handed to ``stream``."""

    time_us: int
    device: int
    address: int
    stream: int


class Recording:
    """Everything that is known about the running script.

    Attributes:
        place, labels, uses: see these classes.
        steps: finished optimizer steps.
        peaks: highest (allocated, reserved) bytes per device before the script reset its statistics.
        started: whether the allocator's history is on.
    """

    def __init__(self, torch: Any) -> None:
        self.torch = torch
        self.labels = Labels(torch)
        self.place = Place(torch, self._root, self._stepped)
        self.uses: list[Use] = []
        self.steps = 0
        self.started = False
        self.peaks: dict[int, tuple[int, int]] = {}
        self._named: set[int] = set()
        self._optimizers: set[int] = set()

    def install(self) -> None:
        """Hook into torch; the history itself begins when the script first uses the GPU."""
        torch = self.torch
        self.place.install()
        torch.cuda._lazy_call(self._start)
        self._record = torch.cuda.memory._record_memory_history
        torch.cuda.memory._record_memory_history = _ignored("the script's own recording of memory history is left out")
        used = torch.Tensor.record_stream

        def record_stream(tensor: Any, stream: Any) -> Any:
            result = used(tensor, stream)
            for inner in self.labels._plain(tensor, 2):
                address = inner.untyped_storage().data_ptr()
                self.uses.append(Use(time.time_ns() // 1000, inner.device.index or 0, address, stream.cuda_stream))
            return result

        torch.Tensor.record_stream = record_stream
        reset = torch.cuda.memory.reset_peak_memory_stats

        def reset_peak_memory_stats(device: Any = None) -> None:
            for index in range(torch.cuda.device_count()) if self.started else ():
                self.keep_peaks(index)
            reset(device)

        emptied = torch.cuda.memory.empty_cache

        def empty_cache() -> None:
            if self.started and self.place.step >= 0:
                warn("the script empties the allocator's cache, which the simulation of other settings leaves out")
            emptied()

        for module in (torch.cuda, torch.cuda.memory):
            module.reset_peak_memory_stats = reset_peak_memory_stats
            module.empty_cache = empty_cache

    def _start(self) -> None:
        self._record(context="alloc", stacks="python", max_entries=SETTINGS.max_entries)
        self.started = True

    def keep_peaks(self, index: int) -> tuple[int, int]:
        """The peaks of a device so far, resets included: (allocated, reserved) bytes."""
        stats = self.torch.cuda.memory_stats(index)
        old = self.peaks.get(index, (0, 0))
        now = stats.get("allocated_bytes.all.peak", 0), stats.get("reserved_bytes.all.peak", 0)
        self.peaks[index] = max(old[0], now[0]), max(old[1], now[1])
        return self.peaks[index]

    def _root(self, module: Any) -> None:
        """A module is called from outside of all others: a forward begins."""
        place = self.place
        if place.stepped:
            self._advance()
        if id(module) not in self._named:
            self._named.add(id(module))
            place.name_modules(module)
            self.labels.module(module)
        if place.step < 0 and self.started:
            place.step = 0

    def _stepped(self, optimizer: Any, done: bool) -> None:
        if done:
            self._optimizers.add(id(optimizer))
            self.labels.states(optimizer)
            return
        if id(optimizer) in self._optimizers:  # a replayed graph: nobody saw the forward
            self._advance()
        self.labels.gradients(optimizer)

    def _advance(self) -> None:
        """A step is over and the next begins; or the script ends here."""
        self.place.stepped = False
        self._optimizers.clear()
        self.steps += 1
        if SETTINGS.steps and self.steps >= SETTINGS.steps:
            ending.stop("steps")
        self.place.step += 1


ACTIVE: list[Recording] = []
"""The recording of this process, if it imported torch and may have a GPU."""


def install(torch: Any) -> None:
    """Called when torch has been imported."""
    if not hasattr(torch.cuda.memory, "_set_memory_metadata"):
        ending.refuse(
            f"torch {torch.__version__} cannot say where an allocation was made; torch 2.13 and 2.15 are known"
        )
        return
    if not getattr(torch.version, "cuda", None):
        ending.refuse(f"torch {torch.__version__} is not a CUDA build")
        return
    recording = Recording(torch)
    recording.install()
    ACTIVE.append(recording)
    ending.watch()


def forget() -> None:
    """A forked process: what it does is its own."""
    ACTIVE.clear()


def _ignored(text: str) -> Any:
    def call(*_args: Any, **_kwargs: Any) -> None:
        note(text)

    return call
