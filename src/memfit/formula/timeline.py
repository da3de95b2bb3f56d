"""A step as a timeline: the layer programs played in running order, every allocation and free of one rank.

The closed form in ``step.py`` looks at the moments where the peak can stand; this plays the whole step, so that the
allocator can be simulated over it. Sizes are those of one job; weights are allocated tensor by tensor.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from memfit.formula import profile as profiles
from memfit.formula.dims import Dims
from memfit.formula.profile import Dtype
from memfit.formula.roles import SUMS, tensor_atom
from memfit.formula.setup import Kind, Setup, Tower
from memfit.formula.sharding import gathered_width
from memfit.formula.stage import Stage, StageModel
from memfit.formula.tape import Step
from memfit.ledger import Component, Event, Timeline
from memfit.models.architecture import Tensor

COMPUTE, GATHER, REDUCE = 0, 1, 2
_NAMES = {2: "bf16", 4: "fp32"}


@dataclass(slots=True)
class Running:
    """A micro-batch between its forward and its backward: what each layer and the tail hold, and its last output."""

    live: dict[int, dict[int, tuple[int, int]]]
    tail: dict[int, tuple[int, int]]
    x: tuple[int, int]


class Player:
    """Plays training steps of one stage and collects events."""

    def __init__(self, setup: Setup, d: Dims, stage: Stage) -> None:
        self.s = setup
        self.d = d
        self.m = StageModel(setup, d, stage)
        self.stage = stage
        self.c = setup.choices
        self.sharded = self.c.zero >= 3 and self.m.ways > 1
        self.events: list[Event] = []
        self.next = 0
        self.grads: dict[Any, tuple[int, int]] = {}
        self.states: list[int] = []
        self.whole: list[int] = []
        self.trained: list[int] = []
        self.phase = "load"
        self.gathered: dict[int, list[tuple[int, int, int]]] = {}
        self.root: tuple[int, int] | None = None
        self.held: tuple[int, int] | None = None
        self.stream_size = int(d.stream_tokens * setup.arch.hidden_size * setup.style.residual)

    # -- primitives -----------------------------------------------------------------------------------------------

    def alloc(self, size: int, component: Component, what: str = "", module: str = "", stream: int = COMPUTE) -> int:
        """Allocate and give the block's id."""
        self.next += 1
        if size:  # an event without bytes is a mark
            self.events.append(Event(self.next, size, component, self.phase, module, what, stream))
        return self.next

    def free(self, block: int, size: int, component: Component = "activations", stream: int = COMPUTE) -> None:
        """Free a block."""
        if size:
            self.events.append(Event(block, -size, component, self.phase, "", "", stream))

    def split(self, tensor: Tensor) -> int:
        """Elements of one tensor on its tensor- and expert-parallel rank."""
        ways = self.d.tp if tensor.tp_dim is not None else 1
        return -(-math.prod(tensor.shape) // ways)

    def copies(self, tensor: Tensor) -> int:
        """Tensors of this kind on the rank."""
        return -(-tensor.count // self.d.ep) if tensor.expert else tensor.count

    def _trains(self, tensor: Tensor, layer: int) -> bool:
        how = self.c.training
        return layer >= self.s.decoder.first_trained if how.last_layers else how.trains(tensor)

    def _width(self, tensor: Tensor, *, trained: bool, inside: bool) -> Dtype:
        """Storage of one tensor."""
        s = self.s
        if self.c.training.full:
            return profiles.dtype(_NAMES[s.scheme.weight or s.width])
        if trained:
            return profiles.dtype(_NAMES[4 if s.profile.adapter_fp32 and s.width == 2 else s.width])
        outer = tensor.part in ("head", "embedding") and not s.profile.quantize_head
        if s.frozen.keep16 == "none" or (tensor.linear and not outer):
            return s.frozen
        return profiles.dtype(_NAMES[2 if inside or not self.c.training.rank else s.outer_width])

    # -- weights --------------------------------------------------------------------------------------------------

    def load(self) -> None:
        """Weights of the stage, tensor by tensor."""
        s = self.s
        for tensors, layer, inside in self._owned():
            for t in tensors:
                if t.buffer:
                    continue
                n = self.split(t)
                trained = self._trains(t, layer)
                bytes_each = self._width(t, trained=trained, inside=inside).bytes_of(n)
                if self.sharded:
                    bytes_each = -(-bytes_each // self.m.ways)
                for _ in range(self.copies(t)):
                    self.alloc(bytes_each, "parameters", t.name)
                    if trained:
                        self.whole.append(n)
        if self.c.training.rank:
            _, dense, expert = self.m.weights_bytes()
            count = max(1, len(self.m.indices) * 14)
            each = (dense + expert) // count
            for _ in range(count):
                self.alloc(each * 4, "parameters", "adapter")
                self.whole.append(each)
        ways = self.m.ways if self.c.zero >= 1 else 1
        self.trained = [-(-n // ways) for n in self.whole]
        if s.scheme.always:
            self.alloc(sum(self.whole) * s.scheme.grad, "gradients", "accumulation buffer")
        if s.profile.bucket and self.c.zero < 2 and self.d.dp > 1:
            width = s.scheme.fresh if s.scheme.always else (s.scheme.grad or s.width)
            self.alloc(sum(self.whole) * width, "communication", "gradient buckets")

    def _owned(self) -> Iterable[tuple[tuple[Tensor, ...], int, bool]]:
        """(tensors, decoder layer or -1, inside blocks) of everything on the stage."""
        s = self.s
        if self.stage.first:
            yield s.arch.embeddings, -1, False
            for tower in s.arch.towers:
                for kind in tower.layout:
                    yield tower.blocks[kind].tensors, -1, True
                yield tower.extra, -1, False
        stack = s.decoder.stack
        for layer in self.m.indices:
            yield stack.blocks[stack.layout[layer]].tensors, layer, True
        yield stack.extra, -1, False
        if self.stage.last:
            yield s.arch.final_norm, -1, False
            yield s.arch.head, -1, False
            if s.arch.tied and not self.stage.first:
                yield s.arch.embeddings, -1, False

    # -- programs -------------------------------------------------------------------------------------------------

    def play(self, lines: Iterable[Step], atoms: dict[str, int], live: dict[int, tuple[int, int]], layer: int) -> None:
        """Run one script; ``live`` maps keys to (block, bytes) across the scripts of a layer."""
        module = f"layers.{layer}" if layer >= 0 else "head"
        for line in lines:
            if line.weight:
                self._weight_gradient(line, layer)
                continue
            size = atoms.get(line.atom, 0) * line.width
            if size <= 0:
                continue
            if line.sign > 0:
                component: Component = "logits" if line.atom in ("V", "Vs") else "activations"
                if line.atom.startswith("c."):
                    component = "parameters"
                live[line.key] = (self.alloc(size, component, line.atom, module), size)
            elif line.key in live:
                block, size = live.pop(line.key)
                self.free(block, size)

    def _weight_gradient(self, line: Step, layer: int) -> None:
        if layer < 0:
            tied = self.s.arch.tied
            tensors: tuple[Tensor, ...] = self.s.arch.embeddings[:1] if tied else self.s.arch.head
            unit = -2 if tied and self.stage.first else layer  # one matrix, one gradient
        else:
            block = self.s.decoder.stack.blocks[self.s.decoder.stack.layout[layer]]
            atoms = SUMS.get(line.atom, (line.atom,))
            tensors = tuple(t for t in block.tensors if tensor_atom(t) in atoms and self._trains(t, layer))
            unit = layer
        width = line.width
        for t in tensors:
            n = self.split(t)
            for index in range(self.copies(t)):
                key = (unit, t.name, index)
                size = n * width
                if key in self.grads or self.s.scheme.always:
                    block_id = self.alloc(size, "gradients", "weight gradient")
                    self.free(block_id, size)
                else:
                    self.grads[key] = (self.alloc(size, "gradients", t.name), size)

    def _reduce(self, layer: int | tuple[int, ...], pending: list[tuple[int, int]]) -> None:
        """Reduce-scatter of a unit's gradients: copy into a flat buffer, scatter, free the whole gradients."""
        s = self.s
        mine = [k for k in self.grads if k[0] in (layer if isinstance(layer, tuple) else (layer,)) and k[1] != "shard"]
        if not mine:
            return
        elements = sum(self.grads[k][1] // max(s.scheme.fresh or s.width, 1) for k in mine)
        for block, size in pending:
            self.free(block, size, "communication")
        pending.clear()
        width = s.scheme.reduce or s.width
        stream = REDUCE if s.sharding.flat_on_reduce else COMPUTE
        flat = self.alloc(elements * width, "communication", "reduce-scatter input", stream=stream)
        for k in mine:
            self.free(*self.grads.pop(k))
        pending.append((flat, elements * width))
        key = (layer, "shard", 0)
        size = -(-elements // self.m.ways) * (s.scheme.grad or s.width)
        fresh = self.alloc(size, "gradients", "gradient shard", stream=REDUCE)
        if key in self.grads:
            self.free(fresh, size, "gradients", REDUCE)
        else:
            self.grads[key] = (fresh, size)

    # -- the step -------------------------------------------------------------------------------------------------

    def step(self, *, steps: int = 2) -> Timeline:
        """Load, then ``steps`` optimizer steps with a few micro-batches each, in 1F1B order on a pipeline."""
        self.load()
        flights = max(1, self.stage.in_flight // self.stage.per)
        extra = 0 if self.d.grad_accum == 1 else 1
        for _ in range(steps):
            waiting = [self.forward() for _ in range(flights)]
            for _ in range(extra):
                self.backward(waiting.pop(0))
                waiting.append(self.forward())
            while waiting:
                self.backward(waiting.pop(0))
            self.optimizer()
        return Timeline(tuple(self.events))

    def _atoms(self, tower: Tower, kind: Kind) -> dict[str, int]:
        return self.m.atoms(tower, kind, self.d.tokens, self.d.stream_tokens)

    def _gather(self, layer: int, gathered: dict[int, list[tuple[int, int, int]]]) -> None:
        """All-gather of one block: where it copies, a flat buffer on the gather stream, then the unsharded weights."""
        if not self.sharded or layer in gathered:
            return
        kind = self.s.decoder.kinds[self.s.decoder.stack.layout[layer]]
        num, den = gathered_width(self.m, kind)
        size = int(self.m.block_weights(kind)) * num // den
        gathered[layer] = [(self._all_gather(size, f"layers.{layer}"), size, COMPUTE)]

    def _all_gather(self, size: int, module: str) -> int:
        if not self.s.sharding.copy_in:  # flat parameters are views of the gathered buffer
            return self.alloc(size, "parameters", "gathered weights", module)
        flat = self.alloc(size, "communication", "all-gather output", module, GATHER)
        out = self.alloc(size, "parameters", "gathered weights", module)
        self.free(flat, size, "communication", GATHER)
        return out

    def _gather_outer(self, elements: int) -> tuple[int, int]:
        size = elements * (self.s.scheme.gathered or self.s.width)
        return self._all_gather(size, "outer"), size

    def _reshard(self, layer: int, gathered: dict[int, list[tuple[int, int, int]]]) -> None:
        for block, size, stream in gathered.pop(layer, []):
            self.free(block, size, "parameters", stream)

    def forward(self) -> Running:
        """The forward pass of one micro-batch up to the loss."""
        s, order = self.s, self.m.indices
        tower = s.decoder
        run = Running({}, {}, (0, 0))
        gathered = self.gathered
        self.phase = "forward"
        if self.sharded and self.root is None:
            self.root = self._gather_outer(int(self.m.outer_weights()))
        stream_size = self.stream_size
        x = (self.alloc(stream_size, "activations", "embedding"), stream_size)
        for layer in order:
            self._gather(layer, gathered)
            kind = tower.kinds[tower.stack.layout[layer]]
            atoms = self._atoms(tower, kind)
            checkpointed = self.m.is_checkpointed(layer)
            program = kind.program
            mine: dict[int, tuple[int, int]] = {}
            if self._idle(layer):
                x = self._pass(program.scripts["first"], atoms, x, program.output, layer)
                if self.c.reshard:
                    self._reshard(layer, gathered)
                continue
            run.live[layer] = mine
            self.play(program.scripts["first" if checkpointed else "forward"], atoms, mine, layer)
            if checkpointed or program.keeps_stream:
                mine[program.stream] = x
            else:
                self.free(*x)
            out = mine.pop(program.output, None)
            x = out if out is not None else (self.alloc(stream_size, "activations", "output"), stream_size)
            if self.c.reshard:
                self._reshard(layer, gathered)
        run.x = x
        self.phase = "loss"
        if self.stage.last:
            atoms = self.m.tail_atoms()
            self.play(s.tail.scripts["forward"], atoms, run.tail, -1)
            if s.profile.hold_logits and s.loss.held and self.c.pp == 1:
                size = int(atoms["V"]) * s.logits_width
                if self.held:
                    self.free(*self.held)
                self.held = (self.alloc(size, "logits", "logits held by the caller"), size)
        return run

    def _idle(self, layer: int) -> bool:
        """Whether the layer keeps nothing for the backward pass."""
        tower = self.s.decoder
        return layer < tower.first_trained or not tower.kinds[tower.stack.layout[layer]].trains

    def _pass(
        self, lines: Iterable[Step], atoms: dict[str, int], x: tuple[int, int], output: int, layer: int
    ) -> tuple[int, int]:
        """The forward pass of a layer that keeps nothing; gives its output."""
        mine: dict[int, tuple[int, int]] = {}
        self.play(lines, atoms, mine, layer)
        out = mine.pop(output, None) or (self.alloc(self.stream_size, "activations", "output"), self.stream_size)
        for block, size in (*mine.values(), x):
            self.free(block, size)
        return out

    def backward(self, run: Running) -> None:
        """The backward pass of one micro-batch."""
        s, order = self.s, self.m.indices
        tower, gathered, stream_size = s.decoder, self.gathered, self.stream_size
        self.phase = "backward"
        if self.stage.last:
            self.play(s.tail.scripts["backward"], self.m.tail_atoms(), run.tail, -1)
        gradient = (self.alloc(stream_size, "activations", "gradient"), stream_size)
        self.free(*run.x)
        for block, size in run.tail.values():
            self.free(block, size)
        pending: list[tuple[int, int]] = []
        together = s.sharding.root
        if self.sharded and not together:
            self._reduce(-1, pending)
        for layer in reversed(order):
            if self._idle(layer):
                self._reshard(layer, gathered)
                continue
            self._gather(layer, gathered)
            kind = tower.kinds[tower.stack.layout[layer]]
            checkpointed = self.m.is_checkpointed(layer)
            program = kind.program
            mine = run.live.pop(layer)
            self.play(program.scripts["again" if checkpointed else "backward"], self._atoms(tower, kind), mine, layer)
            self.free(*gradient)
            gradient = (self.alloc(stream_size, "activations", "gradient"), stream_size)
            for block, size in mine.values():
                self.free(block, size)
            self._reshard(layer, gathered)
            if self.sharded:
                self._reduce(layer, pending)
        self.free(*gradient)
        if self.stage.first and s.embedding.trained:
            self._embedding_gradient()
        if self.sharded:
            self._reduce((-1, -2) if together else -2, pending)
        for block, size in pending:
            self.free(block, size, "communication")
        if self.root:
            self.free(*self.root)
            self.root = None

    def _embedding_gradient(self) -> None:
        s = self.s
        for t in s.arch.embeddings:
            size = self.split(t) * (s.scheme.fresh or s.width)
            key = (-2, t.name, 0)
            fresh = self.alloc(size, "gradients", t.name)
            if key not in self.grads and not s.scheme.always:
                self.grads[key] = (fresh, size)
            elif key in self.grads and s.arch.tied:
                # the head's gradient is a transposed view and is not added into: a sum is made beside both
                both = self.alloc(size, "gradients", t.name)
                self.free(*self.grads[key])
                self.free(fresh, size)
                self.grads[key] = (both, size)
            else:
                self.free(fresh, size)

    def optimizer(self) -> None:
        """The optimizer step; the first one makes the states."""
        s = self.s
        self.phase = "optimizer"
        state = s.scheme.state or s.width
        if self.c.training.rank and s.profile.adapter_fp32:
            state = 4
        if not self.states and "optimizer" not in self.c.offload:
            for n in self.trained:
                if s.scheme.master:
                    self.states.append(self.alloc(n * s.scheme.master, "optimizer", "master"))
                for _ in range(s.optimizer.slots):
                    size = n * s.optimizer.bits // 8 if s.optimizer.bits else n * state
                    self.states.append(self.alloc(max(size, 1), "optimizer", "state"))
            self.states.append(-1)
        impl = self.c.optimizer_impl or s.profile.optimizer_impl
        if impl == "foreach" and s.optimizer.slots == 2 and not s.optimizer.bits:
            temporaries = [(self.alloc(n * state, "workspace", "foreach"), n * state) for n in self.trained]
            for block, size in temporaries:
                self.free(block, size, "workspace")
        for (layer, name, _), (block, size) in self.grads.items():
            self.free(block, size, "gradients", REDUCE if name == "shard" and layer is not None else COMPUTE)
        self.grads.clear()


def play(setup: Setup, d: Dims, stage: Stage, *, steps: int = 2) -> Timeline:
    """The timeline of ``steps`` training steps on one stage."""
    return Player(setup, d, stage).step(steps=steps)
