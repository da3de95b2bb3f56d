"""Step times of one job, or of many jobs at once by the same arithmetic.

Conventions are those of ``memfit.formula.arrays``: numeric fields are columns of one length, any other field of
``[strategy]`` splits the jobs into groups. Seconds of blocks depend only on batch, length and model-parallel degrees:
they are computed once for each combination that occurs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from memfit.formula.arrays import Batch, batch_of
from memfit.formula.resolve import Resolved, resolve
from memfit.formula.setup import Setup, choices, setup
from memfit.formula.stage import Stage
from memfit.formula.training import card_of, dims_of, stages_of
from memfit.job import Job
from memfit.speed.block import BlockSeconds, Machine, Seconds
from memfit.speed.calibration import Calibration
from memfit.speed.numbers import Real
from memfit.speed.step import PARTS, Pipeline, Units, machine_of, pipeline, stage_units
from memfit.speed.training import step_parts, stragglers

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

UNIT = ("micro_batch", "seq_len", "tp", "cp", "ep")
"""Numeric fields that the seconds of a block depend on."""

ROUNDING = 1e-9
"""What sums in another order may differ by."""

SLICE = 1 << 14
"""Jobs put together at a time, so that the arrays stay in the cache."""


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of many jobs, float64 arrays of equal length.

    Attributes:
        step_s: seconds of one optimizer step.
        tokens_per_s_per_gpu: trained tokens per second and GPU.
        parts: part name (see ``PARTS``) -> seconds, which sum to ``step_s``, when asked for.
    """

    step_s: Floats
    tokens_per_s_per_gpu: Floats
    parts: Mapping[str, Floats] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTime:
    """Seconds of one job's optimizer step.

    Attributes:
        step_s: seconds.
        tokens_per_s_per_gpu: trained tokens per second and GPU.
        parts: part name -> seconds, in the order of ``PARTS`` (which says what each is); they sum to ``step_s``.
    """

    step_s: float
    tokens_per_s_per_gpu: float
    parts: Mapping[str, float]


def step_time(job: Job | Resolved, *, calibration: Calibration | None = None) -> StepTime:
    """The seconds of one training step.

    Raises:
        MemfitError: the job names no card, is not a training job, or cannot be read.
    """
    from memfit.errors import MemfitError

    resolved = job if isinstance(job, Resolved) else resolve(job)
    if resolved.values["kind"] != "train":
        raise MemfitError("a serving job has no training step", hint="see `memfit.speed.latency`")
    s = _setup(resolved, resolved.values)
    m = machine_of(resolved, s, calibration)
    d = dims_of(resolved)
    found = stage_units(Units(m, s, d), stages_of(s, d))
    parts = {name: float(value) for name, value in step_parts(m, s, d, pipeline(found), found).items()}
    total = 0.0
    for value in parts.values():
        total = total + value
    v = resolved.values
    tokens = float(v["micro_batch"] * v["seq_len"] * v["grad_accum"])
    return StepTime(step_s=total, tokens_per_s_per_gpu=_rate(tokens, v, total), parts=parts)


def _rate(tokens: Real, v: Mapping[str, Any], seconds: Real) -> Real:
    """Tokens per second and GPU: one data-parallel rank's tokens over the GPUs that work on them."""
    return tokens / (seconds * (v["tp"] * v["cp"] * v["pp"]))


def evaluate(
    job: Job | Resolved, *, parts: bool = False, calibration: Calibration | None = None, **fields: Any
) -> Times:
    """Step times of many training jobs that share one model and one card.

    Args:
        job: the job that states everything else.
        parts: also give the parts of each step.
        calibration: other figures than the shipped ones.
        **fields: as in ``memfit.formula.arrays.evaluate``.

    Raises:
        MemfitError: as there, or the job names no card.
    """
    import numpy as np

    batch: Batch = batch_of(job, fields)
    step_s = np.empty(batch.count)
    rate = np.empty(batch.count)
    columns = {name: np.empty(batch.count) for name in PARTS} if parts else None
    for rows, group, numeric in batch.groups():
        s = _setup(batch.resolved, group)
        m = machine_of(batch.resolved, s, calibration)
        base = replace(batch.resolved, values=group)
        units = {n: c for n, c in numeric.items() if n in UNIT}
        first, inverse = _distinct(units, len(rows))
        distinct = _units(m, s, base, {n: c[first] for n, c in units.items()})
        found = stage_units(distinct, stages_of(s, distinct.d))
        p = pipeline(found)
        for start in range(0, len(rows), SLICE):
            chosen = slice(start, start + SLICE)
            here = {n: c[chosen] for n, c in numeric.items()}
            values = step_parts(m, s, dims_of(base, here), _rows(p, inverse[chosen], len(first)), found)
            total: Any = 0.0
            for value in values.values():
                total = total + value
            v = {**group, **here}
            tokens = (v["micro_batch"] * v["seq_len"] * v["grad_accum"]) * 1.0
            step_s[rows[chosen]] = total
            rate[rows[chosen]] = _rate(tokens, v, total)
            if columns is not None:
                for name, value in values.items():
                    columns[name][rows[chosen]] = value
    return Times(step_s, rate, columns)


def least_seconds(
    job: Resolved, *, pp: Any, drain: Any, calibration: Calibration | None = None, **fields: Any
) -> Floats:
    """Seconds that no step is shorter than, however the layers are split over the ranks of a pipeline.

    The slowest rank takes at least the mean of all; of the rest of a step only the bubble and the wait for the slowest
    node are counted. One structure is evaluated for all pipelines, so that this costs a small part of ``evaluate``.

    Args:
        job: the job that states everything else; its own pipeline counts for nothing.
        pp: ranks of the pipeline, a column.
        drain: seconds of the bubble over those that all ranks but the slowest spend on one micro-batch, a column.
        calibration: other figures than the shipped ones.
        **fields: as in ``evaluate``; numeric ones.

    Raises:
        MemfitError: as for ``evaluate``.
    """
    import numpy as np

    batch: Batch = batch_of(job, fields)
    out = np.empty(batch.count)
    for rows, group, numeric in batch.groups():
        values = {**group, "pp": 1, "pp_layers": None, "pp_schedule": "1f1b", "virtual_pp": 1}
        s = _setup(batch.resolved, values)
        m = machine_of(batch.resolved, s, calibration)
        units = {n: c for n, c in numeric.items() if n in UNIT}
        first, inverse = _distinct(units, len(rows))
        distinct = _units(m, s, replace(batch.resolved, values=values), {n: c[first] for n, c in units.items()})
        # a mean of fourth powers of sums is at most the sum of such means: the whole model as one stage is a bound
        whole = distinct.stage(Stage(0, ((0, s.decoder.stack.num_layers),), True, True, 1))
        total = np.broadcast_to(whole.total, len(first))[inverse]
        slowest = total / pp[rows]
        v = {**group, **numeric}
        waits = stragglers(m, v["dp"] * v["tp"] * v["cp"] * pp[rows])
        out[rows] = (slowest * v["grad_accum"] + (total - slowest) * drain[rows]) * (1.0 + waits)
    return out * (1 - ROUNDING)


@dataclass(slots=True)
class _Blocks:
    """Seconds of the blocks of one structure for the combinations of ``UNIT`` that have been asked for.

    Attributes:
        kinds: kept with their seconds, so that no others can have their identity.
        places: combination -> its place in the columns of the seconds.
        blocks: the seconds of each kind of block, columns over the combinations.
    """

    kinds: Any
    places: dict[tuple[int, ...], int]
    blocks: list[BlockSeconds]


_BLOCKS: dict[Any, _Blocks] = {}
_MOST_BLOCKS = 512
_MOST_COMBINATIONS = 1 << 18


def _units(m: Machine, s: Setup, base: Resolved, columns: Mapping[str, Any]) -> Units:
    """The seconds of blocks, kept from one call to the next: jobs that differ elsewhere (ZeRO, pipeline) share them.

    Args:
        m, s: machine and structure.
        base: states the fields of ``UNIT`` that are no columns.
        columns: distinct combinations of those that are.
    """
    import numpy as np

    d = dims_of(base, columns)
    if not columns:
        return Units(m, s, d)
    c, cluster = s.choices, m.fabric.cluster
    key = (
        id(s.decoder.kinds), s.style, s.scheme, s.frozen, s.profile.name, c.tensor_parallel, c.accumulates, c.zero < 2,
        c.precision, c.training, m.rates, m.framework, m.calibration, cluster.gpu.name, cluster.gpus_per_node,
        cluster.intra_bytes_per_s, cluster.inter_bytes_per_s, d.imbalance_pct,
        *(None if name in columns else getattr(d, name) for name in UNIT),
    )  # fmt: skip
    known = _BLOCKS.get(key)
    if known is None or len(known.places) > _MOST_COMBINATIONS:
        if len(_BLOCKS) >= _MOST_BLOCKS:
            _BLOCKS.clear()
        known = _BLOCKS[key] = _Blocks(s.decoder.kinds, {}, [])
    wanted = list(zip(*(column.tolist() for column in columns.values()), strict=True))
    missing = [row for row, combination in enumerate(wanted) if combination not in known.places]
    if missing:
        fresh = Units(m, s, dims_of(base, {n: column[missing] for n, column in columns.items()})).blocks
        start = len(known.places)
        known.blocks = _joined(known.blocks, start, fresh, len(missing))
        known.places.update((wanted[row], start + number) for number, row in enumerate(missing))
    places = np.array([known.places[combination] for combination in wanted], dtype=np.intp)
    return Units(m, s, d, [_each(lambda value: value if _one(value) else value[places], b) for b in known.blocks])


def _joined(old: list[BlockSeconds], count: int, new: list[BlockSeconds], more: int) -> list[BlockSeconds]:
    """The seconds of ``count`` combinations, and behind them those of ``more``; one number where all are equal."""
    import numpy as np

    def put(value: Real, other: Real) -> Real:
        if _one(value) and _one(other) and value == other:
            return value
        return np.concatenate([np.broadcast_to(value, count), np.broadcast_to(other, more)])

    return [_each(put, *pair) for pair in zip(old, new, strict=True)] if count else new


def _one(value: Real) -> bool:
    return isinstance(value, float)


def _each(do: Callable[..., Real], *blocks: BlockSeconds) -> BlockSeconds:
    """The seconds of blocks put together column by column."""

    def one(*passes: Seconds) -> Seconds:
        parts = {name: do(*(p.parts[name] for p in passes)) for name in passes[0].parts}
        return Seconds(parts, do(*(p.launches for p in passes)))

    forward, backward = one(*(b.forward for b in blocks)), one(*(b.backward for b in blocks))
    return BlockSeconds(forward, backward, one(*(b.again for b in blocks)))


def _setup(resolved: Resolved, values: Mapping[str, Any]) -> Setup:
    static = choices(values, num_layers=resolved.arch.num_layers, **card_of(resolved))
    return setup(resolved.arch, static)


def _rows(p: Pipeline, inverse: Any, count: int) -> Pipeline:
    """The figures of distinct combinations, spread over the jobs."""
    import numpy as np

    def spread(value: Real) -> Real:
        return value if isinstance(value, float) else np.broadcast_to(value, count)[inverse]

    parts = {name: spread(value) for name, value in p.parts.items()}
    return Pipeline(parts, spread(p.slowest), spread(p.total), spread(p.backward_s), spread(p.forward_s))


def _distinct(columns: Mapping[str, Any], count: int) -> tuple[Any, Any]:
    """(row of each distinct combination, index into them for each row)."""
    import numpy as np

    key = np.zeros(count, dtype=np.int64)
    size = 1
    for column in columns.values():
        low, high = int(column.min(initial=1 << 62)), int(column.max(initial=0))
        span = max(high - low + 1, 1)
        if size * span >= 1 << 62:
            _, codes = np.unique(column, return_inverse=True)
            low, span, column = 0, int(codes.max(initial=0)) + 1, codes
        key = key * span + (column - low)
        size *= span
    _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
    return first, inverse
