"""Fields that contradict each other (errors), and settings that have no effect (warnings).

Both work on flat values by field name, so that a partly stated job and a completed one pass the same checks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memfit.errors import JobError
from memfit.job.fields import BY_NAME, LOW_BIT_WEIGHTS, SERVE_FRAMEWORKS, SERVE_ONLY, TRAIN_FRAMEWORKS, TRAIN_ONLY

ADAPTER_METHODS = frozenset({"lora", "qlora", "dora"})
_TUNED_BY = ADAPTER_METHODS | {"dpo", "grpo"}
_IDLE = {  # names that have no effect in a job of the kind
    "train": SERVE_ONLY,
    "serve": TRAIN_ONLY,
}
_MEANT = {"task.seq_len": ": `task.context` is its length", "task.context": ": `task.seq_len` is its length"}
"""What was likely meant by a field without effect."""
_NOT_COUNTED = {
    "cpu_layers": "is not counted: the estimate has all layers on the card",
    "memory_fraction": "is not counted: the estimate is what the model needs, not the engine's pool",
    "graphs": "is not counted: what CUDA graphs hold comes on top",
}
"""Settings of serving that the estimate does not follow."""


def faults(v: Mapping[str, Any]) -> list[JobError]:
    """What cannot be: every contradiction between the values that are there.

    Args:
        v: flat values by field name; a missing key or None is not stated.
    """
    errors: list[JobError] = []
    get = v.get
    kind = get("kind")
    _degrees(v, kind, errors)
    if kind != "serve":
        _batches(v, errors)
    layers, pp = get("pp_layers"), get("pp")
    if layers and pp and len(layers) != pp and kind != "serve":
        message = f"pp_layers has {len(layers)} numbers for pp {pp}"
        errors.append(JobError("strategy.pp_layers", message, value=layers, hint="one number for each pipeline rank"))
    dp, shard = get("dp"), get("dp_shard")
    if dp and shard and dp % shard:
        message = f"dp_shard {shard} does not divide dp {dp}"
        errors.append(JobError("strategy.dp_shard", message, value=shard, hint=_divisors(dp)))
    ep = get("ep")
    if ep and ep > 1 and dp:
        room = dp * (get("tp") or 1) * (get("cp") or 1)
        if room % ep:
            message = f"ep {ep} does not divide dp * cp * tp = {room}"
            errors.append(JobError("strategy.ep", message, value=ep, hint=_divisors(room)))
    cp, seq_len = get("cp"), get("seq_len")
    if cp and seq_len and seq_len % cp and kind != "serve":
        message = f"cp {cp} does not divide seq_len {seq_len}"
        errors.append(JobError("strategy.cp", message, value=cp, hint=f"seq_len = {-(-seq_len // cp) * cp} would do"))
    framework = get("framework")
    if kind == "train" and framework in SERVE_FRAMEWORKS:
        errors.append(_wrong_kind(framework, "serves and does not train", "serve"))
    elif kind == "serve" and framework in TRAIN_FRAMEWORKS:
        errors.append(_wrong_kind(framework, "trains and does not serve", "train"))
    if get("optimizer_in_backward") and (get("grad_accum") or 1) > 1:
        message = f"gradients that are applied as they appear cannot be accumulated over grad_accum {v['grad_accum']}"
        hint = "use grad_accum = 1, or optimizer_in_backward = false"
        errors.append(JobError("strategy.optimizer_in_backward", message, value=True, hint=hint))
    context, tokens = get("context"), (get("prompt") or 0) + (get("output") or 0)
    if context and tokens > context:
        message = f"prompt + output = {tokens} tokens do not fit in context {context}"
        errors.append(JobError("task.context", message, value=context, hint=f"context = {tokens} would do"))
    memory, others = get("memory_gib"), get("others_gib")
    if memory and others and others >= memory:
        message = f"others hold {others:g} GiB of {memory:g} GiB: nothing is left"
        errors.append(JobError("hardware.others_gib", message, value=others))
    return errors


def _wrong_kind(framework: str, message: str, kind: str) -> JobError:
    hint = f'use kind = "{kind}", or another framework'
    return JobError("strategy.framework", f"{framework} {message}", value=framework, hint=hint)


def _degrees(v: Mapping[str, Any], kind: str | None, errors: list[JobError]) -> None:
    """gpus = dp * tp * pp * cp, as far as these are stated."""
    get = v.get
    gpus, dp, tp, pp, cp = get("gpus"), get("dp"), get("tp"), get("pp"), get("cp")
    if not gpus:
        return
    product = (dp or 1) * (tp or 1) * (pp or 1) * (cp or 1)
    if product == gpus:
        return
    # In training dp fills up the GPUs, so a stated dp settles the product; an engine spreads over what is not stated.
    settled = dp and (kind == "train" or (tp and pp))
    if not settled and gpus % product == 0:
        return
    words = " * ".join(f"{name} {n}" for name, n in (("dp", dp), ("tp", tp), ("pp", pp), ("cp", cp)) if n)
    rest = product // (dp or 1)
    hint = f"dp = {gpus // rest} would do" if dp and gpus % rest == 0 else f"gpus = {product} would do"
    message = f"{words}{f' = {product}' if '*' in words else ''} does not make {gpus} GPUs"
    errors.append(JobError("hardware.gpus", message, value=gpus, bound=str(product), hint=hint))


def _batches(v: Mapping[str, Any], errors: list[JobError]) -> None:
    """global_batch = micro_batch * grad_accum * dp, as far as these are stated."""
    get = v.get
    total = get("global_batch")
    if not total:
        return
    micro, accum, dp = get("micro_batch"), get("grad_accum"), get("dp")
    product = (micro or 1) * (accum or 1) * (dp or 1)
    if product == total or (total % product == 0 and not (micro and accum and dp)):
        return
    words = " * ".join(f"{name} {n}" for name, n in (("micro_batch", micro), ("grad_accum", accum), ("dp", dp)) if n)
    settled = micro and accum and dp
    left = (micro or 1) * (dp or 1)
    if accum and total % left == 0:
        hint = f"grad_accum = {total // left} would do"
    else:
        hint = f"global_batch = {product} would do" if settled else f"state a multiple of {product}"
    message = f"{total} is not {words} = {product}" if settled else f"{total} is not a multiple of {words}"
    errors.append(JobError("task.global_batch", message, value=total, bound=str(product), hint=hint))


def _divisors(number: int) -> str:
    found = [n for n in range(1, min(number, 4096) + 1) if number % n == 0]
    shown = found if len(found) <= 12 else [*found[:11], number]
    return f"one of {', '.join(str(n) for n in shown)}"


def warnings(v: Mapping[str, Any], stated: Mapping[str, Any]) -> tuple[str, ...]:
    """Stated settings that have no effect, or are likely not meant.

    Args:
        v: all values of the completed job by field name.
        stated: only those that were stated.
    """
    found: list[str] = []
    kind = v["kind"]
    if not _IDLE[kind].isdisjoint(stated):
        idle = [BY_NAME[name].path for name in stated if name in _IDLE[kind]]
        found += [f'`{path}` has no effect when kind = "{kind}"{_MEANT.get(path, "")}' for path in idle]
    if kind == "train":
        _train_warnings(v, stated, found)
    else:
        found += [f"`strategy.{name}` {why}" for name, why in _NOT_COUNTED.items() if stated.get(name)]
    if "gpus_per_node" in stated and v["gpus"] > v["gpus_per_node"] and v["gpus"] % v["gpus_per_node"]:
        found.append(f"{v['gpus']} GPUs do not fill nodes of {v['gpus_per_node']}")
    return tuple(found)


def _train_warnings(v: Mapping[str, Any], stated: Mapping[str, Any], found: list[str]) -> None:
    method, zero, pp = v["method"], v["zero"], v["pp"]
    if "lora" in stated and method not in _TUNED_BY:
        found.append(f'`task.lora` has no effect with method = "{method}"')
    if "trainable" in stated and method != "freeze":
        found.append(f'`task.trainable` has no effect with method = "{method}"')
    if method == "grpo":
        found.append(
            'method "grpo" is the training step alone: rollouts and the engine that makes them are not counted'
        )
    if method == "freeze" and "trainable" not in stated:
        found.append(f"`task.trainable` is not stated: assumed that the last {v['trainable']} layers are trained")
    low_bit = not isinstance(v["weights"], str) or v["weights"] in LOW_BIT_WEIGHTS
    if "weights" in stated:
        if method == "full" and low_bit:
            found.append('`strategy.weights` has no effect with method = "full": no weights are frozen')
        elif method == "qlora" and not low_bit:
            found.append(f'method "qlora" with weights in {v["weights"]} is plain LoRA')
    if stated.get("sequence_parallel") and v["tp"] == 1:
        found.append("`strategy.sequence_parallel` has no effect with tp = 1")
    if stated.get("virtual_pp", 1) > 1 and pp == 1:
        found.append("`strategy.virtual_pp` has no effect with pp = 1")
    elif v["virtual_pp"] == 1 and stated.get("pp_schedule") == "interleaved" and pp > 1:
        found.append('`strategy.pp_schedule` "interleaved" with virtual_pp = 1 is plain "1f1b"')
    elif v["virtual_pp"] > 1 and stated.get("pp_schedule") in {"gpipe", "1f1b"}:
        found.append(f'`strategy.virtual_pp` has no effect with pp_schedule = "{v["pp_schedule"]}"')
    if pp == 1 and "pp_layers" in stated:
        found.append("`strategy.pp_layers` has no effect with pp = 1")
    if pp == 1 and stated.get("pp_schedule", "1f1b") != "1f1b":
        found.append("`strategy.pp_schedule` has no effect with pp = 1")
    # A data-parallel rank of context parallelism shards too: FSDP and ZeRO run over dp * cp.
    # On one rank the engine of a sharding stage still decides in which precision weights and gradients are kept, and
    # offloading needs it.
    if stated.get("zero", 0) > 0 and v["dp"] * v["cp"] == 1 and not v["offload"]:
        found.append("`strategy.zero` shards nothing with dp = 1: only how its engine keeps weights is left of it")
    if "dp_shard" in stated and zero == 0:
        found.append("`strategy.dp_shard` has no effect with zero = 0")
    if stated.get("reshard") is False and zero != 3:
        found.append("`strategy.reshard` has no effect without zero = 3")
    if stated.get("sequence_parallel") and v["tp"] > 1 and v["seq_len"] % v["tp"]:
        found.append(f"seq_len {v['seq_len']} is not a multiple of tp {v['tp']}: sequence parallelism pads it")
