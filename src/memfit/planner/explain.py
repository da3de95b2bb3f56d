"""Why this plan: from the naive configuration step by step, what binds, why the others lost, what to probe first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from memfit import speed
from memfit.formula import arrays
from memfit.planner import levers
from memfit.planner.bounds import at
from memfit.planner.capabilities import excluded
from memfit.planner.changes import changed
from memfit.planner.planning import Found, today_values
from memfit.planner.plans import Plan
from memfit.planner.search import TIE, Candidate
from memfit.planner.space import Space


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One remedy of the waterfall.

    Attributes:
        lever: group of levers, see ``levers.GROUPS``; ``start`` for the configuration that is changed.
        fields: field -> (before, after).
        need_bytes: middle of the need with this and all earlier remedies.
        delta_bytes: what this one does to it.
        step_s: seconds of a step with them.
        delta_s: what this one does to it.
    """

    lever: str
    fields: Mapping[str, tuple[Any, Any]]
    need_bytes: int
    delta_bytes: int
    step_s: float
    delta_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Binding:
    """What keeps the plan from being faster.

    Attributes:
        kind: ``memory`` or ``time``.
        what: the moment and rank at which memory is fullest, or the largest part of the step.
        share: of the step that would be saved without the limit (memory), or that the part takes (time).
        unlimited: for memory, the candidate that would be best without the limit.
    """

    kind: str
    what: str
    share: float
    unlimited: Candidate | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Loss:
    """Why a plan lost to the best one: seconds by part, largest first, and the difference of the needs."""

    plan: Plan
    delta_s: float
    parts: tuple[tuple[str, float], ...]
    delta_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """What to try first: the fields to change from the best plan, and why."""

    why: str
    fields: Mapping[str, Any]


def waterfall(found: Found) -> tuple[Step, ...]:
    """From the naive configuration (or today's job) to the best plan, the largest saving first."""
    best = found.plans[0].candidate
    assert best is not None
    space = found.field.space
    values = _start(found, space)
    target = dict(best.values)
    need, seconds = figures(space, values, found.request.calibration)
    steps = [Step(lever="start", fields={}, need_bytes=need, delta_bytes=0, step_s=seconds, delta_s=0.0)]
    left = list(changed(values, target))
    while left:
        tried = []
        for lever in left:
            after = _apply(space, values, target, lever, last=len(left) == 1)
            tried.append((figures(space, after, found.request.calibration), lever, after))
        # A way that the framework does not have is no step, unless only such steps are left.
        able = [t for t in tried if excluded(space.cap.name, space.base.values["method"], t[2]) is None]
        (new_need, new_seconds), lever, after = min(able or tried, key=lambda t: (t[0][0], t[0][1], t[1]))
        names = levers.GROUPS[lever]
        fields = {n: (values[n], after[n]) for n in names if values[n] != after[n]}
        steps.append(
            Step(
                lever=lever,
                fields=fields,
                need_bytes=new_need,
                delta_bytes=new_need - need,
                step_s=new_seconds,
                delta_s=new_seconds - seconds,
            )
        )
        values, need, seconds = after, new_need, new_seconds
        left.remove(lever)
    return tuple(steps)


def _start(found: Found, space: Space) -> dict[str, Any]:
    """Where the waterfall starts: today's job, or plain data parallelism with nothing done about memory."""
    if found.request.today is not None:
        today = today_values(found.request)
        return {n: today[n] for n in levers.ALL}
    base, fixed = space.base.values, space.fixed
    values: dict[str, Any] = {n: base[n] for n in ("precision", "optimizer", "attention")}
    values |= {"optimizer_in_backward": False, "zero": min(space.values["zero"]), "sequence_parallel": False}
    values |= {"checkpointing": "none", "offload": (), "reshard": True, "compile": False}
    values |= {"loss": space.values["loss"][-1], "pp": 1, "pp_schedule": "1f1b", "virtual_pp": 1}
    values |= {"pp_layers": None}
    values |= {"tp": 1, "cp": 1, "ep": 1, "micro_batch": 1}
    values |= {n: fixed[n] for n in values if n in fixed}
    return _arranged(space, values)


def _apply(
    space: Space, values: Mapping[str, Any], target: Mapping[str, Any], lever: str, *, last: bool
) -> dict[str, Any]:
    """The configuration with one more group of levers as in the target."""
    after = {**values, **{n: target[n] for n in levers.GROUPS[lever] if n not in ("dp_shard", "grad_accum")}}
    arranged = _arranged(space, after, target["dp_shard"] if lever == "zero" or last else None)
    return {n: target[n] for n in levers.ALL} if last else arranged


def _arranged(space: Space, values: Mapping[str, Any], shard: int | None = None) -> dict[str, Any]:
    """The values with dp, dp_shard and accumulation that go with them."""
    out = dict(values)
    dp = max(space.gpus // (out["tp"] * out["pp"] * out["cp"]), 1)
    out["dp"] = dp
    out["dp_shard"] = shard if shard is not None and dp % shard == 0 else dp
    batch = space.global_batch
    stated = space.fixed.get("grad_accum", 1)
    out["grad_accum"] = stated if batch is None else max(1, batch // (out["micro_batch"] * dp))
    return {n: out[n] for n in levers.ALL}


def figures(space: Space, values: Mapping[str, Any], calibration: Any) -> tuple[int, float]:
    """(middle of the need, seconds of a step of the global batch) of one configuration."""
    import numpy as np

    numbers: dict[str, Any] = {n: np.array([values[n]], dtype=np.int64) for n in levers.NUMBERS}
    resolved = at(space.base, {n: x for n, x in values.items() if n not in levers.NUMBERS})
    need = int(arrays.evaluate(resolved, **numbers).need[0])
    seconds = float(speed.evaluate(resolved, calibration=calibration, **numbers).step_s[0])
    batch = values["micro_batch"] * values["grad_accum"] * values["dp"]
    return need, seconds * ((space.global_batch or batch) / batch)


def binding(found: Found) -> Binding:
    """What keeps the best plan from being faster: the card's memory, or the largest part of the step."""
    plan, unlimited = found.plans[0], found.outcome.unlimited
    assert plan.candidate is not None
    assert plan.parts is not None
    assert plan.step_s is not None
    fastest = found.outcome.fastest or plan.candidate
    if unlimited is not None and unlimited.seconds < fastest.seconds * (1 - TIE / 2):
        book = plan.estimate.ledger
        return Binding(
            kind="memory",
            what=f"{book.moment}, on {book.label}",
            share=1 - unlimited.seconds / plan.candidate.seconds,
            unlimited=unlimited,
        )
    name = max(plan.parts, key=lambda n: plan.parts[n] if plan.parts else 0.0)
    return Binding(kind="time", what=speed.PARTS.get(name, name), share=plan.parts[name] / plan.step_s)


def losses(found: Found) -> tuple[Loss, ...]:
    """Why each of the other plans lost."""
    best, *others = found.plans
    out = []
    for plan in others:
        assert best.parts is not None
        assert plan.parts is not None
        deltas = [(n, plan.parts.get(n, 0.0) - best.parts.get(n, 0.0)) for n in {**best.parts, **plan.parts}]
        out.append(
            Loss(
                plan=plan,
                delta_s=(plan.step_s or 0.0) - (best.step_s or 0.0),
                parts=tuple(sorted((d for d in deltas if d[1]), key=lambda d: (-d[1], d[0]))),
                delta_bytes=plan.need.mid - best.need.mid,
            )
        )
    return tuple(out)


def probes(found: Found) -> tuple[Probe, ...]:
    """What to measure first, the most telling first."""
    best = found.plans[0]
    out = []
    if best.p_oom > found.request.risk / 10:
        out.append(
            Probe(why=f"it runs out of memory with P(OOM) {best.p_oom:.2%}: 20 steps of it settle that", fields={})
        )
    assert best.candidate is not None
    for plan in found.plans[1:]:
        if plan.candidate is None or not best.step_s or not plan.step_s:
            continue
        if plan.candidate.penalty != best.candidate.penalty:
            continue
        if plan.step_s / best.step_s - 1 <= 5 * TIE:
            fields = {n: x for n, x in plan.candidate.values.items() if best.candidate.values[n] != x}
            gap = plan.step_s / best.step_s - 1
            side = "slower" if gap >= 0 else "faster"
            out.append(Probe(why=f"{abs(gap):.1%} {side} by the model, which errs by more than that", fields=fields))
    return tuple(out)
