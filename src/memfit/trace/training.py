"""One rank of a training run in plain terms: what a job comes down to before torch is asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """One rank of a training run, in plain terms.

    Attributes:
        config: content of a Hugging Face config.json.
        num_layers: shorten the model to this many layers; None keeps all.
        batch, seq: sequences of a micro-batch and tokens of a sequence.
        images: images of each sequence, for models with a vision tower.
        grad_accum: micro-batches per optimizer step.
        params: type of the parameters.
        autocast: type of the computation under ``torch.autocast``, None without.
        optimizer: a key of ``OPTIMIZERS``, or "none" for forward and backward only.
        optimizer_in_backward: each gradient is applied and freed as it appears.
        set_to_none: gradients are freed between steps.
        checkpointing: 0 keeps everything, n recomputes every n-th layer.
        selective: recomputed layers keep attention and every second matrix product.
        attention: "sdpa", "flash" (the flash-attention package) or "eager".
        lora: arguments of peft's LoraConfig, None for full training.
        nf4: frozen linear layers are stored in 4 bits (QLoRA).
        trainable: module names or patterns that are trained, or the number of last layers; None for all.
        ranks: data-parallel ranks; with ``shard`` they hold one sharded copy (FSDP2).
        shard: parameters, gradients and states are split over the ranks.
        partition: each rank keeps the states of its share of the parameters (torch's ZeroRedundancyOptimizer).
        reshard: gathered parameters are freed between forward and backward.
        no_sync: sharded gradients accumulate whole and are reduced after the last micro-batch alone.
        reduce: type of gradients in the reduction, None for the gradients' own.
        compute: type that FSDP2 gathers parameters in, None for their own.
        tp: tensor-parallel ranks.
        rank: which rank of the data- and tensor-parallel mesh is traced.
        stages, stage: pipeline stages, and the one that is traced.
        stage_layers: decoder layers of that stage, where there are several.
        schedule: ``gpipe`` keeps all micro-batches in flight, anything else as many as 1F1B does.
        fp32_outputs: the trainer copies the outputs to fp32 (accelerate under autocast).
        keep_outputs: the loop holds the inputs and the model's outputs until the step ends.
    """

    config: dict[str, Any]
    num_layers: int | None = None
    batch: int = 1
    seq: int = 4096
    images: int = 0
    grad_accum: int = 1
    params: str = "bf16"
    autocast: str | None = None
    optimizer: str = "adamw-foreach"
    optimizer_in_backward: bool = False
    set_to_none: bool = True
    checkpointing: int = 0
    selective: bool = False
    attention: str = "sdpa"
    lora: dict[str, Any] | None = None
    nf4: bool = False
    trainable: tuple[str, ...] | int | None = None
    ranks: int = 1
    shard: bool = False
    partition: bool = False
    reshard: bool = True
    no_sync: bool = False
    reduce: str | None = None
    compute: str | None = None
    tp: int = 1
    rank: int = 0
    stages: int = 1
    stage: int = 0
    stage_layers: int = 0
    schedule: str = "1f1b"
    fp32_outputs: bool = False
    keep_outputs: bool = False

    @property
    def engine(self) -> str:
        """The engine that this run needs."""
        return "fake-cuda" if self.autocast or self.shard or self.tp > 1 or self.fp32_outputs else "meta"
