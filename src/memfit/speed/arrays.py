"""Step times of one job, or of many jobs at once by the same arithmetic.

Conventions are those of ``memfit.formula.arrays``: numeric fields are columns of one length, any other field of
``[strategy]`` splits the jobs into groups. Seconds of blocks depend only on batch, length and model-parallel degrees:
they are computed once for each combination that occurs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from memfit.formula.arrays import Batch, batch_of
from memfit.formula.dims import Dims
from memfit.formula.resolve import Resolved, resolve
from memfit.formula.setup import Setup, choices, setup
from memfit.formula.training import card_of, dims_of, stages_of
from memfit.job import Job
from memfit.speed.block import BlockSeconds, Machine
from memfit.speed.calibration import Calibration
from memfit.speed.numbers import Real
from memfit.speed.step import PARTS, Pipeline, Units, machine_of, pipeline, stage_units
from memfit.speed.training import step_parts

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

UNIT = ("micro_batch", "seq_len", "tp", "cp", "ep")
"""Numeric fields that the seconds of a block depend on."""

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
        d = dims_of(base, {n: c[first] for n, c in units.items()})
        found = stage_units(_units(m, s, d, units), stages_of(s, d))
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


_BLOCKS: dict[Any, tuple[Any, list[BlockSeconds]]] = {}
_MOST_BLOCKS = 512


def _units(m: Machine, s: Setup, d: Dims, columns: Mapping[str, Any]) -> Units:
    """The seconds of blocks, kept from one call to the next: jobs that differ elsewhere (ZeRO, pipeline) share them."""
    c, cluster = s.choices, m.fabric.cluster
    key = (
        id(s.decoder.kinds), s.style, s.scheme, s.frozen, s.profile.name, c.tensor_parallel, c.accumulates, c.zero < 2,
        c.precision, c.training, m.rates, m.framework, m.calibration, cluster.gpu.name, cluster.gpus_per_node,
        cluster.intra_bytes_per_s, cluster.inter_bytes_per_s, d.imbalance_pct,
        *(columns[name].tobytes() if name in columns else getattr(d, name) for name in UNIT),
    )  # fmt: skip
    known = _BLOCKS.get(key)
    if known is None:
        if len(_BLOCKS) >= _MOST_BLOCKS:
            _BLOCKS.clear()
        # the kinds are kept with their seconds, so that no others can have their identity
        known = _BLOCKS[key] = (s.decoder.kinds, Units(m, s, d).blocks)
    return Units(m, s, d, known[1])


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
