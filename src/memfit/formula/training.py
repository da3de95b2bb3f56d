"""The peak of a training job: every stage, every moment, the fullest rank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from memfit.errors import JobError
from memfit.formula.dims import Dims, Int, maximum, where
from memfit.formula.host import host_bytes
from memfit.formula.profile import Profile, select
from memfit.formula.profile import names as profile_names
from memfit.formula.profile import profile as profile_of
from memfit.formula.resolve import Resolved
from memfit.formula.runtime import CONTEXT_BYTES, nccl_bytes
from memfit.formula.schedule import distinct, stages
from memfit.formula.segments import first_pass, idle
from memfit.formula.setup import Setup, choices, setup
from memfit.formula.sharding import embedding_hole, stream_pools, whole_grads
from memfit.formula.slack import fragments
from memfit.formula.stage import Stage, StageModel
from memfit.formula.step import AT_LOGITS, ENTRIES, Moment, StepModel


@dataclass(frozen=True, slots=True)
class StagePeak:
    """The fullest moment of one stage; ``which`` is its index in ``moments``."""

    stage: Stage
    moments: list[Moment]
    peak: Moment
    slack: Int
    host: Int
    which: Int

    @property
    def allocated(self) -> Int:
        """Bytes handed out by the allocator."""
        return self.peak.total

    @property
    def reserved(self) -> Int:
        """Bytes held by the allocator."""
        return self.peak.total + self.slack


def dims_of(resolved: Resolved, numeric: Mapping[str, Any] | None = None) -> Dims:
    """The numeric axes of a resolved training job; ``numeric`` replaces some by arrays."""
    v = {**resolved.values, **numeric} if numeric else resolved.values
    double = 2 if v["method"] == "dpo" else 1  # chosen and rejected run in one batch
    extra = resolved.completed.job.model.extra or {}
    return Dims(
        micro_batch=v["micro_batch"] * double,
        seq_len=v["seq_len"],
        grad_accum=v["grad_accum"],
        dp=v["dp"],
        dp_shard=v["dp_shard"],
        tp=v["tp"],
        cp=v["cp"],
        ep=v["ep"],
        sequence_parallel=bool(v["sequence_parallel"]),
        imbalance_pct=round(extra.get("moe_imbalance", 1.0) * 100),
        images=int(extra.get("images", 0)),
        split_experts=_splits_experts(v),
    )


def _splits_experts(values: Mapping[str, Any]) -> bool:
    """Whether the job's framework splits experts over tensor parallelism; engines that serve do."""
    if values["framework"] not in profile_names():
        return True
    return profile_of(select(values["framework"], values["framework_version"])).split_experts


def card_of(resolved: Resolved) -> dict[str, Any]:
    """What the structure of a step needs to know of the card: compute capability, and whether it runs ROCm."""
    gpu = resolved.gpu
    return {"capability": gpu.compute_capability, "rocm": gpu.vendor == "amd"} if gpu else {}


def grows(profile: Profile, *, rocm: bool) -> bool:
    """Whether the allocator's segments grow in place (expandable_segments): little is lost to splitting."""
    return profile.expandable and not rocm


def segments_grow(resolved: Resolved) -> bool:
    """The same of a job."""
    framework = profile_of(select(resolved.values["framework"], resolved.values["framework_version"]))
    return grows(framework, rocm=resolved.gpu is not None and resolved.gpu.vendor == "amd")


def setup_of(resolved: Resolved) -> Setup:
    """The compiled static part of a resolved training job."""
    static = choices(resolved.values, num_layers=resolved.arch.num_layers, **card_of(resolved))
    return setup(resolved.arch, static)


def stages_of(s: Setup, d: Dims) -> list[Stage]:
    """The pipeline stages of a setup.

    Raises:
        JobError: the stated layers of the ranks are not those of this model and pipeline.
    """
    stack = s.arch.decoder
    stated = s.choices.pp_layers
    if stated and (len(stated) != s.choices.pp or sum(stated) != stack.num_layers):
        message = f"{sum(stated)} layers on {len(stated)} ranks do not split {stack.num_layers} over pp {s.choices.pp}"
        raise JobError("strategy.pp_layers", message, value=stated)
    costs: tuple[int, ...] = ()
    head = 0
    if s.profile.balance_cost and s.choices.pp > 1:
        per = [sum(t.numel for t in b.tensors if t.linear) for b in stack.blocks]
        costs = tuple(per[i] for i in stack.layout)
        head = s.arch.vocab_size * s.arch.hidden_size
    return stages(
        stack.num_layers,
        pp=s.choices.pp,
        schedule=s.choices.schedule,
        virtual=s.choices.virtual_pp,
        micro_batches=d.grad_accum,
        layers=stated,
        ends=s.profile.pipeline_ends,
        costs=costs,
        head_cost=head,
    )


def rank_layers(resolved: Resolved) -> tuple[int, ...]:
    """Decoder layers of each pipeline rank of a training job, as stated or as its framework splits them."""
    return tuple(len(stage.indices()) for stage in stages_of(setup_of(resolved), dims_of(resolved)))


_NOTHING: dict[str, Int] = dict.fromkeys(ENTRIES, 0)


def _pick(which: Int, values: list[Int]) -> Int:
    """For each job the value of its own fullest moment."""
    out = values[0]
    for index in range(1, len(values)):
        if values[index] is not out:
            out = where(which == index, values[index], out)
    return out


def stage_peak(s: Setup, d: Dims, stage: Stage) -> StagePeak:
    """The fullest moment of one stage, with its slack."""
    model = StageModel(s, d, stage)
    moments = StepModel(model).moments()
    totals = [moment.total for moment in moments]
    top, which = totals[0], 0
    for index in range(1, len(moments)):
        higher = totals[index] > top
        which = where(higher, index, which)
        top = maximum(top, totals[index])
    if isinstance(which, int):
        chosen = moments[which]
        peak = Moment(chosen.phase, chosen.what, {**_NOTHING, **chosen.parts})
    else:
        peak = Moment("", "", {name: _pick(which, [m.parts.get(name, 0) for m in moments]) for name in ENTRIES})
    streams, hole = stream_pools(model), embedding_hole(model)
    late = not s.scheme.always
    growing = grows(s.profile, rocm=s.choices.rocm)
    empty = {} if growing or late else idle(model)
    apart = {} if growing or late else {**empty, "first_pass": first_pass(model)}
    reserved: Int = top
    for moment, total in zip(moments, totals, strict=True):
        held = total
        if streams is not None:
            # reduced gradients and reductions live on streams of their own: their peak adds to that of everything else
            reduced = 0 if whole_grads(model) else moment.parts.get("grads", 0)
            held = maximum(total, total - reduced + streams) + hole
        if not growing:
            beside = apart if moment.what in AT_LOGITS else empty
            held = held + fragments({**moment.parts, **beside}, states_late=late)
        reserved = maximum(reserved, held)
    slack = reserved - top
    return StagePeak(stage, moments, peak, slack, host_bytes(model), which)


def _alike(s: Setup) -> list[tuple[int, bool, bool]]:
    """What tells the layers of the decoder apart: kind, whether it is recomputed, whether it is trained."""
    mode, first = s.choices.checkpointing, s.decoder.first_trained
    every = mode if isinstance(mode, int) else 0
    layout = s.arch.decoder.layout
    return [(kind, bool(every) and i % every == every - 1, i < first) for i, kind in enumerate(layout)]


def peaks(s: Setup, d: Dims, *, every: bool) -> list[StagePeak]:
    """The stages' peaks: all of them, or only those that can be the fullest."""
    found = stages_of(s, d)
    if not every:
        found = distinct(found, _alike(s))
    return [stage_peak(s, d, stage) for stage in found]


def context_bytes(resolved: Resolved) -> int:
    """CUDA context of the card."""
    return resolved.gpu.context_bytes if resolved.gpu and resolved.gpu.context_bytes else CONTEXT_BYTES


def runtime_bytes(resolved: Resolved, d: Dims) -> tuple[Int, Int]:
    """(CUDA context, NCCL) in bytes."""
    return context_bytes(resolved), nccl_bytes(d, resolved.values["pp"])
