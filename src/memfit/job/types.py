"""The job as frozen data: what model, what task, which strategy, which hardware.

A field is None when it was not stated; ``memfit.job.complete`` fills it. What each field means, its bounds and its
default stand in ``memfit.job.fields``; sequences are tuples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """Which model: a name, or the content of a config.json (which wins), and facts that no config states."""

    name: str | None = None
    config: Mapping[str, Any] | None = field(default=None, hash=False)
    extra: Mapping[str, Any] | None = field(default=None, hash=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Lora:
    """Adapters: ``targets`` is "all-linear" or module names; ``train_also`` are modules trained in full."""

    rank: int | None = None
    targets: str | tuple[str, ...] | None = None
    train_also: tuple[str, ...] | None = None
    alpha: float | None = None
    dropout: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """What is done with the model.

    ``trainable`` belongs to the method "freeze": an int is the number of last layers that are trained, a float in
    (0, 1] the fraction of the parameters, a tuple the module names or patterns (``*`` matches anything). All else is
    frozen. With methods "dpo" and "grpo" a stated ``lora`` trains adapters, otherwise all parameters are trained.
    """

    kind: str | None = None
    method: str | None = None
    seq_len: int | None = None
    global_batch: int | None = None
    lora: Lora | None = None
    trainable: int | float | tuple[str, ...] | None = None
    context: int | None = None
    concurrency: int | None = None
    batch_tokens: int | None = None
    prompt: int | None = None
    output: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Strategy:
    """How it is run: framework, precision, batches, parallel degrees, what is kept, what is recomputed.

    ``checkpointing`` is a word or an int (every n-th layer); ``weights`` is a word or ``{"bpw": bits per weight}``;
    ``pp_layers`` has the decoder layers of each pipeline rank.
    """

    framework: str | None = None
    framework_version: str | None = None
    precision: str | None = None
    optimizer: str | None = None
    optimizer_in_backward: bool | None = None
    set_to_none: bool | None = None
    micro_batch: int | None = None
    grad_accum: int | None = None
    dp: int | None = None
    zero: int | None = None
    dp_shard: int | None = None
    reshard: bool | None = None
    tp: int | None = None
    sequence_parallel: bool | None = None
    pp: int | None = None
    pp_schedule: str | None = None
    virtual_pp: int | None = None
    pp_layers: tuple[int, ...] | None = None
    cp: int | None = None
    ep: int | None = None
    checkpointing: str | int | None = None
    compile: bool | None = None
    attention: str | None = None
    loss: str | None = None
    offload: tuple[str, ...] | None = None
    weights: str | Mapping[str, float] | None = field(default=None, hash=False)
    kv: str | None = None
    memory_fraction: float | None = None
    graphs: bool | None = None
    cpu_layers: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Hardware:
    """Where it runs: the card, how many in all and per node, and what is not there for the job."""

    gpu: str | None = None
    gpus: int | None = None
    gpus_per_node: int | None = None
    memory_gib: float | None = None
    others_gib: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One job, as every command takes and gives it."""

    schema: int = 1
    model: Model = Model()
    task: Task = Task()
    strategy: Strategy = Strategy()
    hardware: Hardware = Hardware()


@dataclass(frozen=True, kw_only=True, slots=True)
class Completed:
    """A job with every field filled.

    Attributes:
        job: the job; only fields whose table row is ``optional`` may still be None.
        origins: dotted path -> "stated", "profile", "default" or "derived", for every field of the table.
        warnings: settings that have no effect or are likely not meant, one sentence each.
        values: the fields of task, strategy and hardware by name, flat.
    """

    job: Job
    origins: Mapping[str, str] = field(hash=False)
    warnings: tuple[str, ...] = ()
    values: Mapping[str, Any] = field(default_factory=dict, hash=False, compare=False)
