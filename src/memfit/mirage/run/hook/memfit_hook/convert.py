"""The allocator's history as the columns of a trace (the document of ``memfit.trace.files``). Needs no torch."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

SCHEMA = 1
_SLACK_US = 2000
"""The allocator's clock and Python's differ by less."""
_WORKSPACES = frozenset({33_554_432, 8_519_680, 4_194_304, 1_048_576})
"""cuBLAS and cuBLASLt workspaces that torch keeps (CUDABlas.cpp of 2.13: 32 MiB from Hopper on, 8.125 MiB before)."""
_DEFAULT_PHASE = ("load", -1, False, "", "")
_NOT_OURS = ("/torch/", "/memfit_hook/", "<frozen", "<string>", "<eval")
_COMMUNICATION = ("/torch/distributed/", "/deepspeed/comm/", "/torch/cuda/comm.py")

Context = tuple[str, int, bool, str, str]


class _Block:
    """One allocation on its way into the document."""

    __slots__ = ("address", "begin", "component", "context", "end", "frames", "name", "shape_dtype", "size", "stream")

    def __init__(self, size: int, address: int, stream: int, context: Context, begin: int, frames: Any) -> None:
        self.size, self.address, self.stream = size, address, stream
        self.context, self.begin, self.end = context, begin, -1
        self.frames = frames
        self.component = self.name = ""
        self.shape_dtype: tuple[tuple[int, ...], str] = ((), "")


class History:
    """Blocks and events of one GPU's history.

    Args:
        entries: what ``torch.cuda.memory._snapshot()["device_traces"][i]`` holds.
        table: contexts, by the number in each entry's ``user_metadata``.
    """

    def __init__(self, entries: Sequence[Mapping[str, Any]], table: Sequence[Context]) -> None:
        self.blocks: list[_Block] = []
        self.events: list[tuple[int, int, int, Context]] = []  # (block, bytes, stream, context)
        self.times: list[int] = []
        self.num_oom = 0
        self.private_bytes = 0
        self._streams: dict[int, int] = {0: 0}
        self._by_address: dict[int, list[int]] = {}
        live: dict[int, int] = {}
        context: Context = _DEFAULT_PHASE
        for entry in entries:
            action = entry["action"]
            text = entry.get("user_metadata", "")
            if text and text.isdigit() and int(text) < len(table):
                context = table[int(text)]
            elif action == "alloc" and context[0] == "forward":
                context = ("backward", context[1], False, "", "autograd engine")  # a thread that nobody has met yet
            if action == "alloc":
                stream = self._streams.setdefault(entry["stream"], len(self._streams))
                block = _Block(entry["size"], entry["addr"], stream, context, entry["time_us"], entry.get("frames", ()))
                if entry.get("pool_id", (0, 0)) != (0, 0):
                    self.private_bytes += entry["size"]
                live[entry["addr"]] = number = len(self.blocks)
                self.blocks.append(block)
                self._by_address.setdefault(entry["addr"], []).append(number)
                self._event(number, block.size, stream, context, entry["time_us"])
            elif action == "free_requested":
                found = live.pop(entry["addr"], None)
                if found is not None:
                    block = self.blocks[found]
                    block.end = entry["time_us"]
                    self._event(found, -block.size, block.stream, context, entry["time_us"])
            elif action == "oom":
                self.num_oom += 1

    def _event(self, block: int, size: int, stream: int, context: Context, at: int) -> None:
        self.events.append((block, size, stream, context))
        self.times.append(at)

    def block_at(self, address: int, at: int) -> int | None:
        """The block that stood at an address at a time, in microseconds; None when there was none."""
        numbers = self._by_address.get(address, ())
        close = None
        for number in reversed(numbers):
            block = self.blocks[number]
            if block.begin <= at and (block.end < 0 or at <= block.end):
                return number
            if block.begin - _SLACK_US <= at and (block.end < 0 or at <= block.end + _SLACK_US):
                close = number
        return close

    def label(self, labels: Iterable[Any]) -> None:
        """Say what blocks hold; the first label of a block counts, but a gradient is no activation of earlier."""
        for label in labels:
            number = self.block_at(label.address, label.time_us)
            if number is not None and not self.blocks[number].component:
                block = self.blocks[number]
                block.component, block.name = label.component, label.name
                block.shape_dtype = (tuple(label.shape), label.dtype)

    def use(self, uses: Iterable[Any]) -> None:
        """Insert the uses by other streams into the events, each between the allocation and the free of its block."""
        first: dict[int, int] = {}
        last: dict[int, int] = {}
        for at, event in enumerate(self.events):
            first.setdefault(event[0], at)
            last[event[0]] = at
        found: dict[int, list[tuple[int, int]]] = {}
        for use in uses:
            number = self.block_at(use.address, use.time_us)
            if number is not None:
                stream = self._streams.setdefault(use.stream, len(self._streams))
                at = max(bisect.bisect_right(self.times, use.time_us), first[number] + 1)
                if last[number] > first[number]:
                    at = min(at, last[number])
                found.setdefault(at, []).append((number, stream))
        merged: list[tuple[int, int, int, Context]] = []
        for at, event in enumerate(self.events):
            merged += [(number, 0, stream, event[3]) for number, stream in found.get(at, ())]
            merged.append(event)
        end = self.events[-1][3] if self.events else _DEFAULT_PHASE
        merged += [(number, 0, stream, end) for number, stream in found.get(len(self.events), ())]
        self.events = merged

    def peak(self) -> int:
        """Highest sum of requested bytes."""
        best = total = 0
        for _, size, _, _ in self.events:
            total += size
            best = max(best, total)
        return best


def source_of(frames: Sequence[Mapping[str, Any]]) -> str:
    """``file:line`` of the innermost frame outside of torch and of this package."""
    for frame in frames:
        name = frame["filename"]
        if not any(part in name for part in _NOT_OURS):
            return f"{name}:{frame['line']}"
    return ""


def operation_of(frames: Sequence[Mapping[str, Any]], context: Context) -> str:
    """What made a block, in words: the function that asked, in a backward the node of the graph."""
    if context[0] == "backward" and context[4] and not (context[2] and frames):
        return context[4]
    for frame in frames:
        name = str(frame["name"])
        if "/memfit_hook/" in frame["filename"] or name in ("<lambda>", "wrapper", "inner", "decorate_context"):
            continue
        return f"{context[4]}.{name}" if name == "forward" and context[4] else name
    return context[4] or "torch"


def component_of(block: _Block, vocabulary: Iterable[int], last_step: int) -> str:
    """What a block holds that no label names."""
    if block.component:
        return block.component
    phase, step, _, module, _ = block.context
    files = [frame["filename"] for frame in block.frames[:12]]
    if phase == "load":
        return "parameters"
    if files and files[0].endswith(("_fsdp_param.py", "flat_param.py")):
        return "parameters"
    if block.stream or any(part in name for name in files[:6] for part in _COMMUNICATION):
        return "communication"
    if block.end < 0 and block.size in _WORKSPACES and (step < last_step or last_step == 0):
        return "workspace"
    inside = any(part.isdigit() for part in module.split("."))
    if not inside and phase != "optimizer" and any(is_logits(block.size, size) for size in vocabulary):
        return "logits"
    return "workspace" if phase == "optimizer" else "activations"


def is_logits(num_bytes: int, vocabulary: int) -> bool:
    """Whether so many bytes can be rows of one value per word, of two or four bytes."""
    return vocabulary > 1 and num_bytes >= 2 * vocabulary and num_bytes % (2 * vocabulary) == 0


def document(history: History, vocabulary: Iterable[int], *, seconds: float, settings: Mapping[str, Any]) -> Any:
    """The trace of one GPU as JSON-ready data of ``memfit.trace.files``, schema 1."""
    words: dict[str, int] = {}

    def number(text: str) -> int:
        return words.setdefault(text, len(words))

    vocabulary = tuple(vocabulary)
    last = max((context[1] for _, _, _, context in history.events), default=-1)
    columns: dict[str, list[Any]] = {
        name: []
        for name in ("id", "bytes", "op", "module", "phase", "step", "shape", "dtype", "component", "stream",
                     "recompute", "hidden", "source")
    }  # fmt: skip
    for uid, block in enumerate(history.blocks):
        phase, step, recompute, module, _ = block.context
        shape, dtype = block.shape_dtype
        row = (uid, block.size, number(operation_of(block.frames, block.context)), number(block.name or module),
               number(phase), step, list(shape), number(dtype), number(component_of(block, vocabulary, last)),
               block.stream, recompute, False, number(source_of(block.frames)))  # fmt: skip
        for column, value in zip(columns.values(), row):  # noqa: B905 - Python 3.9
            column.append(value)
    events = history.events
    return {
        "schema": SCHEMA,
        "engine": "cuda",
        "steps": max(last + 1, 1),
        "seconds": seconds,
        "num_ops": len(history.blocks),
        "settings": dict(settings),
        "warnings": [],
        "notes": [],
        "events": {
            "id": [e[0] for e in events],
            "bytes": [e[1] for e in events],
            "stream": [e[2] for e in events],
            "phase": [number(e[3][0]) for e in events],
            "step": [e[3][1] for e in events],
        },
        "blocks": columns,
        "words": list(words),
    }
