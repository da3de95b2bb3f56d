"""What a trace answers: whether it fits the card, by how much, under which allocator settings, and who is right.

Needs no torch: it reads a finished trace, fresh or from a file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

from memfit.allocator import (
    ALLOC,
    Replay,
    WhatIf,
    capacity_interval,
    reserved_interval,
    smallest_capacity,
    what_if,
)
from memfit.errors import ConfigError, MemfitError
from memfit.formula.estimate import Estimate, estimate
from memfit.formula.runtime import RUNTIMES
from memfit.hardware import Gpu, gpus
from memfit.job import Job, parse
from memfit.job.writing import to_dict
from memfit.ledger import Component, Difference, Entry, Ledger, compare
from memfit.trace.files import MAX_BLOCK_BYTES
from memfit.trace.result import Block, Trace, any_layer, rounded

Verdict = Literal["fits", "tight", "does not fit", "unknown"]

SETTINGS = ("expandable_segments:True",)
"""Allocator settings that are compared with the defaults unless others are asked for."""
_CARDS = frozenset({"datacenter", "workstation", "consumer"})
_OUTSIDE = frozenset({"runtime", "others"})
_COUNTS = ("num_hidden_layers", "n_layer", "num_layers")
_LISTS = ("layer_types", "mlp_layer_types", "layers_block_type")


class Phase(NamedTuple):
    """Highest bytes in use and held during one phase of the last step (or while the model was built)."""

    name: str
    allocated_bytes: int
    reserved_bytes: int


class Tensors(NamedTuple):
    """Equal blocks in use at the peak; ``bytes`` are those of all, ``source`` is ``file:line`` or empty."""

    component: Component
    module: str
    op: str
    dtype: str
    shape: tuple[int, ...]
    source: str
    num_blocks: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A trace held against its card and against the formula.

    Attributes:
        trace: the trace.
        replay: its events through the allocator's default settings, without a limit.
        on_card: the same on the card; None without a card.
        reserved: lowest and highest reserved peak over what a trace cannot know.
        needed: lowest and highest capacity from which the program finishes, all that lies outside included.
        outside: entries that the allocator does not see (context, NCCL, other processes), as the formula books them.
        capacity_bytes: of the card, None without one.
        what_if: other allocator settings.
        estimate: the formula's answer for the same job, None when the trace does not say which job it was.
        stage: pipeline stage that was traced.
    """

    trace: Trace
    replay: Replay
    on_card: Replay | None
    reserved: tuple[int, int]
    needed: tuple[int, int]
    outside: tuple[Entry, ...]
    capacity_bytes: int | None
    what_if: tuple[WhatIf, ...]
    estimate: Estimate | None
    stage: int

    @property
    def outside_bytes(self) -> int:
        """Bytes outside of the allocator."""
        return sum(entry.bytes for entry in self.outside)

    @property
    def verdict(self) -> Verdict:
        """Whether it fits; ``tight`` when that hangs on what a trace cannot know."""
        if self.capacity_bytes is None:
            return "unknown"
        if self.needed[1] <= self.capacity_bytes:
            return "fits"
        return "tight" if self.needed[0] <= self.capacity_bytes else "does not fit"

    @cached_property
    def peak(self) -> tuple[int, int]:
        """(index of the event, allocated bytes) of the peak."""
        return self.trace.peak()

    @cached_property
    def ledger(self) -> Ledger:
        """The traced bytes at the peak, with what lies outside of the allocator.

        Slack is what the allocator holds on the card when the program finishes there, else without a limit.
        """
        done = self.on_card is not None and self.on_card.oom is None
        simulated = self.on_card if done else self.replay
        book = self.trace.ledger(label=self.label, capacity_bytes=self.capacity_bytes, simulated=simulated)
        entries = (*book.entries, *self.outside)
        return Ledger.of(entries, label=book.label, moment=book.moment, capacity_bytes=self.capacity_bytes)

    @property
    def label(self) -> str:
        """Which rank, in words."""
        rank = f"rank {self.trace.settings.get('rank', 0)}"
        stages = len(self.estimate.readings) if self.estimate is not None else 1
        return f"{rank} of pipeline stage {self.stage}" if stages > 1 else rank

    @cached_property
    def phases(self) -> tuple[Phase, ...]:
        """Building, then the phases of the last step."""
        found: dict[str, Phase] = {}
        for span in self.replay.spans:
            name, _, step = span.label.partition(" ")
            if name and step in ("", str(self.trace.steps)):
                old = found.get(name, Phase(name, 0, 0))
                found[name] = Phase(
                    name,
                    max(old.allocated_bytes, span.allocated_peak),
                    max(old.reserved_bytes, span.reserved_peak),
                )
        return tuple(found.values())

    @cached_property
    def differences(self) -> tuple[Difference, ...]:
        """The formula (left) beside the trace (right); empty without a formula."""
        return () if self.estimate is None else compare(self.estimate.stages[self.stage], self.ledger)

    @cached_property
    def tensors(self) -> tuple[Tensors, ...]:
        """What is in use at the peak, equal blocks of all layers together, largest first."""
        return tensors_at(self.trace, self.peak[0])

    @cached_property
    def smallest_card(self) -> Gpu | None:
        """The NVIDIA card with the least memory on which the program finishes."""
        context = sum(e.bytes for e in self.outside if e.component == "runtime" and "context" in e.name)
        need = self.needed[1] - context
        enough = [gpu for gpu in gpus() if gpu.vendor == "nvidia" and gpu.kind in _CARDS and gpu.usable_bytes >= need]
        own = None if self.estimate is None else self.estimate.resolved.gpu
        card = self.trace.settings.get("card")
        named = own.name if own is not None else card.get("name", "") if isinstance(card, Mapping) else ""
        return min(enough, key=lambda gpu: (gpu.total_bytes, gpu.name != named, -gpu.year, gpu.name), default=None)


def answer(trace: Trace, settings: Sequence[str] = SETTINGS, *, predicted: Estimate | None = None) -> Answer:
    """What a trace answers.

    Args:
        trace: fresh or read from a file; its ``settings`` name the job when ``described`` put it there.
        settings: texts of ``PYTORCH_ALLOC_CONF`` to compare with those that the trace states, the defaults if none.
        predicted: the formula's answer, when it is known already.

    Raises:
        MemfitError: allocator settings that cannot be read, or the trace names a job that cannot be read.
    """
    if predicted is None:
        predicted = _predicted(trace)
    stage = trace.settings.get("stage", 0)
    if predicted is not None and not (type(stage) is int and 0 <= stage < len(predicted.readings)):
        raise MemfitError("the trace names a pipeline stage that its job does not have")
    if predicted is not None:
        capacity = predicted.capacity_bytes
        outside = tuple(e for e in predicted.stages[stage].entries if e.component in _OUTSIDE)
    else:
        capacity, outside = _card(trace)
    others = sum(entry.bytes for entry in outside)
    events, release = trace.allocator_events(), trace.release
    own = trace.settings.get("allocator", "")
    if not isinstance(own, str):
        raise MemfitError("the trace names allocator settings that are no text")
    free = trace.simulate(own)
    limited = None if capacity is None else trace.simulate(own, capacity, others=others)
    needed = capacity_interval(events, own, others=others, release=release)
    if capacity is not None and limited is not None and limited.oom is not None and needed[1] <= capacity:
        # fragmentation: a smaller card happens to do, this one does not
        needed = needed[0], smallest_capacity(events, own, others=others, release=release, above=capacity)
    rows = [
        WhatIf(
            settings=own,
            allocated_peak=free.allocated_peak,
            reserved_peak=free.reserved_peak,
            smallest_capacity=needed[0],
            fits=None if limited is None else limited.oom is None,
            num_alloc_retries=0 if limited is None else limited.num_alloc_retries,
        )
    ]
    rows += what_if(events, [s for s in settings if s != own], capacity, others=others, release=release)
    return Answer(
        trace=trace,
        replay=free,
        on_card=limited,
        reserved=reserved_interval(events, own, release=release),
        needed=needed,
        outside=outside,
        capacity_bytes=capacity,
        what_if=tuple(rows),
        estimate=predicted,
        stage=stage,
    )


def _card(trace: Trace) -> tuple[int | None, tuple[Entry, ...]]:
    """Capacity of the card that a trace without a job names, and the context on it."""
    card = trace.settings.get("card")
    if not isinstance(card, Mapping):
        return None, ()
    capacity, context = card.get("capacity_bytes"), card.get("context_bytes")
    if type(capacity) is not int or type(context) is not int or not 0 <= context <= capacity <= MAX_BLOCK_BYTES * 16:
        raise MemfitError("the trace names a card whose memory is no number of bytes")
    vendor = card.get("vendor")
    name = RUNTIMES[vendor if isinstance(vendor, str) and vendor in RUNTIMES else "nvidia"][0]
    return capacity, (Entry(component="runtime", name=name, bytes=context, provenance="assumed"),)


def card_settings(card: Gpu, capacity_bytes: int | None = None) -> dict[str, Any]:
    """What the settings of a trace without a job say under ``card``.

    Args:
        card: the card.
        capacity_bytes: in place of its own.
    """
    return {
        "name": card.name,
        "title": card.title,
        "vendor": card.vendor,
        "capacity_bytes": card.total_bytes if capacity_bytes is None else capacity_bytes,
        "context_bytes": card.context_bytes,
        "context_origin": card.context_origin,
    }


def _predicted(trace: Trace) -> Estimate | None:
    job = trace.settings.get("job")
    return estimate(parse(job)) if isinstance(job, Mapping) else None


def described(trace: Trace, job: Job, *, rank: int, stage: int) -> Trace:
    """The trace with its job in the settings and without this machine's paths: its file can be answered anywhere."""
    from memfit.models import catalog

    stated = to_dict(job)
    name = job.model.name
    if job.model.config is None and (name is None or catalog.lookup(name) is None):
        from memfit.trace.job import config_dict

        kept = {"extra": stated["model"]["extra"]} if stated["model"].get("extra") else {}
        stated["model"] = {"config": config_dict(job), **kept}  # a path means nothing on another machine
    blocks = {uid: replace(block, source=short_source(block.source)) for uid, block in trace.blocks.items()}
    return replace(trace, blocks=blocks, settings={**trace.settings, "job": stated, "rank": rank, "stage": stage})


def shortened(job: Job, num_layers: int) -> Job:
    """The job with a model of so many layers.

    Raises:
        ConfigError: the configuration does not say its layers in a known way.
    """
    from memfit.trace.job import config_dict

    config = dict(config_dict(job))
    text = config
    if isinstance(config.get("text_config"), Mapping):
        text = config["text_config"] = dict(config["text_config"])
    keys = [key for key in _COUNTS if isinstance(text.get(key), int)]
    if not keys:
        raise ConfigError("the configuration does not state its layers, so they cannot be cut")
    if not 1 <= num_layers <= text[keys[0]]:
        raise MemfitError(f"the model has {text[keys[0]]} layers, not {num_layers}")
    text.update(dict.fromkeys(keys, num_layers))
    text.update({key: text[key][:num_layers] for key in _LISTS if isinstance(text.get(key), list)})
    return replace(job, model=replace(job.model, name=None, config=config))


def tensors_at(trace: Trace, index: int) -> tuple[Tensors, ...]:
    """The blocks in use right after event ``index``, equal ones together, largest first."""
    sums: dict[tuple[Any, ...], list[int]] = {}
    for block in trace.live(index):
        key = (block.component, any_layer(block.module), block.op, block.dtype, block.shape, short_source(block.source))
        cell = sums.setdefault(key, [0, 0])
        cell[0] += 1
        cell[1] += rounded(block.bytes)
    return tuple(sorted((Tensors(*key, *cell) for key, cell in sums.items()), key=lambda t: -t.bytes))


def short_source(source: str) -> str:
    """``file:line`` from the package on, or the last two parts of the path."""
    path = source.replace("\\", "/")
    _, found, rest = path.rpartition("/site-packages/")
    return rest if found else "/".join(path.split("/")[-2:])


def frames_of(trace: Trace) -> Any:
    """What a snapshot shows as the stack of an allocation: the source line, the operation, the module."""
    cache: dict[int, list[dict[str, Any]]] = {}

    def frames(event: tuple[Any, ...]) -> list[dict[str, Any]]:
        if event[0] != ALLOC:
            return []
        found = cache.get(event[1])
        if found is None:
            found = cache[event[1]] = _frames(trace.blocks[event[1]])
        return found

    return frames


def _frames(block: Block) -> list[dict[str, Any]]:
    path, _, line = block.source.rpartition(":")
    frames = [{"filename": path or "??", "line": int(line) if line.isdigit() else 0, "name": block.op}]
    what = f"{block.component}, {block.phase} of step {block.step + 1}" if block.step >= 0 else block.component
    return [*frames, {"filename": block.module or "no module", "line": 0, "name": what}]
