"""Settings that do not go with the model, the card or the framework: errors where nothing can run, else warnings."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from memfit.errors import JobError, nearest
from memfit.formula import profile as profiles
from memfit.formula.weights import LINEAR_ALL, roles, same_role
from memfit.hardware import Gpu
from memfit.job.checks import ADAPTER_METHODS
from memfit.models import Architecture, Moe

_FLASH = (8, 0)
"""Compute capability that FlashAttention wants (its README; T4 and V100 have less)."""


@lru_cache(maxsize=1024)
def _roles(arch: Architecture) -> tuple[str, ...]:
    """Names that adapters may have as targets."""
    stacks = (arch.decoder, *arch.towers)
    tensors = [t for s in stacks for t in (*(t for b in s.blocks for t in b.tensors), *s.extra)]
    linear = [t for t in (*tensors, *arch.outer) if t.linear or t.part == "embedding"]
    return tuple(dict.fromkeys(name for t in linear for name in (t.role, *(role for role, _ in roles(t)))))


def _strangers(v: Mapping[str, Any], origins: Mapping[str, str], arch: Architecture) -> tuple[str, ...]:
    """Stated targets of adapters that name nothing of the model."""
    lora = v["lora"]
    if v["kind"] != "train" or lora is None or origins.get("task.lora.targets") != "stated":
        return ()
    if v["method"] not in (*ADAPTER_METHODS, "dpo", "grpo"):
        return ()
    names = _roles(arch)
    if isinstance(lora.targets, str):
        return () if lora.targets == LINEAR_ALL else (lora.targets,)
    return tuple(t for t in lora.targets or () if t != LINEAR_ALL and not any(same_role(name, t) for name in names))


def check_targets(v: Mapping[str, Any], origins: Mapping[str, str], arch: Architecture) -> None:
    """Check that adapters reach something of the model.

    Args:
        v: flat values of a completed job.
        origins: where each value comes from.
        arch: the model.

    Raises:
        JobError: no target names a linear layer of it.
    """
    strangers = _strangers(v, origins, arch)
    if strangers and len(strangers) == len(v["lora"].targets):
        near = nearest(strangers[0], _roles(arch), limit=2) or _roles(arch)[:7]
        message = f"no layer of the model is called {' or '.join(f'`{t[:60]}`' for t in strangers[:3])}"
        hint = f"did you mean {' or '.join(f'`{n}`' for n in near)}?" if len(near) < 3 else f"it has {', '.join(near)}"
        raise JobError("task.lora.targets", message, value=strangers, hint=hint)


def cautions(v: Mapping[str, Any], origins: Mapping[str, str], arch: Architecture, gpu: Gpu | None) -> Iterator[str]:
    """What the job asks for and the model, the card or the framework does not have, a sentence each.

    Args:
        v: flat values of a completed job.
        origins: where each value comes from.
        arch: the model.
        gpu: the card, if any.
    """
    for target in _strangers(v, origins, arch):
        near = nearest(target, _roles(arch), limit=1)
        guess = f" (did you mean `{near[0]}`?)" if near else ""
        yield f"`task.lora.targets`: no layer of the model is called `{target[:60]}`{guess}"
    yield from _degrees(v, arch)
    layers = arch.num_layers
    if v["kind"] == "train":
        trainable = v["trainable"] if v["method"] == "freeze" else None
        if isinstance(trainable, int) and trainable > layers:
            yield f"`task.trainable`: {trainable} layers are more than the {layers} of the model, which all train"
        version = v["framework_version"] or ""
        if (
            re.fullmatch(r"v?(?!20\d\d$)\d{1,9}", version)
            and profiles.select(v["framework"], version) == v["framework"]
        ):
            yield f"`strategy.framework_version` has no effect: no variant of {v['framework']} is known by `{version}`"
    name, length = ("seq_len", v["seq_len"]) if v["kind"] == "train" else ("context", v["context"])
    if length and 0 < arch.max_positions < length and _absolute(arch):
        yield f"{name} {length} is more than the {arch.max_positions} positions that the model has embeddings for"
    if v["attention"] == "flash" and origins["strategy.attention"] in ("stated", "profile") and gpu is not None:
        below = gpu.vendor == "nvidia" and (gpu.compute_capability or _FLASH) < _FLASH
        if below or gpu.vendor == "apple":
            yield f"FlashAttention does not run on {gpu.title}: attention sdpa takes other kernels that do"
    if v["kind"] == "train" and v["precision"].startswith("bf16") and gpu is not None and "bf16" not in gpu.flops:
        yield f"{gpu.title} does not multiply in bf16: precision = {v['precision'].replace('bf16', 'fp16')}"


def _degrees(v: Mapping[str, Any], arch: Architecture) -> Iterator[str]:
    heads = sorted({b.attention.num_heads for b in arch.decoder.blocks if b.attention})
    for count in heads:
        if count % v["tp"]:
            able = [n for n in range(1, min(count, 4096) + 1) if count % n == 0]
            shown = able if len(able) <= 12 else [*able[:11], count]
            which = f"{', '.join(map(str, shown[:-1]))} and {shown[-1]} do" if len(shown) > 1 else "1 does"
            yield f"tp {v['tp']} does not divide the model's {count} attention heads: {which}"
    if v["ep"] > 1 and v["kind"] == "train" and not any(isinstance(b.ffn, Moe) for b in arch.decoder.blocks):
        yield f"ep {v['ep']} has no effect: the model has no experts"


@lru_cache(maxsize=1024)
def _absolute(arch: Architecture) -> bool:
    """Positions are looked up in a table of the checkpoint (learned or stored), which ends."""
    names = (t.name for t in (*arch.embeddings, *arch.decoder.extra) if t.part == "embedding")
    return any(re.search(r"(^|[._])(wpe|(embed_)?positions?(_embeddings?)?)([._]|$)", name) for name in names)
