"""The peak of a training job: every stage, every moment, the fullest rank."""

from __future__ import annotations

from dataclasses import dataclass

from memfit.formula.dims import Dims, Int, maximum, where
from memfit.formula.resolve import Resolved
from memfit.formula.runtime import CONTEXT_BYTES, nccl_bytes
from memfit.formula.schedule import distinct, stages
from memfit.formula.setup import Setup, choices, setup
from memfit.formula.slack import fragments
from memfit.formula.step import ENTRIES, Moment, Stage, StageModel

@dataclass(frozen=True, slots=True)
class StagePeak:
    """The fullest moment of one stage."""

    stage: Stage
    moments: list[Moment]
    peak: Moment
    slack: Int
    host: Int

    @property
    def allocated(self) -> Int:
        """Bytes handed out by the allocator."""
        return self.peak.total

    @property
    def reserved(self) -> Int:
        """Bytes held by the allocator."""
        return self.peak.total + self.slack


def dims_of(resolved: Resolved, images: int = 0) -> Dims:
    """The numeric axes of a resolved training job."""
    v = resolved.values
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
        imbalance_pct=round(float(extra.get("moe_imbalance", 1.0)) * 100),
        images=int(extra.get("images", images)),
    )


def setup_of(resolved: Resolved) -> Setup:
    """The compiled static part of a resolved training job."""
    capability = resolved.gpu.compute_capability if resolved.gpu else None
    flash = capability is None or capability >= (8, 0)
    return setup(resolved.arch, choices(resolved.values, flash=flash))


def stages_of(s: Setup, d: Dims) -> list[Stage]:
    """The pipeline stages of a setup."""
    stack = s.arch.decoder
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
        costs=costs,
        head_cost=head,
    )


def stage_peak(s: Setup, d: Dims, stage: Stage) -> StagePeak:
    """The fullest moment of one stage, with its slack."""
    model = StageModel(s, d, stage)
    moments = model.moments()
    top: Int = -1
    parts: dict[str, Int] = dict.fromkeys(ENTRIES, 0)
    phase, what = moments[0].phase, moments[0].what
    for moment in moments:
        total = moment.total
        higher = total > top
        for name in ENTRIES:
            value = moment.parts.get(name, 0)
            if value is not parts[name]:
                parts[name] = where(higher, value, parts[name])
        if higher is True or (not isinstance(higher, bool) and getattr(higher, "ndim", 1) == 0 and bool(higher)):
            phase, what = moment.phase, moment.what
        top = maximum(total, top)
    peak = Moment(phase, what, parts)
    slack: Int = 0
    if not s.profile.expandable:
        slack = fragments(parts, states_late=not s.scheme.always and not s.scheme.master)
    streams = model.stream_pools()
    if streams is not None:
        # gradients and reductions live on streams of their own: their peak adds to the peak of everything else
        compute: Int = 0
        for moment in moments:
            own = moment.parts.get("grads", 0) + moment.parts.get("buckets", 0)
            compute = maximum(compute, moment.total - own)
        slack = slack + maximum(compute + streams - top, 0)
    return StagePeak(stage, moments, peak, slack, 0)


def peaks(s: Setup, d: Dims, *, every: bool) -> list[StagePeak]:
    """The stages' peaks: all of them, or only those that can be the fullest."""
    found = stages_of(s, d)
    if not every:
        found = distinct(found, s.arch.decoder.layout)
    return [stage_peak(s, d, stage) for stage in found]


def runtime_bytes(resolved: Resolved, d: Dims) -> tuple[Int, Int]:
    """(CUDA context, NCCL) in bytes."""
    context = resolved.gpu.context_bytes if resolved.gpu and resolved.gpu.context_bytes else CONTEXT_BYTES
    return context, nccl_bytes(d, resolved.values["pp"])
