"""Bounds of whole spaces at once: what no candidate undercuts, whatever its pipeline, before any is evaluated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from memfit import speed
from memfit.formula.arrays import batch_of
from memfit.formula.dims import Dims, Int, highest, maximum, where
from memfit.formula.gradients import gradients
from memfit.formula.host import host_bytes
from memfit.formula.kept import kept_beside, kept_earlier, layer_kept
from memfit.formula.profile import profile
from memfit.formula.resolve import Resolved
from memfit.formula.runtime import nccl_bytes
from memfit.formula.schedule import distinct, stages
from memfit.formula.setup import Setup
from memfit.formula.sharding import gathered_width, replicas_bucket, stays_gathered
from memfit.formula.slack import needed
from memfit.formula.stage import Part, Stage, StageModel
from memfit.formula.states import optimizer_bytes
from memfit.formula.training import context_bytes, dims_of, setup_of
from memfit.formula.weights import num_kv
from memfit.planner import levers
from memfit.planner.space import Layout, Space

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]
    Floats = NDArray[np.float64]


class Bounds:
    """Bounds for all layouts of a space, one evaluation for each choice of the other levers.

    Args:
        space: what may be chosen.
        layouts: those of the space, or some of their rows.
        calibration: constants of the time model.
    """

    def __init__(self, space: Space, layouts: Sequence[Layout], calibration: Any = None) -> None:
        self.space = space
        self.layouts = {spread: [x for x in layouts if x.static["spread"] is spread] for spread in (False, True)}
        self.calibration = calibration
        self._starts: dict[int, int] = {}
        self._columns = {spread: self._join(some) for spread, some in self.layouts.items() if some}
        self._seconds: dict[tuple[Any, ...], Floats] = {}
        self._stages: dict[tuple[bool, Any], list[_Table]] = {}
        self._memory: dict[tuple[Any, ...], tuple[Ints, Ints]] = {}

    def _join(self, layouts: list[Layout]) -> dict[str, Any]:
        import numpy as np

        start = 0
        for layout in layouts:
            self._starts[id(layout)] = start
            start += layout.count
        counts = [layout.count for layout in layouts]
        whole = {n: np.concatenate([layout.columns[n] for layout in layouts]) for n in layouts[0].columns}
        pp = np.repeat([layout.static["pp"] for layout in layouts], counts)
        return {**whole, "pp": pp, "drain": np.repeat([_drain(layout.static) for layout in layouts], counts)}

    def _key(self, chosen: Mapping[str, Any], layout: Layout) -> tuple[Any, ...]:
        return (layout.static["spread"], *(chosen[name] for name in (*levers.BRANCHED, *levers.BOUNDED)))

    def _own(self, column: Any, layout: Layout) -> Any:
        start = self._starts[id(layout)]
        return column[start : start + layout.count]

    def seconds(self, chosen: Mapping[str, Any], layout: Layout) -> Floats:
        """Seconds that no row of the layout undercuts, with all levers but those of the pipeline chosen."""
        key = self._key(chosen, layout)
        found = self._seconds.get(key)
        if found is None:
            found = self._seconds[key] = self._of_all(chosen, self._columns[layout.static["spread"]])
        own: Floats = self._own(found, layout)
        return own

    def _of_all(self, chosen: Mapping[str, Any], columns: Mapping[str, Any]) -> Floats:
        job = at(self.space.base, {n: v for n, v in chosen.items() if n not in levers.STRUCTURAL})
        return per_step(self.space, speed.least_seconds(job, calibration=self.calibration, **columns), columns)

    def memory(self, chosen: Mapping[str, Any], layout: Layout, *, within: float = float("inf")) -> tuple[Ints, Ints]:
        """(need, pinned host memory) in bytes that no row undercuts, with all levers but those of the pipeline chosen.

        Args:
            chosen: the values.
            layout: the rows.
            within: seconds that rows of interest must not exceed; zeros stand for all others.
        """
        key = self._key(chosen, layout)
        found = self._memory.get(key)
        if found is None:
            wanted: Any = slice(None)
            if within < float("inf"):
                self.seconds(chosen, layout)
                wanted = self._seconds[key] <= within
            found = self._memory[key] = self._memory_of_all(chosen, layout.static["spread"], wanted)
        return self._own(found[0], layout), self._own(found[1], layout)

    def _memory_of_all(self, chosen: Mapping[str, Any], spread: bool, wanted: Any) -> tuple[Ints, Ints]:
        import numpy as np

        columns = self._columns[spread]
        count = len(columns["tp"])
        mask = np.zeros(count, dtype=bool)
        mask[wanted] = True
        mode = chosen["checkpointing"]
        every = mode if isinstance(mode, int) else None
        if (spread, every) not in self._stages:
            self._stages[spread, every] = _tables(self.space.base, self.layouts[spread], every)
        low, high, host = np.full(count, 1 << 62), np.zeros(count, dtype=np.int64), np.full(count, 1 << 62)
        for table in self._stages[spread, every]:
            here = np.flatnonzero(mask[table.places])
            places = table.places[here]
            if len(here):
                numeric = {n: columns[n][places] for n in levers.NUMBERS}
                allocated, pinned = table.memory(self.space.base, chosen, numeric, here)
                np.minimum.at(low, places, allocated)
                np.maximum.at(high, places, allocated)
                np.minimum.at(host, places, pinned)
        job = at(self.space.base, {n: v for n, v in chosen.items() if n not in levers.STRUCTURAL})
        d = dims_of(job, {n: columns[n] for n in levers.NUMBERS})
        outside = context_bytes(job) + nccl_bytes(d, columns["pp"]) + job.others_bytes
        # the fullest rank reserves at least what any rank allocates, and allocates at least what the emptiest does
        return np.where(mask, needed(low, high, outside), 0), np.where(mask, host, 0)


@dataclass(frozen=True, slots=True)
class _Table:
    """Stages of many layouts that have the same ends: one row for each row of a layout and stage.

    Attributes:
        first, last: the ends.
        piped: they are stages of a pipeline.
        places: of the layouts' rows.
        layers: (kind, recomputed by an every-n rule) -> number of such layers, a column.
        entry: whether the first layer of the model is among them, a column.
        in_flight, per: as in ``Stage``, columns.
    """

    first: bool
    last: bool
    piped: bool
    places: Ints
    layers: Mapping[tuple[int, bool], Ints]
    entry: Any
    in_flight: Ints
    per: Ints

    def memory(
        self, base: Resolved, chosen: Mapping[str, Any], numeric: Mapping[str, Any], rows: Ints
    ) -> tuple[Ints, Ints]:
        """(bytes allocated at some moment of the step, pinned host memory), at least, of some rows of the table."""
        import numpy as np

        pipeline = {"pp": 2 if self.piped else 1, "pp_schedule": "1f1b", "virtual_pp": 1, "pp_layers": None}
        batch = batch_of(at(base, {**chosen, **pipeline}), numeric)
        allocated, host = np.empty(batch.count, dtype=np.int64), np.empty(batch.count, dtype=np.int64)
        for some, group, columns in batch.groups():
            job = replace(batch.resolved, values=group)
            mine = rows[some]
            per: Int = self.per[mine]
            stage = Stage(0, (), self.first, self.last, self.in_flight[mine], per)
            layers = {key: number[mine] for key, number in self.layers.items()}
            model = _Stages(setup_of(job), dims_of(job, columns), stage, layers)
            allocated[some], host[some] = model.floor(self.entry[mine]), host_bytes(model)
        return allocated, host


class _Stages(StageModel):
    """Stages that differ in the number of their layers, which are columns."""

    def __init__(self, setup: Setup, d: Dims, stage: Stage, layers: Mapping[tuple[int, bool], Ints]) -> None:
        super().__init__(setup, d, stage)
        self.layers = layers
        self.plain = setup.decoder.first_trained == 0  # which layers train is told by their kind

    def _list_parts(self) -> list[Part]:
        out = super()._list_parts()
        if self.plain:
            number: Int
            for (index, _), number in self.layers.items():
                kind = self.s.decoder.kinds[index]
                out.append(Part(kind.held, number, num_kv(kind.block), True))
        return out

    def largest_trained(self) -> Int:
        """Nothing: not every kind of layer is on every stage."""
        return 0

    def floor(self, entry: Any) -> Int:
        """Bytes that are allocated at the loss, in the backward pass of some block, or at the optimizer step."""
        grads = gradients(self)
        held = self._resident() + grads.at_forward
        step = self._resident() + grads.reduced
        if not self.plain:
            return maximum(held, step) if not self.c.in_backward else held
        kept = self._kept(entry)
        held = held + kept_earlier(self, kept, kept_beside(self)[0])
        whole = self._gathered()
        found = maximum(held + where(self.c.reshard, 0, whole) + kept, held + whole)
        if self.stage.last:
            found = maximum(found, held + kept + highest(self.s.tail.forward, self.tail_atoms()))
        return found if self.c.in_backward else maximum(found, step)

    def _resident(self) -> Int:
        """Weights, optimizer states and buckets that stay on the card through the step."""
        weights, _, _ = self.weights_bytes()
        if "parameters" in self.c.offload and self.sharded:
            weights = 0
        master, states = optimizer_bytes(self)
        if "optimizer" in self.c.offload:
            master, states = 0, 0
        elif self.s.optimizer.paged:
            states = 0
        return weights + master + states + replicas_bucket(self) + 2 * self.c.cublas

    def _kept(self, entry: Any) -> Int:
        """What the layers hold for one micro-batch, but for one of them, and for the first of the model beside it."""
        total: Int = 0
        most: Int = 0
        for (index, recomputed), number in self.layers.items():
            layer = self._like(index, recomputed)
            if layer is None:
                continue
            one, _ = layer_kept(self, self.s.decoder, layer, self.d.tokens, self.d.stream_tokens)
            total, most = total + one * number, maximum(most, one)
        odd = any(kind.entered is not None for kind in self.s.decoder.kinds)
        return maximum(total - most * (1 + (entry if odd else 0)), 0)

    def _like(self, index: int, recomputed: bool) -> int | None:
        """A layer of this kind that is not the first of the model."""
        every = isinstance(self.c.checkpointing, int)
        found = (
            layer
            for layer, kind in enumerate(self.s.decoder.stack.layout)
            if layer and kind == index and (not every or self.is_checkpointed(layer) == recomputed)
        )
        return next(found, None)

    def _gathered(self) -> Int:
        """Copies of all weights of the stage, where they stay."""
        if not self.sharded or self.s.sharding.max_live or not (stays_gathered(self) or not self.c.reshard):
            return 0
        num, den = gathered_width(self, self.s.decoder.kinds[0])
        blocks: Int = 0
        for (index, _), number in self.layers.items():
            blocks = blocks + (self.block_weights(self.s.decoder.kinds[index]) * num // den) * number
        return where(self.ways > 1, blocks, 0)


def _tables(base: Resolved, layouts: Sequence[Layout], every: int | None) -> list[_Table]:
    """All stages of layouts that differ, by their ends."""
    import numpy as np

    prof = profile(setup_of(base).choices.framework)
    stack = base.arch.decoder
    found: dict[tuple[bool, bool, bool], list[tuple[Any, ...]]] = {}
    start = 0
    for layout in layouts:
        static = layout.static
        places = np.arange(start, start + layout.count)
        start += layout.count
        ranks = stages(
            stack.num_layers,
            pp=static["pp"],
            schedule=static["pp_schedule"],
            virtual=static["virtual_pp"],
            micro_batches=layout.columns["grad_accum"],
            layers=static["pp_layers"] or (),
            ends=prof.pipeline_ends,
        )
        alike = [(kind, bool(every) and i % (every or 1) == (every or 1) - 1) for i, kind in enumerate(stack.layout)]
        for stage in distinct(ranks, alike):
            counts: dict[tuple[int, bool], int] = {}
            for layer in stage.indices():
                counts[alike[layer]] = counts.get(alike[layer], 0) + 1
            flights = np.broadcast_to(stage.in_flight, layout.count)
            row = (places, counts, 0 in stage.indices(), flights, stage.per)
            found.setdefault((stage.first, stage.last, static["pp"] > 1), []).append(row)
    tables = []
    for (first, last, piped), rows in found.items():
        sizes = [len(row[0]) for row in rows]
        keys = sorted({key for row in rows for key in row[1]})
        tables.append(
            _Table(
                first,
                last,
                piped,
                np.concatenate([row[0] for row in rows]),
                {key: np.repeat([row[1].get(key, 0) for row in rows], sizes) for key in keys},
                np.repeat([int(row[2]) for row in rows], sizes),
                np.concatenate([row[3] for row in rows]),
                np.repeat([row[4] for row in rows], sizes),
            )
        )
    return tables


def at(base: Resolved, chosen: Mapping[str, Any]) -> Resolved:
    """The base job with values chosen."""
    return replace(base, values={**base.values, **chosen})


def per_step(space: Space, seconds: Floats, rows: Mapping[str, Any]) -> Floats:
    """Seconds of steps of one size: of the global batch, or of one sequence.

    Where micro-batch and accumulation are given, steps of different size are compared by the time of a sequence.
    """
    if space.global_batch is not None:
        return seconds
    each: Floats = seconds / (rows["micro_batch"] * rows["grad_accum"] * rows["dp"])
    return each


def _drain(static: Mapping[str, Any]) -> float:
    """Of the seconds that the other ranks spend on a micro-batch, the least share that is a bubble."""
    if static["pp"] == 1:
        return 0.0
    schedule = static["pp_schedule"]
    if schedule == "interleaved":
        return 1.0 / max(int(static["virtual_pp"]), 1)
    return 1.0 if schedule in ("1f1b", "gpipe") else 0.0
