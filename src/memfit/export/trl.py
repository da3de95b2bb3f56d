"""TRL: one YAML for ``trl sft`` or ``trl dpo``, with a DeepSpeed JSON where ZeRO needs one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from memfit.errors import JobError
from memfit.export import hf, launch
from memfit.export.levers import cannot, rules, written
from memfit.export.plan import Plan
from memfit.export.reading import Found, Keys, Source
from memfit.export.script import LEARNING_RATE
from memfit.export.target import File, Target
from memfit.export.text import Setting, commented, header, json_text, yaml
from memfit.formula.able import variant
from memfit.job import Job, Strategy

_LOSSES = {"eager": "nll", "chunked": "chunked_nll"}
"""Job loss -> ``loss_type`` of SFTConfig, where releases leave a choice."""
_LAST_CHOICE = "1.14"
"""The last release that leaves one; Liger's kernels compute the loss in it."""
_DATA = {"dpo": "trl-lib/ultrafeedback_binarized"}


def _kind(plan: Plan) -> str:
    return "dpo" if plan.method == "dpo" else "sft"


def _check(plan: Plan) -> Iterator[JobError]:
    yield from hf.checks(plan, hf.engine(plan))
    can = _losses(plan.job.strategy)
    if plan.loss not in can:
        version = _version(plan.job.strategy) or plan.target.version
        yield cannot("strategy.loss", plan.loss, f"TRL {version}", why=f"it has {', '.join(can)}")
    if plan.checkpointing == "none" and "activations" in plan.offload and hf.engine(plan) == "fsdp":
        why = "activation offloading of TRL does not know FSDP2's units"
        yield cannot("strategy.offload", plan.offload, plan.target.tool, why=why)


def _version(strategy: Strategy) -> str | None:
    """The release that is asked for."""
    return strategy.framework_version if strategy.framework == "trl" else None


def _losses(strategy: Strategy) -> tuple[str, ...]:
    """What that release computes the loss with."""
    return variant("trl", _version(strategy)).loss


def settings(plan: Plan) -> list[Setting]:
    """The keys of ScriptArguments, SFTConfig or DPOConfig, and ModelConfig."""
    title = "", None
    rows = [
        Setting(*title, "model"),
        *hf.model_settings(plan),
        Setting(*title, "data: yours to choose"),
        Setting("dataset_name", _DATA.get(_kind(plan), "trl-lib/Capybara")),
        Setting("max_length", plan.seq_len, plan.origin("seq_len")),
    ]
    if _kind(plan) == "sft":
        rows.append(Setting("packing", True, "every sequence is full: what the estimate takes for granted"))
    else:
        rows.append(Setting("beta", 0.1, "yours to choose"))
    rows += [Setting(*title, "memory and speed"), *hf.arguments(plan, hf.engine(plan)), *_loss(plan)]
    if "activations" in plan.offload:
        rows.append(Setting("activation_offloading", True, plan.note("offload")))
    rows += [
        Setting(*title, "yours to choose"),
        Setting("learning_rate", LEARNING_RATE),
        Setting("num_train_epochs", 1),
        Setting("logging_steps", 10),
        Setting("output_dir", "output"),
    ]
    return rows


def _loss(plan: Plan) -> list[Setting]:
    """What decides the loss where the release leaves a choice; 1.15 and later have one."""
    if len(_losses(plan.job.strategy)) == 1:
        return []
    if plan.loss == "fused":
        return hf.liger(plan)
    return [Setting("loss_type", _LOSSES[plan.loss], plan.note("loss"))] if _kind(plan) == "sft" else []


def command(plan: Plan) -> str:
    """What one machine starts."""
    name = _kind(plan)
    return launch.accelerate(plan, f"-m trl.scripts.{name} --config {name}.yaml").replace("launch", "launch", 1)


def write(plan: Plan) -> list[File]:
    """The YAML, and DeepSpeed's JSON when ZeRO is DeepSpeed's."""
    name = _kind(plan)
    text = commented(header(plan, f"configuration of `trl {name}`", [command(plan)])) + "\n" + yaml(settings(plan))
    files = [File(name=f"{name}.yaml", text=text)]
    if hf.engine(plan) == "deepspeed":
        files.append(File(name="deepspeed.json", text=json_text(hf.deepspeed_config(plan, trainer=True))))
    run = launch.run_script(plan, f"start of `trl {name}`", command(plan))
    return [*files, File(name="run.sh", text=run, executable=True)]


def read(source: Source) -> Found:
    """Fields from the YAML of ``trl sft`` or ``trl dpo``, or from saved training arguments."""
    found = Found()
    keys = Keys(source.tree, found)
    loaded = hf.read_model(keys, found)
    found.set("seq_len", keys.whole("max_length", "max_seq_length", "max_seq_len"))
    moved = keys.flag("activation_offloading")
    loss = keys.take("loss_type")
    preference = "beta" in keys or loss in (["sigmoid"], "sigmoid") or "max_prompt_length" in keys
    for key in ("beta", "max_prompt_length", "packing", "packing_strategy", "eval_packing", "padding_free",
                "completion_only_loss", "assistant_only_loss", "accelerate_config", "num_processes", "model_revision",
                "reward_funcs"):  # fmt: skip
        keys.take(key)
    if preference:
        found.set("method", "dpo")
    bf16, fp16 = keys.flag("bf16"), keys.flag("fp16")
    hf.read_arguments(source, keys, found)
    if moved:
        found.set("offload", tuple(dict.fromkeys((*(found.get("offload") or ()), "activations"))))
    hf.settle_precision(found, loaded or "fp32", bf16=fp16 is not True if bf16 is None else bf16, fp16=fp16)
    if found.get("method") == "dpo" and found.get("lora_rank") is None:
        found.set("weights", loaded or "fp32")
    found.set("framework", "trl")
    if found.get("loss") is None:
        found.set("loss", "chunked")
    else:
        found.set("framework_version", _LAST_CHOICE)
    if found.get("zero") == 3 and "deepspeed" not in source.tree:
        found.set("framework_version", "fsdp")
    keys.rest()
    return found


def _defaults(job: Job) -> Mapping[str, Any]:
    return {"strategy.loss": "chunked"} if job.strategy.framework != "trl" else {}


TARGET = Target(
    name="trl",
    title="TRL",
    version="1.16",
    about="YAML of `trl sft` or `trl dpo`, with DeepSpeed JSON for ZeRO or FSDP2 inside",
    checked="TrlParser with SFTConfig, DPOConfig and ModelConfig; a short `trl sft` run on two CPU processes",
    framework=("trl", None),
    variant=lambda job: ("trl", "fsdp" if hf.engine_of(job) == "fsdp" else _version(job)),
    defaults=_defaults,
    levers=rules(
        name=written(),
        config=written(),
        method=written("full", "lora", "qlora", "dora", "dpo", why="rollouts need settings that a job does not have"),
        seq_len=written(),
        lora_rank=written(),
        lora_targets=written(),
        lora_train_also=written(),
        lora_alpha=written(),
        lora_dropout=written(),
        precision=written(*hf.PRECISIONS),
        optimizer=written(*hf.OPTIM, "momentum"),
        micro_batch=written(),
        grad_accum=written(),
        dp=written(),
        zero=written(),
        reshard=written(),
        checkpointing=written("none", "full"),
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
    never=frozenset({"seq_len"}),
    marks=(
        frozenset({"use_peft"}),
        frozenset({"activation_offloading"}),
        frozenset({"packing", "max_length"}),
        frozenset({"max_seq_length", "per_device_train_batch_size"}),
        frozenset({"loss_type", "per_device_train_batch_size"}),
        frozenset({"max_length", "per_device_train_batch_size"}),
    ),
)
