"""Deep models from shallow traces: find what one more layer adds to the events, and add it as often as needed.

Three traces of 3, 4 and 5 layers are taken. The events of the second are those of the first with blocks of events
inserted, each a repetition of what stands before it. The same blocks inserted once more must give the third trace,
event for event and free for free; only then they are repeated up to the wanted depth. What the allocator does with
the result is simulated again, so peaks and segments are those of the full trace. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from memfit.trace.result import Block, RawEvent, Trace, any_layer

if TYPE_CHECKING:
    from memfit.formula.estimate import Estimate

BASES = (3, 4, 5)
"""Depths that are traced: to build from, to build from, to check."""
FROM_LAYERS = 48
"""Above so many layers a trace of a uniform model is extrapolated unless the full one is asked for."""
_REACH = 4096  # events that a layer may add in one place

Signature = tuple[Any, ...]


class NotUniformError(Exception):
    """One more layer does not always add the same events."""


class Insert(NamedTuple):
    """``length`` events at ``at`` of the deeper trace that the shallower one does not have."""

    at: int
    length: int


class _Tagged(NamedTuple):
    """A trace as texts to align, with what each free means.

    ``signs``: what each event is, without ids and layer numbers. ``ranks``: for a free or a use its place among the
    blocks alike that are alive, counted from the oldest and from the newest; (0, 0) for an allocation.
    """

    signs: list[Signature]
    ranks: list[tuple[int, int]]


def extrapolate(traces: Sequence[Trace], layers: Sequence[int], num_layers: int) -> Trace:
    """The trace of a model of ``num_layers`` equal layers.

    Args:
        traces: of the same program with ``layers`` layers.
        layers: three consecutive depths, e.g. 3, 4, 5.
        num_layers: the depth that is wanted, at least the last of ``layers``.

    Raises:
        NotUniformError: the third trace is not what the first two lead to.
    """
    if len(traces) != 3 or [n - layers[0] for n in layers] != [0, 1, 2] or num_layers < layers[2]:
        raise ValueError("three traces of consecutive depths, and a depth beyond them")
    try:
        return _extrapolated(traces, layers, num_layers)
    except NotUniformError:
        # A cache that is emptied (autocast's) frees in the order of a hash table. After a run of frees the allocator
        # is in the same state whatever their order was, so they may be sorted.
        return _extrapolated([_sorted_frees(trace) for trace in traces], layers, num_layers)


def _extrapolated(traces: Sequence[Trace], layers: Sequence[int], num_layers: int) -> Trace:
    first, second, third = (_tagged(trace) for trace in traces)
    inserts = align(first.signs, second.signs)
    checked = _order(len(second.signs), inserts, 2)
    if [second.signs[i] for i in checked] != third.signs:
        raise NotUniformError("the third layer adds other events than the second")
    newest = _policies(first, second, third, inserts, checked)
    return _built(traces[1], second, _order(len(second.signs), inserts, num_layers - layers[0]), newest, num_layers)


def _sorted_frees(trace: Trace) -> Trace:
    """The trace with each run of frees in the order of what the blocks are, then of their age."""
    names = {uid: repr(_kind(block)) for uid, block in trace.blocks.items()}
    events: list[RawEvent] = []
    for (frees, *_), group in groupby(trace.events, key=lambda e: (e.bytes < 0, e.phase, e.step, e.stream)):
        run = list(group)
        events += sorted(run, key=lambda e: (names[e.id], e.id)) if frees else run
    return replace(trace, events=tuple(events))


def _tagged(trace: Trace) -> _Tagged:
    kinds = {uid: _kind(block) for uid, block in trace.blocks.items()}
    numbers: dict[Signature, int] = {}
    number = {uid: numbers.setdefault(kind, len(numbers)) for uid, kind in kinds.items()}
    live: dict[int, list[int]] = {}
    signs: list[Signature] = []
    ranks = []
    for event in trace.events:
        alike = live.setdefault(number[event.id], [])
        sign = (event.bytes > 0) - (event.bytes < 0)
        signs.append((sign, event.stream, event.phase, event.step, kinds[event.id]))
        if event.bytes > 0:
            alike.append(event.id)
            ranks.append((0, 0))
        else:
            place = alike.index(event.id)
            ranks.append((place, len(alike) - 1 - place))
            if event.bytes < 0:
                del alike[place]
    # equal tuples become one object, so that comparing them is cheap
    pool: dict[Signature, Signature] = {}
    return _Tagged([pool.setdefault(sign, sign) for sign in signs], ranks)


def _kind(block: Block) -> Signature:
    return (
        block.bytes, block.op, any_layer(block.module), block.phase, block.step, block.shape, block.dtype,
        block.component, block.stream, block.recompute, block.hidden, block.source,
    )  # fmt: skip


def align(short: Sequence[Signature], long: Sequence[Signature]) -> list[Insert]:
    """Where the longer sequence repeats what stands before it and the shorter does not.

    Raises:
        NotUniformError: the longer one is not the shorter one with repetitions inserted.
    """
    dead: set[tuple[int, int]] = set()
    # Depth first, shortest repetition first; `chosen` holds the open choices: (insert, its place in the short one).
    chosen: list[tuple[Insert, int]] = []
    untried: list[Iterator[int]] = []
    i = j = 0
    while True:
        while i < len(short) and j < len(long) and short[i] == long[j]:
            i, j = i + 1, j + 1
        if i == len(short) and j == len(long):
            return [insert for insert, _ in chosen]
        lengths = _repeats(long, j, len(long) - j - (len(short) - i)) if (i, j) not in dead else iter(())
        dead.add((i, j))
        untried.append(lengths)
        while True:
            length = next(untried[-1], None)
            if length is not None:
                break
            untried.pop()
            if not untried:
                raise NotUniformError("a further layer adds other events than the layers before it")
            insert, i = chosen.pop()
            j = insert.at
        chosen.append((Insert(j, length), i))
        j += length


def _repeats(text: Sequence[Signature], at: int, most: int) -> Iterator[int]:
    """Lengths of what begins at ``at`` and stands right before it, too."""
    for length in range(1, min(most, at, _REACH) + 1):
        if text[at] == text[at - length] and text[at : at + length] == text[at - length : at]:
            yield length


def _order(length: int, inserts: Sequence[Insert], times: int) -> list[int]:
    """Positions of the deeper trace in the order of the result, each insert ``times`` times."""
    out: list[int] = []
    done = 0
    for insert in inserts:
        out += range(done, insert.at)
        out += list(range(insert.at, insert.at + insert.length)) * times
        done = insert.at + insert.length
    out += range(done, length)
    return out


def _policies(
    first: _Tagged, second: _Tagged, third: _Tagged, inserts: Sequence[Insert], checked: Sequence[int]
) -> dict[int, bool]:
    """For each free of the second trace: whether its block is found from the newest (or from the oldest) one.

    Both depths beside it must agree on the choice.
    """
    seen: dict[int, set[tuple[int, int]]] = {}
    for at, position in enumerate(checked):
        seen.setdefault(position, {second.ranks[position]}).add(third.ranks[at])
    for at, position in enumerate(_order(len(second.signs), inserts, 0)):
        seen[position].add(first.ranks[at])
    newest = {}
    for position, ranks in seen.items():
        if second.signs[position][0] > 0:
            continue
        if len({new for _, new in ranks}) == 1:
            newest[position] = True
        elif len({old for old, _ in ranks}) == 1:
            newest[position] = False
        else:
            raise NotUniformError("layers do not free their blocks in one order")
    return newest


def _built(base: Trace, tagged: _Tagged, order: Sequence[int], newest: dict[int, bool], num_layers: int) -> Trace:
    live: dict[Signature, list[int]] = {}
    events: list[RawEvent] = []
    blocks: dict[int, Block] = {}
    for position in order:
        sign, event = tagged.signs[position], base.events[position]
        alike = live.setdefault(sign[-1], [])
        if event.bytes > 0:
            uid = len(blocks)
            block = base.blocks[event.id]
            # which of the equal layers it belongs to is not told apart
            blocks[uid] = replace(block, id=uid, module=any_layer(block.module))
            alike.append(uid)
        else:
            place = tagged.ranks[position][1 if newest[position] else 0]
            if place >= len(alike):
                raise NotUniformError("a layer frees a block that it does not have")
            index = -1 - place if newest[position] else place
            uid = alike[index]
            if event.bytes < 0:
                del alike[index]
        events.append(event._replace(id=uid))
    return replace(
        base,
        events=tuple(events),
        blocks=blocks,
        settings={**base.settings, "layers": num_layers, "extrapolated_from": list(BASES)},
        notes=(*base.notes, f"{num_layers} equal layers, repeated from traces of {_list(BASES)}"),
    )


def _list(numbers: Sequence[int]) -> str:
    return f"{', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"


def trace_deep(trace: Callable[[int | None], Trace], num_layers: int, *, uniform: bool, full: bool = False) -> Trace:
    """The trace of a deep model, extrapolated where that is exact.

    Args:
        trace: takes a number of layers, None for all, and traces that model.
        num_layers: of the whole model.
        uniform: the configuration says that all layers are alike.
        full: trace all layers anyway.
    """
    if full or num_layers <= FROM_LAYERS:
        return trace(None)
    if not uniform:
        return trace(None).with_notes(("all layers were traced: they are of several kinds",))
    shallow = [trace(n) for n in BASES]
    try:
        found = extrapolate(shallow, BASES, num_layers)
    except NotUniformError as error:
        return trace(None).with_notes((f"all layers were traced: {error}",))
    return replace(found, seconds=sum(t.seconds for t in shallow), num_ops=sum(t.num_ops for t in shallow))


def trace_job_deep(predicted: Estimate, *, num_layers: int | None = None, full: bool = False, **options: Any) -> Trace:
    """``trace_job`` of the job behind an estimate, extrapolated from few layers where the model is deep and uniform.

    Args:
        predicted: the formula's answer: it has the job completed and the model read.
        num_layers: shorten the model.
        full: trace all layers anyway.
        options: see ``trace_job``.
    """
    from memfit.trace.job import trace_job

    done, arch = predicted.resolved.completed, predicted.resolved.arch
    plan = done.job.strategy
    whole = (plan.pp or 1) == 1 and not isinstance(plan.checkpointing, int)
    uniform = whole and len(set(arch.decoder.layout)) == 1 and not arch.towers and done.job.task.trainable is None

    def trace(layers: int | None) -> Trace:
        return trace_job(done, num_layers=layers, **options)

    if num_layers is not None:
        return trace(num_layers)
    return trace_deep(trace, arch.num_layers, uniform=uniform, full=full)
