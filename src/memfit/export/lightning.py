"""PyTorch Lightning: a LightningModule and a Trainer with DDP, FSDP2 or DeepSpeed."""

from __future__ import annotations

from collections.abc import Iterator

from memfit.errors import JobError
from memfit.export import hf, launch, script
from memfit.export.levers import ADAPTERS, cannot, rules, written
from memfit.export.plan import Plan
from memfit.export.target import File, Target
from memfit.export.text import Setting, python

_PRECISION = {
    "fp32": "32-true",
    "bf16": "bf16-true",
    "fp16": "16-true",
    "bf16-mixed": "bf16-mixed",
    "fp16-mixed": "16-mixed",
}


def _kind(plan: Plan) -> str:
    return {0: "ddp", 3: "fsdp"}.get(plan.zero, "deepspeed")


def _check(plan: Plan) -> Iterator[JobError]:
    tool, kind = plan.target.tool, _kind(plan)
    yield from hf.checks(plan, kind)
    yield from script.optimizer_faults(plan)
    if kind == "fsdp" and plan.precision == "fp16-mixed":
        yield cannot("strategy.precision", plan.precision, tool, why="FSDP2 in Lightning takes bf16 or fp32")


def _strategy(plan: Plan) -> str:
    kind = _kind(plan)
    if kind == "ddp":
        return '"ddp"' if plan.dp > 1 else '"auto"'
    if kind == "deepspeed":
        moved = [f"offload_{name[:9]}=True" for name in plan.offload]
        return f"DeepSpeedStrategy({', '.join([f'stage={plan.zero}', *moved])})"
    return f"ModelParallelStrategy(data_parallel_size={plan.dp}, tensor_parallel_size=1)"


def _module(plan: Plan) -> str:
    fsdp = _kind(plan) == "fsdp"
    lines = [
        "class Model(lightning.LightningModule):",
        "    def __init__(self, args):",
        "        super().__init__()",
        "        self.args = args",
        "        self.model = None",
        "",
        "    def configure_model(self):",
        "        if self.model is not None:",
        "            return",
        "        self.model = build_model(self.args)",
    ]
    if plan.compile:
        lines.append(f"        for layer in layers_of(self.model):  # {plan.note('compile')}")
        lines.append("            layer.compile()")
    if fsdp:
        options = ['mesh=self.device_mesh["data_parallel"]', f"reshard_after_forward={plan.reshard}"]
        if plan.precision == "bf16-mixed":
            lines.append("        mixed = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)")
            options.append("mp_policy=mixed")
        if plan.offload:
            options.append("offload_policy=CPUOffloadPolicy()")
        lines += [
            f"        # ZeRO-3, reshard {str(plan.reshard).lower()}: {plan.note('zero')}",
            f"        options = dict({', '.join(options)})",
            "        for layer in layers_of(self.model):",
            "            fully_shard(layer, **options)",
            "        fully_shard(self.model, **options)",
        ]
    lines += [
        "",
        "    def training_step(self, tokens, _):",
        "        self.model.train()",
        "        loss = self.model(input_ids=tokens, labels=tokens).loss",
        '        self.log("loss", loss, prog_bar=True)',
        "        return loss",
        "",
        "    def configure_optimizers(self):",
        "        return build_optimizer([p for p in self.parameters() if p.requires_grad])",
    ]
    return "\n".join(lines) + "\n"


_DATA = '''
class Data(torch.utils.data.IterableDataset):
    """The micro-batches of this data-parallel rank, already whole."""

    def __init__(self, args, rank, world):
        self.args, self.rank, self.world = args, rank, world

    def __iter__(self):
        return token_stream(self.args, self.rank, self.world, "cpu")
'''


def _main(plan: Plan) -> str:
    # FSDP2's own policy casts: Lightning must not cast once more.
    precision = "32-true" if _kind(plan) == "fsdp" and plan.precision == "bf16-mixed" else _PRECISION[plan.precision]
    clip = "" if _kind(plan) == "fsdp" else "\n        gradient_clip_val=1.0,"
    return f"""
def main():
    args = arguments()
    lightning.seed_everything(0)
    trainer = lightning.Trainer(
        accelerator="auto",
        devices={plan.gpus_each},
        num_nodes={plan.nodes},
        strategy={_strategy(plan)},  # zero {plan.zero}: {plan.note("zero")}
        precision={python(precision)},  # {plan.precision}: {plan.note("precision")}
        accumulate_grad_batches=GRAD_ACCUM,{clip}
        max_steps=args.steps,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        logger=False,
    )
    data = Data(args, trainer.global_rank, trainer.world_size)
    trainer.fit(Model(args), torch.utils.data.DataLoader(data, batch_size=None))
    if trainer.is_global_zero:
        print(f"loss {{trainer.callback_metrics['loss'].item():.4f}}")


if __name__ == "__main__":
    main()
"""


def write(plan: Plan) -> list[File]:
    """The script and how to start it."""
    imports = [*script.model_imports(plan), *script.optimizer_imports(plan), "import lightning"]
    if _kind(plan) == "fsdp":
        imports += [
            "from torch.distributed.fsdp import fully_shard",
            "from lightning.pytorch.strategies import ModelParallelStrategy",
        ]
        if plan.precision == "bf16-mixed":
            imports.append("from torch.distributed.fsdp import MixedPrecisionPolicy")
        if plan.offload:
            imports.append("from torch.distributed.fsdp import CPUOffloadPolicy")
    elif _kind(plan) == "deepspeed":
        imports.append("from lightning.pytorch.strategies import DeepSpeedStrategy")
    text = script.head(plan, "training script on Lightning", [launch.training_script(plan)], imports)
    parts = [
        text + script.settings(plan, [Setting("GPUS", plan.gpus)]),
        script.ARGUMENTS,
        script.build_model(plan, checkpoint=True, device_map="torch.cuda.current_device()"),
        "\n" + script.LAYERS if plan.compile or _kind(plan) == "fsdp" else "",
        script.optimizer(plan),
        script.DATA,
        _DATA,
        _module(plan),
        _main(plan),
    ]
    whole = "\n\n".join(part.strip("\n") + "\n" for part in parts if part)
    run = launch.run_script(plan, "start of the Lightning script", launch.training_script(plan))
    return [File(name="train.py", text=whole), File(name="run.sh", text=run, executable=True)]


TARGET = Target(
    name="lightning",
    title="Lightning",
    version="2.6",
    about="LightningModule and Trainer with DDP, FSDP2 (ModelParallelStrategy) or DeepSpeed",
    checked="two steps of the script on two CPU processes (DDP); strategies and precisions by its own names",
    framework=("torch", None),
    levers=rules(
        name=written(),
        config=written(),
        method=written(*script.METHODS),
        seq_len=written(),
        **ADAPTERS,
        precision=written(*_PRECISION),
        optimizer=written(*script.OPTIMIZERS[:-1]),
        micro_batch=written(),
        grad_accum=written(),
        dp=written(),
        zero=written(),
        reshard=written(),
        checkpointing=written("none", "full"),
        compile=written(),
        attention=written("flash", "sdpa", "eager"),
        offload=written("optimizer", "parameters", "gradients"),
        weights=written(*hf.WEIGHTS),
        gpus=written(),
        gpus_per_node=written(),
    ),
    kinds=("decoder", "vision", "encoder"),
    check=_check,
    write=write,
    command=launch.training_script,
)
