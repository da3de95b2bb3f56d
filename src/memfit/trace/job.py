"""From a job to a trace: one rank of a training run, as the job states it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memfit.errors import JobError, JobErrors, MemfitError, MissingError
from memfit.formula.profile import Profile, profile, scheme, select
from memfit.job import Completed, Job, Task, complete
from memfit.trace.hidden import Gpu
from memfit.trace.result import Trace
from memfit.trace.training import Training

if TYPE_CHECKING:
    from memfit.hardware import Gpu as Card

FUSED_ADAMW = frozenset({"transformers", "trl", "axolotl", "swift", "torchtitan", "litgpt"})
"""Frameworks whose AdamW is fused by default: TrainingArguments.optim, torchtitan's optimizer.implementation."""
ACCELERATE = frozenset({"transformers", "trl", "axolotl", "swift"})
"""Frameworks on accelerate, which copies the outputs of an autocast forward to fp32."""
THREADS = {(7, 5): 1024, (8, 6): 1536, (8, 7): 1536, (8, 9): 1536, (12, 0): 1536, (12, 1): 1536}
"""Resident threads per multiprocessor where they are not 2048 (CUDA C Programming Guide, compute capabilities)."""


def trace_job(
    job: Job | Completed,
    *,
    rank: int = 0,
    stage: int = 0,
    steps: int = 2,
    engine: str = "auto",
    num_layers: int | None = None,
    hidden: bool = True,
) -> Trace:
    """Trace one rank of a training job whose model transformers can build.

    Args:
        job: the job; missing fields get their defaults.
        rank: which rank of the data-parallel and tensor-parallel mesh.
        stage: which pipeline stage.
        steps: how many optimizer steps.
        engine: ``meta``, ``fake-cuda``, or ``auto``: meta unless the job needs CUDA semantics.
        num_layers: shorten the model.
        hidden: book the temporaries inside CUDA kernels.

    Raises:
        JobErrors: the job contradicts itself or asks for something the trace does not run.
        MissingError: torch or transformers is not installed, or this torch does not run fake CUDA tensors.
    """
    done = job if isinstance(job, Completed) else complete(job)
    training, warnings = training_of(done.job, rank=rank, stage=stage, num_layers=num_layers)
    if engine == "meta" and training.engine != "meta":
        raise MemfitError(
            "this job needs the engine fake-cuda: meta knows no autocast, no FSDP2 and no tensor parallelism",
            hint="leave the engine to `auto`",
        )
    try:
        from memfit.trace.program import run_training
        from memfit.trace.unlock import UnlockError
    except ImportError as error:
        raise MissingError(f"tracing needs {error.name}", hint="pip install memfit[torch]") from error
    chosen = None if engine == "auto" else engine
    try:
        trace = run_training(training, engine=chosen, steps=steps, gpu=target(done.job.hardware.gpu), hidden=hidden)
    except UnlockError as error:
        raise MissingError(
            f"this job needs fake CUDA tensors: {error}", hint="torch 2.11 or later, Linux x86_64 is known to work"
        ) from error
    if (card := done.job.hardware.gpu) is not None and lookup(card).compute_capability is None:
        warnings.append("the kernels are those of an NVIDIA H100: what others take inside of kernels is not known")
    return trace.with_warnings((*done.warnings, *warnings))


def target(name: str | None) -> Gpu:
    """The properties of a card of the catalog that kernels depend on; an H100 when it is not an NVIDIA card."""
    if name is None:
        return Gpu()
    card = lookup(name)
    capability = card.compute_capability
    if capability is None:
        return Gpu()
    return Gpu(
        capability=capability,
        multiprocessors=card.sm_count,
        threads_per_multiprocessor=THREADS.get(capability, 2048),
        total_bytes=card.total_bytes,
        name=card.title,
    )


def lookup(name: str) -> Card:
    """The card of the catalog."""
    from memfit.hardware import lookup_gpu

    found = lookup_gpu(name)
    return found[0] if isinstance(found, tuple) else found


def training_of(
    job: Job, *, rank: int = 0, stage: int = 0, num_layers: int | None = None
) -> tuple[Training, list[str]]:
    """The training run of one rank, and what had to be assumed.

    Raises:
        JobErrors: the job asks for something the trace does not run.
    """
    task, plan = job.task, job.strategy
    faults = _refusals(job)
    if faults:
        raise JobErrors(faults)
    warnings = []
    config, family = config_dict(job), (job.model.extra or {}).get("as")
    if family is not None:
        config = {key: value for key, value in config.items() if key not in ("architectures", "auto_map")}
        config["model_type"] = family
        warnings.append(f"the module is that of `{family}`, as --as says")
    if plan.compile:
        warnings.append("torch.compile is not traced: the result is the eager program's")
    if plan.framework in ("megatron", "torchtitan", "deepspeed", "nanotron", "litgpt"):
        warnings.append(f"the model is transformers' own, not {plan.framework}'s")
    low = (plan.precision or "bf16").removesuffix("-mixed")
    mixed = (plan.precision or "").endswith("-mixed")
    shard = plan.zero == 3 and (plan.dp or 1) > 1
    rows = profile(select(plan.framework or "torch", plan.framework_version))
    adapters = task.method in ("lora", "qlora", "dora")
    fused = plan.optimizer == "adamw" and plan.framework in FUSED_ADAMW
    optimizer = {"adamw": "adamw-fused" if fused else "adamw-foreach"}.get(
        plan.optimizer or "", plan.optimizer or "none"
    )
    params = "fp32" if mixed and not adapters else low
    if adapters and plan.weights in ("fp32", "bf16", "fp16"):
        params = str(plan.weights)
    every = {"none": 0, "full": 1, "selective": 1}.get(str(plan.checkpointing), plan.checkpointing)
    return (
        Training(
            config=config,
            num_layers=num_layers,
            batch=plan.micro_batch or 1,
            seq=task.seq_len or 4096,
            images=int((job.model.extra or {}).get("images", 0)),
            grad_accum=plan.grad_accum or 1,
            params=params,
            autocast=low if mixed and not shard else None,
            optimizer=optimizer,
            optimizer_in_backward=bool(plan.optimizer_in_backward),
            set_to_none=plan.set_to_none is not False,
            checkpointing=every if isinstance(every, int) else 0,
            selective=plan.checkpointing == "selective",
            attention="sdpa" if plan.attention == "flash" and low == "fp32" else plan.attention or "sdpa",
            lora=_lora(task) if adapters else None,
            nf4=task.method == "qlora",
            trainable=_trainable(task),
            ranks=(plan.dp_shard or plan.dp or 1) if shard else (plan.dp or 1),
            shard=shard,
            partition=plan.zero == 1 and (plan.dp or 1) > 1,
            reshard=plan.reshard is not False,
            no_sync=rows.no_sync,
            reduce=_reduction(rows, plan.precision or "", low) if mixed and shard else None,
            compute=low if mixed and shard else None,
            tp=plan.tp or 1,
            rank=rank,
            stages=plan.pp or 1,
            stage=stage,
            stage_layers=_stage_layers(job, stage, num_layers) if (plan.pp or 1) > 1 else 0,
            schedule=plan.pp_schedule or "1f1b",
            fp32_outputs=mixed and not shard and plan.framework in ACCELERATE,
            keep_outputs=plan.framework == "torch",  # a plain loop holds `out` until the step ends; trainers do not
        ),
        warnings,
    )


def _reduction(rows: Profile, precision: str, low: str) -> str:
    """The type in which a framework's FSDP reduces gradients: 32 bits, or the compute type."""
    width = scheme(rows.sharded[precision]).reduce if precision in rows.sharded else 4
    return "fp32" if width == 4 else low


def _stage_layers(job: Job, stage: int, num_layers: int | None) -> int:
    """Decoder layers of a pipeline stage: as the job says, else as its framework splits them."""
    from memfit.formula.resolve import resolve
    from memfit.formula.training import rank_layers

    if num_layers is not None:
        from memfit.trace.answer import shortened

        job = shortened(job, num_layers)
    found = rank_layers(resolve(job))
    if stage >= len(found):
        raise MemfitError(f"there is no pipeline stage {stage}", hint=f"stages are 0 to {len(found) - 1}")
    if not found[stage] and 0 < stage < len(found) - 1:
        raise MemfitError(f"pipeline stage {stage} has no layers: there is nothing to trace")
    return found[stage]


def config_dict(job: Job) -> dict[str, Any]:
    """The content of the config.json that the job names.

    Raises:
        UnknownNameError: neither a catalog name nor a folder.
        InputFileError: the file cannot be read.
    """
    if job.model.config is not None:
        return dict(job.model.config)
    from pathlib import Path

    from memfit.models import catalog, resolve
    from memfit.models.config import load_file

    name = job.model.name or ""
    entry = catalog.lookup(name)
    if entry is not None:
        return dict(entry.config)
    resolve(name)  # raises what is wrong with it
    return load_file(Path(name))


def _refusals(job: Job) -> list[JobError]:
    """What of the job the trace does not run."""
    task, plan = job.task, job.strategy
    way_out = "`memfit estimate` covers it"

    def no(path: str, value: Any, what: str) -> JobError:
        return JobError(path, f"{what} is not traced", value=value, hint=way_out)

    faults: list[JobError] = []
    if task.kind == "serve":
        faults.append(no("task.kind", task.kind, "serving"))
    if task.method in ("dpo", "grpo"):
        faults.append(no("task.method", task.method, f"{task.method}"))
    if task.method == "freeze" and isinstance(task.trainable, float):
        faults.append(no("task.trainable", task.trainable, "a share of the parameters"))
    degrees = {
        "cp": "context parallelism",
        "ep": "expert parallelism",
        "virtual_pp": "a pipeline with virtual stages",
    }
    for name, what in degrees.items():
        if (n := getattr(plan, name) or 1) > 1:
            faults.append(no(f"strategy.{name}", n, what))
    if (plan.pp or 1) > 1 and plan.pp_schedule not in (None, "gpipe", "1f1b"):
        faults.append(no("strategy.pp_schedule", plan.pp_schedule, f"the {plan.pp_schedule} schedule"))
    if plan.zero == 2 or (plan.zero == 1 and plan.framework != "torch"):
        faults.append(no("strategy.zero", plan.zero, f"ZeRO stage {plan.zero} of {plan.framework}"))
    if plan.zero == 1 and (plan.tp or 1) > 1:
        faults.append(no("strategy.zero", plan.zero, "ZeRO stage 1 with tensor parallelism"))
    if plan.precision not in ("fp32", "bf16", "fp16", "bf16-mixed", "fp16-mixed"):
        faults.append(no("strategy.precision", plan.precision, f"precision {plan.precision}"))
    if plan.checkpointing == "attention":
        faults.append(no("strategy.checkpointing", plan.checkpointing, f"{plan.checkpointing} checkpointing"))
    if plan.offload:
        faults.append(no("strategy.offload", plan.offload, "offloading"))
    if plan.loss not in (None, "eager"):
        faults.append(no("strategy.loss", plan.loss, f"the {plan.loss} loss"))
    if plan.optimizer in ("muon", "galore"):
        faults.append(no("strategy.optimizer", plan.optimizer, f"the optimizer {plan.optimizer}"))
    return faults


def _lora(task: Task) -> dict[str, Any]:
    lora = task.lora
    targets: Any = "all-linear" if lora is None or lora.targets is None else lora.targets
    arguments: dict[str, Any] = {
        "r": (lora.rank if lora else None) or 16,
        "target_modules": targets if isinstance(targets, str) else list(targets),
        "lora_dropout": (lora.dropout if lora else None) or 0.0,
        "use_dora": task.method == "dora",
    }
    if lora and lora.train_also:
        arguments["modules_to_save"] = list(lora.train_also)
    return arguments


def _trainable(task: Task) -> tuple[str, ...] | int | None:
    if task.method != "freeze" or task.trainable is None:
        return None
    return task.trainable if isinstance(task.trainable, (tuple, int)) else None
