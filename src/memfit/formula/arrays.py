"""Many jobs at once: the same memory model over arrays of numeric fields, equal to the single answers to the byte.

Fields that decide the structure of a step (framework, checkpointing, pp, ZeRO stage ...) split the jobs into groups; in
a group everything is arithmetic on int64 arrays, a slice at a time so that the arrays stay in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from memfit.errors import MemfitError
from memfit.formula.dims import Dims
from memfit.formula.resolve import Resolved, resolve
from memfit.formula.runtime import nccl_bytes
from memfit.formula.slack import needed
from memfit.formula.step import ENTRIES
from memfit.formula.training import context_bytes, dims_of, peaks, setup_of
from memfit.job import Job

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]

NUMERIC = ("micro_batch", "seq_len", "grad_accum", "dp", "dp_shard", "tp", "cp", "ep")
"""Fields that may vary inside a group."""

LARGEST = 1 << 42
"""micro_batch * seq_len**2 up to which no intermediate figure leaves 64 bits, whatever the model and the pipeline."""

SLICE = 1 << 13
"""Jobs evaluated together: a few dozen int64 arrays of this length fit the second-level cache."""

FEW = 6
"""Jobs of a group up to which plain numbers are faster than arrays: an array's operation costs what ten do."""


@dataclass(frozen=True, slots=True)
class Peaks:
    """Peaks of many jobs, int64 arrays of equal length, in bytes on the fullest rank.

    Attributes:
        allocated, reserved, device: as in ``Estimate``.
        host: pinned host memory of that rank.
        components: entry name (see ``step.ENTRIES``) -> bytes, when asked for.
    """

    allocated: Ints
    reserved: Ints
    device: Ints
    host: Ints
    components: Mapping[str, Ints] | None = None

    @property
    def need(self) -> Ints:
        """The middle of what must be there for the run to finish: the band ``need`` of ``Estimate`` lies around it."""
        middle: Ints = needed(self.allocated, self.reserved, self.device - self.reserved)
        return middle


def evaluate(job: Job | Resolved, *, components: bool = False, **fields: Any) -> Peaks:
    """Peaks of many training jobs that share one model and one card.

    Args:
        job: the job that states everything else.
        components: also give the bytes of each entry at the peak.
        **fields: field name -> array or sequence, all of one length. ``micro_batch``, ``seq_len``, ``grad_accum``,
            ``dp``, ``dp_shard``, ``tp``, ``cp``, ``ep`` are numbers; any other field of ``[strategy]`` splits the jobs
            into groups. ``dp_shard`` follows ``dp`` unless it is given.

    Raises:
        MemfitError: the arrays differ in length, a job is too large for 64-bit arithmetic, or the base job is not a
            training job.
    """
    import numpy as np

    batch = batch_of(job, fields)
    out = {k: np.empty(batch.count, dtype=np.int64) for k in ("allocated", "reserved", "device", "host")}
    parts = {name: np.empty(batch.count, dtype=np.int64) for name in ENTRIES} if components else None
    for rows, group, numeric in batch.groups():
        if len(rows) <= FEW:
            _singly(batch.resolved, group, numeric, rows, out, parts)
            continue
        for start in range(0, len(rows), SLICE):
            chosen = slice(start, start + SLICE)
            _slice(batch.resolved, group, {n: c[chosen] for n, c in numeric.items()}, rows[chosen], out, parts)
    return Peaks(out["allocated"], out["reserved"], out["device"], out["host"], parts)


@dataclass(frozen=True, slots=True)
class Batch:
    """Many training jobs as columns.

    Attributes:
        resolved: the job that states everything else.
        count: number of jobs.
        numeric: numeric field -> int64 column.
        shape: any other field -> column; jobs with equal values form a group.
    """

    resolved: Resolved
    count: int
    numeric: Mapping[str, Ints]
    shape: Mapping[str, Any]

    def groups(self) -> Iterator[tuple[Any, dict[str, Any], dict[str, Ints]]]:
        """(row numbers, static field values, numeric columns of these rows) of each group."""
        for rows, static in _groups(self.shape, self.count):
            group = {**self.resolved.values, **{k: v for k, v in static.items() if not k.endswith(">1")}}
            for flag in ("tp", "grad_accum"):
                if f"{flag}>1" in static:
                    group[flag] = 2 if static[f"{flag}>1"] else 1
            yield rows, group, {n: c[rows] for n, c in self.numeric.items()}


def batch_of(job: Job | Resolved, fields: Mapping[str, Any]) -> Batch:
    """Many training jobs that share one model and one card, as columns; see ``evaluate``.

    Raises:
        MemfitError: as for ``evaluate``.
    """
    import numpy as np

    resolved = job if isinstance(job, Resolved) else resolve(job)
    if resolved.values["kind"] != "train":
        raise MemfitError("arrays of jobs are for training; a serving job is estimated one at a time")
    columns = {name: np.asarray(value) for name, value in fields.items()}
    lengths = {c.shape for c in columns.values()}
    if len(lengths) != 1 or len(next(iter(lengths))) != 1:
        raise MemfitError(f"the arrays must be one-dimensional and of equal length, got shapes {sorted(lengths)}")
    count = next(iter(lengths))[0]
    values = resolved.values
    numeric = {n: columns[n].astype(np.int64) for n in NUMERIC if n in columns}
    if "dp" in numeric and "dp_shard" not in numeric:
        numeric["dp_shard"] = numeric["dp"]
    batch, length = (int(np.max(numeric.get(n, values[n]), initial=1)) for n in ("micro_batch", "seq_len"))
    if batch * length**2 > LARGEST:
        raise MemfitError(f"micro_batch * seq_len**2 exceeds {LARGEST:.2g}", hint="estimate such jobs one at a time")
    shape = {n: c for n, c in columns.items() if n not in NUMERIC}
    if "tp" in numeric:
        shape["tp>1"] = numeric["tp"] > 1
    if "grad_accum" in numeric:
        shape["grad_accum>1"] = numeric["grad_accum"] > 1
    return Batch(resolved, count, numeric, shape)


def _groups(shape: Mapping[str, Any], count: int) -> list[tuple[Any, dict[str, Any]]]:
    """(row numbers, static values) of each combination of structural values."""
    import numpy as np

    if not shape:
        return [(np.arange(count), {})]
    key = np.zeros(count, dtype=np.int64)
    tables = {}
    for name, column in shape.items():
        table, codes = np.unique(column, return_inverse=True)
        tables[name] = table
        key = key * len(table) + codes
    order = np.argsort(key, kind="stable")
    bounds = np.flatnonzero(np.diff(key[order])) + 1
    out = []
    for rows in np.split(order, bounds):
        first = rows[0]
        out.append((rows, {name: column[first].item() for name, column in shape.items()}))
    return out


def _slice(
    resolved: Resolved,
    group: Mapping[str, Any],
    numeric: Mapping[str, Any],
    rows: Any,
    out: Mapping[str, Any],
    parts: Mapping[str, Any] | None,
) -> None:
    import numpy as np

    base = replace(resolved, values=group)
    s, d = setup_of(base), dims_of(base, numeric)
    found = peaks(s, d, every=False)
    top = np.full(len(rows), -1, dtype=np.int64)
    allocated, host = np.zeros(len(rows), dtype=np.int64), np.zeros(len(rows), dtype=np.int64)
    selected = {name: np.zeros(len(rows), dtype=np.int64) for name in ENTRIES} if parts is not None else {}
    for p in found:
        higher = p.reserved > top
        top = np.where(higher, p.reserved, top)
        allocated = np.where(higher, p.allocated, allocated)
        host = np.where(higher, p.host, host)
        for name in selected:
            selected[name] = np.where(higher, p.peak.parts[name], selected[name])
    out["allocated"][rows] = allocated
    out["host"][rows] = host
    out["reserved"][rows] = top
    out["device"][rows] = top + context_bytes(resolved) + nccl_bytes(d, group["pp"]) + resolved.others_bytes
    if parts is not None:
        for name, column in selected.items():
            parts[name][rows] = column


def _singly(
    resolved: Resolved,
    group: Mapping[str, Any],
    numeric: Mapping[str, Any],
    rows: Any,
    out: Mapping[str, Any],
    parts: Mapping[str, Any] | None,
) -> None:
    """The same as ``_slice``, one job after the other."""
    base = replace(resolved, values=group)
    s = setup_of(base)
    for place, row in enumerate(rows.tolist()):
        d: Dims = dims_of(base, {name: column[place].item() for name, column in numeric.items()})
        fullest = max(peaks(s, d, every=False), key=lambda p: p.reserved)  # of equal ones the first
        out["allocated"][row], out["host"][row] = fullest.allocated, fullest.host
        out["reserved"][row] = fullest.reserved
        outside = context_bytes(resolved) + nccl_bytes(d, group["pp"]) + resolved.others_bytes
        out["device"][row] = fullest.reserved + outside
        if parts is not None:
            for name, column in parts.items():
                column[row] = fullest.peak.parts[name]
