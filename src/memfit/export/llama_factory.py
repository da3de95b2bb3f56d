"""LLaMA-Factory: the YAML of ``llamafactory-cli train``, with a DeepSpeed JSON where ZeRO needs one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from memfit.errors import JobError
from memfit.export import hf, launch
from memfit.export.levers import ADAPTERS, cannot, rules, written
from memfit.export.plan import Plan
from memfit.export.reading import Found, Keys, Source
from memfit.export.script import LEARNING_RATE
from memfit.export.target import File, Target
from memfit.export.text import Setting, commented, header, json_text, yaml

_ATTENTION: Mapping[str, str] = {"flash": "fa2", "sdpa": "sdpa", "eager": "disabled"}
_ATTENTION_READ: Mapping[str, str] = {"fa2": "flash", "fa3": "flash", "sdpa": "sdpa", "disabled": "eager"}
_TEMPLATES: Mapping[str, str] = {
    "llama": "llama3", "qwen2": "qwen", "qwen3": "qwen3", "qwen3_moe": "qwen3", "mistral": "mistral",
    "gemma2": "gemma2", "gemma3_text": "gemma3", "phi3": "phi", "gpt_oss": "gpt_oss",
}  # fmt: skip
"""model_type -> chat template of LLaMA-Factory."""


def _kind(plan: Plan) -> str:
    return "deepspeed" if plan.zero else "ddp"


def _check(plan: Plan) -> Iterator[JobError]:
    tool = plan.target.tool
    pure = plan.precision == "bf16"
    for error in hf.checks(plan, _kind(plan)):
        if error.path == "strategy.weights" and plan.method == "dpo":
            continue  # its own rule below
        yield error
    if pure and plan.zero == 3:
        yield cannot("strategy.precision", "bf16", tool, why="pure_bf16 does not go with ZeRO-3")
    frozen = "fp32" if plan.precision == "fp32" else plan.precision.removesuffix("-mixed")
    if plan.method != "full" and plan.weights not in hf.QUANTIZED and plan.weights != frozen:
        why = f"frozen weights are held in the compute dtype: {frozen}"
        yield cannot("strategy.weights", plan.weights, tool, why=why)
    if plan.method == "freeze" and not isinstance(plan.trainable, int):
        yield cannot("task.trainable", plan.trainable, tool, why="it trains a number of last layers")
    if plan.optimizer == "muon" and plan.zero:
        yield cannot("strategy.optimizer", "muon", tool, why="its Muon does not go with DeepSpeed")


def settings(plan: Plan) -> list[Setting]:
    """The keys of the YAML."""
    title = "", None
    rows = [
        Setting(*title, "model"),
        Setting("model_name_or_path", plan.model),
        Setting("flash_attn", _ATTENTION[plan.attention], plan.note("attention")),
        Setting(*title, "method"),
        Setting("stage", "dpo" if plan.method == "dpo" else "sft"),
        Setting("do_train", True),
        *_method(plan),
        Setting(*title, "data: yours to choose"),
        Setting("dataset", "dpo_en_demo" if plan.method == "dpo" else "alpaca_en_demo"),
        Setting("template", _TEMPLATES.get(plan.arch.model_type, "default")),
        Setting("cutoff_len", plan.seq_len, plan.origin("seq_len")),
    ]
    if plan.method != "dpo":
        rows.append(Setting("packing", True, "every sequence is full: what the estimate takes for granted"))
    rows += [Setting(*title, "memory and speed"), *_levers(plan)]
    return [
        *rows,
        Setting(*title, "yours to choose"),
        Setting("learning_rate", LEARNING_RATE),
        Setting("num_train_epochs", 1.0),
        Setting("lr_scheduler_type", "cosine"),
        Setting("warmup_steps", 20),
        Setting("logging_steps", 10),
        Setting("save_steps", 500),
        Setting("output_dir", "output"),
        Setting("report_to", "none"),
    ]


def _method(plan: Plan) -> list[Setting]:
    if plan.method == "freeze":
        return [
            Setting("finetuning_type", "freeze", plan.origin("method")),
            Setting("freeze_trainable_layers", plan.trainable, "last layers that are trained"),
            Setting("freeze_trainable_modules", "all"),
        ]
    if not plan.adapters:
        return [Setting("finetuning_type", "full", plan.origin("method"))]
    names = "all" if plan.lora_targets == "all-linear" else ",".join(plan.lora_targets)
    rows = [
        Setting("finetuning_type", "lora", f"method {plan.method}: {plan.origin('method')}"),
        Setting("lora_rank", plan.lora_rank, plan.origin("lora_rank")),
        Setting("lora_alpha", hf.alpha(plan)),
        Setting("lora_dropout", float(plan.lora_dropout), plan.origin("lora_dropout")),
        Setting("lora_target", names, plan.origin("lora_targets")),
    ]
    if plan.lora_train_also:
        rows.append(Setting("additional_target", ",".join(plan.lora_train_also), "trained in full"))
    if plan.method == "dora":
        rows.append(Setting("use_dora", True))
    if plan.weights in hf.QUANTIZED:
        rows.append(Setting("quantization_bit", 8 if plan.weights == "int8" else 4, plan.note("weights")))
        rows.append(Setting("quantization_method", "bnb"))
        if plan.weights != "int8":
            rows.append(Setting("quantization_type", "fp4" if plan.weights == "fp4" else "nf4"))
            rows.append(Setting("double_quantization", plan.weights == "nf4-dq"))
    return rows


def _levers(plan: Plan) -> list[Setting]:
    replaced = {"fp16", "bf16", "activation_checkpointing", "activation_checkpointing_kwargs", "optim_target_modules"}
    rows = [row for row in hf.arguments(plan, _kind(plan)) if row.key not in replaced]
    if plan.optimizer in ("muon", "galore"):
        rows = [row for row in rows if row.key not in ("optim", "optim_args")]
        rows.append(Setting(f"use_{plan.optimizer}", True, plan.note("optimizer")))
        if plan.optimizer == "galore":
            rows += [Setting("galore_target", "all"), Setting("galore_rank", 128)]
    if plan.precision == "bf16":
        rows.append(Setting("pure_bf16", True, plan.note("precision")))
        rows.append(Setting("bf16", True))
    elif plan.precision != "fp32":
        rows.append(Setting(plan.precision.removesuffix("-mixed"), True, f"fp32 master: {plan.note('precision')}"))
    rows.append(Setting("disable_gradient_checkpointing", plan.checkpointing == "none", plan.note("checkpointing")))
    if plan.loss == "fused":
        why = f"fused loss, and Liger's other kernels with it: {plan.note('loss')}"
        rows.append(Setting("enable_liger_kernel", True, why))
    return rows


def command(plan: Plan) -> str:
    """What one machine starts."""
    words = f"FORCE_TORCHRUN=1 NPROC_PER_NODE={plan.gpus_each} "
    if plan.nodes > 1:
        words += f'NNODES={plan.nodes} NODE_RANK="$NODE_RANK" MASTER_ADDR="$MASTER_ADDR" MASTER_PORT="$MASTER_PORT" '
    return f"{words}llamafactory-cli train llama-factory.yaml"


def write(plan: Plan) -> list[File]:
    """The YAML, and DeepSpeed's JSON when something is sharded."""
    text = (
        commented(header(plan, "configuration of `llamafactory-cli train`", [command(plan)]))
        + "\n"
        + yaml(settings(plan))
    )
    files = [File(name="llama-factory.yaml", text=text)]
    if plan.zero:
        files.append(File(name="deepspeed.json", text=json_text(hf.deepspeed_config(plan, trainer=True))))
    run = launch.run_script(plan, "start of LLaMA-Factory", command(plan))
    return [*files, File(name="run.sh", text=run, executable=True)]


def read(source: Source) -> Found:
    """Fields from the YAML of ``llamafactory-cli train``."""
    found = Found()
    keys = Keys(source.tree, found)
    found.set("name", keys.text("model_name_or_path"))
    found.set("attention", keys.word({**_ATTENTION_READ, "auto": None}, "flash_attn"))
    stage = keys.word({"pt": "full", "sft": "full", "dpo": "dpo"}, "stage", what="memfit knows pt, sft and dpo")
    found.set("seq_len", keys.whole("cutoff_len") or 2048)
    _read_method(keys, found, stage)
    pure = keys.flag("pure_bf16")
    bf16, fp16 = keys.flag("bf16"), keys.flag("fp16")
    word = "bf16" if pure else "bf16-mixed" if bf16 else "fp16-mixed" if fp16 else "fp32"
    off = keys.flag("disable_gradient_checkpointing")
    muon, galore = keys.flag("use_muon"), keys.flag("use_galore")
    for key in ("packing", "neat_packing", "galore_target", "galore_rank", "use_reentrant_gc", "max_samples",
                "val_size", "quantization_method", "mask_history", "train_on_prompt", "dataset_dir", "overwrite_cache",
                "eval_dataset", "media_dir", "include_num_input_tokens_seen", "upcast_layernorm"):  # fmt: skip
        keys.take(key)
    liger = keys.flag("enable_liger_kernel")
    hf.read_arguments(source, keys, found)
    found.set("checkpointing", "none" if off else "full")
    if muon or galore:
        found.set("optimizer", "muon" if muon else "galore")
    found.values["strategy.precision"] = word
    if found.get("method") != "full" and found.get("weights") is None:
        found.set("weights", word.removesuffix("-mixed"))
    found.set("loss", "fused" if liger else None)
    found.set("framework", "transformers")
    found.set("framework_version", "llama-factory")
    keys.rest(also=("pref_beta", "pref_loss", "pref_ftx", "image_max_pixels", "video_max_pixels"))
    return found


def _read_method(keys: Keys, found: Found, stage: str | None) -> None:
    kind = str(keys.take("finetuning_type") or "lora").lower()
    bits, storage = keys.whole("quantization_bit"), keys.take("quantization_type")
    nested = keys.flag("double_quantization")
    rank, alpha, dropout = keys.whole("lora_rank"), keys.number("lora_alpha"), keys.number("lora_dropout")
    names, also, dora = keys.names("lora_target"), keys.names("additional_target"), keys.flag("use_dora")
    layers, modules = keys.number("freeze_trainable_layers"), keys.take("freeze_trainable_modules")
    if kind == "lora":
        found.set("method", stage if stage == "dpo" else "qlora" if bits else "dora" if dora else "lora")
        found.set("lora_rank", rank or 8)
        found.set("lora_alpha", alpha)
        found.set("lora_dropout", dropout)
        found.set("lora_targets", _names(names, "all"))
        found.set("lora_train_also", _names(also, ""))
        if bits:
            four = "fp4" if storage == "fp4" else "nf4" if nested is False else "nf4-dq"
            found.set("weights", "int8" if bits == 8 else four)
    elif kind == "freeze":
        found.set("method", "freeze")
        found.set("trainable", int(layers) if layers is not None else 2)
        if modules not in (None, "all"):
            keys.odd("freeze_trainable_modules", modules)
    else:
        found.set("method", stage or "full")
        if kind != "full":
            keys.odd("finetuning_type", kind)


def _names(value: tuple[str, ...] | None, everything: str) -> str | tuple[str, ...] | None:
    if value is None:
        return None
    names = tuple(name.strip() for text in value for name in text.split(",") if name.strip())
    return "all-linear" if everything and names == (everything,) else names or None


TARGET = Target(
    name="llama-factory",
    title="LLaMA-Factory",
    version="0.9.5",
    about="YAML of `llamafactory-cli train`, with DeepSpeed JSON for ZeRO",
    checked="`llamafactory.hparams.get_train_args`, its own parser and cross checks",
    framework=("transformers", "llama-factory"),
    levers=rules(
        name=written(),
        config=written(),
        method=written("full", "lora", "qlora", "dora", "freeze", "dpo"),
        seq_len=written(),
        **ADAPTERS,
        precision=written("fp32", "bf16", "bf16-mixed", "fp16-mixed"),
        optimizer=written(*hf.OPTIM, "momentum", "muon"),
        micro_batch=written(),
        grad_accum=written(),
        dp=written(),
        zero=written(),
        checkpointing=written("none", "full"),
        compile=written(),
        attention=written("flash", "sdpa", "eager"),
        loss=written("eager", "fused"),
        offload=written("optimizer", "parameters"),
        weights=written(*hf.WEIGHTS),
        gpus=written(),
        gpus_per_node=written(),
    ),
    check=_check,
    write=write,
    read=read,
    command=command,
    marks=(
        frozenset({"finetuning_type"}),
        frozenset({"cutoff_len"}),
        frozenset({"stage", "template"}),
    ),
)
