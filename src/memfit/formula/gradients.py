"""The gradients of a stage that wait: for the optimizer step, and for one another."""

from __future__ import annotations

from dataclasses import dataclass

from memfit.formula.dims import Int, minimum
from memfit.formula.sharding import whole_grads, whole_head_grads
from memfit.formula.stage import StageModel
from memfit.formula.weights import local


@dataclass(frozen=True, slots=True)
class Gradients:
    """Bytes of gradients on the device.

    Attributes:
        everything: all of them, when the backward pass is through.
        reduced: what is left of them at the optimizer step.
        always: they are there through the whole step: in buffers, or left by earlier micro-batches.
        sharded: each rank keeps its shard of them (ZeRO-2).
        head: of the head.
        after: item i is those of the layers from position i on.
        blocks: trained elements of one block of each kind of the decoder.
        whole_head: of the head, where it waits, whole, for the embedding's to be reduced with it.
        waiting: of the head or of the matrix that it shares with the embedding, while the layers run backward.
    """

    everything: Int
    reduced: Int
    always: bool
    sharded: bool
    head: Int
    after: list[Int]
    blocks: list[Int]
    whole_head: Int
    waiting: Int

    @property
    def at_forward(self) -> Int:
        """Bytes while the forward pass runs."""
        return self.everything if self.always else 0

    def at_block(self, position: int) -> Int:
        """Bytes while the block at this position of the stage runs backward."""
        return self.everything if self.always else minimum(self.head + self.after[position + 1], self.everything)


def gradients(m: StageModel) -> Gradients:
    """The gradients of one stage."""
    s, d, c = m.s, m.d, m.c
    sharded, whole = c.zero >= 2, whole_grads(m)
    everything, reduced = _all(m, sharded=sharded, whole=whole)
    trained = [m.block_trained(kind) for kind in s.decoder.kinds]
    each = [m.shard(dense, expert, sharded) * m.grad_width for dense, expert in trained]
    always = bool(s.scheme.always or c.keep_grads or whole)
    whole_head = whole_head_grads(m)
    waiting: Int = whole_head
    if always and s.arch.tied and m.stage.first and m.stage.last:
        # with gradient buffers in place a tied head's gradient waits for the embedding's
        waiting = local(s.embedding.trained, d) * (s.scheme.fresh or s.width)
    return Gradients(
        everything=everything,
        reduced=reduced,
        always=always,
        sharded=sharded,
        head=_head(m, sharded=sharded),
        after=_after(m, each),
        blocks=[dense + expert for dense, expert in trained],
        whole_head=whole_head,
        waiting=waiting,
    )


def _all(m: StageModel, *, sharded: bool, whole: bool) -> tuple[Int, Int]:
    """(bytes when the backward pass is through, bytes at the optimizer step)."""
    s, c = m.s, m.c
    if c.in_backward:
        return 0, 0
    _, dense, expert = m.weights_bytes()
    reduced = m.shard(dense, expert, sharded) * m.grad_width
    everything = reduced
    if whole:  # in the dtype in which they will be reduced
        width = m.grad_width if c.training.rank else s.scheme.reduce or s.width
        everything = m.shard(dense, expert, False) * width
    if "gradients" in c.offload or ("optimizer" in c.offload and sharded):
        # reduced ones go to the host as they appear; what accumulates whole stays on the card
        return everything if whole else 0, 0
    return everything, reduced


def _head(m: StageModel, *, sharded: bool) -> Int:
    if not m.stage.last:
        return 0
    n = local(m.s.head.trained, m.d)
    if m.s.arch.tied:
        n = n + local(m.s.embedding.trained, m.d)
    return m.shard(n, 0, sharded) * m.grad_width


def _after(m: StageModel, each: list[Int]) -> list[Int]:
    after: list[Int] = [0] * (len(m.indices) + 1)
    for position in range(len(m.indices) - 1, -1, -1):
        trained = m.indices[position] >= m.s.decoder.first_trained
        after[position] = after[position + 1] + (each[m.layout[position]] if trained else 0)
    return after
