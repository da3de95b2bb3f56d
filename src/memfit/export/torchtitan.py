"""torchtitan 0.3: a Python module with a function that returns a ``Trainer.Config`` (0.3 reads no TOML any more)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from memfit.errors import JobError
from memfit.export import launch
from memfit.export.levers import cannot, rules, written
from memfit.export.plan import Plan
from memfit.export.target import File, Target
from memfit.export.text import commented, header, python
from memfit.export.torchtitan_reading import ENDS, FLAVORS, read
from memfit.formula.schedule import in_order, split_layers, split_ranks

SCHEDULES: Mapping[str, str] = {
    "gpipe": "GPipe",
    "1f1b": "1F1B",
    "interleaved": "Interleaved1F1B",
    "zero-bubble": "InterleavedZeroBubble",
}
"""Job schedule -> class of torch.distributed.pipelining."""
LOOPED = frozenset({"interleaved", "zero-bubble"})
"""Schedules with several stages a GPU, two unless told otherwise."""
_MOST_LESS = 8
_CONVERTERS = {
    "fp8": "Float8LinearConverter",
    "mxfp8": "MXFP8LinearConverter",
    "nvfp4": "NVFP4LinearConverter",
}


def _flavor(plan: Plan) -> tuple[str, str] | None:
    from memfit.models import catalog

    entry = catalog.lookup(plan.name) if plan.name else None
    return FLAVORS.get(entry.name) if entry else None


def _check(plan: Plan) -> Iterator[JobError]:
    tool = plan.target.tool
    flavor = _flavor(plan)
    if flavor is None:
        known = ", ".join(FLAVORS)
        yield JobError(
            "model.name", f"{tool} has no flavor of {plan.name or 'this configuration'}", hint=f"it has {known}"
        )
    moved = set(plan.offload)
    if moved and moved != {"parameters", "gradients", "optimizer"}:
        why = "FSDP2 offloads parameters, gradients and optimizer states together, or none"
        yield cannot("strategy.offload", plan.offload, tool, why=why, hint="state all three")
    if plan.pp > 1:
        yield from _pipeline_faults(plan)
    if plan.adapters:
        yield from _adapter_faults(plan)
    if plan.precision in ("mxfp8", "nvfp4") and not plan.compile:
        yield cannot("strategy.compile", False, tool, why=f"{plan.precision} products need the compiled model")
    if plan.seq_len % 8 and plan.loss == "chunked":
        yield cannot("strategy.loss", "chunked", tool, why=f"seq_len {plan.seq_len} is not a multiple of its 8 chunks")


def _pipeline_faults(plan: Plan) -> Iterator[JobError]:
    tool = plan.target.tool
    looped = plan.pp_schedule in LOOPED
    if looped and plan.virtual_pp < 2:
        why = f"{SCHEDULES[plan.pp_schedule]} has at least two stages a GPU"
        yield cannot("strategy.virtual_pp", plan.virtual_pp, tool, why=why, hint="virtual_pp = 2")
    if not looped and plan.virtual_pp > 1:
        yield cannot("strategy.virtual_pp", plan.virtual_pp, tool, why=f"{plan.pp_schedule} has one stage a GPU")
    layers, parts = plan.arch.decoder.num_layers, plan.pp * plan.virtual_pp
    if plan.pp_layers is None and layers + sum(ENDS) < parts:
        yield cannot("strategy.pp", plan.pp, tool, why=f"{layers} layers do not fill {parts} stages")
    elif plan.pp_layers is not None and 0 in _sizes(plan)[1:-1]:
        why = f"one of {parts} stages would be empty"
        yield cannot("strategy.pp_layers", plan.pp_layers, tool, why=why)


def _adapter_faults(plan: Plan) -> Iterator[JobError]:
    tool = plan.target.tool
    if plan.lora_targets != "all-linear":
        why = "its projections are fused and named otherwise"
        yield cannot("task.lora.targets", plan.lora_targets, tool, why=why, hint="targets = all-linear")
    frozen = "bf16" if plan.precision == "bf16" else "fp32"
    if plan.weights != frozen:
        yield cannot("strategy.weights", plan.weights, tool, why=f"frozen weights are held in {frozen}")


def _call(name: str, rows: list[tuple[str, Any, str]], indent: int) -> str:
    """A call with one argument a line; values are source text."""
    pad = " " * (indent + 4)
    lines = [f"{pad}{key}={value},{f'  # {why}' if why else ''}" for key, value, why in rows]
    return "\n".join([f"{name}(", *lines, f"{' ' * indent})"]) if rows else f"{name}()"


def _training(plan: Plan) -> list[tuple[str, Any, str]]:
    # With a pipeline, torchtitan splits its local batch into the pipeline's micro-batches.
    local = plan.micro_batch * plan.grad_accum if plan.pp > 1 else plan.micro_batch
    half = plan.precision == "bf16"
    compute = "float32" if plan.precision == "fp32" else "bfloat16"
    return [
        ("local_batch_size", local, f"micro-batch {plan.micro_batch}; {plan.origin('micro_batch')}"),
        ("global_batch_size", plan.global_batch, f"{plan.grad_accum} micro-batches on {plan.dp} data-parallel ranks"),
        ("seq_len", plan.seq_len, plan.origin("seq_len")),
        ("dtype", python("bfloat16" if half else "float32"), f"precision {plan.precision}: {plan.note('precision')}"),
        ("mixed_precision_param", python(compute), "compute"),
        ("enable_cpu_offload", bool(plan.offload), plan.origin("offload")),
        ("disable_cuda_graphs", True, "their pools are memory that the estimate does not count"),
        ("steps", 1000, "yours to choose"),
    ]


def _parallelism(plan: Plan) -> list[tuple[str, Any, str]]:
    rows: list[tuple[str, Any, str]] = [
        ("data_parallel_replicate_degree", plan.dp // plan.dp_shard, ""),
        ("data_parallel_shard_degree", plan.dp_shard, f"zero {plan.zero}: {plan.note('zero')}"),
        ("fsdp_reshard_after_forward", python("always" if plan.reshard else "never"), plan.note("reshard")),
        ("tensor_parallel_degree", plan.tp, plan.origin("tp")),
        ("enable_sequence_parallel", plan.sequence_parallel, plan.note("sequence_parallel")),
        ("context_parallel_degree", plan.cp, plan.origin("cp")),
        ("expert_parallel_degree", plan.ep, plan.origin("ep")),
        ("pipeline_parallel_degree", plan.pp, plan.origin("pp")),
    ]
    if plan.pp > 1:
        rows += [
            ("pipeline_parallel_schedule", python(SCHEDULES[plan.pp_schedule]), plan.origin("pp_schedule")),
            ("pipeline_parallel_microbatch_size", plan.micro_batch, "sequences of one pipeline micro-batch"),
            *_split(plan),
        ]
    if plan.precision == "nvfp4":
        rows.append(("spmd_backend", python("spmd_types"), "what NVFP4 needs"))
    return rows


def _sizes(plan: Plan) -> list[int]:
    """Layers of each stage: as stated for the ranks, else as torchtitan splits them."""
    if plan.pp_layers is None:
        found = split_layers(plan.arch.decoder.num_layers, plan.pp * plan.virtual_pp, ENDS)
    else:
        found = split_ranks(plan.pp_layers, plan.virtual_pp)
    return [stop - start for start, stop in found]


def _split(plan: Plan) -> list[tuple[str, Any, str]]:
    """The stages: by what the first and the last have less than the rest, where that says it, else written out."""
    layers, parts, sizes = plan.arch.decoder.num_layers, plan.pp * plan.virtual_pp, _sizes(plan)
    usual = 2 if plan.pp_schedule in LOOPED else 1
    fewer = range(min(layers // parts, _MOST_LESS) + 1)
    for ends in (ENDS, *((first, last) for first in fewer for last in fewer)):
        per = -(-(layers + sum(ends)) // parts)
        counted = -(-(layers + sum(ends)) // per) == parts
        if sizes != [stop - start for start, stop in split_layers(layers, parts, ends)]:
            continue
        if counted or plan.virtual_pp == usual:
            why = f"{plan.virtual_pp} stages on each GPU" if plan.virtual_pp > 1 else ""
            return [
                *([("pipeline_parallel_layers_per_stage", per, why)] if counted else []),
                ("pipeline_parallel_first_stage_less_layers", ends[0], plan.origin("pp_layers")),
                ("pipeline_parallel_last_stage_less_layers", ends[1], ""),
            ]
    names = [[f"layers.{i}" for i in range(start, stop)] for start, stop in in_order(sizes)]
    names[0].insert(0, "tok_embeddings")
    names[-1] += ["norm", "lm_head"]
    text = "".join(f"\n            {python(part)}," for part in names)
    return [("module_fqns_per_model_part", f"[{text}\n        ]", plan.origin("pp_layers"))]


def _components(plan: Plan) -> list[str]:
    return [name for name, on in (("model", plan.compile), ("loss", plan.loss == "compiled")) if on]


def _spec(plan: Plan, flavor: str) -> str:
    converters = []
    if plan.precision in _CONVERTERS:
        extra = (
            ', fqns=["layers"]'
            if plan.precision == "nvfp4"
            else ', filter_fqns=["lm_head"]'
            if plan.precision == "fp8"
            else ""
        )
        converters.append(f"{_CONVERTERS[plan.precision]}.Config(model_compile_enabled={plan.compile}{extra})")
    if plan.adapters:
        alpha = float(plan.lora_alpha if plan.lora_alpha is not None else 2 * plan.lora_rank)
        names = '["wqkv", "wq", "wkv", "wo", "w1", "w2", "w3"]'
        converters.append(f"LoRAConverter.Config(rank={plan.lora_rank}, alpha={alpha}, target_modules={names})")
    rest = f", converters=[{', '.join(converters)}]" if converters else ""
    return f'model_registry({python(flavor)}, attn_backend="flex"{rest})'


def module(plan: Plan) -> str:
    """The text of the module."""
    name, flavor = _flavor(plan) or ("", "")
    components = _components(plan)
    loss = "CrossEntropyLoss.Config(global_vocab_size=decoder_vocab_size(spec))"
    if plan.loss == "chunked":
        loss = f"ChunkedLossWrapper.Config(loss_fn={loss})"
    policy = {"none": "None", "selective": "SelectiveAC.Config()", "full": "FullAC.Config()"}[plan.checkpointing]
    wrapper = "ChunkedLossWrapper, " if plan.loss == "chunked" else ""
    imports = [
        f"from torchtitan.components.loss import {wrapper}CrossEntropyLoss",
        "from torchtitan.components.optimizer import default_adamw",
        "from torchtitan.config import CompileConfig, ParallelismConfig, TrainingConfig",
        "from torchtitan.hf_datasets.text_datasets import HuggingFaceTextDataLoader",
        "from torchtitan.models.common.config_utils import decoder_vocab_size",
        f"from torchtitan.models.{name} import model_registry",
        "from torchtitan.trainer import Trainer",
    ]
    if plan.checkpointing != "none":
        imports.append(f"from torchtitan.distributed.activation_checkpoint import {policy.split('.')[0]}")
    if plan.precision in _CONVERTERS:
        imports.append(f"from torchtitan.components.quantization import {_CONVERTERS[plan.precision]}")
    if plan.adapters:
        imports.append("from torchtitan.components.lora import LoRAConverter")
    rows = [
        ("model_spec", "spec", ""),
        (
            "hf_assets_path",
            python(f"./assets/hf/{plan.model.rsplit('/', 1)[-1]}"),
            "tokenizer: scripts/download_hf_assets.py",
        ),
        ("loss", loss, f"loss {plan.loss}: {plan.note('loss')}"),
        ("optimizer", "default_adamw(lr=3e-4)", f"{plan.optimizer}: {plan.note('optimizer')}"),
        ("training", _call("TrainingConfig", _training(plan), 8), ""),
        ("parallelism", _call("ParallelismConfig", _parallelism(plan), 8), ""),
        ("activation_checkpoint", policy, plan.note("checkpointing")),
        ("compile", f"CompileConfig(enable={bool(components)}, components={python(components)})", plan.note("compile")),
        ("dataloader", 'HuggingFaceTextDataLoader.Config(dataset="c4")', "yours to choose"),
    ]
    body = _call("Trainer.Config", rows, 4)
    return "\n".join(
        [
            commented(header(plan, "configuration of torchtitan", [command(plan)])),
            *sorted(imports),
            "",
            "",
            "def job() -> Trainer.Config:",
            f"    spec = {_spec(plan, flavor)}",
            f"    return {body}",
            "",
        ]
    )


def command(plan: Plan) -> str:
    """What one machine starts."""
    return launch.torchrun(plan, "-m torchtitan.train --module memfit_torchtitan --config job")


def write(plan: Plan) -> list[File]:
    """The module and how to start it."""
    before = "export PYTHONPATH=.${PYTHONPATH:+:$PYTHONPATH} PYTORCH_ALLOC_CONF=expandable_segments:True\n"
    run = launch.run_script(plan, "start of torchtitan", command(plan), before)
    return [File(name="memfit_torchtitan.py", text=module(plan)), File(name="run.sh", text=run, executable=True)]


TARGET = Target(
    name="torchtitan",
    title="torchtitan",
    version="0.3",
    about="Python module with a function that returns `Trainer.Config`",
    checked="`torchtitan.config.manager`, its own config manager, and its arithmetic of meshes",
    framework=("torchtitan", None),
    levers=rules(
        name=written(),
        method=written("full", "lora"),
        seq_len=written(),
        lora_rank=written(),
        lora_targets=written("all-linear"),
        lora_alpha=written(),
        precision=written("fp32", "bf16", "bf16-mixed", "fp8", "mxfp8", "nvfp4"),
        optimizer=written(
            "adamw", why="its optimizers are Adam, AdamW and a distributed Muon with settings of its own"
        ),
        micro_batch=written(),
        grad_accum=written(),
        dp=written(),
        zero=written(3, why="it always runs FSDP2, which is ZeRO-3; dp_shard = 1 shards nothing"),
        dp_shard=written(),
        reshard=written(),
        tp=written(),
        sequence_parallel=written(),
        pp=written(),
        pp_schedule=written(*SCHEDULES),
        virtual_pp=written(),
        pp_layers=written(),
        cp=written(),
        ep=written(),
        checkpointing=written("none", "selective", "full"),
        compile=written(),
        attention=written("flash", why="language models run FlexAttention or varlen attention, which are flash"),
        loss=written("eager", "compiled", "chunked"),
        offload=written("optimizer", "parameters", "gradients"),
        weights=written("bf16", "fp32"),
        gpus=written(),
        gpus_per_node=written(),
    ),
    check=_check,
    write=write,
    read=read,
    command=command,
    marks=(
        frozenset({"training", "parallelism"}),
        frozenset({"training", "activation_checkpoint"}),
        frozenset({"training", "metrics", "model"}),
    ),
)
