"""Megatron-Bridge: a Python module that builds its ``ConfigContainer`` from a Hugging Face checkpoint and trains."""

from __future__ import annotations

from collections.abc import Iterator

from memfit.errors import JobError
from memfit.export import hf, launch, megatron
from memfit.export.levers import cannot, rules, written
from memfit.export.plan import Plan
from memfit.export.target import File, Target
from memfit.export.text import Setting, commented, header, python

_PRECISION = {
    "bf16-mixed": "bf16_mixed",
    "fp16-mixed": "fp16_mixed",
    "fp8": "bf16_with_fp8_delayed_scaling_mixed",
    "mxfp8": "bf16_with_mxfp8_mixed",
    "nvfp4": "bf16_with_nvfp4_mixed",
}


def _check(plan: Plan) -> Iterator[JobError]:
    yield from megatron.check(plan)
    tool = plan.target.tool
    if plan.adapters and plan.weights != "bf16":
        yield cannot("strategy.weights", plan.weights, tool, why="frozen weights are held in bf16")
    if plan.adapters and plan.lora_targets != "all-linear":
        why = "its projections are fused and named otherwise"
        yield cannot("task.lora.targets", plan.lora_targets, tool, why=why, hint="targets = all-linear")


def _assign(owner: str, rows: list[Setting]) -> list[str]:
    return [f"    {owner}.{key} = {python(value)}{f'  # {why}' if why else ''}" for key, value, why in rows]


def _model(plan: Plan) -> list[str]:
    rows = [*megatron.core(plan)["model"], Setting("seq_length", plan.seq_len, plan.origin("seq_len"))]
    if plan.virtual_pp > 1:
        rows.append(Setting("virtual_pipeline_model_parallel_size", plan.virtual_pp, "stages on each GPU"))
    lines = _assign("model", rows)
    if plan.pp > 1:
        low = (
            "torch.float32"
            if plan.precision == "fp32"
            else "torch.float16"
            if "fp16" in plan.precision
            else "torch.bfloat16"
        )
        lines.append(f"    model.pipeline_dtype = {low}")
    backend = {"flash": "flash", "eager": "unfused"}[plan.attention]
    return [*lines, f"    model.attention_backend = AttnBackend.{backend}  # {plan.note('attention')}"]


def _arguments(rows: list[Setting]) -> str:
    return ", ".join(f"{key}={python(value)}" for key, value, _ in rows)


def module(plan: Plan) -> str:
    """The text of the module."""
    groups = megatron.core(plan)
    finetune = plan.adapters
    mixed = _PRECISION.get(plan.precision)
    precision = (
        python(mixed)
        if mixed
        else "MixedPrecisionConfig(fp32=True, params_dtype=torch.float32, pipeline_dtype=torch.float32)"
    )
    names = ["CheckpointConfig", "ConfigContainer", "DistributedDataParallelConfig", "LoggerConfig",
             "MockGPTDatasetConfig", "OptimizerConfig", "SchedulerConfig", "TokenizerConfig",
             "TrainingConfig"]  # fmt: skip
    imports = [
        "import torch",
        "from megatron.bridge import AutoBridge",
        f"from megatron.bridge.training.config import ({', '.join(names)})",
        "from megatron.bridge.training.gpt_step import forward_step",
        "from megatron.core.transformer.enums import AttnBackend",
    ]
    imports.append(
        f"from megatron.bridge.training.{'finetune import finetune' if finetune else 'pretrain import pretrain'}"
    )
    if mixed is None:
        imports.append("from megatron.bridge.training.mixed_precision import MixedPrecisionConfig")
    if plan.adapters:
        imports.append(
            "from megatron.bridge.peft." + ("dora import DoRA" if plan.method == "dora" else "lora import LoRA")
        )
    peft = ""
    if plan.adapters:
        kind = "DoRA" if plan.method == "dora" else "LoRA"
        peft = (
            f"\n        peft={kind}(dim={plan.lora_rank}, alpha={hf.alpha(plan)}, dropout={float(plan.lora_dropout)}),"
        )
    optimizer = [Setting("lr", 0.0003), Setting("min_lr", 0.00003), *groups["optimizer"]]
    ddp = [Setting("grad_reduce_in_fp32", True), Setting("use_distributed_optimizer", plan.zero > 0), *groups["ddp"]]
    optimizer_why = "; ".join(f"{key}: {why}" for key, _, why in groups["optimizer"] if why)
    body = f"""
def config() -> ConfigContainer:
    model = AutoBridge.from_hf_pretrained({python(plan.model)}).to_megatron_provider(load_weights={finetune})
{chr(10).join(_model(plan))}
    return ConfigContainer(
        model=model,
        train=TrainingConfig(
            micro_batch_size={plan.micro_batch},  # {plan.origin("micro_batch")}
            global_batch_size={plan.global_batch},  # {plan.grad_accum} micro-batches on {plan.dp} data-parallel ranks
            train_iters=1000,  # yours to choose
        ),
        # {optimizer_why}
        optimizer=OptimizerConfig({_arguments(optimizer)}),
        scheduler=SchedulerConfig(lr_decay_style="cosine", lr_warmup_iters=20),
        ddp=DistributedDataParallelConfig({_arguments(ddp)}),
        dataset=MockGPTDatasetConfig(  # yours to choose
            random_seed=1234,
            reset_attention_mask=False,
            reset_position_ids=False,
            eod_mask_loss=False,
            seq_length={plan.seq_len},
            dataloader_type="single",
        ),
        logger=LoggerConfig(log_interval=10),
        tokenizer=TokenizerConfig(tokenizer_type="HuggingFaceTokenizer", tokenizer_model={python(plan.model)}),
        checkpoint=CheckpointConfig(save="output", save_interval=500),{peft}
        mixed_precision={precision},  # precision {plan.precision}: {plan.note("precision")}
    )


if __name__ == "__main__":
    {"finetune" if finetune else "pretrain"}(config=config(), forward_step_func=forward_step)
"""
    top = commented(header(plan, "training script of Megatron-Bridge", [launch.training_script(plan)]))
    return f"{top}\n{chr(10).join(sorted(imports, key=lambda line: (line.startswith('from'), line)))}\n\n{body}"


def write(plan: Plan) -> list[File]:
    """The module and how to start it."""
    run = launch.run_script(
        plan, "start of Megatron-Bridge", launch.training_script(plan), "export CUDA_DEVICE_MAX_CONNECTIONS=1\n"
    )
    return [File(name="train.py", text=module(plan)), File(name="run.sh", text=run, executable=True)]


TARGET = Target(
    name="megatron-bridge",
    title="Megatron-Bridge",
    version="0.3",
    about="Python script that builds a `ConfigContainer` from a Hugging Face checkpoint",
    checked="the script's `config()` runs with Megatron-Bridge's own classes "
    "(GPU libraries and the checkpoint's reader are stubs)",
    framework=("megatron", None),
    levers={
        **megatron.LEVERS,
        **rules(
            config=written(),
            method=written("full", "lora", "dora"),
            lora_rank=written(),
            lora_targets=written("all-linear"),
            lora_alpha=written(),
            lora_dropout=written(),
            weights=written("bf16"),
        ),
    },
    check=_check,
    write=write,
    command=launch.training_script,
)
