"""One pipeline stage of a training job: the layers it runs, the weights it holds, the sizes of its blocks.

What the other modules add to a stage are functions over a ``StageModel``: ``kept`` (activations), ``sharding`` (copies
and buffers of data parallelism), ``gradients``, ``states`` (the optimizer), ``host`` (what is offloaded). ``step`` puts
them together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from memfit.formula.dims import Dims, Int, block_atoms, cdiv, maximum, minimum
from memfit.formula.roles import SUMS
from memfit.formula.setup import Kind, Setup, Tower
from memfit.formula.weights import UNBOUND, Held, local, num_kv


@dataclass(frozen=True, slots=True)
class Stage:
    """What one pipeline stage runs.

    Attributes:
        index: stage number.
        layers: [start, stop) ranges of decoder layers (several with virtual stages).
        first, last: holds the embedding (and towers), holds the head.
        in_flight, per: micro-batches whose activations are held at the fullest moment, as ``in_flight / per``
            (virtual stages hold fractions of a stage).
    """

    index: int
    layers: tuple[tuple[int, int], ...]
    first: bool
    last: bool
    in_flight: Int
    per: int = 1

    def indices(self) -> list[int]:
        """All layer numbers of the stage."""
        return [i for start, stop in self.layers for i in range(start, stop)]


class Part(NamedTuple):
    """Weights on a stage: of ``number`` equal blocks (``inside``) or of what stands outside the blocks."""

    held: Held
    number: int = 1
    num_kv: int = UNBOUND
    inside: bool = False


class StageModel:
    """One stage of one setup for given dims.

    Attributes:
        s, d, stage: the compiled job, its numeric axes, the stage.
        c: the discrete choices of the job.
        indices: decoder layers of the stage.
        layout: the kind of each of them, as an index into ``s.decoder.kinds``.
        towers: the stacks beside the decoder that stand on this stage.
        ways: ranks that share one sharded copy.
        sharded: the weights themselves are sharded (ZeRO-3).
    """

    def __init__(self, setup: Setup, d: Dims, stage: Stage) -> None:
        self.s = setup
        self.d = d
        self.stage = stage
        self.c = setup.choices
        self.indices = stage.indices()
        self.layout = [setup.decoder.stack.layout[i] for i in self.indices]
        self.towers = setup.towers if stage.first else ()
        self.ways = d.dp_shard * d.cp
        self.sharded = self.c.zero >= 3
        self._atoms: dict[int, dict[str, Int]] = {}
        # worked out when first asked for (a cached_property would cost more than it saves here)
        self._parts: list[Part] | None = None
        self._weights: tuple[Int, Int, Int] | None = None
        self._whole: Int = None
        self._tail: dict[str, Int] | None = None

    # -- weights --------------------------------------------------------------------------------------------------

    def parts(self) -> list[Part]:
        """Everything on the stage."""
        if self._parts is None:
            self._parts = self._list_parts()
        return self._parts

    def _list_parts(self) -> list[Part]:
        s, stage = self.s, self.stage
        out = []
        first = s.decoder.first_trained
        for index, kind in enumerate(s.decoder.kinds):
            mine = [layer for layer, k in zip(self.indices, self.layout, strict=True) if k == index]
            trained = sum(layer >= first for layer in mine)
            if trained:
                out.append(Part(kind.held, trained, num_kv(kind.block), True))
            if len(mine) > trained:
                out.append(Part(kind.idle, len(mine) - trained, num_kv(kind.block), True))
        for tower in self.towers:
            read = tower.stack.num_layers - tower.stack.unread if tower.first_trained == 0 else 0
            counts = (tower.stack.counts(0, read), tower.stack.counts(read))
            for kind, much, rest in zip(tower.kinds, *counts, strict=True):
                pairs = ((kind.held, much), (kind.idle, rest))
                out.extend(Part(weights, number, num_kv(kind.block), True) for weights, number in pairs if number)
            out.append(Part(tower.extra))
        if stage.first:
            out += [Part(s.decoder.extra), Part(s.embedding)]
        if stage.last:
            out += [Part(s.final_norm), Part(s.head)]
            if s.arch.tied and not stage.first:
                out.append(Part(s.embedding))
        return out

    def shard(self, dense: Int, expert: Int, on: bool) -> Int:
        """Elements of one data-parallel shard when these are sharded (``on``), else all.

        Experts are shared by fewer ranks when ep > 1.
        """
        if not on:
            return dense + expert
        return cdiv(dense, self.ways) + cdiv(expert, self.d.expert_copies)

    def weights_bytes(self) -> tuple[Int, Int, Int]:
        """(resident bytes of weights, trained dense elements on the rank, trained expert elements on the rank)."""
        if self._weights is None:
            self._weights = self._count_weights()
        return self._weights

    def _count_weights(self) -> tuple[Int, Int, Int]:
        s, d, c, on = self.s, self.d, self.c, self.sharded
        weight = s.scheme.weight or s.width
        adapter_width = 4 if s.profile.adapter_fp32 and s.width == 2 else s.width
        if c.training.full:
            frozen_width = weight
        else:
            frozen_width = 4 if c.weights == "fp32" else 2 if s.frozen.name not in ("fp32",) else 4
        trained_width = weight if c.training.full else adapter_width
        outer_width = max(frozen_width, s.outer_width if c.training.rank else 0)
        total: Int = 0
        dense: Int = 0
        expert: Int = 0
        for held, number, kv, inside in self.parts():
            td = local(held.trained, d, kv, expert=False) * number
            te = local(held.trained, d, kv, expert=True) * number
            ad = local(held.adapters, d, kv, expert=False) * number
            ae = local(held.adapters, d, kv, expert=True) * number
            total = total + self.shard(td, te, on) * trained_width
            total = total + self.shard(ad, ae, on) * adapter_width
            fd = local(held.frozen, d, kv, expert=False) * number
            fe = local(held.frozen, d, kv, expert=True) * number
            total = total + self.shard(fd, fe, on) * (frozen_width if inside else outer_width)
            qd = local(held.quantised, d, kv, expert=False) * number
            qe = local(held.quantised, d, kv, expert=True) * number
            total = total + s.frozen.bytes_of(self.shard(qd, qe, on))
            dense = dense + td + ad
            expert = expert + te + ae
        return total, dense, expert

    @property
    def trained(self) -> Int:
        """Trained elements on the rank, before sharding."""
        _, dense, expert = self.weights_bytes()
        return dense + expert

    @property
    def grad_width(self) -> int:
        """Bytes per element of the gradients that wait for the optimizer step."""
        if self.c.training.rank and self.s.profile.adapter_fp32:
            return 4
        return self.s.scheme.grad or self.s.width

    def whole(self) -> Int:
        """All weight elements of the stage on its tensor- and expert-parallel rank, without adapters."""
        if self._whole is None:
            self._whole = 0
            for held, number, kv, _ in self.parts():
                self._whole = self._whole + local(held.all, self.d, kv) * number
        return self._whole

    def largest_trained(self) -> Int:
        """Elements of the largest single trained tensor on the rank."""
        best: Int = 0
        for part in self.parts():
            for g in part.held.trained:
                size = cdiv(g.largest, g.tp(self.d))
                best = maximum(best, cdiv(size, self.ways) if self.sharded else size)
        return best

    def block_weights(self, kind: Kind) -> Int:
        """All weight elements of one block on its tensor-parallel rank."""
        return local(kind.held.all, self.d, num_kv(kind.block))

    def block_trained(self, kind: Kind) -> tuple[Int, Int]:
        """(dense, expert) elements of one block that get gradients, adapters among them."""
        parts, kv = (*kind.held.trained, *kind.held.adapters), num_kv(kind.block)
        return local(parts, self.d, kv, expert=False), local(parts, self.d, kv, expert=True)

    def largest_block(self) -> Int:
        """Elements of the largest block on the stage."""
        best: Int = 0
        for index in set(self.layout):
            best = maximum(best, self.block_weights(self.s.decoder.kinds[index]))
        return best

    def outer_weights(self) -> Int:
        """Elements of embedding, norm and head on the stage."""
        total: Int = 0
        if self.stage.first:
            total = total + local(self.s.embedding.all, self.d)
        if self.stage.last:
            total = total + local(self.s.head.all, self.d)
            if self.s.arch.tied and not self.stage.first:
                total = total + local(self.s.embedding.all, self.d)
        return total

    def head_weights(self) -> Int:
        """Elements of the head on the stage."""
        return self._head() if self.stage.last else 0

    def _head(self) -> Int:
        return local((*self.s.head.all, *(self.s.embedding.all if self.s.arch.tied else ())), self.d)

    def embedding_weights(self) -> Int:
        """Elements of the embedding on the stage."""
        return local(self.s.embedding.all, self.d) if self.stage.first else 0

    # -- atoms ----------------------------------------------------------------------------------------------------

    def is_checkpointed(self, layer: int) -> bool:
        """Whether the layer is recomputed in the backward pass."""
        mode = self.c.checkpointing
        if mode == "none":
            return False
        return True if isinstance(mode, str) else layer % mode == mode - 1

    def atoms(self, tower: Tower, kind: Kind, tokens: Int, stream: Int) -> dict[str, Int]:
        """Atoms of one kind of block, weight atoms included."""
        own = id(kind)
        if own not in self._atoms:
            out = block_atoms(kind.block, tower.stack, self.d, tokens, stream)
            out["enc"] = out["x"]
            kv = num_kv(kind.block)
            for group in (*kind.held.trained, *kind.held.frozen, *kind.held.quantised):
                size = group.local(self.d, kv)
                if group in kind.held.trained:
                    for key in (group.key, f"c{group.key[1:]}"):
                        out[key] = out.get(key, 0) + size
                if group.linear:
                    biggest = minimum(size, cdiv(group.largest, group.tp(self.d)))
                    name = f"{group.key}.max"
                    out[name] = maximum(out.get(name, 0), biggest)
                    out["w.max"] = maximum(out.get("w.max", 0), biggest)
                    # transformers holds the experts' gate and up, or down, in one parameter
                    one = f"{group.key}.one"
                    out[one] = maximum(out.get(one, 0), size if group.expert else biggest)
            for whole, names in SUMS.items():
                out[whole] = sum(out.get(name, 0) for name in names)
                out[f"c{whole[1:]}"] = out[whole]
                out[f"{whole}.max"] = maximum(0, *(out.get(f"{name}.max", 0) for name in names))
                ones = [out.get(f"{name}.one", 0) for name in names]
                out[f"{whole}.one"] = sum(ones) if "expert" in whole else maximum(0, *ones)
            self._atoms[own] = out
        return self._atoms[own]

    def decoder_atoms(self, kind: Kind) -> dict[str, Int]:
        """Atoms of one kind of the decoder's blocks."""
        known = self._atoms.get(id(kind))
        return self.atoms(self.s.decoder, kind, self.d.tokens, self.d.stream_tokens) if known is None else known

    def tail_atoms(self) -> dict[str, Int]:
        """Atoms of norm, head and loss."""
        if self._tail is None:
            self._tail = self._count_tail()
        return self._tail

    def _count_tail(self) -> dict[str, Int]:
        d, arch = self.d, self.s.arch
        tokens, stream = d.tokens, d.stream_tokens
        vocab = cdiv(arch.vocab_size, d.tp) if self.s.profile.vocab_parallel else arch.vocab_size
        logits = d.micro_batch * arch.labels if arch.labels else tokens * vocab
        head = self._head()
        return {
            "x": stream * arch.hidden_size,
            "X": tokens * arch.hidden_size,
            "t": stream,
            "T": tokens,
            "V": logits,
            "Vs": self._part_of_logits(logits, vocab),
            "w.head": head,
            "c.head": head,
            "w.head.max": head,
            "Ws": minimum(vocab, self.s.loss.columns or vocab) * arch.hidden_size,
        }

    def _part_of_logits(self, logits: Int, vocab: Int) -> Int:
        loss = self.s.loss
        if loss.across:
            return minimum(self.d.tokens, loss.chunk) * minimum(vocab, loss.columns or vocab)
        if loss.chunk:
            return self.d.micro_batch * minimum(self.d.seq_len, loss.chunk) * vocab
        return cdiv(logits, max(loss.slice, 1))
