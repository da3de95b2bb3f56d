"""DeepSpeed: its JSON configuration, and a plain loop on its engine."""

from __future__ import annotations

from collections.abc import Iterator

from memfit.errors import JobError
from memfit.export import hf, launch, script
from memfit.export.levers import ADAPTERS, cannot, rules, written
from memfit.export.plan import Plan
from memfit.export.reading import Found, Source
from memfit.export.target import File, Target
from memfit.export.text import json_text


def _check(plan: Plan) -> Iterator[JobError]:
    yield from hf.checks(plan, "deepspeed")
    if "parameters" in plan.offload and "optimizer" not in plan.offload:
        why = "ZeRO-3 offloads parameters only with the optimizer states"
        yield cannot("strategy.offload", plan.offload, plan.target.tool, why=why)
    if plan.optimizer in ("adamw-4bit", "adamw-8bit") and plan.zero == 3:
        why = "torchao's states do not take ZeRO-3's flat shards"
        yield cannot("strategy.optimizer", plan.optimizer, plan.target.tool, why=why)


def train(plan: Plan) -> str:
    """The training loop."""
    imports = [*script.model_imports(plan), "import os", "import deepspeed", "import torch.distributed as dist"]
    offloaded = "optimizer" in plan.offload
    if offloaded:
        imports.append("from deepspeed.ops.adam import DeepSpeedCPUAdam")
        made = "def build_optimizer(trained):\n    # states and their update are on the host: "
        made += f"{plan.note('offload')}\n    return DeepSpeedCPUAdam(trained, lr=LEARNING_RATE)\n"
    else:
        imports += script.optimizer_imports(plan)
        made = script.optimizer(plan)
    text = script.head(plan, "training loop on the DeepSpeed engine", [launch.training_script(plan)], imports)
    parts = [
        text + script.settings(plan),
        script.ARGUMENTS,
        script.build_model(plan, checkpoint=True, device_map='int(os.environ["LOCAL_RANK"])'),
        made,
        script.DATA,
        _MAIN
        if not plan.compile
        else _MAIN.replace("    engine.train()", f"    engine.compile()  # {plan.note('compile')}\n    engine.train()"),
    ]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


_MAIN = """
def main():
    args = arguments()
    deepspeed.init_distributed()
    torch.manual_seed(0)  # the same weights on every rank
    model = build_model(args)
    trained = [p for p in model.parameters() if p.requires_grad]
    engine, _, _, _ = deepspeed.initialize(
        model=model, model_parameters=trained, optimizer=build_optimizer(trained), config="deepspeed.json"
    )
    engine.train()
    batches = token_stream(args, dist.get_rank(), dist.get_world_size(), engine.device)
    for step in range(args.steps):
        for _ in range(GRAD_ACCUM):
            tokens = next(batches)
            loss = engine(input_ids=tokens, labels=tokens).loss
            engine.backward(loss)
            engine.step()
        mean = loss.detach().float()
        dist.all_reduce(mean)
        if dist.get_rank() == 0:
            print(f"step {step + 1} loss {mean.item() / dist.get_world_size():.4f}", flush=True)
    engine.save_checkpoint(args.output)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
"""


def write(plan: Plan) -> list[File]:
    """The configuration, the loop and how to start it."""
    config = hf.deepspeed_config(plan, trainer=False)
    script_text = launch.run_script(plan, "start of the DeepSpeed run", launch.training_script(plan))
    return [
        File(name="deepspeed.json", text=json_text(config)),
        File(name="train.py", text=train(plan)),
        File(name="run.sh", text=script_text, executable=True),
    ]


def read(source: Source) -> Found:
    """Fields from a DeepSpeed configuration."""
    found = Found()
    hf.read_deepspeed(source.tree, found)
    found.set("framework", "deepspeed")
    return found


TARGET = Target(
    name="deepspeed",
    title="DeepSpeed",
    version="0.19",
    about="DeepSpeed JSON (ZeRO 0 to 3, offload) and a plain loop on its engine",
    checked="`DeepSpeedConfig`, its own parser; two steps of its engine on two CPU processes",
    framework=("deepspeed", None),
    levers=rules(
        name=written(),
        config=written(),
        method=written(*script.METHODS),
        seq_len=written(),
        **ADAPTERS,
        precision=written("fp32", "bf16-mixed", "fp16-mixed", why="DeepSpeed keeps fp32 master weights"),
        optimizer=written("adamw", "adamw-8bit", "adamw-4bit", "sgd", "momentum", "adafactor"),
        micro_batch=written(),
        grad_accum=written(),
        dp=written(),
        zero=written(),
        checkpointing=written("none", "full"),
        compile=written(),
        attention=written("flash", "sdpa", "eager"),
        offload=written("optimizer", "parameters"),
        weights=written(*hf.WEIGHTS),
        gpus=written(),
        gpus_per_node=written(),
    ),
    kinds=hf.KINDS,
    check=_check,
    write=write,
    command=launch.training_script,
    read=read,
    marks=(
        frozenset({"zero_optimization"}),
        frozenset({"train_micro_batch_size_per_gpu"}),
        frozenset({"train_batch_size", "gradient_accumulation_steps"}),
    ),
)
