"""From a request to an answer: every set of GPUs is searched, the best plans are compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from memfit.errors import JobErrors, MemfitError
from memfit.formula.resolve import resolve
from memfit.formula.slack import most_needed
from memfit.formula.training import segments_grow
from memfit.hardware import Gpu
from memfit.job import BY_NAME, Job, Strategy
from memfit.models import catalog
from memfit.planner import levers
from memfit.planner.capabilities import allowed, assumed_host_bytes, default_framework
from memfit.planner.changes import penalty
from memfit.planner.plans import Plan, make_plan
from memfit.planner.request import Option, Request, options
from memfit.planner.search import Candidate, Outcome, Search, settled, ties
from memfit.planner.space import Space, make_space

HOST_SHARE = 0.8
"""Share of the host's memory that pinned buffers may take: the rest is the operating system's and the data loaders'."""
_LONGEST = 1 << 20
_SEQ_UNIT = 1024
_SEQ_LEN = BY_NAME["seq_len"].default


@dataclass(frozen=True, kw_only=True)
class Field:
    """One set of GPUs and its space.

    Attributes:
        limit_bytes: largest need with the accepted risk.
        calm: what keeps reserved memory within the card, as ``Search`` takes it; None with expandable segments.
    """

    option: Option
    space: Space
    limit_bytes: int
    calm: tuple[int, float] | None
    host_bytes: int
    host_note: str


@dataclass(frozen=True, kw_only=True)
class Found:
    """What was searched and what came of it.

    Attributes:
        request: the question.
        plans: best first, as many as asked for.
        fields: every set of GPUs with its space, the searched ones.
        outcomes: what each search found, beside ``fields``; None for one that could not beat the others.
        best: index of the best plan's field.
        seq_len: the length that was found, for the objective ``seq``.
    """

    request: Request
    plans: tuple[Plan, ...]
    fields: tuple[Field, ...]
    outcomes: tuple[Outcome | None, ...]
    best: int
    seq_len: int | None = None

    @property
    def field(self) -> Field:
        """Where the best plan was found."""
        return self.fields[self.best]

    @property
    def outcome(self) -> Outcome:
        """The search that found the best plan."""
        found = self.outcomes[self.best]
        assert found is not None
        return found

    @property
    def considered(self) -> int:
        """Candidates in all spaces."""
        return sum(o.considered for o in self.outcomes if o is not None)

    @property
    def evaluated(self) -> int:
        """Candidates whose time or memory was computed."""
        return sum(o.evaluated for o in self.outcomes if o is not None)


_KEPT = frozenset({"framework", "framework_version", "weights", "set_to_none"})
_RESULTS = ("precision", "optimizer", "optimizer_in_backward")
"""Levers of strategy that change results: today's stay unless other values are allowed."""


def free_fields(request: Request) -> frozenset[str]:
    """Fields of the job that are today's and not fixed; none without a job of today."""
    if request.today is None:
        return frozenset()
    kept = frozenset(lever for lever in _RESULTS if not allowed(request.allow, lever))
    return frozenset(Strategy.__dataclass_fields__) - request.keep - _KEPT - kept


def field_of(request: Request, option: Option, seq_len: int | None = None) -> Field:
    """The space of one set of GPUs, with its limits."""
    job = request.job
    if request.today is not None and job.task.global_batch is None:
        job = replace(job, task=replace(job.task, global_batch=today_values(request)["global_batch"]))
    job, assumed = _assumed(job, option.gpus)
    space = make_space(
        job,
        option.gpu,
        option.gpus,
        allow=request.allow,
        free=free_fields(request),
        seq_len=seq_len,
        open_batch=request.objective == "batch",
    )
    space = replace(_narrowed(space, option.gpu), notes=(*assumed, *space.notes))
    capacity = space.base.capacity_bytes
    assert capacity is not None, "the card is known"
    host = request.host_bytes or space.cluster.host_memory_bytes
    note = ""
    if option.gpu.unified:
        host = 0  # what would be moved to the host would stay where it is
    if host is None:
        host = assumed_host_bytes(option.gpu.kind)
        note = f"{host >> 30} GiB of memory in a host: not known for this machine (--host-memory)"
    return Field(
        option=option,
        space=space,
        limit_bytes=most_needed(capacity, request.risk),
        calm=None if segments_grow(space.base) else (capacity, request.risk),
        host_bytes=int(host * HOST_SHARE) // space.cluster.gpus_per_node,
        host_note=note,
    )


def _assumed(job: Job, gpus: int) -> tuple[Job, tuple[str, ...]]:
    """The job with a framework and a length that its model can be trained with, and what of that nobody stated."""
    if job.strategy.framework is not None and job.task.seq_len is not None:
        return job, ()
    arch = resolve(Job(model=job.model)).arch
    notes = []
    if job.strategy.framework is None:
        method = job.task.method or ("lora" if job.task.lora is not None else "full")
        framework, why = default_framework(method, gpus, kind=arch.kind, model=_catalog_name(job))
        job = replace(job, strategy=replace(job.strategy, framework=framework))
        notes.append(f"framework {framework}: none was stated; {why}")
    if job.task.seq_len is None and 0 < arch.max_positions < _SEQ_LEN:
        job = replace(job, task=replace(job.task, seq_len=arch.max_positions))
        notes.append(f"seq_len {arch.max_positions}: none was stated, and the model has no more positions (--seq-len)")
    return job, tuple(notes)


def _narrowed(space: Space, gpu: Gpu) -> Space:
    """The space without kernels that the model or the card does not have, where others are left."""
    lacks: dict[str, tuple[Any, ...]] = {"attention": (), "compile": (), "loss": (), "zero": ()}
    if gpu.vendor == "apple":
        lacks["zero"] = (1, 2, 3)  # neither DeepSpeed nor FSDP runs there
    if gpu.vendor == "apple" or (gpu.compute_capability or (99, 0)) < (8, 0):
        lacks["attention"] = ("flash",)  # FlashAttention wants Ampere
    if gpu.vendor == "apple" or (gpu.compute_capability or (99, 0)) < (7, 0):
        lacks["compile"] = (True,)  # the compiler writes Triton's kernels, which want Volta
    if space.base.arch.kind in ("encoder", "seq2seq"):
        lacks["loss"] = ("fused", "chunked", "compiled")  # losses of next tokens
    left = {n: tuple(v for v in space.values[n] if v not in gone) for n, gone in lacks.items() if n not in space.fixed}
    return replace(space, values={**space.values, **{n: values for n, values in left.items() if values}})


def _catalog_name(job: Job) -> str | None:
    entry = catalog.lookup(job.model.name) if job.model.name and job.model.config is None else None
    return entry.name if entry is not None else None


def fields_of(request: Request, seq_len: int | None = None) -> Iterator[Field]:
    """Every set of GPUs with its space."""
    for option in options(request):
        yield field_of(request, option, seq_len)


def find(request: Request) -> Found | None:
    """The best plans; None when nothing fits.

    Raises:
        MemfitError: the request makes no sense, or the job contradicts itself.
    """
    request.check()
    if request.objective == "gpus":
        return _fewest(request)
    if request.objective == "seq":
        return _longest(request)
    return _best_of(request, list(fields_of(request)))


def _best_of(request: Request, fields: Sequence[Field], seq_len: int | None = None) -> Found | None:
    """Search all fields, those that promise most first, and drop those that cannot win."""
    order = sorted(range(len(fields)), key=lambda i: _promise(request, fields[i]))
    outcomes: list[Outcome | None] = [None] * len(fields)
    ranked: list[tuple[tuple[float, ...], int, Candidate]] = []
    for index in order:
        field = fields[index]
        weigh = _weight(request, field.option)
        bar = ranked[request.top - 1][0][1] / weigh if len(ranked) >= request.top else float("inf")
        several = len(fields) > 1
        if several and _least_seconds(field) >= bar:
            continue
        outcome = search(request, field, bar=bar if _by_time(request) else float("inf"))
        outcomes[index] = outcome
        ranked += [(_place(outcome, i, weigh), index, c) for i, c in enumerate(outcome.best)]
        ranked = sorted(ranked, key=lambda r: (r[0], r[2].order, r[1]))[: request.top]
    if not ranked:
        # what only just runs, the allocator at work in every step, is better than nothing
        tight = [replace(f, calm=None) for f in fields if f.calm is not None]
        return _best_of(request, tight, seq_len) if tight else None
    plans = tuple(make_plan(request, fields[i].space, fields[i].option, c) for _, i, c in ranked)
    return Found(
        request=request,
        plans=plans,
        fields=tuple(fields),
        outcomes=tuple(outcomes),
        best=ranked[0][1],
        seq_len=seq_len,
    )


def _place(outcome: Outcome, index: int, weigh: float) -> tuple[float, ...]:
    """The place of a search's candidate among all sets of GPUs: those that tie stay in the search's order."""
    one, fastest = outcome.best[index], outcome.fastest
    assert fastest is not None
    if ties(one, fastest):
        return one.penalty, fastest.seconds * weigh, index
    return one.penalty, one.seconds * weigh, 0


def search(request: Request, field: Field, *, bar: float = float("inf"), keep: int | None = None) -> Outcome:
    """Search one field for the request's objective."""

    def run(space: Space) -> Outcome:
        return Search(
            space,
            limit_bytes=field.limit_bytes,
            calm=field.calm,
            host_bytes=field.host_bytes,
            keep=keep or request.top,
            bar=bar,
            calibration=request.calibration,
            **_penalty(request),
        ).run()

    found = run(field.space)
    if request.objective != "changes":
        return found
    # Along the modes of checkpointing a search stops at the fastest one that fits; today's may be a slower one.
    mode = today_values(request)["checkpointing"]
    if "checkpointing" in field.space.fixed or mode not in field.space.values["checkpointing"]:
        return found
    return _either(found, run(_fix(field.space, "checkpointing", mode)), keep or request.top)


def _either(one: Outcome, other: Outcome, keep: int) -> Outcome:
    """The best of two searches, the second of which looked at a part of the first one's space again."""
    best: dict[tuple[Any, ...], Candidate] = {}
    for candidate in sorted((*one.best, *other.best), key=lambda c: c.order):
        best.setdefault(candidate.apart, candidate)
    ranked = tuple(best.values())
    fastest = ranked[0] if ranked else None
    return replace(one, best=settled(ranked)[:keep], fastest=fastest, evaluated=one.evaluated + other.evaluated)


def _penalty(request: Request) -> dict[str, Any]:
    if request.objective == "changes":
        assert request.today is not None
        return {"penalty": penalty(today_values(request))}
    if request.objective == "batch":
        return {"penalty": _sequences}
    return {}


def _sequences(_: Mapping[str, Any], columns: Mapping[str, Any]) -> Any:
    return -(columns["micro_batch"] * columns["dp"]).astype(float)


def today_values(request: Request) -> Mapping[str, Any]:
    """The completed values of today's job."""
    assert request.today is not None
    return resolve(request.today).values


def _by_time(request: Request) -> bool:
    return request.objective not in ("changes", "batch")


def _weight(request: Request, option: Option) -> float:
    """What seconds of a step are multiplied with to be compared between sets of GPUs."""
    if request.objective == "cost":
        return option.usd_per_hour or float("inf")
    return float(option.gpus) if request.objective == "throughput" else 1.0


def _promise(request: Request, field: Field) -> float:
    return _least_seconds(field) * _weight(request, field.option)


def _least_seconds(field: Field) -> float:
    """No step is shorter: two passes over the matrix products at the card's peak in the types that may be used."""
    base, option = field.space.base, field.option
    arch = base.arch
    parameters = max(arch.active_params - sum(t.numel for t in arch.embeddings), 1)
    batch = field.space.global_batch or 1
    flops = 4 * parameters * batch * base.values["seq_len"]
    low = any(p in ("fp8", "mxfp8", "nvfp4") for p in field.space.values["precision"])
    peaks = [rate for dtype, rate in option.gpu.flops.items() if low or dtype in ("bf16", "fp16", "tf32", "fp32")]
    return float(flops / (option.gpus * max(peaks or option.gpu.flops.values())))


def _fewest(request: Request) -> Found | None:
    """The fewest GPUs on which anything fits, then the fastest plan there."""
    tried: list[Field] = []
    misses = 0
    for field in fields_of(request):
        if tried and field.option.gpus > tried[0].option.gpus:
            break
        if _can(field):
            tried.append(field)
        else:
            misses += 1
    if not tried:
        return None
    first = tried[0].option.gpus
    if first > 16:  # between the counts that were tried, whole nodes may do
        tried = _refine(request, tried, first)
    return _best_of(request, tried)


def _refine(request: Request, tried: list[Field], first: int) -> list[Field]:
    node = tried[0].space.cluster.gpus_per_node
    below = first * 2 // 3
    for count in range(below + node - below % node, first, node):
        again = [field_of(request, replace(f.option, gpus=count)) for f in tried]
        able = [f for f in again if _can(f)]
        if able:
            return able
    return tried


def _can(field: Field) -> bool:
    return Search(field.space, limit_bytes=field.limit_bytes, host_bytes=field.host_bytes).fits_at_all()


def longest(request: Request, option: Option, most: int = _LONGEST) -> int:
    """The longest sequence, in whole units of 1024 tokens, that fits on one set of GPUs; 0 when none does."""

    def can(units: int) -> bool:
        try:
            return _can(field_of(request, option, units * _SEQ_UNIT))
        except JobErrors:
            return False

    low, high = 0, 1
    while high * _SEQ_UNIT <= most and can(high):
        low, high = high, high * 2
    high = min(high, most // _SEQ_UNIT + 1)
    while high - low > max(1, low // 32):  # to 3 %: lengths are round numbers
        middle = (low + high) // 2
        low, high = (middle, high) if can(middle) else (low, middle)
    return low * _SEQ_UNIT


def _longest(request: Request) -> Found | None:
    best: tuple[int, list[Option]] = (0, [])
    for option in options(request):
        found = longest(request, option)
        if found > best[0]:
            best = (found, [option])
        elif found == best[0]:
            best[1].append(option)
    length, able = best
    if not length:
        return None
    return _best_of(request, [field_of(request, option, length) for option in able], length)


def explain_values(found: Found, lever: str) -> list[tuple[Any, Candidate | None]]:
    """The best candidate with each value of a lever, everything else searched again.

    Args:
        found: the answer whose best plan is explained.
        lever: a field name or one of ``levers.GROUPS``.

    Raises:
        MemfitError: there is no such lever.
    """
    field = found.field
    name = levers.GROUPS[lever][0] if lever in levers.GROUPS else lever
    if name not in levers.ALL:
        raise MemfitError(f"`{lever[:60]}` is no lever", hint=f"one of {', '.join(levers.GROUPS)}")
    out: list[tuple[Any, Candidate | None]] = []
    for value in _values(field.space, name):
        space = _fix(field.space, name, value)
        outcome = search(found.request, replace(field, space=space), keep=1)
        out.append((value, outcome.best[0] if outcome.best else None))
    return out


def _values(space: Space, name: str) -> list[Any]:
    if name in space.values:
        return list(space.values[name])
    if name in levers.STRUCTURAL:
        found = {layout.static[name] for layout in space.layouts}
        return sorted(found, key=None if name in ("pp", "virtual_pp") else str)
    return sorted({int(n) for layout in space.layouts for n in layout.columns[name]})


def _fix(space: Space, name: str, value: Any) -> Space:
    """The space with one lever fixed."""
    fixed = {**space.fixed, name: value}
    values = {**space.values, name: (value,)} if name in space.values else space.values
    return replace(space, fixed=fixed, values=values)
