"""Plans for serving: how a model is spread over the GPUs, and what it is stored in where that is allowed.

Memory is that of the plain inference formula (weights, cache, the running block); speed is that of ``speed.latency``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import gcd
from typing import Any

from memfit import speed
from memfit.errors import MemfitError
from memfit.formula.estimate import Estimate, estimate
from memfit.formula.resolve import resolve, stored_weights
from memfit.hardware import make_cluster
from memfit.job import Job, Task
from memfit.planner.capabilities import allowed, engine, qualities, quality
from memfit.planner.impossible import Impossible, WayOut, accept
from memfit.planner.plans import Plan
from memfit.planner.request import MOST_RISK, Option, Request, options
from memfit.planner.space import divisors

DEFAULT_ENGINE = "vllm"
_CONTEXT = 4096
_MOST_CONTEXT = 1 << 22
_MOST_SEQUENCES = 1 << 14
_MOST_GPUS = 512
_TITLES = {"weights": "weights", "kv": "keys and values"}
_FULL = ("throughput", "cost")
"""Objectives that a full card serves best, where nobody states how many sequences there are."""


@dataclass(frozen=True, kw_only=True)
class Served:
    """What was found for a serving job; ``most_sequences`` fit with the best plan at its context."""

    plans: tuple[Plan, ...]
    considered: int
    notes: tuple[str, ...]
    most_sequences: int | None = None


def serve(request: Request) -> Served | Impossible:
    """The best plans to serve a model.

    Raises:
        MemfitError: the request makes no sense, or the job contradicts itself.
    """
    request.check()
    if request.objective == "changes":
        raise MemfitError("changes are counted for training jobs", hint="memfit diff compares two serving jobs")
    found: list[Plan] = []
    considered = 0
    for option in options(request):
        if request.objective == "gpus" and found and option.gpus > found[0].option.gpus:
            break
        for job in candidates(request, option):
            considered += 1
            answer = _stretched(request, job)
            if answer is not None:
                found.append(_plan(request, option, answer))
    if not found:
        return _impossible(request)
    found.sort(key=lambda plan: _order(request, plan))
    best = found[0]
    return Served(
        plans=tuple(found[: request.top]),
        considered=considered,
        notes=notes(request),
        most_sequences=_most_sequences(request, best.job),
    )


def notes(request: Request) -> tuple[str, ...]:
    """What was assumed to make the question complete."""
    task, out = request.job.task, []
    if request.job.strategy.framework is None:
        out.append(f"framework {DEFAULT_ENGINE}: none was stated")
    if request.job.strategy.weights is None and (stored := _stored(request)):
        out.append(f"weights {stored}: as the checkpoint stores them (--weights)")
    if task.context is None and task.prompt is None and request.objective != "seq":
        out.append("context 4096 tokens: none was stated (--context)")
    if task.prompt is None and task.output is None:
        out.append("half of the context is prompt, half is generated (--prompt, --output)")
    if task.concurrency is None and request.objective in _FULL:
        out.append("as many sequences at once as fit: no concurrency was stated (--concurrency, for shorter waits)")
    elif task.concurrency is None and request.objective != "batch":
        out.append("one sequence at a time: no concurrency was stated (--concurrency)")
    return tuple(out)


def _stored(request: Request) -> str | None:
    """What the checkpoint's own quantisation is called, where the engine runs it as it is; None for plain weights."""
    job = request.job
    named = replace(job, strategy=replace(job.strategy, framework=None), hardware=replace(job.hardware, gpu=None))
    arch = resolve(replace(named, task=replace(job.task, kind="serve"))).arch
    return stored_weights(arch, job.strategy.framework or DEFAULT_ENGINE)


def candidates(request: Request, option: Option) -> Iterator[Job]:
    """Every way to serve the model on a set of GPUs, as jobs."""
    job = request.job
    strategy = replace(job.strategy, framework=job.strategy.framework or DEFAULT_ENGINE)
    tool = engine(str(strategy.framework))
    cluster = make_cluster(option.gpu, option.gpus, gpus_per_node=job.hardware.gpus_per_node)
    hardware = replace(job.hardware, gpu=option.gpu.name, gpus=option.gpus, gpus_per_node=cluster.gpus_per_node)
    base = replace(
        job,
        task=_lengths(replace(job.task, kind="serve")),
        hardware=hardware,
        strategy=replace(strategy, tp=None, pp=None),
    )
    arch = resolve(base).arch
    heads = [b.attention.num_heads for b in arch.decoder.blocks if b.attention]
    keys = [b.attention.num_kv_heads for b in arch.decoder.blocks if b.attention and b.attention.kind != "mla"]
    for tp in divisors(option.gpus):
        if strategy.tp not in (None, tp) or (tp > 1 and "tp" not in tool.split and strategy.tp is None):
            continue
        if any(h % tp for h in heads) or any(k % tp and tp % k for k in keys):
            continue
        pp = option.gpus // tp
        if strategy.pp not in (None, pp) or pp > arch.num_layers or (pp > 1 and "pp" not in tool.split):
            continue
        if tp > gcd(option.gpus, cluster.gpus_per_node) and strategy.tp is None:
            continue
        for weights in _choices(request, "weights", tool.weights, option):
            for kv in _choices(request, "kv", tool.kv, option):
                yield replace(base, strategy=replace(strategy, tp=tp, pp=pp, weights=weights, kv=kv))


def _choices(request: Request, lever: str, able: tuple[str, ...], option: Option) -> list[Any]:
    stated = getattr(request.job.strategy, lever)
    if stated is not None:
        return [stated]
    plain = "bf16" if "bf16" in option.gpu.flops else "fp16"
    own = (_stored(request) if lever == "weights" else None) or plain
    more = [w for w in allowed(request.allow, lever) if w in able and (w != "fp8" or "fp8" in option.gpu.flops)]
    return list(dict.fromkeys((own, *more)))


def _stretched(request: Request, job: Job) -> Estimate | None:
    """The estimate of a candidate that fits, with the longest context or the most sequences where that is asked for."""
    if request.objective == "seq":
        context = _largest(request, job, "context", _MOST_CONTEXT)
        job = _with(job, context=context) if context else job
    elif request.objective == "batch" or (request.objective in _FULL and job.task.concurrency is None):
        sequences = _largest(request, job, "concurrency", _MOST_SEQUENCES)
        job = _with(job, concurrency=sequences) if sequences else job
    found = estimate(job)
    return found if _fits(request, found) else None


def _with(job: Job, **fields: Any) -> Job:
    more = {"prompt": None, "output": None} if "context" in fields else {}
    return replace(job, task=_lengths(replace(job.task, **fields, **more)))


def _lengths(task: Task) -> Task:
    """Half of the context is prompt, half is generated, unless the job says."""
    if task.prompt is not None or task.output is not None:
        return task
    context = task.context or _CONTEXT
    return replace(task, context=context, prompt=context - context // 2, output=context // 2)


def _fits(request: Request, found: Estimate) -> bool:
    return found.p_oom is not None and found.p_oom <= request.risk


def _largest(request: Request, job: Job, name: str, most: int) -> int:
    """The largest value of a field that fits, to 1 %; 0 when none does."""

    def can(value: int) -> bool:
        return _fits(request, estimate(_with(job, **{name: value})))

    low, high = 0, 1
    while high <= most and can(high):
        low, high = high, high * 2
    high = min(high, most + 1)
    while high - low > max(1, low // 100):
        middle = (low + high) // 2
        low, high = (middle, high) if can(middle) else (low, middle)
    return low


def _most_sequences(request: Request, job: Job) -> int:
    return _largest(request, job, "concurrency", _MOST_SEQUENCES)


def _plan(request: Request, option: Option, found: Estimate) -> Plan:
    job = found.resolved.stated
    times = speed.latency(job, calibration=request.calibration)
    stated, own = request.job.strategy, {"weights": _stored(request), "kv": None}
    chosen = {n: getattr(job.strategy, n) for n in own if getattr(stated, n) is None}
    costs = [quality(n, value) for n, value in chosen.items() if value != own[n]]
    return Plan(
        job=job,
        estimate=found,
        option=option,
        tokens_per_s_per_gpu=times.tokens_per_s_per_gpu,
        parts=times.parts,
        ttft_s=times.ttft_s,
        tpot_s=times.tpot_s,
        qualities=tuple(q for q in costs if q is not None),
    )


def _order(request: Request, plan: Plan) -> tuple[Any, ...]:
    task = plan.job.task
    rate = plan.tokens_per_s_per_gpu or 0.0
    first: Mapping[str, tuple[float, ...]] = {
        "time": (plan.tpot_s or 0.0,),
        "throughput": (-rate,),
        "cost": (plan.usd_per_mtoken or float("inf"),),
        "gpus": (plan.option.gpus, plan.tpot_s or 0.0),
        "seq": (-(task.context or 0), plan.tpot_s or 0.0),
        "batch": (-(task.concurrency or 0), plan.tpot_s or 0.0),
    }
    return (*first[request.objective], plan.need.mid, plan.option.gpu.name, str(plan.job.strategy))


# ---- nothing fits ---------------------------------------------------------------------------------------------------


def _impossible(request: Request) -> Impossible:
    best: tuple[int, Option, Estimate] | None = None
    some: Option | None = None
    for option in options(request):
        some = some or option
        for job in candidates(request, option):
            found = estimate(job)
            need = found.bands["need"].mid - (found.capacity_bytes or 0)
            if best is None or need < best[0]:
                best = (need, option, found)
    assert some is not None
    if best is None:
        return Impossible(
            reason=f"the model cannot be split over {some.gpus} GPUs with what is fixed",
            need_bytes=None,
            capacity_bytes=some.gpu.total_bytes,
            p_oom=None,
            option=some,
            ways=tuple(_ways(request, some)),
        )
    _, option, found = best
    reason = "even the leanest way to serve it needs more than the card has"
    ways = list(_ways(request, option))
    p, capacity = found.p_oom, found.capacity_bytes or 0
    if p is not None and found.bands["need"].mid <= capacity:
        reason = f"the leanest way to serve it runs out of memory with P(OOM) {p:.1%}, more than {request.risk:g}"
        ways = [*([accept(p)] if p <= MOST_RISK else []), *ways]
    return Impossible(
        reason=reason,
        need_bytes=found.bands["need"].mid,
        capacity_bytes=found.capacity_bytes,
        p_oom=found.p_oom,
        option=option,
        ways=tuple(ways),
    )


def _ways(request: Request, option: Option) -> Iterator[WayOut]:
    for name, word in (("concurrency", "sequences at once"), ("context", "tokens of context")):
        values = {}
        for job in candidates(request, option):
            stated = resolve(job).values[name]
            if stated and (found := _largest(request, job, name, stated - 1)):
                values[found] = stated
        if values:
            most = max(values)
            what = f"{most} {word}" if most > 1 else word.replace("sequences", "one sequence")
            yield WayOut(what=f"{what} instead of {values[most]}", flags=f"--{name} {most}")
    for q in qualities():
        if q.lever not in ("weights", "kv") or getattr(request.job.strategy, q.lever) is not None:
            continue
        word = q.value if q.lever == "weights" else "kv"
        if word not in request.allow and _able(replace(request, allow=request.allow | {word}), option):
            yield WayOut(what=f"{_TITLES[q.lever]} in {q.value}", flags=f"--allow {word}", costs=q.costs)
    count = option.gpus
    while count * 2 <= _MOST_GPUS:
        count *= 2
        if _able(request, replace(option, gpus=count)):
            yield WayOut(what=f"{count} GPUs instead of {option.gpus}", flags=f"--gpu {count}x{option.gpu.name}")
            return


def _able(request: Request, option: Option) -> bool:
    return any(_fits(request, estimate(job)) for job in candidates(request, option))
