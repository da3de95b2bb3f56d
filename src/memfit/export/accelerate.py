"""accelerate: a configuration for ``accelerate launch``, and a plain loop that follows it."""

from __future__ import annotations

from collections.abc import Iterator

from memfit.errors import JobError
from memfit.export import hf, launch, script
from memfit.export.levers import ADAPTERS, cannot, rules, written
from memfit.export.plan import Plan
from memfit.export.reading import Found, Keys, Source
from memfit.export.target import File, Target
from memfit.export.text import Setting, commented, header, yaml

_MIXED = {"bf16-mixed": "bf16", "fp16-mixed": "fp16"}


def config(plan: Plan) -> list[Setting]:
    """The settings of ``accelerate launch --config_file``."""
    kind = "FSDP" if plan.zero == 3 else "MULTI_GPU" if plan.gpus > 1 else "NO"
    rows = [
        Setting("compute_environment", "LOCAL_MACHINE"),
        Setting("distributed_type", kind, f"zero {plan.zero}: {plan.note('zero')}"),
        Setting("num_machines", plan.nodes),
        Setting("num_processes", plan.gpus, "GPUs in all"),
        Setting("machine_rank", 0),
        Setting("rdzv_backend", "static"),
        Setting("main_training_function", "main"),
        Setting("use_cpu", False),
        Setting("mixed_precision", _MIXED.get(plan.precision, "no"), f"{plan.precision}: {plan.note('precision')}"),
    ]
    if plan.compile:
        inner = [Setting("dynamo_backend", "INDUCTOR"), Setting("dynamo_use_regional_compilation", True)]
        rows.append(Setting("dynamo_config", inner, plan.note("compile")))
    if plan.zero == 3:
        rows.append(Setting("fsdp_config", fsdp(plan)))
    if plan.zero == 3 and plan.dp_shard != plan.dp:
        inner = [
            Setting("parallelism_config_dp_replicate_size", plan.dp // plan.dp_shard),
            Setting("parallelism_config_dp_shard_size", plan.dp_shard, "GPUs that one sharded copy spans"),
        ]
        rows.append(Setting("parallelism_config", inner, "hybrid sharding"))
    return rows


def fsdp(plan: Plan) -> list[Setting]:
    """The FSDP2 settings, as the launcher names them."""
    return [
        Setting("fsdp_version", 2),
        Setting("fsdp_reshard_after_forward", plan.reshard, plan.note("reshard")),
        Setting("fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP", "each transformer layer is one unit"),
        Setting("fsdp_activation_checkpointing", plan.checkpointing == "full", plan.note("checkpointing")),
        Setting("fsdp_offload_params", "parameters" in plan.offload, plan.origin("offload")),
        Setting("fsdp_cpu_ram_efficient_loading", False),
        Setting("fsdp_state_dict_type", "SHARDED_STATE_DICT"),
    ]


def _check(plan: Plan) -> Iterator[JobError]:
    yield from hf.checks(plan, "fsdp" if plan.zero == 3 else "ddp")
    yield from script.optimizer_faults(plan)
    if plan.dp_shard != plan.dp and plan.offload:
        yield cannot("strategy.offload", plan.offload, plan.target.tool, why="not with hybrid sharding")


def train(plan: Plan) -> str:
    """The training loop."""
    imports = [*script.model_imports(plan), *script.optimizer_imports(plan), "from accelerate import Accelerator"]
    text = script.head(plan, "training loop", [launch.accelerate(plan, "train.py", "accelerate.yaml")], imports)
    rows = [Setting("SET_TO_NONE", plan.set_to_none, plan.origin("set_to_none"))]
    parts = [
        text + script.settings(plan, rows),
        script.ARGUMENTS,
        script.build_model(plan, checkpoint=plan.zero != 3, device_map="torch.cuda.current_device()"),
        script.optimizer(plan),
        script.DATA,
        _MAIN,
    ]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


_MAIN = """
def main():
    args = arguments()
    accelerator = Accelerator(gradient_accumulation_steps=GRAD_ACCUM)
    model = build_model(args)
    if accelerator.is_fsdp2:  # the optimizer needs the sharded parameters
        model = accelerator.prepare(model)
        optimizer = accelerator.prepare(build_optimizer([p for p in model.parameters() if p.requires_grad]))
    else:
        optimizer = build_optimizer([p for p in model.parameters() if p.requires_grad])
        model, optimizer = accelerator.prepare(model, optimizer)
    model.train()
    batches = token_stream(args, accelerator.process_index, accelerator.num_processes, accelerator.device)
    for step in range(args.steps):
        for _ in range(GRAD_ACCUM):
            tokens = next(batches)
            with accelerator.accumulate(model):
                loss = model(input_ids=tokens, labels=tokens).loss
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=SET_TO_NONE)
        mean = accelerator.reduce(loss.detach(), "mean")
        accelerator.print(f"step {step + 1} loss {mean.item():.4f}")
    accelerator.save_model(model, args.output)
    accelerator.end_training()


if __name__ == "__main__":
    main()
"""


def write(plan: Plan) -> list[File]:
    """The configuration and the loop."""
    run = [command(plan)]
    text = commented(header(plan, "configuration of accelerate", run)) + "\n" + yaml(config(plan))
    start = launch.run_script(plan, "start of the training loop", command(plan))
    return [
        File(name="accelerate.yaml", text=text),
        File(name="train.py", text=train(plan)),
        File(name="run.sh", text=start, executable=True),
    ]


def command(plan: Plan) -> str:
    """What one machine starts."""
    return launch.accelerate(plan, "train.py", "accelerate.yaml")


def read(source: Source) -> Found:
    """Fields from a configuration of ``accelerate launch``."""
    found = Found()
    keys = Keys(source.tree, found)
    kind = str(keys.take("distributed_type") or "NO").upper()
    gpus, machines = keys.whole("num_processes"), keys.whole("num_machines")
    found.set("gpus", gpus)
    if gpus and machines and gpus % machines == 0:
        found.set("gpus_per_node", gpus // machines)
    mixed = keys.take("mixed_precision")
    words = {"bf16": "bf16-mixed", "fp16": "fp16-mixed", "fp8": "fp8", "no": "fp32", "False": "fp32", "None": None}
    if str(mixed) in words:
        found.set("precision", words[str(mixed)])
    elif mixed is not None:
        keys.odd("mixed_precision", mixed)
    if found.get("precision") == "fp32":
        found.warn("`mixed_precision` = no is read as fp32: the dtype in which the script loads the model decides")
    dynamo = keys.table("dynamo_config")
    found.set("compile", True if str(dynamo.take("dynamo_backend") or "NO").upper() not in ("NO", "FALSE") else None)
    dynamo.everything()
    inner = keys.take("fsdp_config")
    if kind == "FSDP" or inner:
        hf.read_fsdp(Keys({"fsdp": True, "fsdp_config": inner or {}}, found), found)
    deepspeed = keys.table("deepspeed_config")
    if kind == "DEEPSPEED":
        _read_deepspeed(source, deepspeed, found)
    deepspeed.everything()
    mesh = keys.table("parallelism_config")
    sizes = {
        name: mesh.whole(f"parallelism_config_{name}_size", f"{name}_size")
        for name in ("dp_replicate", "dp_shard", "tp", "cp", "sp")
    }
    for key in ("cp_backend", "cp_comm_strategy", "sp_backend", "sp_seq_length", "sp_attn_implementation",
                "sp_seq_length_is_variable"):  # fmt: skip
        mesh.take(f"parallelism_config_{key}", key)
    mesh.rest()
    if sizes["dp_shard"] and sizes["dp_shard"] > 1:
        found.set("dp_shard", sizes["dp_shard"])
        found.set("dp", sizes["dp_shard"] * (sizes["dp_replicate"] or 1))
    found.set("tp", sizes["tp"] if sizes["tp"] != 1 else None)
    found.set("cp", next((n for n in (sizes["cp"], sizes["sp"]) if n and n > 1), None))
    if kind not in ("NO", "FSDP", "DEEPSPEED", "MULTI_GPU", "MULTI_CPU"):
        keys.odd("distributed_type", kind)
    keys.rest("accelerate")
    found.set("framework", "deepspeed" if kind == "DEEPSPEED" else "transformers")
    if kind == "FSDP":
        found.set("framework_version", "fsdp")
    return found


def _read_deepspeed(source: Source, keys: Keys, found: Found) -> None:
    file = keys.take("deepspeed_config_file")
    if file:
        hf.read_deepspeed_file(source, file, found)
        return
    stage = keys.number("zero_stage")
    found.set("zero", int(stage) if stage in (0, 1, 2, 3) else None)
    found.set("grad_accum", keys.whole("gradient_accumulation_steps"))
    moved = [
        field
        for key, field in (("offload_optimizer_device", "optimizer"), ("offload_param_device", "parameters"))
        if str(keys.take(key)) in ("cpu", "nvme")
    ]
    if moved:
        found.set("offload", tuple(moved))


TARGET = Target(
    name="accelerate",
    title="accelerate",
    version="1.15",
    about="`accelerate launch` configuration (DDP or FSDP2) and a plain training loop",
    checked="accelerate's own config class and FSDP plugin; `accelerate launch` of the loop on two CPU processes",
    framework=("transformers", "fsdp"),
    levers=rules(
        name=written(),
        config=written(),
        method=written(*script.METHODS),
        seq_len=written(),
        **ADAPTERS,
        precision=written(*hf.PRECISIONS),
        optimizer=written(*script.OPTIMIZERS[:-1]),
        set_to_none=written(),
        micro_batch=written(),
        grad_accum=written(),
        dp=written(),
        zero=written(0, 3, why="accelerate shards here by FSDP2, which is ZeRO-3"),
        dp_shard=written(),
        reshard=written(),
        checkpointing=written("none", "full"),
        compile=written(),
        attention=written("flash", "sdpa", "eager"),
        offload=written("optimizer", "parameters", "gradients"),
        weights=written(*hf.WEIGHTS),
        gpus=written(),
        gpus_per_node=written(),
    ),
    kinds=hf.KINDS,
    check=_check,
    write=write,
    read=read,
    command=command,
    marks=(frozenset({"compute_environment"}), frozenset({"distributed_type"})),
)
