"""What a trace returns: every allocation in order, with what made it, and the readings people ask for.

Bytes are what the program asked for unless a name says ``rounded``; the caching allocator hands out multiples of
512 bytes, so "allocated" is the sum of the rounded requests.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from memfit.allocator import (
    ALLOC,
    FREE,
    MARK,
    USE,
    AllocatorConfig,
    Replay,
    parse_release,
    replay,
    smallest_capacity,
)
from memfit.allocator.releases import LATEST
from memfit.ledger import Component, Entry, Event, Ledger, Timeline

ROUND = 512
"""Smallest unit of the CUDA caching allocator (kMinBlockSize in PyTorch's CUDACachingAllocator)."""

_NAMES: dict[str, str] = {
    "parameters": "weights, buffers, gathered and cast copies",
    "gradients": "gradients of parameters",
    "optimizer": "optimizer states",
    "activations": "kept for the backward",
    "logits": "logits, their copies and the loss",
    "workspace": "workspaces and temporaries of the optimizer",
    "communication": "buffers of collectives",
}


def rounded(num_bytes: int) -> int:
    """Bytes the caching allocator books for a request under its default settings."""
    return -(-num_bytes // ROUND) * ROUND


class RawEvent(NamedTuple):
    """One step of the allocator: ``bytes`` > 0 allocates block ``id``, < 0 frees it, 0: ``stream`` uses it too."""

    id: int
    bytes: int
    stream: int
    phase: str
    step: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """What is known about one allocation.

    Attributes:
        id: number that the events use.
        bytes: requested size.
        op: the operation that made it, e.g. ``aten::mm``.
        module: path of the module that was running (in backward: whose forward made the autograd node).
        phase: ``load``, ``forward``, ``backward`` or ``optimizer``.
        step: 0-based step, -1 while the model was built.
        shape, dtype: of the first tensor seen on the storage; () and "" for hidden temporaries.
        component: what the block holds.
        stream: CUDA stream number.
        recompute: made while activation checkpointing ran a forward again.
        hidden: a temporary inside a CUDA kernel, known from the table, not from the run.
        source: ``file:line`` of the calling code, "" when unknown.
    """

    id: int
    bytes: int
    op: str
    module: str
    phase: str
    step: int
    shape: tuple[int, ...]
    dtype: str
    component: Component
    stream: int = 0
    recompute: bool = False
    hidden: bool = False
    source: str = ""


class Group(NamedTuple):
    """Equal blocks of a live set."""

    component: Component
    module: str
    op: str
    dtype: str
    shape: tuple[int, ...]
    num_blocks: int
    rounded_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Trace:
    """The memory of a program that never ran on a GPU.

    Attributes:
        events: allocations and frees in order.
        blocks: one record per allocation, by id.
        engine: ``meta`` or ``fake-cuda``.
        steps: how many steps were traced.
        seconds: time the trace took.
        num_ops: operations seen.
        settings: what the result rests on (GPU, torch version, attention backend ...).
        warnings: values that had to be assumed, unlocks that were refused.
        notes: unlocks and shims in effect.
    """

    events: tuple[RawEvent, ...]
    blocks: dict[int, Block]
    engine: str
    steps: int
    seconds: float = 0.0
    num_ops: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def with_warnings(self, warnings: Sequence[str]) -> Trace:
        """The same trace with more warnings."""
        return replace(self, warnings=(*self.warnings, *warnings))

    def with_notes(self, notes: Sequence[str]) -> Trace:
        """The same trace with more notes."""
        return replace(self, notes=(*self.notes, *notes))

    def walk(self, *, hidden: bool = True) -> Iterator[tuple[int, RawEvent, int]]:
        """(index, event, rounded bytes in use after it); ``hidden=False`` leaves kernel temporaries out."""
        total = 0
        for index, event in enumerate(self.events):
            if hidden or not self.blocks[event.id].hidden:
                total += rounded(event.bytes) if event.bytes > 0 else -rounded(-event.bytes)
            yield index, event, total

    def peak(self, *, hidden: bool = True, step: int | None = None) -> tuple[int, int]:
        """(index of the event, rounded bytes) of the first highest point, of one step or of all."""
        at, best = -1, 0
        for index, event, total in self.walk(hidden=hidden):
            if total > best and (step is None or event.step == step):
                at, best = index, total
        return at, best

    @property
    def peak_allocated(self) -> int:
        """Highest sum of rounded requests, hidden temporaries included, over everything traced."""
        return self.peak()[1]

    @property
    def peak_requested(self) -> int:
        """Highest sum of requested bytes, hidden temporaries included."""
        best = total = 0
        for event in self.events:
            total += event.bytes
            best = max(best, total)
        return best

    @property
    def steady_peak(self) -> int:
        """Peak of the last step: what every later step looks like."""
        return self.peak(step=self.steps - 1)[1]

    @property
    def first_peak(self) -> int:
        """Peak of the first step."""
        return self.peak(step=0)[1]

    def phase_peaks(self, *, step: int | None = None, hidden: bool = True) -> dict[str, int]:
        """Highest rounded bytes in use in each phase, in order of appearance."""
        peaks: dict[str, int] = {}
        for _, event, total in self.walk(hidden=hidden):
            if step is None or event.step == step:
                peaks[event.phase] = max(peaks.get(event.phase, 0), total)
        return peaks

    def live(self, index: int) -> list[Block]:
        """The blocks in use right after event ``index``, oldest first."""
        ids: dict[int, None] = {}
        for event in self.events[: index + 1]:
            if event.bytes > 0:
                ids[event.id] = None
            elif event.bytes:
                ids.pop(event.id, None)
        return [self.blocks[i] for i in ids]

    def held(self, *, step: int | None = None) -> list[Block]:
        """Blocks made by the forward of a step and still in use when its backward begins: what the step keeps."""
        step = self.steps - 1 if step is None else step
        start = next((i for i, e in enumerate(self.events) if e.step == step and e.phase == "backward"), None)
        if start is None:
            return []
        return [b for b in self.live(start - 1) if b.step == step and b.phase == "forward"]

    def components(self, index: int) -> dict[Component, int]:
        """Rounded bytes per component right after event ``index``."""
        sums: dict[Component, int] = defaultdict(int)
        for block in self.live(index):
            sums[block.component] += rounded(block.bytes)
        return dict(sorted(sums.items(), key=lambda item: -item[1]))

    def timeline(self) -> Timeline:
        """The events as memfit's common Timeline, in rounded bytes."""
        out = []
        for event in self.events:
            if not event.bytes:
                continue
            block = self.blocks[event.id]
            size = rounded(event.bytes) if event.bytes > 0 else -rounded(-event.bytes)
            what = f"{block.op} {list(block.shape)} {block.dtype}" if block.shape else block.op
            out.append(Event(event.id, size, block.component, event.phase, block.module, what, event.stream))
        return Timeline(tuple(out), "traced")

    def ledger(
        self, *, label: str = "rank 0", capacity_bytes: int | None = None, simulated: Replay | None = None
    ) -> Ledger:
        """Bytes by component at the peak.

        Args:
            label: which rank, in words.
            capacity_bytes: of the card.
            simulated: a replay of this trace (``simulate``); what it reserved beyond the peak becomes ``slack``.
        """
        index, peak = self.peak()
        sums: dict[tuple[Component, str], int] = defaultdict(int)
        for block in self.live(index):
            name = "temporaries inside kernels" if block.hidden else _NAMES.get(block.component, block.component)
            if block.component == "activations" and block.phase == "backward":
                name = "recomputed activations" if block.recompute else "gradients of activations"
            sums[block.component, name] += rounded(block.bytes)
        entries = [Entry(component=c, name=n, bytes=b, provenance="traced") for (c, n), b in sums.items()]
        if simulated is not None:
            slack = simulated.reserved_peak - peak
            entries.append(Entry(component="slack", name="held by the allocator", bytes=slack, provenance="traced"))
        event = self.events[index] if index >= 0 else None
        moment = f"{event.phase} of step {event.step + 1}, {self.blocks[event.id].op}" if event else "never"
        return Ledger.of(entries, label=label, moment=moment, capacity_bytes=capacity_bytes)

    def simulate(
        self, config: AllocatorConfig | str | None = None, capacity: int | None = None, **options: Any
    ) -> Replay:
        """The events through the caching allocator of the traced torch release: reserved, segments, OOM.

        Args:
            config: allocator settings, an object or the text of ``PYTORCH_ALLOC_CONF``.
            capacity: bytes of the device; None is no limit.
            options: see ``memfit.allocator.replay``.
        """
        return replay(self.allocator_events(), config, capacity, **{"release": self.release, **options})

    def smallest_capacity(self, config: AllocatorConfig | str | None = None, **options: Any) -> int:
        """Bytes of device memory from which the program finishes, to 2 MiB, without the CUDA context."""
        return smallest_capacity(self.allocator_events(), config, **{"release": self.release, **options})

    @property
    def release(self) -> tuple[int, int]:
        """The torch release whose allocator is meant: the traced one, the latest known when that is not stated."""
        text = str(self.settings.get("torch", ""))
        return parse_release(text) if text else LATEST

    def allocator_events(self) -> list[tuple[Any, ...]]:
        """The events in the form that ``memfit.allocator`` replays; each change of phase is a mark."""
        out: list[tuple[Any, ...]] = []
        span = None
        for event in self.events:
            if (event.phase, event.step) != span:
                span = (event.phase, event.step)
                out.append((MARK, f"{event.phase} {event.step + 1}" if event.step >= 0 else event.phase))
            if event.bytes > 0:
                out.append((ALLOC, event.id, event.bytes, event.stream))
            elif event.bytes < 0:
                out.append((FREE, event.id))
            else:
                out.append((USE, event.id, event.stream))
        return out


def group(blocks: Sequence[Block]) -> list[Group]:
    """Blocks summed by (component, module without layer numbers, op, dtype, shape), largest first."""
    sums: dict[tuple[Component, str, str, str, tuple[int, ...]], list[int]] = {}
    for block in blocks:
        key = (block.component, any_layer(block.module), block.op, block.dtype, block.shape)
        cell = sums.setdefault(key, [0, 0])
        cell[0] += 1
        cell[1] += rounded(block.bytes)
    return sorted((Group(*key, n, b) for key, (n, b) in sums.items()), key=lambda g: -g.rounded_bytes)


def any_layer(module: str) -> str:
    """A module path with its numbers replaced by ``*``, so that equal layers fall together."""
    return ".".join("*" if part.isdigit() else part for part in module.split("."))
