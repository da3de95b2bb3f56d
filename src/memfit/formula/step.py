"""The events of one training step on one pipeline stage, and what is live at each.

Every ``Moment`` is a full account: entry name -> bytes (``int`` or array). The peak is the largest moment. The moments
are those at which the sum can be highest: the loss, its gradient, the backward of the last and the first block of each
kind, the embedding's gradient, the optimizer step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from memfit.formula.dims import Dims, Int, block_atoms, cdiv, evaluate, highest, maximum, minimum, where
from memfit.formula.profile import Optimizer
from memfit.formula.roles import SUMS
from memfit.formula.setup import Kind, Setup, Split, Tower, split_form
from memfit.formula.weights import Held, local, num_kv
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


class StageModel:
    """Evaluates one stage of one setup for given dims."""

    def __init__(self, setup: Setup, d: Dims, stage: Stage) -> None:
        self.s = setup
        self.d = d
        self.stage = stage
        self.c = setup.choices
        self.sharded = self.c.zero >= 3
        self._atoms: dict[int, dict[str, Int]] = {}
        self._weights: tuple[Int, Int, Int] | None = None
        self._towers = setup.towers if stage.first else ()
        self.indices = stage.indices()
        self._kinds = [setup.decoder.stack.layout[i] for i in self.indices]
        self.ways = d.dp_shard * d.cp

    # -- elements -------------------------------------------------------------------------------------------------

    def _held(self) -> list[tuple[Held, int, int, bool]]:
        """(weights, how many times, kv heads, inside blocks) of everything on the stage."""
        out = []
        first = self.s.decoder.first_trained
        for index, kind in enumerate(self.s.decoder.kinds):
            mine = [layer for layer, k in zip(self.indices, self._kinds, strict=True) if k == index]
            trained = sum(layer >= first for layer in mine)
            if trained:
                out.append((kind.held, trained, num_kv(kind.block), True))
            if len(mine) > trained:
                out.append((kind.idle, len(mine) - trained, num_kv(kind.block), True))
        for tower in self._towers:
            read = tower.stack.num_layers - tower.stack.unread if tower.first_trained == 0 else 0
            counts = (tower.stack.counts(0, read), tower.stack.counts(read))
            for kind, much, rest in zip(tower.kinds, *counts, strict=True):
                pairs = ((kind.held, much), (kind.idle, rest))
                out.extend((weights, number, num_kv(kind.block), True) for weights, number in pairs if number)
            out.append((tower.extra, 1, 1 << 30, False))
        if self.stage.first:
            out.append((self.s.decoder.extra, 1, 1 << 30, False))
            out.append((self.s.embedding, 1, 1 << 30, False))
        if self.stage.last:
            out.append((self.s.final_norm, 1, 1 << 30, False))
            out.append((self.s.head, 1, 1 << 30, False))
            if self.s.arch.tied and not self.stage.first:
                out.append((self.s.embedding, 1, 1 << 30, False))
        return out

    def _shard(self, elements: Int, expert: Int, on: bool) -> Int:
        """Elements of one shard when the axis shards this (``on``), else all."""
        if not on:
            return elements + expert
        return cdiv(elements, self.ways) + cdiv(expert, maximum(self.ways // self.d.ep, 1))

    def weights_bytes(self) -> tuple[Int, Int, Int]:
        """(resident bytes of weights, trained dense elements on the rank, trained expert elements on the rank)."""
        if self._weights is None:
            self._weights = self._count_weights()
        return self._weights

    def _count_weights(self) -> tuple[Int, Int, Int]:
        w, d = self.s.width, self.d
        weight = self.s.scheme.weight or w
        adapter_width = 4 if self.s.profile.adapter_fp32 and self.s.width == 2 else w
        if self.c.training.full:
            frozen_width = weight
        else:
            frozen_width = 4 if self.c.weights == "fp32" else 2 if self.s.frozen.name not in ("fp32",) else 4
        total: Int = 0
        dense: Int = 0
        expert: Int = 0
        for held, number, kv, inside in self._held():
            td = local(held.trained, d, kv, expert=False) * number
            te = local(held.trained, d, kv, expert=True) * number
            ad = local(held.adapters, d, kv, expert=False) * number
            ae = local(held.adapters, d, kv, expert=True) * number
            trained_width = weight if self.c.training.full else adapter_width
            total = total + self._shard(td, te, self.sharded) * trained_width
            total = total + self._shard(ad, ae, self.sharded) * adapter_width
            fd = local(held.frozen, d, kv, expert=False) * number
            fe = local(held.frozen, d, kv, expert=True) * number
            width = frozen_width if inside else max(frozen_width, self.s.outer_width if self.c.training.rank else 0)
            total = total + self._shard(fd, fe, self.sharded) * width
            qd = local(held.quantised, d, kv, expert=False) * number
            qe = local(held.quantised, d, kv, expert=True) * number
            total = total + self.s.frozen.bytes_of(self._shard(qd, qe, self.sharded))
            dense = dense + td + ad
            expert = expert + te + ae
        return total, dense, expert

    # -- activations ----------------------------------------------------------------------------------------------

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
                    biggest = minimum(size, cdiv(group.largest, self.d.tp if group.split else 1))
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

    def _mask(self, kind: Kind) -> Int:
        """Bytes of the mask that a kind of block with a window is given."""
        return self.atoms(self.s.decoder, kind, self.d.tokens, self.d.stream_tokens).get("M", 0)

    def is_checkpointed(self, layer: int) -> bool:
        """Whether the layer is recomputed in the backward pass."""
        mode = self.c.checkpointing
        if mode == "none":
            return False
        return True if isinstance(mode, str) else layer % mode == mode - 1

    def layer_kept(self, tower: Tower, layer: int, tokens: Int, stream: Int) -> tuple[Int, Int]:
        """(bytes, autocast's copies of weights) that one layer holds between its forward and its backward."""
        kind = tower.kinds[tower.stack.layout[layer]]
        if layer < tower.first_trained or not kind.trains or "activations" in self.c.offload:
            return 0, 0
        checkpointed = self.is_checkpointed(layer)
        form = kind.program.checkpoint if checkpointed else kind.program.kept
        if layer == 0 and kind.entered is not None:
            form = kind.entered
        atoms = self.atoms(tower, kind, tokens, stream)
        kept, _, copies = split_form(form)
        # the hooks of a non-reentrant checkpoint do not see what a node's attributes name
        pinned = evaluate(kind.program.pinned, atoms) if checkpointed and self.s.profile.loop_graph else 0
        return evaluate(kept, atoms) + pinned, evaluate(copies, atoms)

    def pinned_upto(self, tokens: Int, stream: Int) -> list[Int]:
        """Running sums of what the layers' graphs hold after their backward."""
        tower = self.s.decoder
        sums: list[Int] = [0]
        for layer, index in zip(self.indices, self._kinds, strict=True):
            kind = tower.kinds[index]
            on = self.s.profile.loop_graph and kind.trains and layer >= tower.first_trained
            form = kind.program.pinned if on else {}
            sums.append(sums[-1] + evaluate(form, self.atoms(tower, kind, tokens, stream)) if form else sums[-1])
        return sums

    def kept_upto(self, tower: Tower, layers: list[int], tokens: Int, stream: Int) -> tuple[list[Int], list[Int]]:
        """Running sums of ``layer_kept``: item i is what the layers before position i hold."""
        cache: dict[tuple[int, bool, bool], tuple[Int, Int]] = {}
        sums: tuple[list[Int], list[Int]] = ([0], [0])
        for layer in layers:
            key = (tower.stack.layout[layer], self.is_checkpointed(layer), layer == 0)
            if layer < tower.first_trained:
                found: tuple[Int, Int] = (0, 0)
            else:
                if key not in cache:
                    cache[key] = self.layer_kept(tower, layer, tokens, stream)
                found = cache[key]
            for side, value in zip(sums, found, strict=True):
                side.append(side[-1] + value)
        return sums

    # -- optimizer ------------------------------------------------------------------------------------------------

    def _owned(self, dense: Int, expert: Int) -> Int:
        """Elements whose optimizer states the fullest rank keeps."""
        n = self._shard(dense, expert, self.c.zero >= 1)
        if self.c.zero == 1 and self.s.profile.whole_tensors:
            n = maximum(n, self.largest_trained())
        return n

    def optimizer_bytes(self, dense: Int, expert: Int) -> tuple[Int, Int]:
        """(master weights, states) in bytes on the rank."""
        sch, on = self.s.scheme, self.c.zero >= 1
        n = self._owned(dense, expert)
        adapters = self.c.training.rank > 0
        state = 4 if adapters and self.s.profile.adapter_fp32 else (sch.state or self.s.width)
        master = 0 if adapters and self.s.profile.adapter_fp32 and not on else n * sch.master
        inside, whole = self.s.matrix
        opt = self.s.optimizer
        if opt.matrix_only and self.c.training.full:
            matrices = portion(n, inside, whole)
            if self.s.projected:
                projected = portion(n, self.s.projected, whole)
                return master, projected * state + slots(self.s.rest, n - matrices, state)
            return master, slots(opt, matrices, state) + slots(self.s.rest, n - matrices, state)
        return master, slots(opt, n, state)

    def step_temporaries(self, dense: Int, expert: Int) -> Int:
        """Bytes that live only inside the optimizer step."""
        n = self._owned(dense, expert)
        opt, sch = self.s.optimizer, self.s.scheme
        state = sch.state or self.s.width
        temp: Int = 0
        impl = self.c.optimizer_impl or self.s.profile.optimizer_impl
        if impl == "foreach" and opt.slots == 2 and not opt.bits:
            temp = n * state
        if opt.largest_temp or impl == "loop":
            temp = temp + self.largest_trained() * 4 * max(opt.largest_temp, 1)
        if sch.step_grad:
            part = minimum(n, self.s.sharding.sub_group) if self.s.sharding.sub_group and self.sharded else n
            temp = temp + part * sch.step_grad
        return temp

    def largest_trained(self) -> Int:
        """Elements of the largest single trained tensor on the rank."""
        best: Int = 0
        for held, _, _, _ in self._held():
            for g in held.trained:
                size = cdiv(g.largest, self.d.tp if g.split else 1)
                best = maximum(best, cdiv(size, self.ways) if self.sharded else size)
        return best

    # -- communication --------------------------------------------------------------------------------------------

    def block_weights(self, kind: Kind) -> Int:
        """All weight elements of one block on its tensor-parallel rank."""
        return local(kind.held.all, self.d, num_kv(kind.block))

    def largest_block(self) -> Int:
        """Elements of the largest block on the stage."""
        best: Int = 0
        for index in set(self._kinds):
            best = maximum(best, self.block_weights(self.s.decoder.kinds[index]))
        return best

    def outer_weights(self) -> Int:
        """Elements of embedding, norm and head on the stage."""
        total: Int = 0
        if self.stage.first:
            total = total + local(self.s.embedding.all, self.d, 1 << 30)
        if self.stage.last:
            total = total + local(self.s.head.all, self.d, 1 << 30)
            if self.s.arch.tied and not self.stage.first:
                total = total + local(self.s.embedding.all, self.d, 1 << 30)
        return total

    def head_weights(self) -> Int:
        """Elements of the head on the stage."""
        parts = (*self.s.head.all, *(self.s.embedding.all if self.s.arch.tied else ()))
        return local(parts, self.d, 1 << 30) if self.stage.last else 0

    def gathered_width(self, kind: Kind | None = None) -> tuple[int, int]:
        """(numerator, denominator) of bytes per gathered element; frozen quantised weights gather as stored."""
        if kind is not None and kind.held.quantised:
            return self.s.frozen.num, 8 * self.s.frozen.den
        return (self.s.scheme.gathered or self.s.width), 1

    def gathered(self, all_weights: Int, *, backward: bool) -> Int:
        """Bytes of gathered copies under ZeRO-3 while a block runs."""
        if not self.sharded:
            return 0
        sh = self.s.sharding
        num, den = self.gathered_width(self.s.decoder.kinds[0])
        if sh.max_live:
            live = minimum(all_weights, sh.max_live) * num // den
        else:
            units = sh.live_units + (sh.copy_in if not backward else 0)
            live = self.largest_block() * units * num // den
            outer = self.outer_weights() if sh.root else (0 if backward else self.head_weights())
            live = live + outer * (self.s.scheme.gathered or self.s.width)
            if not self.c.reshard:
                live = maximum(live, all_weights * num // den)
        return where(self.ways > 1, live, 0)

    def _prefetched(self) -> Int:
        """Bytes of the last block's copy: the backward pass asks for it as it starts, before the logits' gradient."""
        sh = self.s.sharding
        if not self.sharded or sh.max_live or not sh.live_units or not self.c.reshard or not self._kinds:
            return 0
        num, den = self.gathered_width(self.s.decoder.kinds[0])
        return where(self.ways > 1, self.block_weights(self.s.decoder.kinds[self._kinds[-1]]) * num // den, 0)

    def _gathered_from(self) -> list[Int]:
        """Bytes of the copies that have been gathered, and stay, once the backward pass has come to each block."""
        if not self.stays_gathered:
            return [0] * len(self._kinds)
        num, den = self.gathered_width(self.s.decoder.kinds[0])
        outer = self.outer_weights() if self.s.sharding.root else self.head_weights()
        each = {k: self.block_weights(self.s.decoder.kinds[k]) for k in set(self._kinds)}
        total = outer * (self.s.scheme.gathered or self.s.width)
        out: list[Int] = []
        for kind in reversed(self._kinds):
            total = total + each[kind] * num // den
            out.append(where(self.ways > 1, total, 0))
        return out[::-1]

    def gathered_at_loss(self, all_weights: Int) -> Int:
        """Bytes of gathered copies while the loss runs: the blocks are freed, the unit of the head is not."""
        sh = self.s.sharding
        if not self.sharded or sh.max_live or not self.c.reshard:
            return self.gathered(all_weights, backward=False)
        outer = self.outer_weights() if sh.root else self.head_weights()
        return where(self.ways > 1, outer * (self.s.scheme.gathered or self.s.width), 0)

    def whole_head_grads(self) -> Int:
        """Bytes of the head's gradient where it waits, whole, for the embedding's: they are one unit."""
        if not self.sharded or not self.s.sharding.root or not self.stage.last:
            return 0
        tied = self.s.embedding.trained if self.s.arch.tied else ()
        n = local((*self.s.head.trained, *tied), self.d, 1 << 30)
        return where(self.ways > 1, n * (self.s.scheme.fresh or self.s.width), 0)

    def buckets(self, trained: Int, block: Int) -> Int:
        """Bytes of gradient buckets and reduction inputs while a block of ``block`` trained elements runs backward."""
        sh, sch = self.s.sharding, self.s.scheme
        out: Int = 0
        if self.sharded and sh.reduce_units:
            width = sch.reduce or self.s.width
            out = where(self.ways > 1, block * width * sh.reduce_units, 0)
        if self.c.zero in (1, 2) and sh.bucket_elements:
            out = out + where(self.d.dp > 1, minimum(trained, sh.bucket_elements) * 2, 0)
        return out

    def host_bytes(self) -> Int:
        """Pinned host memory that offloading takes on this rank."""
        offload = self.c.offload
        if not offload and not self.s.optimizer.paged:
            return 0
        weights, dense, expert = self.weights_bytes()
        total: Int = 0
        if self.s.optimizer.paged and "optimizer" not in offload:
            total = total + self.optimizer_bytes(dense, expert)[1]
        if "optimizer" in offload:
            master, states = self.optimizer_bytes(dense, expert)
            total = total + master + states + self._shard(dense, expert, self.c.zero >= 1) * 4
        if "gradients" in offload:
            total = total + self._shard(dense, expert, self.c.zero >= 2) * (self.s.scheme.grad or self.s.width)
        if "parameters" in offload and self.sharded:
            total = total + weights
        if "activations" in offload:
            total = total + self.offloaded_activations()
        return total

    def offloaded_activations(self) -> Int:
        """Bytes that one micro-batch sends to the host when activations are offloaded."""
        total: Int = 0
        tower = self.s.decoder
        for layer in self.indices:
            kind = tower.kinds[tower.stack.layout[layer]]
            atoms = self.atoms(tower, kind, self.d.tokens, self.d.stream_tokens)
            form = kind.program.checkpoint if self.is_checkpointed(layer) else kind.program.kept
            total = total + evaluate(form, atoms)
        return total

    def stream_pools(self) -> Int | None:
        """Peaks of the gather and reduce streams under FSDP, None where one stream serves all.

        All-gather outputs live on the gather stream, reduced gradient shards on the reduce stream. FSDP2 makes the
        inputs of reductions on the compute stream (_fsdp_collectives), DeepSpeed and FSDP1 on the reduce stream.
        """
        sh, sch = self.s.sharding, self.s.scheme
        if not self.sharded or not sh.reduce_units:
            return None
        width = sch.gathered or self.s.width
        outer = self.outer_weights() if sh.root else maximum(self.head_weights(), self.embedding_weights())
        unit = maximum(self.largest_block(), outer)
        # an all-gather's buffer is given back when the next one has been waited for: two exist at once
        gather = (unit + self.largest_block()) * width if sh.copy_in else 0
        _, dense, expert = self.weights_bytes()
        shards = self._shard(dense, expert, True) * self.grad_width
        if "gradients" in self.c.offload or "optimizer" in self.c.offload:
            shards = 0
        flat = unit * (sch.reduce or self.s.width) if sh.flat_on_reduce and self.c.training.full else 0
        return where(self.ways > 1, gather + shards + flat, 0)

    def embedding_weights(self) -> Int:
        """Elements of the embedding on the stage."""
        return local(self.s.embedding.all, self.d, 1 << 30) if self.stage.first else 0

    @property
    def grad_width(self) -> int:
        """Bytes per element of the gradients that wait for the optimizer step."""
        if self.c.training.rank and self.s.profile.adapter_fp32:
            return 4
        return self.s.scheme.grad or self.s.width

    @property
    def whole_grads(self) -> bool:
        """Gradients of a sharded run accumulate whole: nothing is reduced between micro-batches."""
        c, profile = self.c, self.s.profile
        return self.sharded and ((profile.no_sync and c.accumulates) or self.stays_gathered)

    @property
    def stays_gathered(self) -> bool:
        """A stage of a pipeline keeps what it has gathered until the last micro-batch."""
        return self.sharded and self.s.profile.pp_no_sync and self.c.pp > 1

    def _whole(self, dense: Int, expert: Int) -> Int:
        """Bytes of whole gradients, in the dtype in which they will be reduced."""
        width = self.grad_width if self.c.training.rank else self.s.scheme.reduce or self.s.width
        return self._shard(dense, expert, False) * width

    def replicas_bucket(self, trained: Int) -> Int:
        """Bytes of the gradient buckets that replicated data parallelism keeps during the whole step."""
        sch = self.s.scheme
        if not self.s.profile.bucket or self.c.zero >= 2:
            return 0
        width = sch.fresh if sch.always else (sch.grad or self.s.width)
        return where(self.d.dp > 1, trained * width, 0)

    # -- the step -------------------------------------------------------------------------------------------------

    def moments(self) -> list[Moment]:
        """Every candidate for the peak, in running order."""
        s, d, c, sch = self.s, self.d, self.c, self.s.scheme
        tokens, stream = d.tokens, d.stream_tokens
        weights, dense, expert = self.weights_bytes()
        trained = dense + expert
        master, states = self.optimizer_bytes(dense, expert)
        grad_width = self.grad_width
        shard_grads = c.zero >= 2
        reduced_grads = self._shard(dense, expert, shard_grads) * grad_width
        all_grads = self._whole(dense, expert) if self.whole_grads else reduced_grads
        if c.in_backward:
            all_grads = reduced_grads = 0
        elif "gradients" in c.offload:  # the reduced ones; what accumulates whole stays on the card
            reduced_grads = 0
            all_grads = all_grads if self.whole_grads else 0
        if "optimizer" in c.offload:
            master, states = 0, 0
            if shard_grads:
                reduced_grads = 0  # they go to the host as they appear
                all_grads = all_grads if self.whole_grads else 0
        elif s.optimizer.paged:
            states = 0  # unified memory: outside the caching allocator, moved to the host when the card is full
        whole = self.whole()
        if "parameters" in c.offload and self.sharded:
            weights = 0
        renewed = s.profile.kbit_embedding and s.style.dequantize
        replaced = self.embedding_weights() * s.width if renewed else 0
        base: dict[str, Int] = {
            "weights": weights + replaced,
            "left": replaced,
            "reference": self._shard(whole, 0, self.sharded) * s.width if s.reference else 0,
            "master": master,
            "states": states,
            "cublas": self._cublas(),
            "ddp": self.replicas_bucket(trained),
            "casts": 0,
        }
        ends = [s.entry] if self.stage.first else []
        tower_kept: Int = 0
        for tower, leave in zip(self._towers, s.exits, strict=False):
            per = d.micro_batch * (d.images * tower.stack.tokens if tower.stack.tokens else d.seq_len)
            kept, copied = self.kept_upto(tower, list(range(tower.stack.num_layers - tower.stack.unread)), per, per)
            tower_kept = tower_kept + kept[-1]
            base["casts"] = base["casts"] + copied[-1]
            if leave:
                ends += [leave, s.entry]
        if s.style.masks and c.checkpointing != "none":  # the mask of the windows is an argument of each layer
            tower_kept = tower_kept + maximum(0, *(self._mask(k) for k in s.decoder.kinds))
        if s.decoder.kinds[-1].block.code.position_bias and c.checkpointing != "none":
            # arguments of each layer: the bias of each stack with its lookup, zeros for the cross attention
            bias = self.atoms(s.decoder, s.decoder.kinds[-1], tokens, stream)
            tower_kept = tower_kept + bias["P"] * 4 * s.width + bias["SS"] * 8
        for end in ends:
            tower_kept = tower_kept + evaluate(end.kept, self.tail_atoms())
        sums, copies = self.kept_upto(s.decoder, self.indices, tokens, stream)
        whole_kept = sums[-1]
        pinned = self.pinned_upto(tokens, stream)
        flights, per = self.stage.in_flight, self.stage.per
        earlier = cdiv(whole_kept * maximum(flights - per, 0), per) + tower_kept * maximum(cdiv(flights, per), 1)
        always = sch.always or c.keep_grads or self.whole_grads
        held_logits: Int = 0
        out: list[Moment] = []
        forward_gather, backward_gather = self.gathered_at_loss(whole), self.gathered(whole, backward=True)
        head_whole = self.whole_head_grads()
        resident_forward = all_grads if always else 0
        if self.stage.last:
            kept = earlier + whole_kept
            gathers = forward_gather, forward_gather + self._prefetched()
            held_logits, moments = self._tail_moments(base, kept, copies[-1], gathers, resident_forward, pinned[-1])
            out += moments
        head_grads = self._head_grads(shard_grads, grad_width)
        out += self._block_moments(
            base, sums, copies, pinned, earlier, backward_gather, all_grads, head_grads, held_logits, always, trained
        )
        out += self._tower_moments(base, all_grads, held_logits)
        if self.stage.first and (s.embedding.trained or renewed):
            n = self.embedding_weights() if renewed else local(s.embedding.trained, d, 1 << 30)
            fresh = n * (sch.fresh or s.width)
            tied = s.arch.tied and self.stage.last
            parts = {
                **base,
                "grads": all_grads,
                "kept": pinned[-1],
                "fresh": (fresh if (always or shard_grads) else 0) + (fresh if tied else head_whole),
                "block": tokens * s.arch.hidden_size * (s.width + 4),
                "gathered": backward_gather if s.sharding.max_live else 0,  # freed before the reduction
                "buckets": self.buckets(trained, n + head_whole // (sch.fresh or s.width)),
                "logits": held_logits,
            }
            out.append(Moment("backward", "gradient of the embedding", parts))
            if tied:  # the head's gradient is a transposed view, never added into: the sum is a third tensor
                both = {"fresh": parts["fresh"] + fresh, "block": 0}
                out.append(Moment("backward", "sum of the tied gradients", {**parts, **both}))
        if not c.in_backward:
            out.append(
                Moment(
                    "optimizer",
                    "optimizer step",
                    {
                        **base,
                        "grads": reduced_grads,
                        "kept": pinned[-1],
                        "step": self.step_temporaries(dense, expert) if "optimizer" not in c.offload else 0,
                        "logits": held_logits,
                    },
                )
            )
        if not out:  # nothing is trained on this stage and nothing is left to do after the forward pass
            out.append(Moment("forward", "forward pass", {**base, "gathered": forward_gather}))
        return out

    def whole(self) -> Int:
        """All weight elements of the stage on its tensor- and expert-parallel rank."""
        total: Int = 0
        for held, number, kv, _ in self._held():
            total = total + local(held.all, self.d, kv) * number
        return total

    def _cublas(self) -> int:
        return 2 * self.c.cublas  # the forward and the backward thread have a cuBLAS handle each

    def _copies(self) -> Int:
        """Copies of the weights of all blocks, which autocast's cache holds until the forward ends."""
        total: Int = 0
        for index in set(self._kinds):
            kind = self.s.decoder.kinds[index]
            atoms = self.atoms(self.s.decoder, kind, self.d.tokens, self.d.stream_tokens)
            total = total + evaluate(split_form(kind.program.kept)[2], atoms) * self._kinds.count(index)
        return total

    def _head_grads(self, sharded: bool, width: int) -> Int:
        if not self.stage.last:
            return 0
        n = local(self.s.head.trained, self.d, 1 << 30)
        if self.s.arch.tied:
            n = n + local(self.s.embedding.trained, self.d, 1 << 30)
        return self._shard(n, 0, sharded) * width

    def tail_atoms(self) -> dict[str, Int]:
        """Atoms of norm, head and loss."""
        d, arch = self.d, self.s.arch
        tokens, stream = d.tokens, d.stream_tokens
        vocab = cdiv(arch.vocab_size, d.tp) if self.s.profile.vocab_parallel else arch.vocab_size
        logits = d.micro_batch * arch.labels if arch.labels else tokens * vocab
        head = local((*self.s.head.all, *(self.s.embedding.all if arch.tied else ())), d, 1 << 30)
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
        }

    def _part_of_logits(self, logits: Int, vocab: Int) -> Int:
        loss = self.s.loss
        if loss.chunk:
            return self.d.micro_batch * minimum(self.d.seq_len, loss.chunk) * vocab
        return cdiv(logits, max(loss.slice, 1))

    def _tail_moments(
        self, base: dict[str, Int], kept: Int, copies: Int, gathers: tuple[Int, Int], grads: Int, pinned: Int
    ) -> tuple[Int, list[Moment]]:
        s = self.s
        atoms = self.tail_atoms()
        # a pipeline hands no logits out
        holds = s.profile.hold_logits and s.loss.held and self.c.pp == 1
        held: Int = atoms["V"] * s.logits_width if holds else 0
        forward, _, head_copy = best(s.tail_forward, atoms)
        backward, fresh, kept_copy = best(s.tail_backward, atoms)
        fresh = fresh if s.scheme.fresh or not s.scheme.fused_accumulation else 0
        # the input of the tail is the last block's output, counted once
        common = {**base, "kept": kept}
        made = highest(s.head_made, atoms) + held if s.head_made else 0
        # what the caller holds are the logits that the loss works on, or those of the step before
        return held, [
            Moment(
                "loss",
                "loss",
                {
                    **common,
                    "gathered": gathers[0],
                    "kept": kept + pinned,  # the graph of the step before goes when the loop has a new loss
                    "grads": grads,
                    "logits": maximum(forward - head_copy, made),
                    "casts": base["casts"] + maximum(copies, self._copies()) + head_copy,
                },
            ),
            Moment(
                "backward",
                "gradient of the logits",
                {
                    **common,
                    "gathered": gathers[1],
                    "grads": grads,
                    "fresh": fresh,
                    "logits": backward - fresh - kept_copy + held,
                    "casts": base["casts"] + copies + kept_copy,
                },
            ),
        ]

    def _block_moments(
        self,
        base: dict[str, Int],
        sums: list[Int],
        copies: list[Int],
        pinned: list[Int],
        earlier: Int,
        gathered: Int,
        all_grads: Int,
        head_grads: Int,
        held_logits: Int,
        always: bool,
        trained: Int,
    ) -> list[Moment]:
        s, d, c, sch = self.s, self.d, self.c, self.s.scheme
        tower = s.decoder
        positions: dict[tuple[int, bool], list[int]] = {}
        for position, layer in enumerate(self.indices):
            if layer >= tower.first_trained:
                positions.setdefault((tower.stack.layout[layer], self.is_checkpointed(layer)), []).append(position)
        out = []
        shard_grads = c.zero >= 2
        grad_width = self.grad_width
        per_kind = []
        for kind in tower.kinds:
            kv = num_kv(kind.block)
            td = local((*kind.held.trained, *kind.held.adapters), d, kv, expert=False)
            te = local((*kind.held.trained, *kind.held.adapters), d, kv, expert=True)
            per_kind.append((td + te, self._shard(td, te, shard_grads) * grad_width))
        after, stays = self._grads_after(per_kind), self._gathered_from()
        # with gradient buffers in place a tied head's gradient waits for the embedding's
        waiting: Int = self.whole_head_grads()
        if always and s.arch.tied and self.stage.first and self.stage.last:
            waiting = local(s.embedding.trained, d, 1 << 30) * (sch.fresh or s.width)
        for (index, checkpointed), places in positions.items():
            kind = tower.kinds[index]
            atoms = self.atoms(tower, kind, d.tokens, d.stream_tokens)
            if kind.adapted and not checkpointed and kind.trains:
                # adapters work in fp32 beside each product: the last forward can be fuller than any backward
                parts = {**base, "kept": earlier + sums[places[-1]], "block": highest(kind.program.forward, atoms)}
                held = maximum(0, *(self._mask(k) for k in tower.kinds)) if s.style.masks else 0
                if self.stage.first and kind.entered is not None:  # a variable of the model's forward
                    held = held + atoms["x"] * s.style.residual
                parts["kept"] = parts["kept"] + held
                parts |= {"grads": all_grads if always else 0, "gathered": gathered}
                out.append(Moment("forward", f"forward of layer {self.indices[places[-1]]}", parts))
            if always and c.training.full and not shard_grads and not self.sharded:
                # each fresh gradient is added to its buffer at once
                forms = kind.recompute_adding if checkpointed else kind.adding
            else:
                forms = kind.recompute if checkpointed else kind.backward
            working, fresh, copied = best(forms, atoms)
            block_elements = per_kind[index][0]
            # context parallelism passes keys and values around a ring: the blocks being used and being received
            ring = where(d.cp > 1, (atoms.get("k", 0) + atoms.get("v", 0)) * 2 * s.width, 0)
            last = len(self.indices) - 1
            for position in dict.fromkeys((places[-1], max(places[-1] - 1, places[0]), places[0])):
                # what the unit before has not reduced yet: of the last block that is the head
                pending = block_elements if position != last else 0 if s.sharding.root else self.head_weights()
                grads = all_grads if always else minimum(head_grads + after[position + 1], all_grads)
                if c.in_backward:
                    grads = 0
                out.append(
                    Moment(
                        "backward",
                        f"backward of layer {self.indices[position]}",
                        {
                            **base,
                            "grads": grads,
                            "fresh": fresh + waiting,
                            "kept": earlier + sums[position] + pinned[-1] - pinned[position + (not checkpointed)],
                            "block": working - fresh - copied,
                            "gathered": maximum(gathered, stays[position]),
                            "buckets": self.buckets(trained, pending) + ring,
                            "casts": base["casts"] + copies[position] + copied,
                            "logits": held_logits,
                        },
                    )
                )
        return out

    def _tower_moments(self, base: dict[str, Int], all_grads: Int, held_logits: Int) -> list[Moment]:
        """The backward pass of a tower's first layer, when all later gradients exist."""
        out = []
        for tower in self._towers:
            tokens = self.d.micro_batch * (self.d.images * tower.stack.tokens if tower.stack.tokens else self.d.seq_len)
            kind = tower.kinds[tower.stack.layout[0]]
            if not kind.trains or tower.first_trained or (type(tokens) is int and not tokens):
                continue
            forms = kind.recompute if self.is_checkpointed(0) else kind.backward
            working, fresh, _ = best(forms, self.atoms(tower, kind, tokens, tokens))
            parts = {
                **base,
                "grads": 0 if self.c.in_backward else maximum(all_grads - fresh, 0),
                "fresh": fresh,
                "block": working - fresh,
                "logits": held_logits,
            }
            out.append(Moment("backward", f"backward of the {tower.stack.name}", parts))
        return out

    def _grads_after(self, per_kind: list[tuple[Int, Int]]) -> list[Int]:
        after: list[Int] = [0] * (len(self.indices) + 1)
        for position in range(len(self.indices) - 1, -1, -1):
            trained = self.indices[position] >= self.s.decoder.first_trained
            after[position] = after[position + 1] + (per_kind[self._kinds[position]][1] if trained else 0)
        return after


def portion(elements: Int, part: int, whole: int) -> Int:
    """``elements * part / whole``; the share is taken in 2**-20 so that arrays of 64-bit numbers hold the product."""
    return elements * ((part << 20) // whole) // (1 << 20)


def slots(opt: Optimizer, elements: Int, state: int) -> Int:
    """Bytes of an optimizer's state slots for ``elements`` trained elements."""
    if opt.bits:
        per = cdiv(elements * opt.bits, 8) + (cdiv(elements, opt.block) * 4 if opt.block else 0)
        return per * opt.slots
    return elements * state * opt.slots


def best(forms: Split, atoms: dict[str, Int]) -> tuple[Int, Int, Int]:
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
