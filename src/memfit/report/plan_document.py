"""A plan as JSON. The shape stands in ``schema/plan.json``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from memfit.formula.estimate import versions
from memfit.job import to_dict
from memfit.report.json import SCHEMA_VERSION, result

if TYPE_CHECKING:
    from memfit.planner import Answer, Plan
    from memfit.planner.request import Option


def plan_document(answer: Answer) -> dict[str, Any]:
    """The answer as plain data."""
    request = answer.request
    binding = answer.binding
    out: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "possible": answer.impossible is None,
        "objective": request.objective,
        "risk": request.risk,
        "allow": sorted(request.allow),
        "considered": answer.considered,
        "evaluated": answer.evaluated,
        "notes": list(answer.notes),
        "seq_len": answer.seq_len,
        "most_sequences": answer.most_sequences,
        "plans": [_plan(plan, request.tokens) for plan in answer.plans],
        "binding": None if binding is None else {"kind": binding.kind, "what": binding.what, "share": binding.share},
        "waterfall": [
            {
                "lever": step.lever,
                "fields": {n: {"before": _plain(b), "after": _plain(a)} for n, (b, a) in step.fields.items()},
                "need_bytes": step.need_bytes,
                "delta_bytes": step.delta_bytes,
                "step_s": step.step_s,
                "delta_s": step.delta_s,
            }
            for step in answer.waterfall
        ],
        "losses": [
            {"delta_s": loss.delta_s, "delta_bytes": loss.delta_bytes, "parts": dict(loss.parts)}
            for loss in answer.losses
        ],
        "front": [
            {
                "gpus": _option(p.option),
                "values": _values(p.values),
                "step_s": p.step_s,
                "need_bytes": p.need_bytes,
                "usd_per_step": p.usd_per_step,
            }
            for p in answer.front
        ],
        "probes": [{"why": p.why, "fields": _values(p.fields)} for p in answer.probes],
        "traced": [{"need_bytes": c.need_bytes, "fits": c.fits, "why_not": c.why} for c in answer.checked],
        "impossible": _impossible(answer),
        "versions": versions(),
    }
    if answer.choices:
        out["explained"] = {
            "lever": answer.lever,
            "choices": [
                {"value": _plain(c.value), "plan": None if c.plan is None else _plan(c.plan, request.tokens)}
                for c in answer.choices
            ],
        }
    return out


def _plan(plan: Plan, tokens: int | None) -> dict[str, Any]:
    return {
        "job": to_dict(plan.job),
        "gpus": _option(plan.option),
        "step_s": plan.step_s,
        "ttft_s": plan.ttft_s,
        "tpot_s": plan.tpot_s,
        "tokens_per_s_per_gpu": plan.tokens_per_s_per_gpu,
        "time": dict(plan.parts or {}),
        "need_bytes": plan.need.to_list(),
        "p_oom": plan.p_oom,
        "usd_per_million_tokens": plan.usd_per_mtoken,
        "usd_of_run": None if tokens is None else plan.usd_of(tokens),
        "hours_of_run": None if tokens is None else plan.hours_of(tokens),
        "quality": [{"lever": q.lever, "value": q.value, "costs": q.costs, "source": q.source} for q in plan.qualities],
        "estimate": result(plan.estimate, full=False),
    }


def _option(option: Option) -> dict[str, Any]:
    price = option.price
    return {
        "gpu": option.gpu.name,
        "count": option.gpus,
        "usd_per_hour": option.usd_per_hour,
        "spot": option.is_spot,
        "price_source": None if price is None else f"{price.provider}: {price.source}",
        "price_date": None if price is None else price.date,
        "price_old": price is not None and price.is_old,
        "machine": None if price is None else price.machine or None,
        "paid_gpus": option.paid_gpus,
    }


def _impossible(answer: Answer) -> dict[str, Any] | None:
    found = answer.impossible
    if found is None:
        return None
    return {
        "reason": found.reason,
        "gpus": _option(found.option),
        "need_bytes": found.need_bytes,
        "capacity_bytes": found.capacity_bytes,
        "p_oom": found.p_oom,
        "ways": [{"what": w.what, "flags": w.flags, "costs": w.costs} for w in found.ways],
    }


def _values(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _plain(item) for name, item in values.items()}


def _plain(item: Any) -> Any:
    return list(item) if isinstance(item, tuple) else item
