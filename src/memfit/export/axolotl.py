"""axolotl: one YAML for ``axolotl train``, with a DeepSpeed JSON where ZeRO needs one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from memfit.errors import JobError
from memfit.export import hf, launch
from memfit.export.levers import ADAPTERS, cannot, rules, written
from memfit.export.plan import Plan
from memfit.export.reading import Found, Keys, Source
from memfit.export.target import File, Target
from memfit.export.text import Setting, commented, header, json_text, yaml
from memfit.job import Job

_OPTIM: Mapping[str, str] = {**hf.OPTIM, "adamw-4bit": "ao_adamw_4bit", "muon": "muon"}
_OPTIM_READ: Mapping[str, str] = {
    **hf.OPTIM_READ,
    "ao_adamw_4bit": "adamw-4bit",
    "ao_adamw_8bit": "adamw-8bit",
    "optimi_adamw": "adamw",
    "adamw_apex_fused": "adamw",
}


def _check(plan: Plan) -> Iterator[JobError]:
    tool, kind = plan.target.tool, hf.engine(plan)
    reference = plan.method == "dpo" and not plan.adapters  # loaded in 16 bit, whatever the trained weights are
    for error in hf.checks(plan, kind):
        if not (error.path == "strategy.dp_shard" and kind == "fsdp") and not (
            error.path == "strategy.weights" and reference
        ):
            yield error
    alone = kind == "ddp" and not plan.adapters
    if alone and plan.precision.endswith("-mixed"):
        why = "the model is loaded in 16 bit; fp32 master weights come only with sharding"
        yield cannot("strategy.precision", plan.precision, tool, why=why, hint="precision = bf16, or zero = 3")
    if plan.precision == "bf16" and (plan.adapters or kind == "fsdp"):
        what = "its adapters are fp32" if plan.adapters else "FSDP2 raises what is trained to fp32"
        why = f"bf16 always comes with autocast, under which {what}"
        yield cannot("strategy.precision", "bf16", tool, why=why, hint="precision = bf16-mixed")
    frozen = "fp32" if plan.precision == "fp32" else plan.precision.removesuffix("-mixed")
    if plan.method != "full" and plan.weights not in hf.QUANTIZED and plan.weights != frozen:
        yield cannot("strategy.weights", plan.weights, tool, why=f"frozen weights are loaded in {frozen}")
    if plan.method == "freeze" and not isinstance(plan.trainable, tuple):
        yield cannot("task.trainable", plan.trainable, tool, why="it takes names of parameters")
    if plan.optimizer == "muon" and kind == "deepspeed":
        yield cannot("strategy.optimizer", "muon", tool, why="its Muon goes with FSDP2, not with DeepSpeed")
    if plan.cp > 1 and plan.attention != "flash":
        yield cannot("strategy.attention", plan.attention, tool, why="context parallelism needs flash attention")
    if (plan.tp > 1 or plan.cp > 1) and kind == "deepspeed":
        lever = "tp" if plan.tp > 1 else "cp"
        yield cannot(
            f"strategy.{lever}", plan.values[lever], tool, why="not with DeepSpeed here", hint="zero = 3 by FSDP2"
        )
    if plan.tp > 1 and (plan.adapters or (kind == "ddp" and plan.dp > 1)):
        yield cannot(
            "strategy.tp", plan.tp, tool, why="tensor parallelism goes with full training, alone or with FSDP2"
        )
    if "activations" in plan.offload and plan.checkpointing != "full":
        why = "activations are offloaded together with gradient checkpointing"
        yield cannot("strategy.offload", plan.offload, tool, why=why, hint="checkpointing = full")


def settings(plan: Plan) -> list[Setting]:
    """The keys of the YAML."""
    title = "", None
    rows = [
        Setting(*title, "model"),
        Setting("base_model", plan.model),
        Setting("attn_implementation", hf.ATTENTION[plan.attention], plan.note("attention")),
        *_method(plan),
        Setting(*title, "data: yours to choose"),
        Setting("datasets", [_dataset(plan)]),
        Setting("sequence_len", plan.seq_len, plan.origin("seq_len")),
    ]
    if _sees(plan):
        rows += [
            Setting("processor_type", "AutoProcessor", "images and text go through the model's processor"),
            Setting("skip_prepare_dataset", True, "images are read batch by batch"),
            Setting("remove_unused_columns", False),
            Setting("sample_packing", False, "batches with images are not packed"),
        ]
    elif plan.method != "dpo":
        rows += [
            Setting("sample_packing", _packs(plan), "every sequence is full: what the estimate assumes"),
            Setting("pad_to_sequence_len", True),
        ]
    rows += [Setting(*title, "memory and speed"), *_levers(plan), *_parallel(plan)]
    return [
        *rows,
        Setting(*title, "yours to choose"),
        Setting("learning_rate", 0.00002),
        Setting("lr_scheduler", "cosine"),
        Setting("num_epochs", 1),
        Setting("warmup_steps", 20),
        Setting("logging_steps", 10),
        Setting("output_dir", "output"),
    ]


def _sees(plan: Plan) -> bool:
    """Whether the model is trained with its processor; preference tuning is of text."""
    return plan.arch.kind == "vision" and plan.method != "dpo"


def _packs(plan: Plan) -> bool:
    """Packing needs flash attention, and one sequence at a time under ring attention."""
    return bool(plan.attention == "flash" and (plan.cp == 1 or plan.micro_batch == 1))


def _dataset(plan: Plan) -> dict[str, Any]:
    if plan.method == "dpo":
        return {
            "path": "argilla/ultrafeedback-binarized-preferences-cleaned",
            "type": "chat_template.argilla",
            "split": "train",
        }
    if _sees(plan):
        return {"path": "HuggingFaceH4/llava-instruct-mix-vsft", "type": "chat_template", "split": "train[:1%]"}
    return {"path": "mhenrichsen/alpaca_2k_test", "type": "alpaca"}


def _method(plan: Plan) -> list[Setting]:
    rows = [Setting("rl", "dpo", plan.origin("method"))] if plan.method == "dpo" else []
    if plan.method == "freeze":
        names = [_regex(name) for name in plan.trainable]
        return [Setting("unfrozen_parameters", names, "what is trained: all else is frozen")]
    if not plan.adapters:
        return rows
    quantised = plan.weights in hf.QUANTIZED
    rows += [
        Setting("adapter", "qlora" if quantised and plan.weights != "int8" else "lora", f"method {plan.method}"),
        Setting("lora_r", plan.lora_rank, plan.origin("lora_rank")),
        Setting("lora_alpha", hf.alpha(plan)),
        Setting("lora_dropout", float(plan.lora_dropout), plan.origin("lora_dropout")),
    ]
    if plan.lora_targets == "all-linear":
        rows.append(Setting("lora_target_linear", True, plan.origin("lora_targets")))
    else:
        rows.append(Setting("lora_target_modules", list(plan.lora_targets), plan.origin("lora_targets")))
    if plan.lora_train_also:
        rows.append(Setting("lora_modules_to_save", list(plan.lora_train_also), "trained in full"))
    if plan.method == "dora":
        rows.append(Setting("peft_use_dora", True))
    if plan.weights == "int8":
        rows.append(Setting("load_in_8bit", True, plan.note("weights")))
    elif quantised:
        rows.append(Setting("load_in_4bit", True, plan.note("weights")))
        kind = "fp4" if plan.weights == "fp4" else "nf4"
        double = plan.weights == "nf4-dq"
        inner = {"bnb_4bit_quant_type": kind, "bnb_4bit_use_double_quant": double}
        rows.append(Setting("bnb_config_kwargs", inner))
    return rows


def _regex(pattern: str) -> str:
    """A module name or a pattern with ``*`` as the regular expression that axolotl matches from the start."""
    return (
        ".*".join(re.escape(part) for part in pattern.split("*"))
        if "*" in pattern
        else rf".*\b{re.escape(pattern)}\b.*"
    )


def _pattern(regex: str) -> str:
    """The way back; other regular expressions stay as they are, with ``.*`` as ``*``."""
    whole = re.fullmatch(r"\.\*\\b(.*)\\b\.\*", regex)
    text = whole[1] if whole else regex.strip("^$")
    return re.sub(r"\\(.)", r"\1", text.replace(".*", "*"))


def _levers(plan: Plan) -> list[Setting]:
    kind = hf.engine(plan)
    rows = [
        Setting("micro_batch_size", plan.micro_batch, plan.origin("micro_batch")),
        Setting(
            "gradient_accumulation_steps",
            plan.grad_accum,
            f"global batch {plan.global_batch} = {plan.micro_batch} * {plan.grad_accum} * {plan.dp} data-parallel GPUs",
        ),
        *_precision(plan),
        Setting("optimizer", hf.optim(plan, kind, _OPTIM), plan.note("optimizer")),
    ]
    if plan.optimizer == "momentum":
        rows.append(Setting("optim_args", {"momentum": 0.9}, "SGD with one momentum state"))
    if plan.optimizer == "galore":
        rows += [
            Setting("optim_args", {"rank": 128, "update_proj_gap": 200, "scale": 0.25}),
            Setting("optim_target_modules", ["self_attn", "mlp"], "matrices that GaLore projects"),
        ]
    full = plan.checkpointing == "full"
    if kind != "fsdp" or not full or "activations" in plan.offload:
        rows.append(Setting("gradient_checkpointing", full, plan.note("checkpointing")))
        if full:
            rows.append(Setting("gradient_checkpointing_kwargs", {"use_reentrant": False}))
    if "activations" in plan.offload:
        rows.append(Setting("activation_offloading", True, plan.note("offload")))
    if plan.loss == "chunked":
        rows.append(Setting("chunked_cross_entropy", True, plan.note("loss")))
    if plan.loss == "fused":
        rows.append(Setting("plugins", ["axolotl.integrations.liger.LigerPlugin"]))
        rows.append(Setting("liger_fused_linear_cross_entropy", True, f"of Liger only the loss: {plan.note('loss')}"))
    if plan.compile:
        rows.append(Setting("torch_compile", True, plan.note("compile")))
    return rows


def _precision(plan: Plan) -> list[Setting]:
    why = f"precision {plan.precision}: {plan.note('precision')}"
    if plan.precision == "fp32":
        return [Setting("bf16", False, why), Setting("fp16", False), Setting("float32", True)]
    if plan.precision == "fp16":  # no autocast, no fp32 copies
        return [Setting("bf16", False), Setting("float16", True, why)]
    if plan.precision == "fp16-mixed":
        return [Setting("bf16", False), Setting("fp16", True, why)]
    return [Setting("bf16", True, why)]


def _parallel(plan: Plan) -> list[Setting]:
    kind = hf.engine(plan)
    rows = []
    if kind == "deepspeed":
        rows.append(Setting("deepspeed", "deepspeed.json", f"ZeRO-{plan.zero}: {plan.note('zero')}"))
    elif kind == "fsdp":
        inner = [
            Setting("offload_params", "parameters" in plan.offload, plan.origin("offload")),
            Setting("reshard_after_forward", plan.reshard, plan.note("reshard")),
            Setting("auto_wrap_policy", "TRANSFORMER_BASED_WRAP", "each transformer layer is one unit"),
            Setting("state_dict_type", "SHARDED_STATE_DICT"),
            Setting("cpu_ram_efficient_loading", False),
        ]
        if plan.checkpointing == "full" and "activations" not in plan.offload:
            inner.append(Setting("activation_checkpointing", True, plan.note("checkpointing")))
        rows += [Setting("fsdp_version", 2, f"ZeRO-3: {plan.note('zero')}"), Setting("fsdp_config", inner)]
        if plan.dp_shard != plan.dp or plan.tp > 1 or plan.cp > 1:
            rows.append(Setting("dp_shard_size", plan.dp_shard, "GPUs that one sharded copy spans"))
            if plan.dp_shard != plan.dp:
                rows.append(Setting("dp_replicate_size", plan.dp // plan.dp_shard))
    if plan.tp > 1:
        rows.append(Setting("tensor_parallel_size", plan.tp, plan.origin("tp")))
    if plan.cp > 1:
        rows.append(Setting("context_parallel_size", plan.cp, "GPUs that share one sequence"))
    return rows


def command(plan: Plan) -> str:
    """What one machine starts."""
    if plan.nodes == 1:
        return f"axolotl train axolotl.yaml --num-processes {plan.gpus}"
    return launch.torchrun(plan, "-m axolotl.cli.train axolotl.yaml")


def write(plan: Plan) -> list[File]:
    """The YAML, and DeepSpeed's JSON when ZeRO is DeepSpeed's."""
    text = commented(header(plan, "configuration of axolotl", [command(plan)])) + "\n" + yaml(settings(plan))
    files = [File(name="axolotl.yaml", text=text)]
    if hf.engine(plan) == "deepspeed":
        files.append(File(name="deepspeed.json", text=json_text(hf.deepspeed_config(plan, trainer=True))))
    run = launch.run_script(plan, "start of axolotl", command(plan))
    return [*files, File(name="run.sh", text=run, executable=True)]


def read(source: Source) -> Found:
    """Fields from an axolotl configuration."""
    found = Found()
    keys = Keys(source.tree, found)
    found.set("name", keys.text("base_model"))
    attention = keys.word(hf.ATTENTION_READ, "attn_implementation")
    for key, value in (("flash_attention", "flash"), ("sdp_attention", "sdpa"), ("eager_attention", "eager"),
                       ("flex_attention", "flash"), ("xformers_attention", "flash")):  # fmt: skip
        attention = value if keys.flag(key) and attention is None else attention
    found.set("attention", attention)
    found.set("seq_len", keys.whole("sequence_len") or 512)
    found.set("micro_batch", keys.whole("micro_batch_size"))
    found.set("grad_accum", keys.whole("gradient_accumulation_steps") or 1)
    _read_method(keys, found)
    optim, args = keys.word(_OPTIM_READ, "optimizer"), str(keys.take("optim_args") or "")
    found.set("optimizer", "momentum" if optim == "sgd" and "momentum" in args else optim)
    _read_checkpointing(keys, found)
    found.set("loss", _read_loss(keys))
    compiled = keys.take("torch_compile")
    found.set("compile", compiled is True or None)
    _read_parallel(source, keys, found)
    _read_precision(keys, found)
    found.set("framework", "axolotl")
    if source.tree.get("deepspeed"):
        found.set("framework_version", "deepspeed")
    keys.rest("axolotl")
    return found


def _read_method(keys: Keys, found: Found) -> None:
    rl = keys.word({"dpo": "dpo", "ipo": "dpo", "grpo": "grpo"}, "rl", what="memfit knows dpo and grpo")
    adapter, rank = keys.take("adapter"), keys.whole("lora_r")
    four, eight = keys.flag("load_in_4bit"), keys.flag("load_in_8bit")
    dora, linear = keys.flag("peft_use_dora"), keys.flag("lora_target_linear")
    alpha, dropout = keys.number("lora_alpha"), keys.number("lora_dropout")
    names, also = keys.names("lora_target_modules"), keys.names("lora_modules_to_save")
    inner = keys.table("bnb_config_kwargs")
    kind, double = inner.take("bnb_4bit_quant_type"), inner.flag("bnb_4bit_use_double_quant")
    inner.rest(also=("bnb_4bit_quant_storage", "bnb_4bit_compute_dtype"))
    unfrozen = keys.names("unfrozen_parameters")
    if str(adapter) in ("lora", "qlora", "dora"):
        low = four or eight or adapter == "qlora"
        found.set("method", rl or ("qlora" if low else "dora" if dora or adapter == "dora" else "lora"))
        found.set("lora_rank", rank or 8)
        found.set("lora_alpha", alpha)
        found.set("lora_dropout", dropout)
        found.set("lora_targets", "all-linear" if linear or names == ("all-linear",) else names)
        found.set("lora_train_also", also)
        if low:
            bits4 = "fp4" if kind == "fp4" else "nf4" if double is False else "nf4-dq"
            found.set("weights", "int8" if eight else bits4)
    elif adapter:
        keys.odd("adapter", adapter)
    elif unfrozen:
        found.set("method", "freeze")
        found.set("trainable", tuple(_pattern(name) for name in unfrozen))
    else:
        found.set("method", rl or "full")


def _read_checkpointing(keys: Keys, found: Found) -> None:
    mode = keys.take("gradient_checkpointing")
    keys.take("gradient_checkpointing_kwargs")
    moved = keys.take("activation_offloading")
    if mode in ("offload", "offload_disk"):
        mode, moved = True, True
    found.set("checkpointing", "full" if mode else "none")
    if keys.take("selective_checkpointing"):
        found.warn("`selective_checkpointing` keeps attention's outputs: read as checkpointing = full")
    if moved:
        found.set("offload", ("activations",))


def _read_loss(keys: Keys) -> str | None:
    fused = [keys.flag(key) for key in ("liger_fused_linear_cross_entropy", "cut_cross_entropy")]
    chunked = keys.flag("chunked_cross_entropy")
    keys.take("plugins")
    keys.take("chunked_cross_entropy_num_chunks")
    return "fused" if any(fused) else "chunked" if chunked else None


def _read_parallel(source: Source, keys: Keys, found: Found) -> None:
    before = found.get("offload") or ()
    checkpointing = found.get("checkpointing")
    hf.read_fsdp(keys, found)
    if found.get("checkpointing") != "full":
        found.set("checkpointing", checkpointing)
    hf.read_deepspeed_file(source, keys.take("deepspeed"), found)
    found.set("offload", tuple(dict.fromkeys((*(found.get("offload") or ()), *before))) or None)
    shard, replicate = keys.whole("dp_shard_size"), keys.whole("dp_replicate_size")
    found.set("dp_shard", shard)
    if shard:
        found.set("dp", shard * (replicate or 1))
        found.set("zero", found.get("zero") or 3)
    tp, cp = keys.whole("tensor_parallel_size"), keys.whole("context_parallel_size", "sequence_parallel_degree")
    found.set("tp", tp if tp != 1 else None)
    found.set("cp", cp if cp != 1 else None)


def _read_precision(keys: Keys, found: Found) -> None:
    bf16, fp16, bfloat16 = keys.take("bf16"), keys.flag("fp16"), keys.flag("bfloat16")
    bf16 = True if bfloat16 else bf16  # autocast too: core/builders/base.py of axolotl 0.12 to 0.19
    plain = "fp16" if keys.flag("float16") and not bfloat16 else None
    keys.flag("float32")
    if keys.flag("fp8"):
        found.values["strategy.precision"] = "fp8"
        return
    mixed = (
        "fp16" if fp16 else "bf16" if bf16 is True or bf16 in ("auto", "full") or (bf16 is None and not plain) else None
    )
    adapters = found.get("lora_rank") is not None
    word = plain or "fp32"
    if mixed:
        word = f"{mixed}-mixed" if found.get("zero") or adapters else mixed
    found.values["strategy.precision"] = word
    if found.get("method") != "full" and found.get("weights") is None:
        found.set("weights", word.removesuffix("-mixed"))


def _defaults(job: Job) -> Mapping[str, Any]:
    alone = not job.strategy.zero and job.task.lora is None and job.task.method in (None, "full", "freeze", "dpo")
    return {"strategy.precision": "bf16"} if alone else {}


TARGET = Target(
    name="axolotl",
    title="axolotl",
    version="0.19",
    about="YAML of `axolotl train`, with DeepSpeed JSON for ZeRO or FSDP2 inside",
    checked="`axolotl.utils.config.validate_config` with the capabilities of 8 x H100",
    framework=("axolotl", None),
    variant=lambda job: ("axolotl", "deepspeed" if hf.engine_of(job) == "deepspeed" else None),
    defaults=_defaults,
    levers=rules(
        name=written(),
        config=written(),
        method=written("full", "lora", "qlora", "dora", "freeze", "dpo", why="rollouts need settings that a job lacks"),
        seq_len=written(),
        **ADAPTERS,
        precision=written("fp32", "bf16", "fp16", "bf16-mixed", "fp16-mixed"),
        optimizer=written(*_OPTIM, "momentum"),
        micro_batch=written(),
        grad_accum=written(),
        dp=written(),
        zero=written(),
        dp_shard=written(),
        reshard=written(),
        tp=written(),
        cp=written(),
        checkpointing=written("none", "full", why="its selective checkpointing keeps attention only"),
        compile=written(),
        attention=written("flash", "sdpa", "eager"),
        loss=written("eager", "chunked", "fused"),
        offload=written("optimizer", "parameters", "gradients", "activations"),
        weights=written(*hf.WEIGHTS),
        gpus=written(),
        gpus_per_node=written(),
    ),
    check=_check,
    write=write,
    read=read,
    command=command,
    marks=(frozenset({"base_model"}),),
)
