"""torchtune: the YAML of its fine-tuning recipes. The project was wound down in 2025; the last release is 0.6.1."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from memfit.errors import JobError
from memfit.export import hf, launch
from memfit.export.levers import cannot, rules, written
from memfit.export.plan import Plan
from memfit.export.target import File, Target
from memfit.export.text import Setting, commented, header, yaml


class _Model(NamedTuple):
    """A builder of torchtune: module of ``torchtune.models``, builder, tokenizer, checkpoint type, weight files."""

    module: str
    builder: str
    tokenizer: str
    kind: str


_MODELS: Mapping[str, _Model] = {
    "llama-3.1-8b": _Model("llama3_1", "llama3_1_8b", "llama3.llama3_tokenizer", "LLAMA3"),
    "llama-3.1-70b": _Model("llama3_1", "llama3_1_70b", "llama3.llama3_tokenizer", "LLAMA3"),
    "llama-3.1-405b": _Model("llama3_1", "llama3_1_405b", "llama3.llama3_tokenizer", "LLAMA3"),
    "llama-3.2-1b": _Model("llama3_2", "llama3_2_1b", "llama3.llama3_tokenizer", "LLAMA3_2"),
    "llama-3.2-3b": _Model("llama3_2", "llama3_2_3b", "llama3.llama3_tokenizer", "LLAMA3_2"),
    "qwen2.5-0.5b": _Model("qwen2_5", "qwen2_5_0_5b", "qwen2_5.qwen2_5_tokenizer", "QWEN2"),
    "qwen2.5-1.5b": _Model("qwen2_5", "qwen2_5_1_5b_base", "qwen2_5.qwen2_5_tokenizer", "QWEN2"),
    "qwen2.5-3b": _Model("qwen2_5", "qwen2_5_3b", "qwen2_5.qwen2_5_tokenizer", "QWEN2"),
    "qwen2.5-7b": _Model("qwen2_5", "qwen2_5_7b_base", "qwen2_5.qwen2_5_tokenizer", "QWEN2"),
}
"""Catalog name -> builder, as torchtune 0.6.1 has them."""
_OPTIMIZERS = {
    "adamw": "torch.optim.AdamW",
    "adamw-8bit": "bitsandbytes.optim.AdamW8bit",
    "paged-adamw-8bit": "bitsandbytes.optim.PagedAdamW8bit",
    "sgd": "torch.optim.SGD",
    "momentum": "torch.optim.SGD",
    "adafactor": "torch.optim.Adafactor",
}
_ATTENTION = {"q_proj": "q_proj", "k_proj": "k_proj", "v_proj": "v_proj", "o_proj": "output_proj"}
_MLP = {"gate_proj", "up_proj", "down_proj"}


def _targets(plan: Plan) -> tuple[list[str], set[str]]:
    """(torchtune's names of the adapted projections of attention, the other targets)."""
    names = (*_ATTENTION, *sorted(_MLP)) if isinstance(plan.lora_targets, str) else plan.lora_targets
    return [_ATTENTION[name] for name in names if name in _ATTENTION], {n for n in names if n not in _ATTENTION}


def _builder(plan: Plan) -> _Model | None:
    from memfit.models import catalog

    entry = catalog.lookup(plan.name) if plan.name else None
    return _MODELS.get(entry.name) if entry else None


def _check(plan: Plan) -> Iterator[JobError]:
    tool = plan.target.tool
    if _builder(plan) is None:
        message = f"{tool} has no builder of {plan.name or 'this configuration'} here"
        yield JobError("model.name", message, hint=f"it has {', '.join(_MODELS)}")
    if plan.zero == 0 and plan.dp > 1:
        yield cannot("strategy.zero", 0, tool, why="its distributed recipes shard by FSDP2", hint="zero = 3")
    if plan.dp_shard != plan.dp:
        yield cannot("strategy.dp_shard", plan.dp_shard, tool)
    if plan.optimizer_in_backward and plan.adapters:
        yield cannot("strategy.optimizer_in_backward", True, tool, why="its LoRA recipes have none")
    moved = set(plan.offload) - {"activations"}
    if moved and (len(moved) < 3 or plan.zero < 3):
        why = "FSDP2 offloads parameters, gradients and optimizer states together"
        yield cannot("strategy.offload", plan.offload, tool, why=why)
    if "activations" in plan.offload and plan.checkpointing != "full":
        yield cannot("strategy.offload", plan.offload, tool, why="activations are offloaded with checkpointing only")
    if plan.adapters:
        low = plan.weights in hf.QUANTIZED
        if low and plan.weights != "nf4-dq":
            yield cannot(
                "strategy.weights", plan.weights, tool, why="its NF4 quantises the scales too", hint="weights = nf4-dq"
            )
        word = plan.precision
        if not low and plan.weights != word:
            yield cannot("strategy.weights", plan.weights, tool, why=f"frozen weights are held in {word}")
        attention, others = _targets(plan)
        if not attention or others not in (set(), _MLP):
            why = "it takes projections of attention by name, and those of the MLP all or none"
            yield cannot("task.lora.targets", plan.lora_targets, tool, why=why, hint="targets = all-linear")
        if plan.method == "qlora" and not low:
            yield cannot("strategy.weights", plan.weights, tool, why="QLoRA is nf4-dq")
        if plan.method != "qlora" and low:
            yield cannot("strategy.weights", plan.weights, tool, why="quantised weights go with method qlora")
    if plan.optimizer in ("adamw-8bit", "paged-adamw-8bit") and plan.zero:
        yield cannot("strategy.optimizer", plan.optimizer, tool, why="bitsandbytes does not update sharded parameters")


def _model(plan: Plan) -> list[Setting]:
    built = _builder(plan)
    assert built is not None
    if not plan.adapters:
        return [Setting("_component_", f"torchtune.models.{built.module}.{built.builder}")]
    kind = "qlora" if plan.method == "qlora" else "lora"
    attention, mlp = _targets(plan)
    rows = [
        Setting("_component_", f"torchtune.models.{built.module}.{kind}_{built.builder}", f"method {plan.method}"),
        Setting("lora_attn_modules", attention, plan.origin("lora_targets")),
        Setting("apply_lora_to_mlp", bool(mlp)),
        Setting("lora_rank", plan.lora_rank, plan.origin("lora_rank")),
        Setting("lora_alpha", hf.alpha(plan)),
        Setting("lora_dropout", float(plan.lora_dropout)),
    ]
    return [*rows, Setting("use_dora", True)] if plan.method == "dora" else rows


def _recipe(plan: Plan) -> str:
    kind = "lora" if plan.adapters else "full"
    return f"{kind}_finetune_{'distributed' if plan.zero else 'single_device'}"


def settings(plan: Plan) -> list[Setting]:
    """The keys of the recipe."""
    built = _builder(plan)
    assert built is not None
    title = "", None
    folder = f"./{plan.model.rsplit('/', 1)[-1]}"
    chunked = "torchtune.modules.loss.CEWithChunkedOutputLoss"
    loss = chunked if plan.loss == "chunked" else "torch.nn.CrossEntropyLoss"
    optimizer = [
        Setting("_component_", _OPTIMIZERS[plan.optimizer], plan.note("optimizer")),
        Setting("lr", 0.00002),
        *([Setting("fused", True)] if plan.optimizer == "adamw" else []),
        *([Setting("momentum", 0.9)] if plan.optimizer == "momentum" else []),
    ]
    rows = [
        Setting("output_dir", "./output"),
        Setting(*title, "model"),
        Setting("model", _model(plan)),
        Setting("tokenizer", [
            Setting("_component_", f"torchtune.models.{built.tokenizer}"),
            Setting("path", f"{folder}/{'vocab.json' if 'qwen' in built.tokenizer else 'original/tokenizer.model'}"),
            *([Setting("merges_file", f"{folder}/merges.txt")] if "qwen" in built.tokenizer else []),
            Setting("max_seq_len", plan.seq_len, plan.origin("seq_len")),
        ]),
        Setting("checkpointer", [
            Setting("_component_", "torchtune.training.FullModelHFCheckpointer"),
            Setting("checkpoint_dir", folder, f"tune download {plan.model}"),
            Setting("checkpoint_files", ["model.safetensors"], "name all files of the checkpoint"),
            Setting("output_dir", "./output"),
            Setting("model_type", built.kind),
        ]),
        Setting("resume_from_checkpoint", False),
        Setting(*title, "data: yours to choose"),
        Setting("dataset", [
            Setting("_component_", "torchtune.datasets.alpaca_dataset"),
            Setting("packed", True, "every sequence is full: what the estimate takes for granted"),
        ]),
        Setting("seed", 0),
        Setting("shuffle", True),
        Setting(*title, "memory and speed"),
        Setting("batch_size", plan.micro_batch, plan.origin("micro_batch")),
        Setting("gradient_accumulation_steps", plan.grad_accum, f"global batch {plan.global_batch}"),
        Setting("dtype", {"fp32": "fp32", "bf16": "bf16"}[plan.precision], plan.note("precision")),
        Setting("optimizer", optimizer),
        Setting("loss", [Setting("_component_", loss, plan.note("loss"))]),
        Setting("enable_activation_checkpointing", plan.checkpointing == "full", plan.note("checkpointing")),
        Setting("enable_activation_offloading", "activations" in plan.offload, plan.origin("offload")),
        Setting("compile", plan.compile, plan.note("compile")),
    ]  # fmt: skip
    if not plan.adapters:
        rows.append(Setting("optimizer_in_bwd", plan.optimizer_in_backward, plan.origin("optimizer_in_backward")))
    if plan.zero:
        rows.append(Setting("fsdp_cpu_offload", "parameters" in plan.offload))
        rows.append(Setting("fsdp_reshard_after_forward", plan.reshard, f"ZeRO-3: {plan.note('zero')}"))
    if plan.adapters:
        rows.append(Setting("lr_scheduler", [
            Setting("_component_", "torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup"),
            Setting("num_warmup_steps", 20),
        ]))  # fmt: skip
        rows.append(Setting("save_adapter_weights_only", True))
    return [
        *rows,
        Setting(*title, "yours to choose"),
        Setting("epochs", 1),
        Setting("max_steps_per_epoch", None),
        Setting("clip_grad_norm", None if plan.optimizer_in_backward else 1.0),
        Setting("device", "cuda"),
        Setting("log_every_n_steps", 1),
        Setting("log_peak_memory_stats", True),
        Setting("metric_logger", [
            Setting("_component_", "torchtune.training.metric_logging.DiskLogger"), Setting("log_dir", "./output/logs"),
        ]),
    ]  # fmt: skip


def command(plan: Plan) -> str:
    """What one machine starts."""
    words = f"--nproc_per_node {plan.gpus_each} " if plan.zero else ""
    if plan.nodes > 1:
        words += (
            f'--nnodes {plan.nodes} --node_rank "$NODE_RANK" --master_addr "$MASTER_ADDR" --master_port "$MASTER_PORT" '
        )
    return f"tune run {words}{_recipe(plan)} --config torchtune.yaml"


def write(plan: Plan) -> list[File]:
    """The YAML."""
    text = commented(header(plan, f"configuration of the recipe {_recipe(plan)}", [command(plan)]))
    run = launch.run_script(plan, f"start of the recipe {_recipe(plan)}", command(plan))
    files = [File(name="torchtune.yaml", text=text + yaml(settings(plan)))]
    return [*files, File(name="run.sh", text=run, executable=True)]


TARGET = Target(
    name="torchtune",
    title="torchtune",
    version="0.6.1",
    about="YAML of its full and LoRA fine-tuning recipes",
    checked="read back as YAML only: the tool itself no longer imports beside current torchao",
    framework=("torchtune", None),
    note="torchtune was wound down by its makers in 2025: this is for installations that still run it",
    levers=rules(
        name=written(),
        method=written("full", "lora", "qlora", "dora"),
        seq_len=written(),
        lora_rank=written(),
        lora_targets=written(),
        lora_alpha=written(),
        lora_dropout=written(),
        precision=written("fp32", "bf16", why="its recipes train in one dtype"),
        optimizer=written(*_OPTIMIZERS),
        optimizer_in_backward=written(),
        micro_batch=written(),
        grad_accum=written(),
        dp=written(),
        zero=written(0, 3),
        reshard=written(),
        checkpointing=written("none", "full"),
        compile=written(),
        attention=written("flash", why="it runs torch's scaled dot product attention, which chooses flash itself"),
        loss=written("eager", "chunked"),
        offload=written("optimizer", "parameters", "gradients", "activations"),
        weights=written("bf16", "fp32", "nf4-dq"),
        gpus=written(),
        gpus_per_node=written(),
    ),
    check=_check,
    write=write,
    command=command,
)
