"""What the tools on Hugging Face's Trainer share: optimizer names, dtypes, FSDP and DeepSpeed settings, arguments.

Names are those of transformers 5.23, accelerate 1.15 and DeepSpeed 0.19 (read in their sources, 2026-11).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from memfit.errors import JobError
from memfit.export.levers import cannot
from memfit.export.plan import Plan
from memfit.export.reading import Found, Keys, Source
from memfit.export.text import Setting
from memfit.formula import profile as profiles
from memfit.job import Strategy
from memfit.job.checks import ADAPTER_METHODS

OPTIM: Mapping[str, str] = {
    "adamw": "adamw_torch_fused",
    "adamw-8bit": "adamw_bnb_8bit",
    "adamw-4bit": "adamw_torch_4bit",
    "paged-adamw-8bit": "paged_adamw_8bit",
    "sgd": "sgd",
    "adafactor": "adafactor",
    "lion": "lion_32bit",
    "galore": "galore_adamw",
}
"""Job optimizer -> ``optim`` of TrainingArguments (transformers OptimizerNames)."""
OPTIM_READ: Mapping[str, str] = {
    **{word: name for name, word in OPTIM.items()},
    "adamw_torch": "adamw",
    "adamw_hf": "adamw",
    "adamw_8bit": "adamw-8bit",
    "adamw_torch_8bit": "adamw-8bit",
    "lion": "lion",
    "muon": "muon",
}
"""``optim`` as people write it -> job optimizer."""
DTYPES: Mapping[str, str] = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
DTYPES_READ: Mapping[str, str] = {
    **{word: name for name, word in DTYPES.items()},
    **{f"torch.{word}": name for name, word in DTYPES.items()},
    **{name: name for name in DTYPES},
}
ATTENTION: Mapping[str, str] = {"flash": "flash_attention_2", "sdpa": "sdpa", "eager": "eager"}
ATTENTION_READ: Mapping[str, str] = {
    **{word: name for name, word in ATTENTION.items()},
    "flash_attention_3": "flash",
    "kernels-community/flash-attn2": "flash",
    "kernels-community/flash-attn3": "flash",
    "flex_attention": "flash",
}
AUTO: Mapping[str, str] = {
    "decoder": "AutoModelForCausalLM",
    "vision": "AutoModelForImageTextToText",
    "encoder": "AutoModelForMaskedLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
}
"""Kind of a model -> the class of transformers that loads it."""
KINDS = tuple(AUTO)
_TASKS: Mapping[str, str] = {"decoder": "CAUSAL_LM", "vision": "CAUSAL_LM", "seq2seq": "SEQ_2_SEQ_LM"}
QUANTIZED = ("nf4", "nf4-dq", "fp4", "int8")
"""Storage of frozen weights that bitsandbytes has."""
WEIGHTS = ("bf16", "fp16", "fp32", *QUANTIZED)
PRECISIONS = ("fp32", "bf16", "fp16", "bf16-mixed", "fp16-mixed")


def optim(plan: Plan, kind: str, names: Mapping[str, str] = OPTIM) -> str:
    """``optim`` of an optimizer: FSDP2 shards the 8-bit states of torchao, not those of bitsandbytes."""
    if kind == "fsdp" and plan.optimizer == "adamw-8bit":
        return "adamw_torch_8bit"
    return names.get(plan.optimizer, "sgd")


def engine(plan: Plan) -> str:
    """What shards: "fsdp", "deepspeed", or "ddp" when nothing is sharded.

    ZeRO 1 and 2 are DeepSpeed's; ZeRO-3 is by FSDP2 where the job's framework (or ``fsdp`` in its version) shards so.
    """
    return engine_of(plan.job.strategy)


def engine_of(strategy: Strategy) -> str:
    """The same of a completed job."""
    if not strategy.zero:
        return "ddp"
    if strategy.zero < 3:
        return "deepspeed"
    name = profiles.select(str(strategy.framework), strategy.framework_version)
    return "fsdp" if profiles.profile(name).sharding.startswith("fsdp") else "deepspeed"


def dtype(plan: Plan) -> str:
    """The dtype that the model is loaded in."""
    if plan.adapters or plan.method == "freeze":
        if plan.weights in DTYPES:
            return DTYPES[plan.weights]
        return DTYPES["fp16" if plan.precision.startswith("fp16") else "fp32" if plan.precision == "fp32" else "bf16"]
    return DTYPES["fp32" if plan.precision.endswith("-mixed") else plan.precision]


def checks(plan: Plan, kind: str) -> Iterator[JobError]:
    """Faults of several levers together that every tool on Trainer has.

    Args:
        plan: what is exported.
        kind: the engine.
    """
    tool = plan.target.tool
    if kind == "deepspeed" and plan.precision in ("bf16", "fp16"):
        why = "DeepSpeed keeps fp32 master weights, which is bf16-mixed or fp16-mixed"
        yield cannot("strategy.precision", plan.precision, tool, why=why, hint=f"precision = {plan.precision}-mixed")
    if kind == "deepspeed" and plan.reshard is False:
        yield cannot("strategy.reshard", False, tool, why="ZeRO-3 of DeepSpeed frees parameters by its own rules")
    if kind == "deepspeed" and plan.dp_shard != plan.dp:
        why = "a sharded copy of DeepSpeed spans all data-parallel GPUs"
        yield cannot("strategy.dp_shard", plan.dp_shard, tool, why=why, hint="FSDP2 can: framework_version = fsdp")
    moved = set(plan.offload) & {"parameters", "gradients", "optimizer"}
    if kind == "fsdp" and moved and len(moved) < 3:
        why = "FSDP2 offloads parameters, gradients and optimizer states together, or none"
        yield cannot("strategy.offload", plan.offload, tool, why=why, hint="state all three")
    if kind == "deepspeed":
        if "gradients" in moved:
            why = "ZeRO-Offload moves the gradients with the optimizer states by itself"
            yield cannot("strategy.offload", plan.offload, tool, why=why, hint="leave `gradients` out")
        if "parameters" in moved and plan.zero < 3:
            yield cannot("strategy.offload", plan.offload, tool, why="only ZeRO-3 offloads parameters")
    if kind == "ddp" and moved:
        yield cannot("strategy.offload", plan.offload, tool, why="only sharded states are offloaded", hint="zero = 3")
    if plan.optimizer == "galore" and (kind != "ddp" or plan.dp > 1):
        why = "GaLore runs on one GPU, not with DeepSpeed or FSDP"
        yield cannot("strategy.optimizer", plan.optimizer, tool, why=why)
    if plan.optimizer in ("paged-adamw-8bit", "lion") and kind == "fsdp":
        why = "states of bitsandbytes are not sharded by FSDP2"
        yield cannot("strategy.optimizer", plan.optimizer, tool, why=why, hint="optimizer = adamw-8bit")
    if "optimizer" in moved and kind == "deepspeed" and plan.optimizer != "adamw":
        yield cannot("strategy.optimizer", plan.optimizer, tool, why="DeepSpeed offloads its own AdamW only")
    if plan.arch.kind in ("encoder", "seq2seq") and plan.loss != "eager":
        why = f"its kernels are of next-token losses, and {plan.name} has another"
        yield cannot("strategy.loss", plan.loss, tool, why=why, hint="loss = eager")
    yield from weights_fault(plan)


def task_type(plan: Plan) -> str | None:
    """What PEFT calls the model's task, None where it has no name for it."""
    return _TASKS.get(plan.arch.kind)


def compute_dtype(plan: Plan) -> str:
    """The dtype in which 4-bit weights are multiplied: that of the autocast."""
    return "float16" if plan.precision.startswith("fp16") else "bfloat16"


def weights_fault(plan: Plan) -> Iterator[JobError]:
    """Frozen weights that the method cannot have."""
    tool = plan.target.tool
    if plan.method == "qlora" and plan.weights not in QUANTIZED:
        why = "QLoRA here is bitsandbytes: nf4, nf4-dq, fp4 or int8"
        yield cannot("strategy.weights", plan.weights, tool, why=why, hint="method = lora for unquantised weights")
    if plan.method != "qlora" and plan.weights in QUANTIZED:
        yield cannot("strategy.weights", plan.weights, tool, why="quantised weights go with method qlora")
    if plan.method in ("dpo", "grpo") and not plan.adapters and DTYPES.get(plan.weights) != dtype(plan):
        why = f"the reference model is loaded as the model is: {dtype(plan)}"
        yield cannot("strategy.weights", plan.weights, tool, why=why)


def model_settings(plan: Plan, *, quantised: bool = True) -> list[Setting]:
    """The settings of the model, as TRL's ModelConfig names them."""
    rows = [
        Setting("model_name_or_path", plan.model),
        Setting("dtype", dtype(plan), f"precision {plan.precision}: {plan.note('precision')}"),
        Setting("attn_implementation", ATTENTION[plan.attention], plan.note("attention")),
    ]
    if plan.adapters:
        rows += [
            Setting("use_peft", True, f"method {plan.method}: {plan.origin('method')}"),
            Setting("lora_r", plan.lora_rank, plan.origin("lora_rank")),
            Setting("lora_alpha", alpha(plan)),
            Setting("lora_dropout", float(plan.lora_dropout), plan.origin("lora_dropout")),
            Setting("lora_target_modules", targets(plan), plan.origin("lora_targets")),
        ]
        if plan.lora_train_also:
            rows.append(Setting("lora_modules_to_save", list(plan.lora_train_also), "trained in full"))
        if plan.method == "dora":
            rows.append(Setting("use_dora", True))
    if quantised:
        rows += quantisation(plan)
    return rows


def quantisation(plan: Plan) -> list[Setting]:
    """bitsandbytes settings of frozen weights."""
    if plan.weights == "int8" and plan.adapters:
        return [Setting("load_in_8bit", True, plan.note("weights"))]
    if plan.weights not in QUANTIZED or not plan.adapters:
        return []
    kind = "fp4" if plan.weights == "fp4" else "nf4"
    return [
        Setting("load_in_4bit", True, plan.note("weights")),
        Setting("bnb_4bit_quant_type", kind),
        Setting("use_bnb_nested_quant", plan.weights == "nf4-dq", "the scales are quantised too"),
        *([Setting("bnb_4bit_quant_storage", "bfloat16", "so that FSDP can shard it")] if plan.zero == 3 else []),
    ]


def targets(plan: Plan) -> Any:
    """Module names of adapters, or the word for all linear layers."""
    return plan.lora_targets if isinstance(plan.lora_targets, str) else list(plan.lora_targets)


def alpha(plan: Plan) -> int:
    """Scale of the adapters, twice the rank unless stated."""
    return round(plan.lora_alpha) if plan.lora_alpha is not None else 2 * int(plan.lora_rank)


def arguments(plan: Plan, kind: str, *, deepspeed_file: str = "deepspeed.json") -> list[Setting]:
    """The settings of TrainingArguments that levers decide."""
    mixed = plan.precision.endswith("-mixed")
    rows = [
        Setting("per_device_train_batch_size", plan.micro_batch, plan.origin("micro_batch")),
        Setting(
            "gradient_accumulation_steps",
            plan.grad_accum,
            f"global batch {plan.global_batch} = {plan.micro_batch} * {plan.grad_accum} * {plan.dp} data-parallel GPUs",
        ),
        Setting("bf16", mixed and plan.precision.startswith("bf16"), "autocast to bf16" if mixed else ""),
        Setting("fp16", mixed and plan.precision.startswith("fp16")),
        Setting("optim", optim(plan, kind), plan.note("optimizer")),
    ]
    if plan.optimizer == "momentum":
        rows.append(Setting("optim_args", "momentum=0.9", "SGD with one momentum state"))
    if plan.optimizer == "galore":
        rows += [
            Setting("optim_args", "rank=128, update_proj_gap=200, scale=0.25"),
            Setting("optim_target_modules", ["attn", "mlp"], "matrices that GaLore projects"),
        ]
    full = plan.checkpointing == "full"
    if kind == "fsdp":
        rows.append(Setting("activation_checkpointing", False, "FSDP does it: see fsdp_config"))
        rows += fsdp(plan)
    else:
        why = plan.note("checkpointing")
        rows.append(Setting("activation_checkpointing", full, why))
        if full:
            rows.append(Setting("activation_checkpointing_kwargs", {"use_reentrant": False}))
    if kind == "deepspeed":
        rows.append(Setting("deepspeed", deepspeed_file, f"ZeRO-{plan.zero}: {plan.note('zero')}"))
    if plan.compile:
        rows.append(Setting("torch_compile", True, plan.note("compile")))
    return rows


def liger(plan: Plan) -> list[Setting]:
    """Liger's fused linear cross-entropy, and none of its other kernels."""
    kernels = {"fused_linear_cross_entropy": True, "cross_entropy": False, "rope": False, "rms_norm": False,
               "swiglu": False}  # fmt: skip
    return [
        Setting("use_liger_kernel", True, f"of Liger only the loss: {plan.note('loss')}"),
        Setting("liger_kernel_config", kernels),
    ]


def fsdp(plan: Plan) -> list[Setting]:
    """FSDP2 through TrainingArguments."""
    inner = [
        Setting("version", 2),
        Setting("reshard_after_forward", plan.reshard, plan.note("reshard")),
        Setting("activation_checkpointing", plan.checkpointing == "full", plan.note("checkpointing")),
        Setting("cpu_offload", "parameters" in plan.offload, plan.note("offload") if plan.offload else ""),
        Setting("auto_wrap_policy", "TRANSFORMER_BASED_WRAP", "each transformer layer is one unit"),
        Setting("cpu_ram_efficient_loading", False),
        Setting("state_dict_type", "SHARDED_STATE_DICT"),
    ]
    return [Setting("fsdp", True, f"ZeRO-3: {plan.note('zero')}"), Setting("fsdp_config", inner)]


def deepspeed_config(plan: Plan, *, trainer: bool) -> dict[str, Any]:
    """The DeepSpeed configuration.

    Args:
        plan: what is exported.
        trainer: Hugging Face's Trainer makes the optimizer, and fills ``auto`` from its own arguments.
    """
    zero: dict[str, Any] = {
        "stage": plan.zero,
        "overlap_comm": True,
        "contiguous_gradients": True,
        "reduce_bucket_size": 500_000_000,
    }
    if plan.zero in (1, 2):
        zero["allgather_bucket_size"] = 500_000_000
    if plan.zero == 3:
        zero |= {
            "stage3_max_live_parameters": 1_000_000_000,
            "stage3_max_reuse_distance": 1_000_000_000,
            "stage3_gather_16bit_weights_on_model_save": True,
        }
    if "optimizer" in plan.offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if "parameters" in plan.offload:
        zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    config: dict[str, Any] = {
        "train_batch_size": plan.global_batch,
        "train_micro_batch_size_per_gpu": plan.micro_batch,
        "gradient_accumulation_steps": plan.grad_accum,
        "gradient_clipping": 1.0,
        "bf16": {"enabled": plan.precision.startswith("bf16")},
        "fp16": {"enabled": plan.precision.startswith("fp16")},
        "zero_optimization": zero,
    }
    if trainer and "optimizer" in plan.offload:
        auto = dict.fromkeys(("lr", "betas", "eps", "weight_decay"), "auto")
        config["optimizer"] = {"type": "AdamW", "params": auto}
    if not trainer:
        config["zero_allow_untested_optimizer"] = True
    return config


# ---- and back --------------------------------------------------------------------------------------------------------


def read_deepspeed(tree: Mapping[str, Any], found: Found) -> None:
    """Fields from a DeepSpeed configuration; ``auto`` states nothing."""
    keys = Keys(tree, found)
    found.set("micro_batch", keys.whole("train_micro_batch_size_per_gpu"))
    found.set("grad_accum", keys.whole("gradient_accumulation_steps"))
    found.set("global_batch", keys.whole("train_batch_size"))
    bf16 = keys.table("bf16", "bfloat16")
    fp16 = keys.table("fp16")
    is_bf16, is_fp16 = bf16.flag("enabled"), fp16.flag("enabled")
    if is_bf16 or is_fp16:
        found.set("precision", "bf16-mixed" if is_bf16 else "fp16-mixed")
    elif is_bf16 is False and is_fp16 is False:
        found.set("precision", "fp32")
    bf16.rest()
    fp16.everything()
    zero = keys.table("zero_optimization")
    stage = zero.number("stage")
    found.set("zero", int(stage) if stage in (0, 1, 2, 3) else None)
    moved = []
    for key, field in (("offload_optimizer", "optimizer"), ("offload_param", "parameters")):
        inner = zero.table(key)
        device = inner.take("device")
        if device in ("cpu", "nvme"):
            moved.append(field)
            if device == "nvme":
                found.warn(f"`zero_optimization.{key}.device` = nvme is read as host memory")
        inner.everything()
    if zero.flag("cpu_offload"):
        moved.append("optimizer")
    if moved:
        found.set("offload", tuple(dict.fromkeys(moved)))
    zero.rest("deepspeed-zero")
    checkpointing = keys.table("activation_checkpointing")
    checkpointing.everything()
    optimizer = keys.table("optimizer")
    kind = str(optimizer.take("type") or "").lower()
    names = {"adam": "adamw", "adamw": "adamw", "onebitadam": "adamw", "sgd": "sgd", "lion": "lion", "muon": "muon"}
    if kind in names:
        found.set("optimizer", names[kind])
    elif kind:
        found.warn(f"`optimizer.type` = {kind} was not understood")
    optimizer.everything()
    keys.rest("deepspeed")


def read_arguments(source: Source, keys: Keys, found: Found) -> None:
    """Fields from the keys of TrainingArguments."""
    found.set("micro_batch", keys.whole("per_device_train_batch_size", "train_batch_size"))
    found.set("grad_accum", keys.whole("gradient_accumulation_steps"))
    found.set("compile", keys.flag("torch_compile"))
    for key in ("torch_compile_backend", "torch_compile_mode", "optim_target_modules", "gradient_checkpointing_kwargs",
                "activation_checkpointing_kwargs", "ddp_find_unused_parameters", "use_cpu", "use_cache",
                "dataloader_prefetch_factor", "auto_find_batch_size"):  # fmt: skip
        keys.take(key)
    optim, args = keys.word(OPTIM_READ, "optim"), str(keys.take("optim_args") or "")
    found.set("optimizer", "momentum" if optim == "sgd" and "momentum" in args else optim)
    if keys.flag("gradient_checkpointing", "activation_checkpointing"):
        found.set("checkpointing", "full")
    else:
        found.set("checkpointing", found.get("checkpointing") or "none")
    read_liger(keys, found)
    read_fsdp(keys, found)
    read_deepspeed_file(source, keys.take("deepspeed"), found)


def read_liger(keys: Keys, found: Found) -> None:
    """The loss that Liger's kernels make."""
    config = keys.table("liger_kernel_config")
    fused = config.flag("fused_linear_cross_entropy")
    config.rest(also=("rope", "rms_norm", "swiglu", "cross_entropy"))
    if keys.flag("use_liger_kernel", "use_liger") and fused is not False:
        found.set("loss", "fused")


def read_fsdp(keys: Keys, found: Found) -> None:
    """FSDP settings of TrainingArguments (also axolotl's and accelerate's, whose keys begin with ``fsdp_``)."""
    stated = keys.take("fsdp")
    config = keys.table("fsdp_config")
    version = keys.whole("fsdp_version") or config.whole("version", "fsdp_version")
    words = " ".join(map(str, stated)) if isinstance(stated, list) else str(stated or "")
    on = bool(words.strip()) and words.lower() not in ("false", "none")
    reshard = config.take("reshard_after_forward", "fsdp_reshard_after_forward")
    strategy = str(config.take("fsdp_sharding_strategy", "sharding_strategy") or reshard or words).upper()
    if on or "auto_wrap_policy" in config or reshard is not None or version:
        found.set("zero", 3)
        if "SHARD_GRAD_OP" in strategy or "NO_SHARD" in strategy:
            found.set("zero", 2 if "GRAD_OP" in strategy else 0)
        elif reshard is False or str(reshard).lower() == "false":
            found.set("reshard", False)
        if "HYBRID" in strategy:
            found.warn(f"`{strategy.lower()}` shards within a node: state dp_shard")
        if version == 1:
            found.warn("FSDP1 is read as FSDP2")
    if config.flag("activation_checkpointing", "fsdp_activation_checkpointing"):
        found.set("checkpointing", "full")
    if config.flag("cpu_offload", "fsdp_offload_params", "offload_params") or "offload" in words.split():
        found.set("offload", ("optimizer", "parameters", "gradients"))
    config.rest("fsdp")


def read_deepspeed_file(source: Source, stated: Any, found: Found) -> None:
    """A DeepSpeed configuration that another file holds or names."""
    if stated is None:
        return
    if isinstance(stated, Mapping):
        tree: Any = stated
    else:
        tree = source.beside(str(stated))
    if isinstance(tree, Mapping):
        inner = Found()
        read_deepspeed(tree, inner)
        for path in ("strategy.optimizer", "task.global_batch"):  # Trainer's own arguments speak
            inner.values.pop(path, None)
        found.merge(inner)
        return
    name = str(stated).lower()
    stage = next((n for n in (1, 2, 3) if f"zero{n}" in name or f"z{n}" in name or f"stage{n}" in name), None)
    if stage is None:
        found.warn(f"the DeepSpeed configuration {str(stated)[:80]} is not there")
        return
    found.set("zero", stage)
    if "offload" in name:
        found.set("offload", ("optimizer", "parameters") if stage == 3 else ("optimizer",))
    found.warn(f"{str(stated)[:80]} is not there: ZeRO-{stage} is read from its name")


def read_model(keys: Keys, found: Found) -> str | None:
    """Model, adapters and quantisation, as TRL's ModelConfig names them; the dtype that the model is loaded in."""
    found.set("name", keys.text("model_name_or_path"))
    loaded = keys.word({**DTYPES_READ, "auto": None}, "dtype", "torch_dtype")
    found.set("attention", keys.word(ATTENTION_READ, "attn_implementation"))
    read_adapters(keys, found)
    return loaded if isinstance(loaded, str) else None


def read_adapters(keys: Keys, found: Found) -> None:
    """Adapters and bitsandbytes weights."""
    on, dora = keys.flag("use_peft"), keys.flag("use_dora")
    rank = keys.whole("lora_r", "lora_rank")
    alpha_, dropout = keys.number("lora_alpha"), keys.number("lora_dropout")
    names, also = keys.names("lora_target_modules"), keys.names("lora_modules_to_save")
    four, eight = keys.flag("load_in_4bit"), keys.flag("load_in_8bit")
    kind, nested = keys.take("bnb_4bit_quant_type"), keys.flag("use_bnb_nested_quant")
    for key in ("bnb_4bit_quant_storage", "bnb_4bit_compute_dtype", "lora_task_type"):
        keys.take(key)
    if not on:
        return
    found.set("method", "dora" if dora else "qlora" if four or eight else "lora")
    found.set("lora_rank", rank or 16)
    found.set("lora_alpha", alpha_)
    found.set("lora_dropout", dropout)
    if names is not None:
        found.set("lora_targets", names[0] if names == ("all-linear",) else names)
    found.set("lora_train_also", also)
    if four or eight:
        found.set("weights", "int8" if eight else "fp4" if kind == "fp4" else "nf4-dq" if nested else "nf4")


def settle_precision(found: Found, loaded: str | None, *, bf16: bool | None, fp16: bool | None) -> None:
    """Precision and frozen weights from the autocast flags and the dtype that the model is loaded in.

    Args:
        found: what is known; a DeepSpeed configuration may have spoken already.
        loaded: fp32, bf16 or fp16; None when the file does not say.
        bf16, fp16: autocast.
    """
    adapters = found.get("method") in ADAPTER_METHODS or found.get("lora_rank") is not None
    if adapters and found.get("weights") is None:
        found.set("weights", loaded)
    if bf16 or fp16:
        word = "bf16" if bf16 else "fp16"
        pure = loaded == word and not adapters and found.get("precision") is None
        found.set("precision", word if pure else f"{word}-mixed")
    elif found.get("precision") is None:
        found.set("precision", loaded or ("fp32" if bf16 is False or fp16 is False else None))
