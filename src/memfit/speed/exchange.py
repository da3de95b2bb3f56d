"""Gradient and weight collectives of data parallelism, and what computation hides of them."""

from __future__ import annotations

from memfit.formula.dims import Dims
from memfit.formula.setup import Setup
from memfit.formula.sharding import gathered_width, stays_gathered, whole_grads
from memfit.formula.stage import StageModel
from memfit.formula.weights import local
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

    def _beside(self, seconds: Real, one: Real, alone: Real) -> Real:
        """What shows of collectives that run beside the last backward, or the first forward, passes of a step.

        With virtual stages all but one chunk's run beside the passes of the other chunks, of which a pipeline has one
        for each rank in a row.

        Args:
            seconds: the collectives of the whole stage.
            one: seconds of one pass through the stage.
            alone: share of the collectives that no computation can run beside.
        """
        c = self.s.choices
        chunks = max(c.virtual_pp, 1) if c.schedule == "interleaved" else 1
        if chunks == 1:
            return self._shown(seconds, one, seconds * alone)
        passes = least(real(self.d.grad_accum), float(c.pp))
        early = self._shown(seconds * ((chunks - 1) / chunks), one * passes * ((chunks - 1) / chunks), 0.0)
        return early + self._shown(seconds / chunks, one / chunks, seconds * alone)

    def _replicated(self, p: Pipeline) -> Real:
        c, f = self.s.choices, self.m.framework
        once = self._reduce(c.zero)
        # the embedding's gradient and the last bucket are ready when the backward pass ends
        last = real(local(self.s.embedding.trained, self.d) if self.model.stage.first else 0)
        first = last / most(self.dense, 1.0) + 1.0 / self._buckets(float(self.model.grad_width))
        first = least(first, 1.0)
        shown = once if f.ddp == "after" else self._beside(once, p.backward_s, first)
        times = self.d.grad_accum if c.zero == 2 and f.each_micro else 1
        total = shown * times
        if c.zero >= 1:
            refresh = self._refresh()
            total = total + (self._beside(refresh, p.forward_s, first) if f.gather_beside else refresh)
        return total

    def _sharded(self, p: Pipeline) -> Real:
        s, f, fab = self.s, self.m.framework, self.m.fabric
        num, den = gathered_width(self.model, s.decoder.kinds[0])
        outer = real(self.model.outer_weights() if s.sharding.root else self.model.embedding_weights())
        each = (real(self.model.whole()) - real(self.model.outer_weights())) * (num / den) / self.blocks
        number = 1.0
        if f.zero3_by == "tensor":
            number = max((num_tensors(s, self.model) - 3.0) / self.blocks, 1.0)
        gather = self._gather(self.shards, each / number) * number
        # the unit of the embedding is gathered before, and reduced after, everything else
        entry = self._gather(self.shards, outer * float(s.scheme.gathered or s.width))
        width = float(s.scheme.reduce or s.width)
        trained = self.dense + self.expert
        exit_share = outer / most(real(self.model.whole()), 1.0)
        reduce = fab.gather(self.shards, trained * (1.0 - exit_share) * width / self.blocks)
        reduce = reduce + self._of_copies(width) / self.blocks
        leave = self._gather(self.shards, trained * exit_share * width)
        forward, backward = p.forward_s / self.blocks, p.backward_s / self.blocks
        if not f.prefetch:
            forward, backward = forward * 0.0, backward * 0.0
        again = gather if s.choices.reshard else gather * 0.0
        out, into = self._packing(each * self.blocks + outer * float(s.scheme.gathered or s.width), trained, width)
        one = self._shown(gather, forward, 0.0) * self.blocks + gather + entry + out
        if stays_gathered(self.model):  # reduced when the last micro-batch is through
            return one + self._regathered(gather, forward, backward, out) + reduce * self.blocks + leave + into
        back = out if s.choices.reshard else 0.0
        quiet = self._shown(again, backward, 0.0) * self.blocks + back
        busy = self._shown(again + reduce, backward, 0.0) * self.blocks + reduce + leave + into + back
        micro = self.d.grad_accum
        held = micro - 1 if whole_grads(self.model) else 0  # micro-batches after which nothing is reduced
        return one * micro + quiet * held + busy * (micro - held)

    def _regathered(self, gather: Real, forward: Real, backward: Real, out: Real) -> Real:
        """What a pipeline's stage that keeps its weights after a backward pass gathers again, after each forward pass.

        Torch's schedules switch resharding off for the backward pass alone. With 1F1B the backward pass that follows a
        forward pass gathers again, with interleaving the next forward pass of the same chunk.
        """
        if not self.s.choices.reshard:
            return 0.0
        beside = forward if self.s.choices.schedule == "interleaved" else backward
        return (self._shown(gather, beside, 0.0) * self.blocks + out) * self.d.grad_accum

    def _packing(self, gathered: Real, trained: Real, width: float) -> tuple[Real, Real]:
        """Copies of weights out of, and gradients into, the buffer of a unit's collective; nothing runs beside them.

        Args:
            gathered: bytes of all gathered weights.
            trained: parameters whose gradients are reduced, in ``width`` bytes each.
        """
        rate = self.m.rates.stream
        packed = self.m.framework.zero3_by == "block"
        out = gathered * (2.0 * packed / rate)
        into = trained * ((self.model.grad_width + width) * packed / rate)
        return choose(self.shards.size > 1, out, out * 0.0), choose(self.shards.size > 1, into, into * 0.0)

    def _gather(self, g: Group, whole: Real) -> Real:
        return choose(g.size > 1, self.m.fabric.gather(g, whole), 0.0)
