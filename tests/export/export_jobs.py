"""Jobs for the tests of exports: for each target one that it takes, and every other value of every lever."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from memfit.export import NAMES, target
from memfit.export.levers import FACTS, LEVERS
from memfit.job import BY_NAME, Job, from_kwargs

TINY: Mapping[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""A model of 0.2 million parameters."""

PROGRAMS = tuple(name for name in NAMES if not target(name).launcher)
LAUNCHERS = tuple(name for name in NAMES if target(name).launcher)

_BASE: Mapping[str, Any] = {
    "model": "llama-3.2-1b",
    "gpu": "8xh100-sxm-80gb",
    "seq_len": 2048,
    "micro_batch": 2,
    "grad_accum": 4,
    "attention": "flash",
}
_OWN: Mapping[str, Mapping[str, Any]] = {
    "megatron": {"precision": "bf16-mixed"},
    "megatron-bridge": {"precision": "bf16-mixed"},
    "torchtune": {"precision": "bf16", "zero": 3},
}


def base(name: str, **more: Any) -> dict[str, Any]:
    """Keyword arguments of a job that the target takes."""
    return {**_BASE, **_OWN.get(name, {}), **more}


_OTHERS: Mapping[str, tuple[Any, ...]] = {
    "name": ("llama-3.1-8b", "qwen3-8b"),
    "config": (TINY,),
    "method": ("full", "lora", "qlora", "dora", "freeze", "dpo", "grpo"),
    "seq_len": (1024, 8192),
    "micro_batch": (1, 8),
    "grad_accum": (1, 2),
    "dp": (4,),
    "dp_shard": (4,),
    "gpus": (16, 2),
    "gpus_per_node": (4,),
    "tp": (2,),
    "pp": (2,),
    "virtual_pp": (2,),
    "pp_layers": ((7, 9), (9, 7), (10, 6), (15, 1), (16, 0), (3, 5, 5, 3), (4, 4, 5, 3), (5, 2, 5, 4), (3, 4, 4, 5)),
    "cp": (2,),
    "ep": (2,),
    "checkpointing": ("none", "selective", "attention", "full", 2),
    "offload": (("optimizer",), ("parameters",), ("gradients",), ("activations",), ("optimizer", "parameters"),
                ("optimizer", "parameters", "gradients")),
    "lora_rank": (8, 64),
    "lora_targets": ("all-linear", ("q_proj", "v_proj")),
    "lora_train_also": (("lm_head",),),
    "lora_alpha": (8,),
    "lora_dropout": (0.1,),
    "trainable": (1, 0.5, ("lm_head", "*.mlp.*")),
}  # fmt: skip


def others(name: str) -> tuple[Any, ...]:
    """Values of a lever to try."""
    spec = BY_NAME[name]
    if name in _OTHERS:
        return _OTHERS[name]
    if spec.type == "bool":
        return (True, False)
    if name == "weights":
        return ("fp32", "bf16", "fp16", "fp8", "int8", "nf4", "nf4-dq", "fp4", "gptq")
    if name == "zero":
        return (0, 1, 2, 3)
    return spec.choices


def contexts(lever: str) -> tuple[dict[str, Any], ...]:
    """Settings around a lever that let it matter."""
    plain: dict[str, Any] = {}
    sharded = {"zero": 3}
    if lever.startswith("lora_"):
        return ({"method": "lora"}, {"method": "lora", "zero": 3})
    if lever == "trainable":
        return ({"method": "freeze"},)
    if lever == "weights":
        return ({"method": "lora"}, {"method": "qlora"}, {"method": "qlora", "zero": 3})
    if lever == "method":
        return (plain, sharded)
    if lever == "pp_layers":
        looped = {"pp_schedule": "interleaved", "virtual_pp": 2, "grad_accum": 8}
        return tuple({"pp": pp, **more} for pp in (2, 4) for more in ({}, looped))
    if lever in ("pp_schedule", "virtual_pp"):
        return ({"pp": 2, "pp_schedule": "interleaved", "virtual_pp": 2}, {"pp": 2})
    if lever == "sequence_parallel":
        return ({"tp": 2}, {"tp": 2, "zero": 3})
    if lever == "ep":
        return ({"model": "qwen3-30b-a3b", "zero": 1}, {"model": "qwen3-30b-a3b", "zero": 3})
    if lever == "optimizer_in_backward":
        return ({"grad_accum": 1}, {"grad_accum": 1, "zero": 3})
    if lever in ("dp_shard", "reshard", "offload"):
        return (sharded, {"zero": 1})
    return (plain, sharded, {"zero": 1})


def changes() -> Iterator[tuple[str, dict[str, Any], Any]]:
    """(lever, settings around it, value) for every lever and every value."""
    for spec in LEVERS:
        if spec.path in FACTS:
            continue
        for around in contexts(spec.name):
            for value in others(spec.name):
                if spec.type != "counts" or len(value) == around["pp"]:
                    yield spec.name, around, value


def job(**fields: Any) -> Job:
    """A job from keyword arguments; where the model is given by a configuration, the name goes."""
    if fields.get("config") is not None:
        fields.pop("model", None)
    if "gpus" in fields or "dp" in fields:
        fields["gpu"] = "h100-sxm-80gb"
    return from_kwargs(**fields)
