"""The whole answer to a request: plans, or why there is none, with everything that explains them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from memfit.errors import MemfitError
from memfit.job import complete
from memfit.planner.explain import Binding, Loss, Probe, Step, binding, losses, probes, waterfall
from memfit.planner.impossible import Impossible
from memfit.planner.impossible import explain as explain_impossible
from memfit.planner.planning import Found, explain_values, find
from memfit.planner.plans import HOUR_S, Plan, make_plan
from memfit.planner.request import Option, Request, price_notes
from memfit.planner.serve import Served, serve

_MOST_FRONT = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One point of the front: no other evaluated candidate is better in time, need and cost at once."""

    option: Option
    values: Mapping[str, Any]
    step_s: float
    need_bytes: int
    usd_per_step: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """One value of an explained lever, with the best that is possible beside it; no plan when nothing fits."""

    value: Any
    plan: Plan | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Checked:
    """What the trace of a plan's real module said.

    Attributes:
        need_bytes: lowest capacity from which the program finishes, all that lies outside included; None when it was
            not traced.
        fits: whether that is within the card.
        why: why it was not traced; empty when it was.
    """

    need_bytes: int | None = None
    fits: bool | None = None
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The answer to a request.

    Attributes:
        request: the question.
        plans: best first; empty when nothing fits.
        notes: what was assumed to make the question complete.
        considered, evaluated: candidates in the space, and those whose time or memory was computed.
        waterfall: from the naive configuration to the best plan; empty for serving.
        binding: what keeps the best plan from being faster.
        losses: why the other plans lost.
        front: memory, time and cost that cannot all be bettered, fastest first.
        probes: what to measure first.
        impossible: why nothing fits.
        seq_len: the longest sequence, where it was asked for.
        most_sequences: of a serving plan: sequences that fit at once.
        lever, choices: an explained lever with its values.
        checked: what traces said, beside ``plans``; empty when none was tried.
    """

    request: Request
    plans: tuple[Plan, ...]
    notes: tuple[str, ...] = ()
    considered: int = 0
    evaluated: int = 0
    waterfall: tuple[Step, ...] = ()
    binding: Binding | None = None
    losses: tuple[Loss, ...] = ()
    front: tuple[Point, ...] = ()
    probes: tuple[Probe, ...] = ()
    impossible: Impossible | None = None
    seq_len: int | None = None
    most_sequences: int | None = None
    lever: str = ""
    choices: tuple[Choice, ...] = ()
    checked: tuple[Checked, ...] = ()

    @property
    def best(self) -> Plan | None:
        """The plan to take."""
        return self.plans[0] if self.plans else None


def plan(request: Request, *, lever: str = "") -> Answer:
    """The best way to run a job.

    Args:
        request: the question.
        lever: also try every value of this lever, everything else searched again.

    Raises:
        MemfitError: the request makes no sense, or the job contradicts itself.
    """
    if _kind(request) == "serve":
        if lever:
            raise MemfitError("levers are explained for training jobs", hint="leave out --explain")
        return _served(request)
    found = find(request)
    if found is None:
        return Answer(request=request, plans=(), impossible=explain_impossible(request))
    return Answer(
        request=request,
        plans=tuple(_warned(one, request.risk) for one in found.plans),
        notes=(
            *found.field.space.notes,
            *_host_note(found),
            *_length_note(found.field.space.base.arch.max_positions, found.field.space.base.values["seq_len"]),
            *price_notes(request),
        ),
        considered=found.considered,
        evaluated=found.evaluated,
        waterfall=waterfall(found),
        binding=binding(found),
        losses=losses(found),
        front=_front(found),
        probes=probes(found),
        seq_len=found.seq_len,
        lever=lever,
        choices=_choices(found, lever) if lever else (),
    )


def without(answer: Answer, unfit: set[int]) -> Answer:
    """The answer with the plans that a trace refuted put last; ``unfit`` are their places."""
    order = [i for i in range(len(answer.plans)) if i not in unfit] + sorted(unfit)
    return replace(
        answer,
        plans=tuple(answer.plans[i] for i in order),
        checked=tuple(answer.checked[i] for i in order),
    )


def _kind(request: Request) -> str:
    job = request.job
    strategy = replace(
        job.strategy, micro_batch=None, grad_accum=None, dp=None, dp_shard=None, tp=None, pp=None, cp=None, ep=None
    )
    bare = replace(
        job, strategy=strategy, hardware=replace(job.hardware, gpus=None), task=replace(job.task, global_batch=None)
    )
    return str(complete(bare).values["kind"])


def _served(request: Request) -> Answer:
    found = serve(request)
    if isinstance(found, Impossible):
        return Answer(request=request, plans=(), impossible=found)
    assert isinstance(found, Served)
    best = found.plans[0]
    parts = best.parts or {}
    name = max(parts, key=lambda n: parts[n])
    from memfit.speed.serving import PARTS

    what = PARTS.get(name, name)
    return Answer(
        request=request,
        plans=found.plans,
        notes=(
            *found.notes,
            *_length_note(best.estimate.resolved.arch.max_positions, best.job.task.context),
            *price_notes(request),
        ),
        considered=found.considered,
        evaluated=found.considered,
        binding=Binding(kind="time", what=what, share=parts[name] / best.tpot_s if best.tpot_s else 0.0),
        most_sequences=found.most_sequences,
    )


def _host_note(found: Found) -> tuple[str, ...]:
    """What was taken for the host's memory, where something goes there."""
    note = found.field.host_note
    return (note,) if note and any(plan.estimate.host_bytes for plan in found.plans) else ()


def _warned(plan: Plan, risk: float) -> Plan:
    """The plan with what it costs to run with reserved memory at the card's limit, where no other was left."""
    p = plan.estimate.p_retry
    if not p or p <= risk:
        return plan
    text = (
        f"reserved memory exceeds the card with P {p:.0%}: PyTorch then gives its cache back in every step, which is "
        "slow; PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True avoids most of it"
    )
    return replace(plan, estimate=replace(plan.estimate, warnings=(*plan.estimate.warnings, text)))


def _length_note(most: int, length: int | None) -> tuple[str, ...]:
    if length is None or not most or length <= most:
        return ()
    return (f"the model was made for {most} positions: {length} fit in memory, whether it can use them is not asked",)


def _front(found: Found) -> tuple[Point, ...]:
    points = []
    for field, outcome in zip(found.fields, found.outcomes, strict=True):
        for candidate in outcome.front if outcome is not None else ():
            hour = field.option.usd_per_hour
            points.append(
                Point(
                    option=field.option,
                    values=candidate.values,
                    step_s=candidate.seconds,
                    need_bytes=candidate.need_bytes,
                    usd_per_step=None if hour is None else hour / HOUR_S * candidate.seconds,
                )
            )
    points.sort(key=lambda p: (p.step_s, p.need_bytes, p.option.gpus, p.option.gpu.name))
    kept: list[Point] = []
    for point in points:
        if not any(_beats(k, point) for k in kept):
            kept.append(point)
    return tuple(kept[:_MOST_FRONT])


def _beats(one: Point, other: Point) -> bool:
    """One is as good in all three; both have a price or neither."""
    cheaper = one.usd_per_step is None or other.usd_per_step is None or one.usd_per_step <= other.usd_per_step
    return one.step_s <= other.step_s and one.need_bytes <= other.need_bytes and cheaper


def _choices(found: Found, lever: str) -> tuple[Choice, ...]:
    field = found.field
    return tuple(
        Choice(
            value=value,
            plan=None if candidate is None else make_plan(found.request, field.space, field.option, candidate),
        )
        for value, candidate in explain_values(found, lever)
    )
