"""Training programs of transformers models as (build, step) pairs that an engine can run.

Imported only once torch is wanted.
"""

from __future__ import annotations

import contextlib
import fnmatch
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from memfit.errors import MemfitError
from memfit.trace import hf, pipeline, sharded
from memfit.trace.engine import DEVICE, run
from memfit.trace.optimizers import OPTIMIZERS
from memfit.trace.result import Trace
from memfit.trace.training import Training
from memfit.trace.values import Values

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Parameter types by the words of a job."""


@dataclass(kw_only=True, slots=True)
class Program:
    """What an engine runs: see ``memfit.trace.engine.run``."""

    build: Callable[..., Any]
    step: Callable[[Any], None]
    before: Callable[[], Any] | None
    values: Values
    warnings: list[str] = field(default_factory=list)


def program(training: Training, device: str) -> Program:
    """The program of a training run on tensors of ``device``.

    Raises:
        ConfigError: transformers cannot build the model.
        MemfitError: the optimizer is not known here.
    """
    if training.optimizer != "none" and training.optimizer not in OPTIMIZERS:
        raise MemfitError(
            f"the trace knows no optimizer `{training.optimizer}`", hint=f"one of {', '.join(OPTIMIZERS)}"
        )
    config = hf.config_of(training.config, num_layers=training.num_layers, attention=training.attention)
    if training.stages > 1:
        hf.set_layers(config, training.stage_layers)
    values = Values(num_experts=hf.num_experts(config))
    made = Program(
        build=_builder(training, config, device), step=_stepper(training, config, device), before=None, values=values
    )
    if training.shard or training.tp > 1:
        made.before = sharded.meshes(training.ranks, training.tp, training.rank)
    elif training.ranks > 1:
        made.warnings.append("gradient buckets of DDP are booked as flat buffers of 25 MiB; its hooks are not run")
    return made


def run_training(training: Training, *, engine: str | None = None, **options: Any) -> Trace:
    """Trace a training run on the engine it needs, or on the one that is named.

    Args:
        training: the run.
        engine: ``meta`` or ``fake-cuda``.
        options: see ``memfit.trace.engine.run``.
    """
    chosen = engine or training.engine
    made = program(training, DEVICE[chosen])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what libraries deprecate among themselves is not the user's concern
        try:
            trace = run(made.build, made.step, engine=chosen, values=made.values, before=made.before, **options)
        finally:
            sharded.close()
    return trace.with_warnings(made.warnings)


def _model(t: Training, config: Any, device: str) -> Any:
    """The model with its adapters, frozen parts and checkpoints."""
    model = hf.build(config, device=device, dtype=DTYPES[t.params])
    if t.stages > 1:
        pipeline.cut(model, t.stages, t.stage)
    if t.nf4:
        from memfit.trace.nf4 import quantise

        quantise(model)
    if t.lora is not None:
        model = hf.add_lora(model, t.lora)
    elif t.trainable is not None:
        freeze(model, t.trainable)
    if t.checkpointing:
        hf.checkpoint(model, every=t.checkpointing, selective=t.selective)
        if t.lora is not None or t.trainable is not None:
            model.enable_input_require_grads()
    return model


def _builder(t: Training, config: Any, device: str) -> Callable[..., Any]:
    def build(mesh: Any = None) -> Any:
        if mesh is None:
            model = _model(t, config, device)
        else:
            model = _model(t, config, "meta")
            compute, reduce = DTYPES.get(t.compute or ""), DTYPES.get(t.reduce or "")
            sharded.apply(model, mesh, reshard=t.reshard, compute=compute, reduce=reduce)
            model.to_empty(device=device)
        buckets = sharded.ddp_buckets(model, device) if t.ranks > 1 and not t.shard else None
        _forward_as_trainer(t, model)
        return model, _optimizers(t, model), buckets

    return build


def freeze(model: Any, trainable: tuple[str, ...] | int) -> None:
    """Train only the last layers (a number), or the modules that match one of the patterns."""
    if isinstance(trainable, int):
        kept = {id(p) for block in sharded.blocks_of(model)[-trainable:] for p in block.parameters()}
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) in kept)
        return
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        inside = {".".join(parts[a:b]) for a in range(len(parts)) for b in range(a + 1, len(parts) + 1)}
        parameter.requires_grad_(any(fnmatch.filter(inside, pattern) for pattern in trainable))


def _forward_as_trainer(t: Training, model: Any) -> None:
    if t.autocast and t.fp32_outputs:
        from accelerate.utils.operations import convert_outputs_to_fp32

        inner = torch.autocast("cuda", dtype=DTYPES[t.autocast])(model.forward)
        model.forward = convert_outputs_to_fp32(inner)


def _optimizers(t: Training, model: Any) -> Any:
    if t.optimizer == "none":
        return None
    trained = [p for p in model.parameters() if p.requires_grad]
    if t.partition:
        trained = sharded.share(trained, t.ranks, t.rank)
    make = OPTIMIZERS[t.optimizer]
    if not t.optimizer_in_backward:
        # split and whole parameters cannot share a foreach call, so each kind is a group of its own
        kinds: dict[type, list[Any]] = {}
        for parameter in trained:
            kinds.setdefault(type(parameter.data), []).append(parameter)
        return make([{"params": group} for group in kinds.values()])
    each = {p: make([p]) for p in trained}

    def apply(parameter: Any) -> None:
        each[parameter].step()
        each[parameter].zero_grad(set_to_none=True)

    for parameter in trained:
        parameter.register_post_accumulate_grad_hook(apply)
    return None


def inputs_of(config: Any, batch: int, seq: int, device: str, *, images: int = 0, dtype: Any = None) -> dict[str, Any]:
    """Token ids and labels; encoder-decoders get ``seq`` tokens on both sides; ``images`` of fixed size for each row.

    Raises:
        MemfitError: images are asked for and the vision tower takes none of a fixed size.
    """
    ids = torch.zeros(batch, seq, dtype=torch.long, device=device)
    made = {"input_ids": ids, "labels": ids}
    if images:
        vision = getattr(config, "vision_config", None)
        size = getattr(vision, "image_size", None)
        if not isinstance(size, int):
            raise MemfitError(
                f"images of `{config.model_type}` are not traced: their sizes are values, which a trace does not have",
                hint="`memfit estimate` covers them; without images the text part is traced",
            )
        shape = (batch * images, getattr(vision, "num_channels", 3), size, size)
        made["pixel_values"] = torch.zeros(shape, dtype=dtype, device=device)
    return made


def _stepper(t: Training, config: Any, device: str) -> Callable[[Any], None]:
    def context() -> Any:
        if t.autocast and not t.fp32_outputs:
            return torch.autocast("cuda", dtype=DTYPES[t.autocast])
        return contextlib.nullcontext()

    held: list[
        Any
    ] = []  # what the loop's variables name: as in any loop, until the next forward pass has made new ones

    def micro_batch(model: Any) -> None:
        batch = inputs_of(config, t.batch, t.seq, device, images=t.images, dtype=DTYPES[t.compute or t.params])
        with context():
            out = model(**batch)
        loss = out.loss if out.get("loss") is not None else out[0].float().mean()
        held[:] = [batch, out] if t.keep_outputs else []
        out = None
        if t.grad_accum > 1:
            loss = loss / t.grad_accum
        loss.backward()

    def run_pipeline(model: Any) -> None:
        forward, backward = pipeline.passes(
            model,
            stages=t.stages,
            stage=t.stage,
            batch=t.batch,
            seq=t.seq,
            dtype=DTYPES[t.compute or t.params],
            device=device,
            context=context,
        )
        depth = pipeline.in_flight(t.schedule, t.stages, t.stage, t.grad_accum)
        if t.shard:
            sharded.hold(model)
        pipeline.schedule(forward, backward, depth, t.grad_accum)
        if t.shard:
            sharded.reduce_held(model)

    def step(state: Any) -> None:
        model, optimizer, _ = state
        if t.stages > 1:
            run_pipeline(model)
        for index in range(t.grad_accum if t.stages == 1 else 0):
            if t.shard and t.no_sync:
                model.set_requires_gradient_sync(index == t.grad_accum - 1)
            micro_batch(model)
        if optimizer is not None:
            optimizer.step()
            (model if t.partition else optimizer).zero_grad(set_to_none=t.set_to_none)
        elif not t.optimizer_in_backward:
            model.zero_grad(set_to_none=t.set_to_none)
        held.clear()

    return step
