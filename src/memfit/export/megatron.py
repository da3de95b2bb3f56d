"""Megatron-LM: a shell script with the arguments of ``pretrain_gpt.py``, grouped and commented."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from memfit.errors import JobError
from memfit.export import launch
from memfit.export.levers import Rule, cannot, rules, written
from memfit.export.plan import Plan
from memfit.export.target import File, Target
from memfit.export.text import Setting, commented, header, shell
from memfit.formula.schedule import split_layers, split_ranks
from memfit.models import Block, Mlp, Moe

BACKENDS: Mapping[str, str] = {"flash": "flash", "eager": "unfused"}
_STRATEGY = {0: "no_shard", 1: "optim", 2: "optim_grads", 3: "optim_grads_params"}

_ARGUMENTS = {
    "num_layers_in_first_pipeline_stage": "decoder_first_pipeline_num_layers",
    "num_layers_in_last_pipeline_stage": "decoder_last_pipeline_num_layers",
}
"""Field of ``TransformerConfig`` -> the argument that sets it, where they are called differently."""

LEVERS: dict[str, Rule] = rules(
    name=written(),
    method=written("full", why="its adapters are Megatron-Bridge's"),
    seq_len=written(),
    precision=written(
        "fp32", "bf16-mixed", "fp16-mixed", "fp8", "mxfp8", "nvfp4", why="its optimizer keeps fp32 master weights"
    ),
    optimizer=written("adamw", "momentum", "sgd", "muon"),
    micro_batch=written(),
    grad_accum=written(),
    dp=written(),
    zero=written(),
    dp_shard=written(),
    tp=written(),
    sequence_parallel=written(),
    pp=written(),
    pp_schedule=written("1f1b", "interleaved"),
    virtual_pp=written(),
    pp_layers=written(),
    cp=written(),
    ep=written(),
    checkpointing=written(
        "none", "attention", "full", why="its own selective recomputation is that of core attention: `attention`"
    ),
    attention=written(*BACKENDS),
    loss=written("eager", "compiled"),
    offload=written("optimizer"),
    gpus=written(),
    gpus_per_node=written(),
)
"""What Megatron-Core has words for."""


def check(plan: Plan) -> Iterator[JobError]:
    """Faults of several levers together."""
    tool = plan.target.tool
    if plan.pp > 1 and plan.pp_schedule == "1f1b" and plan.virtual_pp > 1:
        yield cannot("strategy.virtual_pp", plan.virtual_pp, tool, why="several stages a GPU are interleaved")
    layers, stages = plan.arch.decoder.num_layers, plan.pp * plan.virtual_pp
    if plan.pp_layers is None and layers < stages:
        yield cannot("strategy.pp", plan.pp, tool, why=f"{layers} layers are fewer than {stages} stages")
    if plan.pp_schedule == "interleaved" and plan.grad_accum % plan.pp:
        why = f"interleaving needs a multiple of pp {plan.pp} micro-batches"
        yield cannot("strategy.grad_accum", plan.grad_accum, tool, why=why)
    if plan.ep > 1 and plan.tp > 1 and not plan.sequence_parallel:
        why = "experts under tensor parallelism need it"
        yield cannot("strategy.sequence_parallel", False, tool, why=why, hint="sequence_parallel = true")
    if plan.zero in (2, 3) and plan.pp > 1:
        yield cannot("strategy.zero", plan.zero, tool, why="Megatron FSDP does not go with a pipeline", hint="zero = 1")
    if plan.offload and plan.zero == 0:
        yield cannot(
            "strategy.offload", plan.offload, tool, why="only the distributed optimizer offloads", hint="zero = 1"
        )
    if plan.optimizer == "muon" and plan.zero:
        yield cannot("strategy.zero", plan.zero, tool, why="its Muon does not go with the distributed optimizer")
    if plan.reshard is False:
        yield cannot("strategy.reshard", False, tool)


def split(plan: Plan) -> list[Setting]:
    """The layers of the pipeline ranks: those of the first and the last where the others are equal, else a layout."""
    if plan.pp_layers is None:
        layers, stages = plan.arch.decoder.num_layers, plan.pp * plan.virtual_pp
        why = "the longer stages first, as the estimate assumes"
        return [_layout(split_layers(layers, stages), why)] if layers % stages else []
    if not _uneven(plan):
        return []
    first, *middle, last = plan.pp_layers
    why = plan.note("pp_layers")
    whole = first and last and not any(n % plan.virtual_pp for n in plan.pp_layers)
    if whole and len({*middle}) < 2 and 0 not in middle:
        return [
            Setting("num_layers_in_first_pipeline_stage", first, why),
            Setting("num_layers_in_last_pipeline_stage", last),
        ]
    return [_layout(split_ranks(plan.pp_layers, plan.virtual_pp), why)]


def _layout(ranges: Iterable[tuple[int, int]], why: str) -> Setting:
    parts = [f"t*{stop - start}" * (stop > start) for start, stop in ranges]
    return Setting("pipeline_model_parallel_layout", f"E{'|'.join(parts)}L", why)


def _uneven(plan: Plan) -> bool:
    """Whether the split must be told: equal chunks are Megatron's own."""
    return plan.pp_layers is not None and (
        len({*plan.pp_layers}) > 1 or any(n % plan.virtual_pp for n in plan.pp_layers)
    )


def core(plan: Plan) -> dict[str, list[Setting]]:
    """The levers as fields of Megatron-Core's configurations: ``model``, ``optimizer``, ``ddp``."""
    model = [
        Setting("tensor_model_parallel_size", plan.tp, plan.origin("tp")),
        Setting("pipeline_model_parallel_size", plan.pp, plan.origin("pp")),
        *split(plan),
        Setting("context_parallel_size", plan.cp, plan.origin("cp")),
        Setting("expert_model_parallel_size", plan.ep, plan.origin("ep")),
        Setting("sequence_parallel", plan.sequence_parallel, plan.note("sequence_parallel")),
    ]
    if plan.checkpointing == "full":
        model += [
            Setting("recompute_granularity", "full", plan.note("checkpointing")),
            Setting("recompute_method", "uniform"),
            Setting("recompute_num_layers", 1),
        ]
    elif plan.checkpointing == "attention":
        model += [
            Setting("recompute_granularity", "selective", plan.note("checkpointing")),
            Setting("recompute_modules", ["core_attn"]),
        ]
    if plan.loss == "compiled":
        model.append(Setting("cross_entropy_loss_fusion", True, plan.note("loss")))
    optimizer = [
        Setting("optimizer", {"adamw": "adam", "muon": "muon"}.get(plan.optimizer, "sgd"), plan.note("optimizer"))
    ]
    if plan.optimizer in ("sgd", "momentum"):
        optimizer.append(Setting("sgd_momentum", 0.9 if plan.optimizer == "momentum" else 0.0))
    ddp = []
    if plan.zero:
        optimizer.append(Setting("use_distributed_optimizer", True, f"ZeRO-{plan.zero}: {plan.note('zero')}"))
        ddp += [Setting("overlap_grad_reduce", True), Setting("overlap_param_gather", True)]
        if plan.dp_shard != plan.dp:
            why = "copies of the sharded states"
            ddp.append(Setting("num_distributed_optimizer_instances", plan.dp // plan.dp_shard, why))
    if plan.zero in (2, 3):
        ddp.append(Setting("use_megatron_fsdp", True, "Megatron FSDP"))
        ddp.append(Setting("data_parallel_sharding_strategy", _STRATEGY[plan.zero]))
    if "optimizer" in plan.offload:
        optimizer += [
            Setting("optimizer_cpu_offload", True, plan.note("offload")),
            Setting("optimizer_offload_fraction", 1.0),
            Setting("use_precision_aware_optimizer", True, "what offloading needs"),
        ]
    return {"model": model, "optimizer": optimizer, "ddp": ddp}


def _precision(plan: Plan) -> list[Setting]:
    why = f"precision {plan.precision}: {plan.note('precision')}"
    if plan.precision == "fp32":
        return []
    if plan.precision == "fp16-mixed":
        return [Setting("fp16", True, why)]
    low = {
        "fp8": [Setting("fp8_format", "hybrid"), Setting("fp8_recipe", "delayed")],
        "mxfp8": [Setting("fp8_format", "e4m3"), Setting("fp8_recipe", "mxfp8")],
        "nvfp4": [Setting("fp4_format", "e2m1"), Setting("fp4_recipe", "nvfp4")],
    }
    return [Setting("bf16", True, why), *low.get(plan.precision, [])]


def _shape(plan: Plan) -> list[Setting]:
    """The model as arguments."""
    arch = plan.arch
    block = arch.decoder.blocks[0]
    att, ffn = block.attention, block.ffn
    assert att is not None
    dense = ffn if isinstance(ffn, Mlp) else None
    rows = [
        Setting("num_layers", arch.decoder.num_layers),
        Setting("hidden_size", arch.hidden_size),
        Setting("ffn_hidden_size", dense.intermediate if dense else ffn.intermediate if ffn else 0),
        Setting("num_attention_heads", att.num_heads),
    ]
    if att.num_kv_heads != att.num_heads:
        rows += [Setting("group_query_attention", True), Setting("num_query_groups", att.num_kv_heads)]
    rows += [
        Setting("kv_channels", att.head_dim),
        Setting("max_position_embeddings", max(plan.seq_len, arch.max_positions)),
        Setting("position_embedding_type", "rope"),
        Setting("rotary_base", _rotary_base(plan)),
        Setting("normalization", "RMSNorm"),
        Setting("swiglu", True),
        Setting("disable_bias_linear", True),
        Setting("attention_dropout", 0.0),
        Setting("hidden_dropout", 0.0),
    ]
    if att.qkv_bias:
        rows.append(Setting("add_qkv_bias", True))
    if att.qk_norm == "head":
        rows.append(Setting("qk_layernorm", True))
    if not arch.tied:
        rows.append(Setting("untie_embeddings_and_output_weights", True))
    if isinstance(ffn, Moe):
        rows += [
            Setting("num_experts", ffn.num_experts),
            Setting("moe_router_topk", ffn.top_k),
            Setting("moe_ffn_hidden_size", ffn.intermediate),
            Setting("moe_grouped_gemm", True),
            Setting("moe_token_dispatcher_type", "alltoall"),
            Setting("moe_router_load_balancing_type", "aux_loss"),
            Setting("moe_aux_loss_coeff", 0.001),
        ]
        if ffn.shared_intermediate:
            rows.append(Setting("moe_shared_expert_intermediate_size", ffn.shared_intermediate))
    return rows


def _rotary_base(plan: Plan) -> int:
    from memfit.models import catalog

    entry = catalog.lookup(plan.name)
    config = entry.config if entry else {}
    base = config.get("rope_theta") or (config.get("rope_parameters") or {}).get("rope_theta") or 10_000
    return int(base)


def plain(block: Block) -> bool:
    """Whether the arguments of ``pretrain_gpt.py`` as written here describe the block."""
    att, ffn = block.attention, block.ffn
    gated = isinstance(ffn, Mlp | Moe) and ffn.gated and ffn.act == "silu"
    simple = att is not None and att.kind == "gqa" and not (att.window or att.softcap or att.sinks or att.cross)
    return gated and simple and block.recurrent is None and block.norm == "rms" and block.num_norms == 2


def _check(plan: Plan) -> Iterator[JobError]:
    arch = plan.arch
    if len(arch.decoder.blocks) != 1 or arch.towers or not plain(arch.decoder.blocks[0]):
        message = f"the arguments of {plan.target.tool} as written here do not describe {plan.name or 'this model'}"
        yield JobError(
            "model.name", message, value=plan.name, hint="megatron-bridge reads the checkpoint's configuration"
        )
    yield from check(plan)


def _arguments(settings: list[Setting]) -> list[str]:
    """Settings as lines of a bash array: ``--flag value``, true as the flag alone, false left out."""
    lines = []
    for key, value, why in settings:
        if value is False:
            continue
        words = [] if value is True else value if isinstance(value, list) else [value]
        line = " ".join([f"--{key.replace('_', '-')}", *map(shell, words)])
        lines.append(f"  {line}  # {why}" if why else f"  {line}")
    return lines


def _groups(plan: Plan) -> dict[str, list[Setting]]:
    levers = core(plan)
    model = [setting._replace(key=_ARGUMENTS.get(setting.key, setting.key)) for setting in levers["model"]]
    told = {setting.key for setting in split(plan)}
    if plan.virtual_pp > 1 and "num_layers_in_first_pipeline_stage" in told:
        model.append(Setting("num_virtual_stages_per_pipeline_rank", plan.virtual_pp))
    elif plan.virtual_pp > 1 and not told:
        per = plan.arch.decoder.num_layers // (plan.pp * plan.virtual_pp)
        model.append(Setting("num_layers_per_virtual_pipeline_stage", per, f"{plan.virtual_pp} stages on each GPU"))
    model.append(Setting("attention_backend", BACKENDS[plan.attention], plan.note("attention")))
    training = [
        Setting("micro_batch_size", plan.micro_batch, plan.origin("micro_batch")),
        Setting(
            "global_batch_size", plan.global_batch, f"{plan.grad_accum} micro-batches on {plan.dp} data-parallel ranks"
        ),
        Setting("seq_length", plan.seq_len, plan.origin("seq_len")),
        Setting("use_mcore_models", True),
        Setting("transformer_impl", "transformer_engine"),
        Setting("train_iters", 1000, "yours to choose"),
        Setting("lr", 0.0003),
        Setting("min_lr", 0.00003),
        Setting("lr_decay_style", "cosine"),
        Setting("clip_grad", 1.0),
    ]
    data = [
        Setting("mock_data", True, "yours to choose: --data-path ..."),
        Setting("tokenizer_type", "HuggingFaceTokenizer"),
        Setting("tokenizer_model", plan.model),
        Setting("log_interval", 10),
        Setting("save", "output"),
        Setting("save_interval", 500),
    ]
    return {
        "MODEL": _shape(plan),
        "LEVERS": [*model, *levers["optimizer"], *levers["ddp"], *_precision(plan)],
        "TRAINING": training,
        "DATA": data,
    }


def command(plan: Plan) -> str:
    """What one machine starts."""
    return "./run.sh"


def write(plan: Plan) -> list[File]:
    """The script."""
    program = '"${MEGATRON:-Megatron-LM}/pretrain_gpt.py"'
    master = launch.MASTER if plan.nodes > 1 else ""
    where = ["./run.sh on each machine" if plan.nodes > 1 else "./run.sh", "MEGATRON is the folder of Megatron-LM"]
    lines = [launch.SCRIPT + commented(header(plan, "arguments of pretrain_gpt.py", where)) + launch.STRICT + master]
    lines.append("export CUDA_DEVICE_MAX_CONNECTIONS=1  # lets communication overlap with compute")
    groups = _groups(plan)
    for name, settings in groups.items():
        lines += ["", f"{name}=(", *_arguments(settings), ")"]
    words = " ".join(f'"${{{name}[@]}}"' for name in groups)
    lines += ["", launch.torchrun(plan, f"{program} {words}"), ""]
    return [File(name="run.sh", text="\n".join(lines), executable=True)]


TARGET = Target(
    name="megatron",
    title="Megatron-Core",
    version="0.16",
    about="script with the arguments of Megatron-LM's `pretrain_gpt.py`",
    checked="every argument is held against the fields of Megatron-Core's `TransformerConfig`, `OptimizerConfig` and "
    "`DistributedDataParallelConfig`, which then validate the values; shellcheck",
    framework=("megatron", None),
    levers=LEVERS,
    check=_check,
    write=write,
    command=command,
)
