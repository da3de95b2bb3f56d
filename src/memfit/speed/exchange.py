"""Gradient and weight collectives of data parallelism, and what computation hides of them."""

from __future__ import annotations

from memfit.formula.dims import Dims
from memfit.formula.setup import Setup
from memfit.formula.step import StageModel
from memfit.speed.block import Machine
from memfit.speed.network import Group
from memfit.speed.numbers import Real, choose, least, most, real
from memfit.speed.step import Pipeline


def num_tensors(s: Setup, model: StageModel) -> float:
    """Parameter tensors of a stage."""
    layout = s.decoder.stack.layout
    return float(sum(len(s.decoder.kinds[layout[i]].block.tensors) for i in model.indices) + 3)


class Exchange:
    """The collectives of one stage's data-parallel ranks."""

    def __init__(self, m: Machine, s: Setup, d: Dims, model: StageModel) -> None:
        self.m, self.s, self.d, self.model = m, s, d, model
        fab, stride = m.fabric, d.tp
        self.everyone = fab.group(d.dp * d.cp, stride)
        self.shards = fab.group(d.dp_shard * d.cp, stride)
        self.copies = fab.group(most(d.dp // d.dp_shard, 1), stride * d.cp * d.dp_shard)
        self.experts = fab.group(most(d.dp * d.cp // d.ep, 1), stride * d.ep)
        _, dense, expert = model.weights_bytes()
        self.dense, self.expert = real(dense), real(expert)
        self.blocks = max(len(model.indices), 1)

    def seconds(self, p: Pipeline) -> Real:
        """Seconds of the step that nothing hides."""
        return self._sharded(p) if self.s.choices.zero >= 3 else self._replicated(p)

    def _shown(self, seconds: Real, beside: Real, least_shown: Real) -> Real:
        """What shows of a collective that runs beside ``beside`` seconds of computation."""
        hidden = least(seconds, beside)
        return most(seconds - beside, least_shown) + hidden * self.m.calibration.interference

    def _reduce(self, zero: int) -> Real:
        """All gradients of the stage, reduced once, a bucket at a time."""
        fab, width = self.m.fabric, float(self.model.grad_width)
        number = self._buckets(width)
        if zero == 0:
            dense = fab.all_reduce(self.everyone, self.dense * width / number) * number
            return dense + self._of_experts(width, 2.0)
        dense = fab.gather(self.shards, self.dense * width / number) * number
        return dense + self._of_copies(width) + self._of_experts(width, 1.0)

    def _buckets(self, width: float) -> Real:
        return most(self.dense * width / self.m.framework.bucket_bytes, 1.0)

    def _refresh(self) -> Real:
        """The updated weights, gathered from their shards after the optimizer step."""
        width = float(self.s.scheme.weight or self.s.width)
        number = self._buckets(width) if self.m.framework.gather_by == "bucket" else num_tensors(self.s, self.model)
        dense = self.m.fabric.gather(self.shards, self.dense * width / number) * number
        return dense + self._of_experts(width, 1.0)

    def _of_copies(self, width: float) -> Real:
        """Between the copies of a sharded model (HSDP)."""
        return self.m.fabric.all_reduce(self.copies, self.dense * width / self.shards.size)

    def _of_experts(self, width: float, passes: float) -> Real:
        if isinstance(self.expert, float) and not self.expert:
            return 0.0
        return self.m.fabric.gather(self.experts, self.expert * width) * passes

    def _replicated(self, p: Pipeline) -> Real:
        c, f = self.s.choices, self.m.framework
        once = self._reduce(c.zero)
        # the last bucket is ready when the backward pass ends
        beside = self._shown(once, p.backward_s, once / (self.blocks + 1))
        shown = once if f.ddp == "after" else beside
        times = self.d.grad_accum if c.zero == 2 and f.each_micro else 1
        total = shown * times
        if c.zero >= 1:
            total = total + self._refresh()
        return total

    def _sharded(self, p: Pipeline) -> Real:
        s, f, fab = self.s, self.m.framework, self.m.fabric
        num, den = self.model.gathered_width(s.decoder.kinds[0])
        each = real(self.model.whole()) * (num / den) / self.blocks
        number = 1.0
        if f.zero3_by == "tensor":
            number = max((num_tensors(s, self.model) - 3.0) / self.blocks, 1.0)
        gather = self._gather(self.shards, each / number) * number
        width = float(s.scheme.reduce or s.width)
        reduce = fab.gather(self.shards, (self.dense + self.expert) * width / self.blocks)
        reduce = reduce + self._of_copies(width) / self.blocks
        forward, backward = p.forward_s / self.blocks, p.backward_s / self.blocks
        if not f.prefetch:
            forward, backward = forward * 0.0, backward * 0.0
        again = gather if s.choices.reshard else gather * 0.0
        one = self._shown(gather, forward, 0.0) * self.blocks + gather
        quiet = self._shown(again, backward, 0.0) * self.blocks
        busy = self._shown(again + reduce, backward, 0.0) * self.blocks + reduce
        micro = self.d.grad_accum
        held = micro - 1 if s.profile.no_sync else 0  # micro-batches after which nothing is reduced
        return one * micro + quiet * held + busy * (micro - held)

    def _gather(self, g: Group, whole: Real) -> Real:
        return choose(g.size > 1, self.m.fabric.gather(g, whole), 0.0)
