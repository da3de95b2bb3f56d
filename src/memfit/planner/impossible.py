"""Nothing fits: the smallest changes of the request after which something does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from memfit.errors import MemfitError
from memfit.formula.slack import need_band
from memfit.hardware import Gpu
from memfit.hardware import gpus as cards
from memfit.planner.capabilities import qualities
from memfit.planner.planning import _SEQ_UNIT, HOST_SHARE, Field, _can, field_of, longest
from memfit.planner.request import MOST_RISK, Option, Request, options
from memfit.planner.search import Search

_Size = TypeVar("_Size")

_MOST_GPUS = 4096
_HOST_GIB = (64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
"""Usual sizes of a host's memory."""
_FRAMEWORKS = ("deepspeed", "torchtitan")
"""What is tried in place of the framework that nobody stated."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WayOut:
    """A change that makes the request possible.

    Attributes:
        what: the change in words.
        flags: what to add to the command line.
        costs: what it costs in quality, empty where nothing.
    """

    what: str
    flags: str
    costs: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Impossible:
    """Why nothing fits.

    Attributes:
        reason: in one sentence.
        need_bytes: middle of the need of the leanest candidate, None when no layout divides.
        capacity_bytes: of one card.
        p_oom: of that candidate.
        option: the GPUs that it is about.
        ways: the changes that help, the smallest first.
    """

    reason: str
    need_bytes: int | None
    capacity_bytes: int | None
    p_oom: float | None
    option: Option
    ways: tuple[WayOut, ...]


def explain(request: Request) -> Impossible:
    """Why nothing fits, and what would make it fit."""
    best: tuple[int, Field] | None = None
    some: Field | None = None
    for option in _some(options(request)):
        field = field_of(request, option)
        some = some or field
        need = _least(field)
        if need is not None and (best is None or need < best[0]):
            best = (need, field)
    assert some is not None
    field = best[1] if best else some
    capacity = field.space.base.capacity_bytes or 0
    need = best[0] if best else None
    p = need_band(need).p_above(capacity) if need is not None else None
    if need is None:
        reason = f"no layout divides over {field.option.gpus} GPUs with what is fixed"
    elif need > field.limit_bytes and p is not None and need <= capacity:
        reason = (
            f"the leanest configuration runs out of memory with P(OOM) {p:.1%}, more than the accepted {request.risk:g}"
        )
    elif need > field.limit_bytes:
        reason = "even the leanest configuration needs more than the card has"
    elif field.option.gpu.unified:
        reason = "the card's memory is the host's: nothing can be offloaded"
    else:
        why = "assumed, --host-memory states it" if field.host_note else "a share of the machine's"
        reason = f"the {_usable_gib(field)} GiB of host memory ({why}) do not hold what would have to be offloaded"
    return Impossible(
        reason=reason,
        need_bytes=need,
        capacity_bytes=capacity,
        p_oom=p,
        option=field.option,
        ways=tuple(_ways(request, field, need, p)),
    )


def _usable_gib(field: Field) -> int:
    """What all GPUs of a host may pin of its memory together."""
    return field.host_bytes * field.space.cluster.gpus_per_node >> 30


def _some(found: list[Option]) -> list[Option]:
    """Few of many sets of GPUs: of each card the largest number."""
    last: dict[str, Option] = {}
    for option in found:
        last[option.gpu.name] = option
    most = sorted(last.values(), key=lambda o: -o.gpus * (o.gpu.total_bytes))
    return most[:4]


def _least(field: Field) -> int | None:
    """The need of the leanest candidate; None when there is none."""
    return Search(field.space, limit_bytes=-1).least_need()


def _ways(request: Request, field: Field, need: int | None, p: float | None) -> Iterator[WayOut]:
    if p is not None and request.risk < p <= MOST_RISK:
        yield accept(p)
    yield from _unfixed(request, field)
    if need is not None and need <= field.limit_bytes:
        yield from _host(request, field)
    seq = field.space.base.values["seq_len"]
    if seq > _SEQ_UNIT and (length := longest(request, field.option, most=seq - 1)):
        yield WayOut(what=f"sequences of {length} tokens instead of {seq}", flags=f"--seq {length}")
    yield from _other(request, field)
    yield from _quality(request, field)
    yield from _more(request, field)
    yield from _larger(request, field)


def accept(p: float) -> WayOut:
    """To accept the probability of running out of memory that the leanest way has."""
    return WayOut(what=f"accept a P(OOM) of {p:.1%}", flags=f"--risk {min(p * 1.05, MOST_RISK):.2g}")


def _possible(request: Request, option: Option) -> bool:
    try:
        return _can(field_of(request, option))
    except MemfitError:
        return False


def _unfixed(request: Request, field: Field) -> Iterator[WayOut]:
    """Stated levers of strategy that stand in the way."""
    strategy = request.job.strategy
    names = ("checkpointing", "offload", "zero", "micro_batch", "tp", "pp", "cp", "loss", "grad_accum", "dp", "reshard",
             "pp_layers")  # fmt: skip
    for name in names:
        if getattr(strategy, name) is None:
            continue
        job = replace(request.job, strategy=replace(strategy, **{name: None}))
        if _possible(replace(request, job=job), field.option):
            yield WayOut(what=f"leave {name} free instead of {_word(getattr(strategy, name))}", flags="")


def _smallest(sizes: Sequence[_Size], able: Callable[[_Size], bool]) -> _Size | None:
    """The first of rising sizes that is enough, None when the last is not; halved: what is not enough takes longest."""
    if not sizes or not able(sizes[-1]):
        return None
    low, high = -1, len(sizes) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if able(sizes[middle]) else (middle, high)
    return sizes[high]


def _host(request: Request, field: Field) -> Iterator[WayOut]:
    """The next usual size of the host's memory that is enough."""
    if field.option.gpu.unified:
        return
    now = field.host_bytes * field.space.cluster.gpus_per_node
    sizes = [gib for gib in _HOST_GIB if (gib << 30) * HOST_SHARE > now]
    gib = _smallest(sizes, lambda size: _possible(replace(request, host_bytes=size << 30), field.option))
    if gib is not None:
        yield WayOut(what=f"a host with {gib} GiB of memory", flags=f"--host-memory {gib}GiB")


def _other(request: Request, field: Field) -> Iterator[WayOut]:
    """Another framework, where the planner chose: each offloads and shards what it can."""
    if request.job.strategy.framework is not None or field.option.gpu.unified:
        return
    for name in _FRAMEWORKS:
        job = replace(request.job, strategy=replace(request.job.strategy, framework=name))
        if name != field.space.cap.name and _possible(replace(request, job=job), field.option):
            yield WayOut(what=f"framework {name} instead of {field.space.cap.name}", flags=f"-f {name}")
            return


def _word(value: Any) -> str:
    return ",".join(value) or "none" if isinstance(value, tuple) else str(value).lower()


def _quality(request: Request, field: Field) -> Iterator[WayOut]:
    """Changes of results, one by one."""
    method = field.space.base.values["method"]
    for q in qualities():
        if q.lever in ("weights", "kv"):
            continue
        if q.lever == "method":
            if method not in ("full", "lora") or method == q.value:
                continue
            task = replace(request.job.task, method=q.value)
            framework = {} if request.job.strategy.framework else {"framework": None}
            changed: Mapping[str, Any] = {
                "job": replace(request.job, task=task, strategy=replace(request.job.strategy, **framework))
            }
            flags = f"--method {q.value}"
        else:
            if q.value in request.allow or q.lever in request.allow:
                continue
            changed = {"allow": request.allow | {q.value if q.value != "true" else q.lever}}
            flags = f"--allow {q.value if q.value != 'true' else q.lever}"
            more = field_of(replace(request, **changed), field.option).space.values
            if more == field.space.values:  # the framework or the card has no such thing
                continue
        if _possible(replace(request, **changed), field.option):
            yield WayOut(what=f"{q.lever.replace('_', ' ')} {q.value}", flags=flags, costs=q.costs)


def _more(request: Request, field: Field) -> Iterator[WayOut]:
    """The next number of GPUs that is enough."""
    own = field.option
    if own.gpu.vendor == "apple":
        return  # nothing trains over several of them
    counts = (own.gpus << k for k in range(1, (_MOST_GPUS // own.gpus).bit_length()))
    # One by one: of the batch that is stated, not every number of GPUs has its share.
    count = next((n for n in counts if _possible(request, replace(own, gpus=n))), None)
    if count is not None:
        yield WayOut(what=f"{count} GPUs instead of {own.gpus}", flags=f"--gpu {count}x{own.gpu.name}")


def _larger(request: Request, field: Field) -> Iterator[WayOut]:
    """The smallest larger card of the same vendor that is enough."""
    own = field.option.gpu
    if request.job.hardware.memory_gib is not None:
        return
    known = [c for c in cards() if c.vendor == own.vendor and c.total_bytes > own.total_bytes * 1.05 and not c.unified]
    rented = [c for c in known if c.kind in ("datacenter", "workstation", "consumer") and c.year >= 2020]
    known_host = field.space.cluster.host_memory_bytes  # a machine of unknown size is taken for one like today's
    request = replace(request, host_bytes=request.host_bytes or known_host)
    by_size: dict[int, Gpu] = {}
    for card in sorted(rented, key=lambda c: (c.total_bytes, -c.year, c.name)):
        by_size.setdefault(card.total_bytes >> 30, card)
    found = _smallest(list(by_size.values()), lambda card: _possible(request, replace(field.option, gpu=card)))
    if found is not None:
        yield WayOut(what=f"{field.option.gpus} x {found.title}", flags=f"--gpu {field.option.gpus}x{found.name}")
