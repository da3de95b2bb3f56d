"""The levers of a training job: how they are searched, which values are fast or lean, what they are called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memfit.planner.capabilities import Capability, allowed

BRANCHED = (
    "precision", "optimizer", "optimizer_in_backward", "attention", "loss", "zero", "sequence_parallel",
)  # fmt: skip
"""Levers whose values are tried one by one: none of them is known to be the fastest or the leanest of all."""
BOUNDED = ("checkpointing", "compile", "offload", "reshard")
"""Levers with one value that is never slower than any other, and one that never needs more, whatever else is chosen.
Most values of ``checkpointing`` form a chain."""
STRUCTURAL = ("pp", "pp_schedule", "virtual_pp", "pp_layers")
NUMBERS = ("tp", "cp", "ep", "dp", "dp_shard", "micro_batch", "grad_accum")
"""Levers that are columns of numbers."""
ALL = (*BRANCHED, *BOUNDED, *STRUCTURAL, *NUMBERS)

_SPEED: dict[str, tuple[Any, ...]] = {
    "checkpointing": ("none", "selective", "attention"),
    "loss": ("fused", "compiled", "chunked", "eager"),
    "reshard": (False, True),
    "compile": (True, False),
}
"""Values from fast to slow; the rest follows in the order of the capability table."""
_LEAN: dict[str, tuple[Any, ...]] = {"checkpointing": ("full",), "reshard": (True,), "compile": (True,)}

GROUPS: Mapping[str, tuple[str, ...]] = {
    "pipeline": ("pp", "pp_schedule", "virtual_pp", "pp_layers"),
    "micro_batch": ("micro_batch", "grad_accum"),
    "zero": ("zero", "dp_shard"),
    "tp": ("tp", "sequence_parallel"),
    "attention": ("attention",),
    "loss": ("loss",),
    "checkpointing": ("checkpointing",),
    "compile": ("compile",),
    "cp": ("cp",),
    "ep": ("ep",),
    "reshard": ("reshard",),
    "offload": ("offload",),
    "precision": ("precision",),
    "optimizer": ("optimizer",),
    "optimizer_in_backward": ("optimizer_in_backward",),
}
"""What a user changes at once -> its fields; ``dp`` and ``grad_accum`` follow from the rest."""

WORDS: Mapping[str, str] = {
    "pipeline": "pipeline stages",
    "micro_batch": "micro-batch and accumulation",
    "zero": "sharding (ZeRO stage, FSDP, HSDP)",
    "tp": "tensor parallelism",
    "cp": "context parallelism",
    "ep": "expert parallelism",
    "checkpointing": "activation checkpointing",
    "attention": "attention kernel",
    "loss": "loss kernel",
    "compile": "torch.compile",
    "reshard": "resharding after forward",
    "offload": "offload to the host",
    "precision": "precision",
    "optimizer": "optimizer",
    "optimizer_in_backward": "optimizer step inside the backward pass",
}


def fastest(lever: str, values: tuple[Any, ...]) -> Any:
    """The value that is never slower than the others."""
    return next((v for v in _SPEED.get(lever, ()) if v in values), values[0])


def leanest(lever: str, values: tuple[Any, ...], *, adapters: bool) -> tuple[Any, ...]:
    """The values of which one never needs more than the others.

    Args:
        lever: one of ``BOUNDED``.
        values: those that may be chosen.
        adapters: adapters are trained: their casts are fused away by a compiler, but not always what they save.
    """
    if lever == "compile" and adapters:
        return values
    if lever == "offload":
        return tuple(v for v in values if not any(set(v) < set(other) for other in values))
    return (next((v for v in _LEAN.get(lever, ()) if v in values), values[-1]),)


def chain(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Values of checkpointing along which time grows and need shrinks: none, every n-th layer with n falling, full."""
    return tuple(v for v in values if v in ("none", "full") or isinstance(v, int))


def values_of(
    lever: str,
    cap: Capability,
    base: Mapping[str, Any],
    allow: frozenset[str],
    *,
    has_bf16: bool,
    has_fp8: bool,
    has_fp4: bool,
) -> tuple[Any, ...]:
    """The values of a lever of strategy that may be searched, fast ones first.

    Args:
        lever: one of ``BRANCHED`` and ``BOUNDED``.
        cap: what the framework can do.
        base: completed values of the job, for what it does today.
        allow: changes of results that the user permits.
        has_bf16, has_fp8, has_fp4: what the card multiplies.
    """
    if lever == "precision":
        can = {"bf16": has_bf16, "fp8": has_fp8, "mxfp8": has_fp4, "nvfp4": has_fp4}
        more = [p for p in allowed(allow, lever) if p in cap.precisions and can[p]]
        return tuple(dict.fromkeys((base["precision"], *more)))
    if lever == "optimizer":
        return tuple(dict.fromkeys((base["optimizer"], *(o for o in allowed(allow, lever) if o in cap.optimizers))))
    if lever == "optimizer_in_backward":
        return (False, True) if cap.in_backward and allowed(allow, lever) else (False,)
    if lever == "checkpointing":
        rest = [c for c in cap.checkpointing if c not in ("none", "full")]
        every = list(range(base["num_layers"] // 2, 1, -1)) if cap.every else []
        return tuple(v for v in ("none", *rest, *every, "full") if v in cap.checkpointing or v in every)
    values: tuple[Any, ...] = getattr(cap, lever)
    order = _SPEED.get(lever, ())
    return tuple(sorted(values, key=lambda v: order.index(v) if v in order else len(order)))
