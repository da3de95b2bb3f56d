"""What else could be: the other value of each assumption, and the changes that may save memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from memfit.formula.able import variant
from memfit.formula.resolve import Resolved

# field -> (value, its usual alternative); only fields that nobody stated are shown as assumptions
_OTHER: dict[str, dict[Any, Any]] = {
    "checkpointing": {"none": "full", "full": "none", "selective": "full", "attention": "full"},
    "loss": {"eager": "fused", "compiled": "eager", "chunked": "eager", "fused": "eager"},
    "attention": {"sdpa": "eager", "flash": "eager", "eager": "flash"},
    "precision": {"bf16-mixed": "bf16", "bf16": "bf16-mixed", "fp32": "bf16-mixed"},
    "optimizer": {"adamw": "adamw-8bit"},
    "set_to_none": {True: False, False: True},
    "reshard": {True: False, False: True},
    "compile": {False: True, True: False},
    "sequence_parallel": {False: True, True: False},
    "micro_batch": {1: 2},
    "zero": {0: 3, 1: 3, 2: 3, 3: 1},
}

_ONLY_ABLE = frozenset({"loss", "zero", "compile", "reshard"})
"""Fields whose other value must be one that the framework has."""

AS_STORED = "as the checkpoint stores them"
"""Why a served model's weights are assumed to be in another type than 16 bit."""


def alternatives_of(resolved: Resolved) -> Iterator[tuple[str, Any, Any, Mapping[str, Any]]]:
    """(dotted path, value, alternative, overrides) of every assumption that can be switched."""
    if resolved.values["kind"] != "train":
        if resolved.completed.origins["strategy.weights"] == "derived":
            yield "strategy.weights", resolved.values["weights"], "bf16", {"weights": "bf16"}
        return
    can = variant(resolved.values["framework"], resolved.values["framework_version"])
    for name, table in _OTHER.items():
        path = f"strategy.{name}"
        value = resolved.values[name]
        if resolved.completed.origins.get(path) not in ("default", "profile") or value not in table:
            continue
        if name == "sequence_parallel" and resolved.values["tp"] == 1:
            continue
        if name in ("zero", "reshard") and resolved.values["dp"] == 1:
            continue
        if name == "reshard" and resolved.values["zero"] < 3:
            continue
        other = table[value]
        if name in _ONLY_ABLE and other not in getattr(can, name):
            other = next((o for o in getattr(can, name) if o != value), None)
            if other is None:
                continue
        yield path, value, other, {name: other}


def changes_of(resolved: Resolved) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(what, overrides) of the remedies that a user can turn on, whether or not they help."""
    v = resolved.values
    if v["kind"] != "train":
        if v["weights"] in (None, "bf16", "fp16"):
            yield "weights in 4 bit (AWQ)", {"weights": "awq"}
            yield "weights in 8 bit", {"weights": "fp8"}
        if v["kv"] in (None, "bf16", "fp16"):
            yield "8-bit key/value cache", {"kv": "fp8"}
        if v["context"] and v["context"] > 2048:
            yield "half the context", {"context": v["context"] // 2, "prompt": None, "output": None}
        if v["concurrency"] and v["concurrency"] > 1:
            yield "half the concurrency", {"concurrency": v["concurrency"] // 2}
        return
    can = variant(v["framework"], v["framework_version"])
    if v["checkpointing"] != "full" and "full" in can.checkpointing:
        yield "full activation checkpointing", {"checkpointing": "full"}
    if v["loss"] != "fused" and "fused" in can.loss:
        yield "fused linear cross-entropy (Liger, CCE)", {"loss": "fused"}
    elif v["loss"] not in ("fused", "chunked") and "chunked" in can.loss:
        yield "the loss in chunks", {"loss": "chunked"}
    if v["micro_batch"] > 1:
        halved = {"micro_batch": v["micro_batch"] // 2, "grad_accum": v["grad_accum"] * 2, "global_batch": None}
        yield "half the micro-batch, twice the accumulation", halved
    if v["dp"] > 1 and v["zero"] < max(can.zero):
        what = "shard everything (ZeRO-3 / FSDP)" if max(can.zero) == 3 else f"shard more (ZeRO-{max(can.zero)})"
        yield what, {"zero": max(can.zero)}
    if (
        v["optimizer"] == "adamw"
        and v["method"] in ("full", "freeze", "dpo", "grpo")
        and "adamw-8bit" in can.optimizers
    ):
        yield "8-bit AdamW", {"optimizer": "adamw-8bit"}
    if v["method"] == "full" and "lora" in can.adapters:
        yield "LoRA, rank 16 on all linear layers", {"method": "lora", "weights": "bf16"}
    if v["method"] == "lora" and v["weights"] in (None, "bf16", "fp16") and "qlora" in can.adapters:
        yield "QLoRA: frozen weights in NF4", {"method": "qlora", "weights": "nf4"}
    sets = [o for o in can.offload if "parameters" not in o or v["zero"] == 3]
    moved = next((o for o in sorted(sets, key=len) if {*(v["offload"] or ()), "optimizer"} <= {*o}), None)
    if moved and "optimizer" not in (v["offload"] or ()) and v["method"] == "full":
        what = "optimizer states on the host" if moved == ("optimizer",) else f"{', '.join(moved)} on the host"
        yield what, {"offload": moved}
    if v["attention"] == "eager" and "flash" in can.attention:
        yield "flash attention", {"attention": "flash"}
    if v["tp"] > 1 and not v["sequence_parallel"] and True in can.sequence_parallel:
        yield "sequence parallelism", {"sequence_parallel": True}
    if v["precision"] == "fp32":
        yield "bf16 mixed precision", {"precision": "bf16-mixed"}
    if v["seq_len"] > 1024:
        yield "half the sequence length", {"seq_len": v["seq_len"] // 2}
