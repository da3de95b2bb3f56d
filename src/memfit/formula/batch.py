"""Job lines in, result lines out, thousands a second: jobs that share a structure are evaluated as arrays."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any

import msgspec

from memfit.errors import InputFileError, JobError, MemfitError
from memfit.formula.arrays import LARGEST
from memfit.formula.estimate import document, estimate, train_readings, warnings_of
from memfit.formula.reading import Outside
from memfit.formula.resolve import Resolved, resolve
from memfit.formula.runtime import nccl_bytes
from memfit.formula.setup import choices, setup
from memfit.formula.step import Moment
from memfit.formula.training import StagePeak, card_of, context_bytes, dims_of, peaks
from memfit.job import Job, parse

CHUNK = 2048
"""Lines that are read before any is answered; answers keep the order of the lines."""

_NUMERIC = ("micro_batch", "seq_len", "grad_accum", "dp", "dp_shard", "tp", "cp", "ep")
_FEW = 4
"""Groups smaller than this are answered one job at a time."""

_encode = msgspec.json.Encoder().encode
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


More = Callable[[Sequence[Resolved]], Sequence[Mapping[str, Any]]]
"""Further fields of the result documents of jobs that share their model and all discrete choices."""


def _nothing(jobs: Sequence[Resolved]) -> Sequence[Mapping[str, Any]]:
    return [{}] * len(jobs)


def run(lines: Iterable[bytes], *, full: bool = False, more: More = _nothing) -> Iterator[bytes]:
    """One JSON result for each job line, in order.

    Args:
        lines: job documents, or objects with ``job`` and optionally ``id`` (truth records are such objects). Empty
            lines give nothing.
        full: also compute assumptions and changes for each job.
        more: further fields of each result.

    Yields:
        The result document of the job, or ``{"id", "line", "error"}`` for a line that cannot be answered.
    """
    numbered = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
    while chunk := list(islice(numbered, CHUNK)):
        yield from answer(chunk, full, more)


def _read(line: bytes) -> tuple[Any, msgspec.Raw | dict[str, msgspec.Raw]]:
    """(id, job as raw JSON or as its sections) of a line."""
    try:
        data = _fields(line)
        job_id = msgspec.json.decode(data.pop("id", b"null"))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        msgspec_says = str(error).removesuffix(" - at `$`")
        raise InputFileError(f"the line is not a JSON object: {msgspec_says}") from None
    return job_id, data.get("job", data)


@lru_cache(maxsize=1 << 14)
def _section(name: str, text: bytes) -> Any:
    """One section of a job; the lines of a sweep share most of theirs."""
    return getattr(parse({name: msgspec.json.decode(text)}), name)


def _job(job: msgspec.Raw | dict[str, msgspec.Raw]) -> Job:
    """The job of a line; a fault anywhere reads the whole document anew, so that all faults are told at once."""
    try:
        sections = job if isinstance(job, dict) else _fields(job)
        if "schema" not in sections:
            return Job(**{name: _section(name, bytes(text)) for name, text in sections.items()})
    except (MemfitError, msgspec.DecodeError, TypeError, RecursionError):
        pass
    if isinstance(job, dict):
        return parse({name: msgspec.json.decode(text) for name, text in job.items()})
    whole = msgspec.json.decode(job)
    if not isinstance(whole, dict):
        raise JobError("job", "must be a table of sections")
    return parse(whole)


def answer(chunk: list[tuple[int, bytes]], full: bool, more: More = _nothing) -> list[bytes]:
    """The results of numbered lines."""
    collecting = gc.isenabled()
    gc.disable()  # thousands of small objects would set off collections that find nothing
    try:
        return _answer(chunk, full, more)
    finally:
        if collecting:
            gc.enable()


def _answer(chunk: list[tuple[int, bytes]], full: bool, more: More) -> list[bytes]:
    answers: list[bytes | None] = [None] * len(chunk)
    groups: dict[Any, list[tuple[int, Any, Resolved]]] = {}
    for index, (number, line) in enumerate(chunk):
        job_id = None
        try:
            job_id, job = _read(line)
            resolved = resolve(_job(job))
            if full or resolved.values["kind"] == "serve":
                whole = estimate(resolved.stated).to_dict(job_id, full=full)
                answers[index] = _encode({**whole, **more([resolved])[0]})
                continue
            key = (
                id(resolved.arch),
                choices(resolved.values, num_layers=resolved.arch.num_layers, **card_of(resolved)),
                resolved.capacity_bytes,
                resolved.others_bytes,
                context_bytes(resolved),
                # what does not fit 64-bit arithmetic is answered alone
                index if resolved.values["micro_batch"] * resolved.values["seq_len"] ** 2 > LARGEST else None,
            )
            groups.setdefault(key, []).append((index, job_id, resolved))
        except MemfitError as error:
            answers[index] = _encode({"id": job_id, "line": number, "error": error.to_dict()})
    for (_, static, *_rest), members in groups.items():
        for index, line in _group(static, members, more):
            answers[index] = line
    assert all(done is not None for done in answers)
    return answers  # type: ignore[return-value]


def _group(static: Any, members: list[tuple[int, Any, Resolved]], more: More) -> Iterator[tuple[int, bytes]]:
    first = members[0][2]
    s = setup(first.arch, static)
    context = context_bytes(first)
    sharded = static.zero >= 3
    further = more([resolved for _, _, resolved in members])
    if len(members) < _FEW:
        for row, (index, job_id, resolved) in enumerate(members):
            d = dims_of(resolved)
            outside = Outside(context, nccl_bytes(d, static.pp), resolved.others_bytes, resolved.vendor)
            readings, fullest = train_readings(peaks(s, d, every=True), outside)
            yield index, _line(resolved, readings, fullest, sharded, job_id, further[row])
        return
    import numpy as np

    columns = {n: np.array([m[2].values[n] for m in members], dtype=np.int64) for n in _NUMERIC}
    d = dims_of(first, columns)
    found = peaks(s, d, every=True)
    nccl = np.broadcast_to(nccl_bytes(d, static.pp), len(members)).tolist()
    listed = [_Rows(p, len(members)) for p in found]
    for row, (index, job_id, resolved) in enumerate(members):
        outside = Outside(context, nccl[row], resolved.others_bytes, resolved.vendor)
        readings, fullest = train_readings([rows.peak(row) for rows in listed], outside)
        yield index, _line(resolved, readings, fullest, sharded, job_id, further[row])


def _line(
    resolved: Resolved, readings: Any, fullest: int, sharded: bool, job_id: Any, further: Mapping[str, Any]
) -> bytes:
    whole = document(resolved, readings, fullest, sharded=sharded, warnings=warnings_of(resolved), job_id=job_id)
    return _encode({**whole, **further})


class _Rows:
    """A stage's peaks of many jobs, taken apart job by job."""

    def __init__(self, found: StagePeak, count: int) -> None:
        import numpy as np

        def column(value: Any) -> list[int]:
            return np.broadcast_to(value, count).tolist()  # type: ignore[no-any-return]

        self.stage = found.stage
        self.moments = [(m.phase, m.what) for m in found.moments]
        self.which = column(found.which)
        held = {n: v for n, v in found.peak.parts.items() if not (isinstance(v, int) and v == 0)}
        self.parts = {name: column(value) for name, value in held.items()}
        self.slack = column(found.slack)
        self.host = column(found.host)

    def peak(self, row: int) -> StagePeak:
        """The peak of one job."""
        phase, what = self.moments[self.which[row]]
        parts = {name: values[row] for name, values in self.parts.items()}
        return StagePeak(self.stage, [], Moment(phase, what, parts), self.slack[row], self.host[row], self.which[row])
