"""A plain PyTorch script over transformers modules: DDP, ZeRO-1 or FSDP2, with every lever written out."""

from __future__ import annotations

from collections.abc import Iterator

from memfit.errors import JobError
from memfit.export import hf, launch, script
from memfit.export.levers import ADAPTERS, cannot, rules, written
from memfit.export.plan import Plan
from memfit.export.target import File, Target


def _check(plan: Plan) -> Iterator[JobError]:
    tool = plan.target.tool
    yield from (
        error for error in hf.checks(plan, "fsdp" if plan.zero == 3 else "ddp") if "GaLore" not in error.message
    )
    yield from script.optimizer_faults(plan)
    if plan.optimizer == "muon" and plan.zero:
        why = "torch.optim.Muon orthogonalises whole matrices, not shards"
        yield cannot("strategy.optimizer", "muon", tool, why=why, hint="torchtitan has a distributed Muon")
    if plan.optimizer in ("adamw-8bit", "adamw-4bit", "muon") and plan.optimizer_in_backward:
        why = "one optimizer a parameter: only torch's own per-parameter optimizers are written so"
        yield cannot("strategy.optimizer_in_backward", True, tool, why=why)
    if plan.zero == 1 and (plan.optimizer_in_backward or plan.optimizer not in ("adamw", "sgd", "momentum")):
        why = "ZeroRedundancyOptimizer takes torch's own optimizers, after the backward pass"
        yield cannot("strategy.zero", 1, tool, why=why)
    if plan.zero == 1 and plan.dp_shard != plan.dp:
        yield cannot("strategy.dp_shard", plan.dp_shard, tool, why="ZeroRedundancyOptimizer shards over all GPUs")
    if isinstance(plan.checkpointing, int) and plan.checkpointing > plan.arch.decoder.num_layers:
        yield cannot("strategy.checkpointing", plan.checkpointing, tool, why="there are fewer layers")


def _imports(plan: Plan) -> list[str]:
    names = [
        *script.model_imports(plan),
        *script.optimizer_imports(plan),
        "import os",
        "import torch.distributed as dist",
    ]
    if plan.zero == 3:
        names.append("from torch.distributed.fsdp import fully_shard")
        names.append("from torch.distributed.device_mesh import init_device_mesh")
        if plan.precision == "bf16-mixed":
            names.append("from torch.distributed.fsdp import MixedPrecisionPolicy")
        if "parameters" in plan.offload:
            names.append("from torch.distributed.fsdp import CPUOffloadPolicy")
        names.append("from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict")
    else:
        names.append("import contextlib")
        names.append("from torch.nn.parallel import DistributedDataParallel")
    if plan.zero == 1:
        names.append("from torch.distributed.optim import ZeroRedundancyOptimizer")
    if plan.checkpointing != "none":
        names.append("from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper")
    if plan.checkpointing == "selective":
        names.append("import functools")
        names.append("from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts")
    if plan.loss in ("chunked", "fused"):
        names.append("import types")
    if plan.loss == "chunked":
        names.append("from torch.utils.checkpoint import checkpoint")
    if plan.loss == "fused":
        names.append("from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss")
    if plan.loss != "eager":
        names.append("from torch.nn.functional import cross_entropy")
    if plan.loss == "fused":
        names.remove("from torch.nn.functional import cross_entropy")
    return names


_SELECTIVE = '''
def keep_some():
    """Recompute all but attention and every second matrix product, as torchtitan does."""
    aten = torch.ops.aten
    attention = {
        aten._scaled_dot_product_flash_attention.default,
        aten._scaled_dot_product_efficient_attention.default,
        aten._scaled_dot_product_flash_attention_for_cpu.default,
        aten._scaled_dot_product_cudnn_attention.default,
    }
    count = {}

    def policy(ctx, op, *args, **kwargs):
        if op == aten.mm.default:
            count[ctx.is_recompute] = count.get(ctx.is_recompute, 0) + 1
            if count[ctx.is_recompute] % 2:
                return CheckpointPolicy.MUST_SAVE
        return CheckpointPolicy.MUST_SAVE if op in attention else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)
'''

_CHUNKED = '''
def forward_with_loss(self, input_ids, labels):
    """Next-token loss over slices of the sequence, recomputed in the backward pass: no whole logits."""
    hidden = self.get_decoder()(input_ids=input_ids).last_hidden_state[:, :-1]
    targets = labels[:, 1:]

    def part(states, wanted):
        logits = self.get_output_embeddings()(states).float()
        return cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="sum")

    pairs = zip(hidden.chunk(8, dim=1), targets.chunk(8, dim=1))
    return sum(checkpoint(part, states, wanted, use_reentrant=False) for states, wanted in pairs) / targets.numel()
'''

_FUSED = '''
def forward_with_loss(self, input_ids, labels):
    """Next-token loss of Liger: head and cross entropy in one kernel, the logits are never held."""
    hidden = self.get_decoder()(input_ids=input_ids).last_hidden_state[:, :-1]
    weight = self.get_output_embeddings().weight
    return LigerFusedLinearCrossEntropyLoss()(weight, hidden.flatten(0, 1), labels[:, 1:].flatten())
'''

_COMPILED = '''
@torch.compile
def loss_of(logits, labels):
    """Next-token loss: one compiled kernel, no fp32 copies of the logits."""
    return cross_entropy(logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten())
'''


def _prepare(plan: Plan) -> str:
    """The function that applies the levers to the model, in the one order that works."""
    lines = ["def prepare(model, device):"]
    if plan.loss in ("chunked", "fused"):
        base = "model.get_base_model()" if plan.adapters else "model"
        lines.append(f"    base = {base}")
        lines.append(f"    base.forward = types.MethodType(forward_with_loss, base)  # {plan.note('loss')}")
    if plan.checkpointing != "none":
        every = plan.checkpointing if isinstance(plan.checkpointing, int) else 1
        extra = ", context_fn=keep_some" if plan.checkpointing == "selective" else ""
        lines.append(f"    # checkpointing {plan.checkpointing}: {plan.note('checkpointing')}")
        lines.append("    layers = layers_of(model)")
        lines.append(f"    for i in range({every - 1}, len(layers), {every}):")
        lines.append(f"        layers[i] = checkpoint_wrapper(layers[i]{extra})")
    if plan.compile:
        lines.append(f"    for layer in layers_of(model):  # {plan.note('compile')}")
        lines.append("        layer.compile()")
    lines += _sharded(plan) if plan.zero == 3 else _replicated()
    return "\n".join([*lines, "    return model"]) + "\n"


def _sharded(plan: Plan) -> list[str]:
    options = [f"reshard_after_forward={plan.reshard}"]
    if plan.dp_shard == plan.dp:
        mesh = f"init_device_mesh(device.type, ({plan.dp},))  # {plan.note('dp')}"
    else:
        shape = f"({plan.dp // plan.dp_shard}, {plan.dp_shard})"
        mesh = f'init_device_mesh(device.type, {shape}, mesh_dim_names=("replicate", "shard"))  # hybrid sharding'
    lines = [f"    mesh = {mesh}"]
    if plan.precision == "bf16-mixed":
        lines.append(f"    # fp32 shards, bf16 compute: {plan.note('precision')}")
        lines.append("    mixed = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)")
        options.append("mp_policy=mixed")
    if "parameters" in plan.offload:
        lines.append(f"    # shards live in host memory: {plan.note('offload')}")
        options.append("offload_policy=CPUOffloadPolicy()")
    return [
        *lines,
        f"    # ZeRO-3, reshard {str(plan.reshard).lower()}: {plan.note('zero')}",
        f"    options = dict(mesh=mesh, {', '.join(options)})",
        "    for layer in layers_of(model):",
        "        fully_shard(layer, **options)",
        '    options.pop("reshard_after_forward")  # of the rest, torch keeps what the backward pass needs at once',
        "    fully_shard(model, **options)",
    ]


def _replicated() -> list[str]:
    return [
        "    model.to(device)",
        "    if dist.get_world_size() > 1:",
        "        model = DistributedDataParallel(model, gradient_as_bucket_view=True)",
    ]


def _optimizers(plan: Plan) -> str:
    if plan.zero == 1:
        kind, rest = ("AdamW", "") if plan.optimizer == "adamw" else ("SGD", "")
        if plan.optimizer == "momentum":
            rest = ", momentum=0.9"
        made = f"ZeroRedundancyOptimizer(trained, torch.optim.{kind}, lr=LEARNING_RATE{rest})"
        return f"def build_optimizers(trained):\n    return [{made}]  # ZeRO-1: {plan.note('zero')}\n"
    text = script.optimizer(plan)
    if plan.optimizer == "muon":
        return (
            "def build_optimizers(model):\n"
            "    # Muon takes hidden matrices; embedding, head and norms are AdamW's.\n"
            '    outer = ("embed_tokens", "lm_head", "wte", "wpe")\n'
            "    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]\n"
            "    inner = [p for name, p in named if p.ndim == 2 and not any(part in name for part in outer)]\n"
            "    ids = {id(p) for p in inner}\n"
            "    rest = [p for _, p in named if id(p) not in ids]\n"
            f"    muon = torch.optim.Muon(inner, lr=LEARNING_RATE)  # {plan.note('optimizer')}\n"
            "    return [muon, torch.optim.AdamW(rest, lr=LEARNING_RATE)]\n"
        )
    return text


def _in_backward(plan: Plan) -> str:
    return (
        "def step_in_backward(trained):\n"
        f'    """Each gradient is applied and freed as it appears: {plan.note("optimizer_in_backward")}."""\n'
        "    own = {p: build_optimizer([p]) for p in trained}\n\n"
        "    def apply(p):\n"
        "        own[p].step()\n"
        "        own[p].zero_grad()\n\n"
        "    for p in trained:\n"
        "        p.register_post_accumulate_grad_hook(apply)\n"
    )


def _main(plan: Plan) -> str:
    autocast = plan.precision == "bf16-mixed" and plan.zero != 3
    context = []
    if autocast:
        context.append("torch.autocast(device.type, torch.bfloat16)")
    if "activations" in plan.offload:
        context.append('torch.autograd.graph.save_on_cpu(pin_memory=device.type == "cuda")')
    if plan.zero != 3 and plan.grad_accum > 1:
        context.append("contextlib.nullcontext() if last or rank_count == 1 else model.no_sync()")
    if plan.loss in ("chunked", "fused"):
        forward = ["loss = model(input_ids=tokens, labels=tokens)"]
    elif plan.loss == "compiled":
        forward = ["loss = loss_of(model(input_ids=tokens).logits, tokens)"]
    else:
        forward = ["loss = model(input_ids=tokens, labels=tokens).loss"]
    body = [*forward, "(loss / GRAD_ACCUM).backward()"]
    nested = [f"with {', '.join(context)}:", *(f"    {line}" for line in body)] if context else body
    clip = "torch.nn.utils.clip_grad_norm_(trained, 1.0)"
    if plan.zero == 3 and "parameters" in plan.offload:
        clip += "  # norms of host tensors"
    stepping = [
        f"        {clip}",
        "        for optimizer in optimizers:",
        "            optimizer.step()",
        f"            optimizer.zero_grad(set_to_none={plan.set_to_none})  # {plan.origin('set_to_none')}",
    ]
    if plan.optimizer_in_backward:
        made, stepping = ["    step_in_backward(trained)"], []
    elif plan.optimizer == "muon":
        made = ["    optimizers = build_optimizers(model)"]
    elif plan.zero == 1:
        made = ["    optimizers = build_optimizers(trained)"]
    else:
        made = ["    optimizers = [build_optimizer(trained)]"]
    last = ["            last = micro == GRAD_ACCUM - 1"] if plan.zero != 3 and plan.grad_accum > 1 else []
    lines = [
        "def main():",
        "    args = arguments()",
        "    on_gpu = torch.cuda.is_available()",
        '    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device("cpu")',
        "    if on_gpu:",
        "        torch.cuda.set_device(device)",
        f'    dist.init_process_group("{"cuda:nccl,cpu:gloo" if plan.offload else "nccl"}" if on_gpu else "gloo")',
        "    rank, rank_count = dist.get_rank(), dist.get_world_size()",
        "    torch.manual_seed(0)  # the same weights on every rank",
        "    model = prepare(build_model(args), device)",
        "    model.train()",
        "    trained = [p for p in model.parameters() if p.requires_grad]",
        *made,
        "    batches = token_stream(args, rank, rank_count, device)",
        "    for step in range(args.steps):",
        f"        for {'micro' if last else '_'} in range(GRAD_ACCUM):",
        "            tokens = next(batches)",
        *last,
        *(f"            {line}" for line in nested),
        *stepping,
        "        mean = loss.detach().float()",
        "        dist.all_reduce(mean)",
        "        if rank == 0:",
        '            print(f"step {step + 1} loss {mean.item() / rank_count:.4f}", flush=True)',
        *_saving(plan),
        "    dist.destroy_process_group()",
    ]
    return "\n".join(lines) + '\n\n\nif __name__ == "__main__":\n    main()\n'


def _saving(plan: Plan) -> list[str]:
    if plan.zero == 3:
        whole = "get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))"
    else:
        whole = 'getattr(model, "module", model).state_dict()'
    return [
        f"    weights = {whole}",
        "    if rank == 0:",
        "        os.makedirs(args.output, exist_ok=True)",
        '        torch.save(weights, os.path.join(args.output, "weights.pt"))',
    ]


def write(plan: Plan) -> list[File]:
    """The script and how to start it."""
    text = script.head(plan, "training script", [launch.training_script(plan)], _imports(plan))
    needs_layers = plan.zero == 3 or plan.checkpointing != "none" or plan.compile
    parts = [
        text + script.settings(plan),
        script.ARGUMENTS,
        script.build_model(plan, checkpoint=False, device_map="torch.cuda.current_device()"),
        script.LAYERS if needs_layers else "",
        _SELECTIVE if plan.checkpointing == "selective" else "",
        {"chunked": _CHUNKED, "fused": _FUSED, "compiled": _COMPILED}.get(plan.loss, ""),
        _prepare(plan),
        _optimizers(plan),
        _in_backward(plan) if plan.optimizer_in_backward else "",
        script.DATA,
        _main(plan),
    ]
    whole = "\n\n".join(part.strip("\n") + "\n" for part in parts if part)
    before = "export PYTORCH_ALLOC_CONF=expandable_segments:True  # less slack\n" if plan.compile else ""
    return [
        File(name="train.py", text=whole),
        File(
            name="run.sh",
            text=launch.run_script(plan, "start of the training script", launch.training_script(plan), before),
            executable=True,
        ),
    ]


TARGET = Target(
    name="fsdp2",
    title="PyTorch",
    version="2.13",
    about="a plain PyTorch script over transformers modules: DDP, ZeRO-1 or FSDP2",
    checked="the script runs on two CPU processes under gloo; its losses are compared across layouts",
    framework=("torch", None),
    levers=rules(
        name=written(),
        config=written(),
        method=written(*script.METHODS),
        seq_len=written(),
        **ADAPTERS,
        precision=written("fp32", "bf16", "bf16-mixed", why="fp16 needs a loss scaler, fp8 torchao's modules"),
        optimizer=written(*script.OPTIMIZERS),
        optimizer_in_backward=written(),
        set_to_none=written(),
        micro_batch=written(),
        grad_accum=written(),
        dp=written(),
        zero=written(0, 1, 3, why="FSDP2 has no stage that shards gradients and not parameters"),
        dp_shard=written(),
        reshard=written(),
        checkpointing=written("none", "selective", "full", int),
        compile=written(),
        attention=written("flash", "sdpa", "eager"),
        loss=written("eager", "compiled", "chunked", "fused"),
        offload=written("optimizer", "parameters", "gradients", "activations"),
        weights=written(*hf.WEIGHTS),
        gpus=written(),
        gpus_per_node=written(),
    ),
    kinds=("decoder", "vision", "encoder"),
    check=_check,
    write=write,
    command=launch.training_script,
)
