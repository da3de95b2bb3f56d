"""The events of one training step on one pipeline stage, and what is live at each.

Every ``Moment`` is a full account: entry name -> bytes (``int`` or array). The peak is the largest moment. The moments
are those at which the sum can be highest: the loss, its gradient, the backward of the last and the first block of each
kind, the embedding's gradient, the optimizer step.
"""

from __future__ import annotations

from typing import NamedTuple

from memfit.formula.dims import Int, evaluate, highest, maximum, where
from memfit.formula.gradients import gradients
from memfit.formula.kept import (
    cached_copies,
    kept_beside,
    kept_earlier,
    kept_upto,
    pinned_upto,
    tower_tokens,
    window_masks,
)
from memfit.formula.setup import Kind, Split
from memfit.formula.sharding import (
    buckets,
    gathered,
    gathered_at_loss,
    gathered_from,
    prefetched,
    replicas_bucket,
)
from memfit.formula.stage import StageModel
from memfit.formula.states import optimizer_bytes, step_temporaries
from memfit.formula.weights import local
from memfit.ledger.component import Component

ENTRIES: dict[str, tuple[Component, str]] = {
    "weights": ("parameters", "weights"),
    "reference": ("parameters", "reference model"),
    "gathered": ("parameters", "gathered weights"),
    "casts": ("parameters", "autocast weight copies"),
    "grads": ("gradients", "gradients"),
    "left": ("gradients", "gradients that nothing frees"),
    "fresh": ("gradients", "weight gradients of the running block"),
    "master": ("optimizer", "master weights"),
    "states": ("optimizer", "optimizer states"),
    "kept": ("activations", "kept for the backward pass"),
    "block": ("activations", "running block"),
    "logits": ("logits", "logits and loss"),
    "step": ("workspace", "optimizer step temporaries"),
    "cublas": ("workspace", "cuBLAS workspaces"),
    "buckets": ("communication", "reduction buffers"),
    "ddp": ("communication", "data-parallel gradient buckets"),
}
"""Entry -> (component, what it is), in the order a ledger shows them."""


AT_LOGITS = frozenset({"loss", "gradient of the logits"})
"""Moments at which logits exist whole and no layer runs."""


class Moment(NamedTuple):
    """One moment of the step: its name and the bytes of each entry."""

    phase: str
    what: str
    parts: dict[str, Int]

    @property
    def total(self) -> Int:
        """All bytes."""
        total: Int = 0
        for value in self.parts.values():
            total = total + value
        return total


class StepModel:
    """One training step of one stage: the entries that its moments share, and the moments.

    Attributes:
        base: entries that are the same at every moment.
        grads: the gradients that wait.
        kept, copies: running sums over the layers of what they hold, and of autocast's copies of their weights.
        pinned: running sums of what the layers' graphs hold after their backward.
        earlier: what is held for the micro-batches in flight beside the layers of the last.
        gathered: copies of weights while a block runs backward.
        held_logits: logits that the caller of the model holds until the next step's are there.
    """

    def __init__(self, m: StageModel) -> None:
        s, d = m.s, m.d
        self.m = m
        self.grads = gradients(m)
        beside, copied = kept_beside(m)
        self.base = {**self._resident(), "casts": copied}
        self.kept, self.copies = kept_upto(m, s.decoder, m.indices, d.tokens, d.stream_tokens)
        self.pinned = pinned_upto(m)
        self.earlier = kept_earlier(m, self.kept[-1], beside)
        self.gathered = gathered(m, backward=True)
        # a pipeline hands no logits out
        holds = m.stage.last and s.profile.hold_logits and s.loss.held and m.c.pp == 1
        self.held_logits: Int = m.tail_atoms()["V"] * s.logits_width if holds else 0

    def _resident(self) -> dict[str, Int]:
        """What stays on the device through the whole step."""
        m, s, offload = self.m, self.m.s, self.m.c.offload
        weights, _, _ = m.weights_bytes()
        if "parameters" in offload and m.sharded:
            weights = 0
        master, states = optimizer_bytes(m)
        if "optimizer" in offload:
            master, states = 0, 0
        elif s.optimizer.paged:
            states = 0  # unified memory: outside the caching allocator, moved to the host when the card is full
        replaced = m.embedding_weights() * s.width if self._renewed else 0
        return {
            "weights": weights + replaced,
            "left": replaced,
            "reference": m.shard(m.whole(), 0, m.sharded) * s.width if s.reference else 0,
            "master": master,
            "states": states,
            "cublas": 2 * m.c.cublas,  # the forward and the backward thread have a cuBLAS handle each
            "ddp": replicas_bucket(m),
        }

    @property
    def _renewed(self) -> bool:
        """The embedding is replaced by one that trains."""
        return self.m.s.profile.kbit_embedding and self.m.s.style.dequantize

    def moments(self) -> list[Moment]:
        """Every candidate for the peak, in running order."""
        m = self.m
        out: list[Moment] = []
        if m.stage.last:
            out += self._tail()
        out += self._blocks()
        out += self._towers()
        if m.stage.first and (m.s.embedding.trained or self._renewed):
            out += self._embedding()
        if not m.c.in_backward:
            out.append(self._optimizer())
        if not out:  # nothing is trained on this stage and nothing is left to do after the forward pass
            out.append(Moment("forward", "forward pass", {**self.base, "gathered": gathered_at_loss(m)}))
        return out

    # -- norm, head and loss --------------------------------------------------------------------------------------

    def _tail(self) -> list[Moment]:
        m, s, atoms = self.m, self.m.s, self.m.tail_atoms()
        forward, _, head_copy = _fullest(s.tail_forward, atoms)
        backward, fresh, kept_copy = _fullest(s.tail_backward, atoms)
        fresh = fresh if s.scheme.fresh or not s.scheme.fused_accumulation else 0
        # what the caller holds are the logits that the loss works on, or those of the step before
        made = highest(s.head_made, atoms) + self.held_logits if s.head_made else 0
        copies, copied = self.copies[-1], self.base["casts"]
        # the input of the tail is the last block's output, counted once
        kept = self.earlier + self.kept[-1]
        of_head = gathered_at_loss(m)
        return [
            Moment(
                "loss",
                "loss",
                {
                    **self.base,
                    "kept": kept + self.pinned[-1],  # the graph of the step before goes when the loop has a new loss
                    "gathered": of_head,
                    "grads": self.grads.at_forward,
                    "logits": maximum(forward - head_copy, made),
                    "casts": copied + maximum(copies, cached_copies(m)) + head_copy,
                },
            ),
            Moment(
                "backward",
                "gradient of the logits",
                {
                    **self.base,
                    "kept": kept,
                    "gathered": of_head + prefetched(m),
                    "grads": self.grads.at_forward,
                    "fresh": fresh,
                    "logits": backward - fresh - kept_copy + self.held_logits,
                    "casts": copied + copies + kept_copy,
                },
            ),
        ]

    # -- decoder layers -------------------------------------------------------------------------------------------

    def _blocks(self) -> list[Moment]:
        m, tower = self.m, self.m.s.decoder
        alike: dict[tuple[int, bool], list[int]] = {}
        for position, layer in enumerate(m.indices):
            if layer >= tower.first_trained:
                alike.setdefault((m.layout[position], m.is_checkpointed(layer)), []).append(position)
        stays = gathered_from(m)
        out = []
        for (index, checkpointed), places in alike.items():
            kind = tower.kinds[index]
            if (kind.adapted or kind.sends) and not checkpointed and kind.trains:
                out.append(self._forward(kind, places[-1]))
            out += self._block_backward(index, checkpointed, places, stays)
        return out

    def _forward(self, kind: Kind, position: int) -> Moment:
        """A forward pass that can be fuller than any backward: adapters work in fp32 beside each product, the code of
        travelling experts names the rows of each leg of their journey.
        """
        m, s = self.m, self.m.s
        atoms = m.decoder_atoms(kind)
        held = window_masks(m) if s.style.masks else 0
        if m.stage.first and kind.entered is not None:  # a variable of the model's forward
            held = held + atoms["x"] * s.style.residual
        parts = {
            **self.base,
            "kept": self.earlier + self.kept[position] + held,
            "block": highest(kind.program.forward, atoms),
            "grads": self.grads.at_forward,
            "gathered": self.gathered,
        }
        return Moment("forward", f"forward of layer {m.indices[position]}", parts)

    def _block_backward(self, index: int, checkpointed: bool, places: list[int], stays: list[Int]) -> list[Moment]:
        """The backward pass of the last, the last but one and the first of some layers that are alike.

        Args:
            index: their kind.
            checkpointed: they are recomputed.
            places: their positions on the stage.
            stays: copies of weights that are there and stay when the backward pass has come to each position.
        """
        m, s, d, grads = self.m, self.m.s, self.m.d, self.grads
        kind = s.decoder.kinds[index]
        atoms = m.decoder_atoms(kind)
        if grads.always and m.c.training.full and not grads.sharded and not m.sharded:
            # each fresh gradient is added to its buffer at once
            forms = kind.recompute_adding if checkpointed else kind.adding
        else:
            forms = kind.recompute if checkpointed else kind.backward
        working, fresh, copied = _fullest(forms, atoms)
        # context parallelism passes keys and values around a ring: the blocks being used and being received
        ring = where(d.cp > 1, (atoms.get("k", 0) + atoms.get("v", 0)) * 2 * s.width, 0)
        last = len(m.indices) - 1
        out = []
        for position in dict.fromkeys((places[-1], max(places[-1] - 1, places[0]), places[0])):
            # what the unit before has not reduced yet: of the last block that is the head
            pending = grads.blocks[index] if position != last else 0 if s.sharding.root else m.head_weights()
            pinned = self.pinned[-1] - self.pinned[position + (not checkpointed)]
            parts = {
                **self.base,
                "grads": grads.at_block(position),
                "fresh": fresh + grads.waiting,
                "kept": self.earlier + self.kept[position] + pinned,
                "block": working - fresh - copied,
                "gathered": maximum(self.gathered, stays[position]),
                "buckets": buckets(m, pending) + ring,
                "casts": self.base["casts"] + self.copies[position] + copied,
                "logits": self.held_logits,
            }
            out.append(Moment("backward", f"backward of layer {m.indices[position]}", parts))
        return out

    # -- towers, embedding, optimizer -----------------------------------------------------------------------------

    def _towers(self) -> list[Moment]:
        """The backward pass of a tower's first layer, when all later gradients exist."""
        m = self.m
        out = []
        for tower in m.towers:
            tokens = tower_tokens(m, tower)
            kind = tower.kinds[tower.stack.layout[0]]
            if not kind.trains or tower.first_trained or (type(tokens) is int and not tokens):
                continue
            forms = kind.recompute if m.is_checkpointed(0) else kind.backward
            working, fresh, _ = _fullest(forms, m.atoms(tower, kind, tokens, tokens))
            parts = {
                **self.base,
                "grads": 0 if m.c.in_backward else maximum(self.grads.everything - fresh, 0),
                "fresh": fresh,
                "block": working - fresh,
                "logits": self.held_logits,
            }
            out.append(Moment("backward", f"backward of the {tower.stack.name}", parts))
        return out

    def _embedding(self) -> list[Moment]:
        m, s, grads = self.m, self.m.s, self.grads
        width = s.scheme.fresh or s.width
        n = m.embedding_weights() if self._renewed else local(s.embedding.trained, m.d)
        fresh = n * width
        tied = s.arch.tied and m.stage.last
        parts = {
            **self.base,
            "grads": grads.everything,
            "kept": self.pinned[-1],
            "fresh": (fresh if grads.always or grads.sharded else 0) + (fresh if tied else grads.whole_head),
            "block": m.d.tokens * s.arch.hidden_size * (s.width + 4),
            "gathered": self.gathered if s.sharding.max_live else 0,  # freed before the reduction
            "buckets": buckets(m, n + grads.whole_head // width),
            "logits": self.held_logits,
        }
        out = [Moment("backward", "gradient of the embedding", parts)]
        if tied:  # the head's gradient is a transposed view, never added into: the sum is a third tensor
            both = {"fresh": parts["fresh"] + fresh, "block": 0}
            out.append(Moment("backward", "sum of the tied gradients", {**parts, **both}))
        return out

    def _optimizer(self) -> Moment:
        m = self.m
        parts = {
            **self.base,
            "grads": self.grads.reduced,
            "kept": self.pinned[-1],
            "step": step_temporaries(m) if "optimizer" not in m.c.offload else 0,
            "logits": self.held_logits,
        }
        return Moment("optimizer", "optimizer step", parts)


def _fullest(forms: Split, atoms: dict[str, Int]) -> tuple[Int, Int, Int]:
    """(bytes of the largest form, of its weight gradients, of its copies of weights)."""
    top: Int = -1
    parts: tuple[Int, Int] = (0, 0)
    for plain, *others in forms:
        mine = [evaluate(part, atoms) for part in others]
        total = evaluate(plain, atoms) + mine[0] + mine[1]
        higher = total > top
        parts = (where(higher, mine[0], parts[0]), where(higher, mine[1], parts[1]))
        top = where(higher, total, top)
    return top, *parts
