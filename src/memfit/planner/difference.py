"""What each difference between two jobs does: bytes, seconds and dollars, one lever after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from memfit import speed
from memfit.errors import MemfitError
from memfit.formula.estimate import Estimate, estimate_resolved
from memfit.formula.resolve import Resolved
from memfit.hardware import Price
from memfit.hardware import price as price_of
from memfit.job import BY_NAME
from memfit.planner.plans import HOUR_S, MILLION

GROUPS: Mapping[str, tuple[str, ...]] = {
    "method": ("method", "lora", "trainable"),
    "batch": ("micro_batch", "grad_accum", "global_batch"),
    "layout": (
        "gpus", "gpus_per_node", "dp", "dp_shard", "tp", "sequence_parallel", "pp", "pp_schedule", "virtual_pp",
        "pp_layers", "cp", "ep",
    ),
    "framework": ("framework", "framework_version"),
    "lengths": ("context", "prompt", "output"),
}  # fmt: skip
"""Fields that change together because one follows from the other; every other field is a lever of its own."""
_SHOWN = {"batch": ("micro_batch", "grad_accum"), "lengths": ("context",)}
_LAYOUT_SHOWN = (
    "gpus", "dp", "tp", "pp", "cp", "ep", "pp_schedule", "virtual_pp", "pp_layers", "dp_shard", "sequence_parallel",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """A job by the two models: bytes on the card, seconds of a step or token, rate, dollars; None where unknown.

    ``price`` is what the dollars rest on, for ``gpus`` cards.
    """

    device_bytes: int
    seconds: float | None
    tokens_per_s_per_gpu: float | None
    usd_per_mtoken: float | None
    price: Price | None = None
    gpus: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class LeverChange:
    """One lever that differs.

    Attributes:
        lever: field name, or a name of ``GROUPS``, ``model`` or ``card``.
        fields: field -> (value in A, value in B).
        before, after: figures without and with this change, all earlier ones made.
    """

    lever: str
    fields: Mapping[str, tuple[Any, Any]]
    before: Figures
    after: Figures

    @property
    def delta_bytes(self) -> int:
        """What it does to the bytes on the card."""
        return self.after.device_bytes - self.before.device_bytes

    @property
    def delta_s(self) -> float | None:
        """What it does to the seconds."""
        a, b = self.before.seconds, self.after.seconds
        return None if a is None or b is None else b - a


@dataclass(frozen=True, kw_only=True, slots=True)
class Diff:
    """Two jobs: their estimates, their figures, and the way from A to B. The deltas of ``changes`` sum to the whole."""

    left: Estimate
    right: Estimate
    a: Figures
    b: Figures
    changes: tuple[LeverChange, ...]


def diff(left: Estimate, right: Estimate, *, price: float | None = None) -> Diff:
    """What tells two jobs apart.

    Args:
        left, right: their estimates.
        price: dollars per GPU-hour that the user pays; else the snapshot's.

    Raises:
        MemfitError: the price is not a number.
    """
    start, end = left.resolved, right.resolved
    a, b = _figures(left, price), _figures(right, price)
    if start.values["kind"] != end.values["kind"]:
        return Diff(left=left, right=right, a=a, b=b, changes=())
    moves = _moves(start, end)
    state, before, changes = start, a, []
    for index, (lever, fields, apply) in enumerate(moves):
        state = apply(state) if index + 1 < len(moves) else end
        after = b if index + 1 == len(moves) else _figures(estimate_resolved(state), price)
        changes.append(LeverChange(lever=lever, fields=fields, before=before, after=after))
        before = after
    return Diff(left=left, right=right, a=a, b=b, changes=tuple(changes))


_Move = tuple[str, dict[str, tuple[Any, Any]], Callable[[Resolved], Resolved]]


def _moves(start: Resolved, end: Resolved) -> list[_Move]:
    """(lever, fields, how it is applied) of everything that differs."""
    out: list[_Move] = []
    if start.arch != end.arch:
        models = (start.completed.job.model.name, end.completed.job.model.name)
        out.append(("model", {"model": models}, lambda r: _model(r, end)))
    grouped = {name for fields in GROUPS.values() for name in fields}
    cards = ("gpu", "memory_gib", "others_gib")
    single = [n for n in start.values if n not in grouped and n not in cards and _matters(n, start.values["kind"])]
    for lever, names in (*GROUPS.items(), *((n, (n,)) for n in single)):
        if not any(_matters(n, start.values["kind"]) for n in names):
            continue
        differing = {
            n: (start.values.get(n), end.values.get(n)) for n in names if start.values.get(n) != end.values.get(n)
        }
        if not differing:
            continue
        taken = {n: pair[1] for n, pair in differing.items()}
        shown = _LAYOUT_SHOWN if lever == "layout" else _SHOWN.get(lever, names)
        told = {n: pair for n, pair in differing.items() if n in shown} or differing
        out.append((lever, told, _set(taken)))
    if any(start.values.get(n) != end.values.get(n) for n in cards):
        told = {n: (start.values.get(n), end.values.get(n)) for n in cards if start.values.get(n) != end.values.get(n)}
        out.append(("card", told, lambda r: _card(r, end)))
    return out


def _set(taken: Mapping[str, Any]) -> Callable[[Resolved], Resolved]:
    return lambda r: replace(r, values={**r.values, **taken})


def _matters(name: str, kind: str) -> bool:
    """Whether a field has an effect in jobs of a kind."""
    return name not in BY_NAME or BY_NAME[name].kind in (None, kind)


def _model(state: Resolved, end: Resolved) -> Resolved:
    """Another model; layers that were stated for each pipeline rank are those of the model before."""
    split = state.values.get("pp_layers")
    fits = not split or sum(split) == end.arch.num_layers
    values = state.values if fits else {**state.values, "pp_layers": None}
    return replace(state, arch=end.arch, arch_origin=end.arch_origin, values=values)


def _card(state: Resolved, end: Resolved) -> Resolved:
    values = {**state.values, **{n: end.values.get(n) for n in ("gpu", "memory_gib", "others_gib")}}
    return replace(state, gpu=end.gpu, capacity_bytes=end.capacity_bytes, others_bytes=end.others_bytes, values=values)


def _figures(found: Estimate, given: float | None) -> Figures:
    resolved = found.resolved
    seconds = rate = usd = None
    if resolved.gpu is not None:
        with suppress(MemfitError):  # what has no time by the model still has its bytes
            if resolved.values["kind"] == "serve":
                served = speed.latency(resolved)
                seconds, rate = served.tpot_s, served.tokens_per_s_per_gpu
            else:
                step = speed.step_time(resolved)
                seconds, rate = step.step_s, step.tokens_per_s_per_gpu
    count = int(resolved.values["gpus"])
    price = price_of(resolved.gpu, given, count) if resolved.gpu is not None else None
    if price is not None and rate:
        usd = price.per_hour(count) / HOUR_S / (rate * count) * MILLION
    return Figures(
        device_bytes=found.device_bytes,
        seconds=seconds,
        tokens_per_s_per_gpu=rate,
        usd_per_mtoken=usd,
        price=price,
        gpus=count,
    )
